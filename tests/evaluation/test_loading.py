"""Which network is evaluated, with which settings, and what is refused in one clear line."""

import pytest
import torch
from torch import nn

from ard_fast.data import load_dataset
from ard_fast.evaluation.loading import load_model
from ard_fast.evaluation.settings import resolve_settings
from ard_fast.models import build_model
from ard_fast.training.checkpoint import save_weights
from ard_fast.training.config import TrainConfig
from ard_fast.training.run_folder import RunFolder

MODULE = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 11))

def broken():
    raise RuntimeError("no such weights")

def number():
    return 3
"""


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of somebody else, with factories."""
    name = f"others_{abs(hash(str(tmp_path)))}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "models.py").write_text(MODULE)
    (tmp_path / name / "bad.py").write_text("import does_not_exist\n")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def run_folder(path, **changes):
    """The folder of a finished run, as far as an evaluation looks at it."""
    path.mkdir()
    folder = RunFolder(path)
    folder.start(TrainConfig(dataset="digits", student="digits-student", method="at", eps=0.15, **changes))
    torch.manual_seed(5)
    network = build_model("digits-student")
    save_weights(folder.best, network, name="digits-student", num_classes=10, in_channels=1)
    save_weights(folder.last, build_model("digits-student"), name="digits-student", num_classes=10, in_channels=1)
    return network


def settings(**flags):
    return resolve_settings({name: str(value) for name, value in flags.items()})


# ---- networks -----------------------------------------------------------------------------------------------------


def test_a_run_and_its_checkpoint_are_the_same_network(tmp_path, digits):
    network = run_folder(tmp_path / "run")
    folder = load_model(tmp_path / "run", None, digits)
    file = load_model(tmp_path / "run" / "best.safetensors", None, digits)
    assert same(folder.network, network) and same(file.network, network)
    assert folder.name == "digits-student" and folder.file == file.file
    assert not same(load_model(tmp_path / "run" / "last.safetensors", None, digits).network, network)


def test_a_factory_alone_and_with_weights(tmp_path, digits, package):
    from safetensors.torch import save_file

    made = load_model(None, f"{package}.models:make", digits)
    assert isinstance(made.network, nn.Sequential) and made.network.training and made.file is None
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    torch.save(other.state_dict(), tmp_path / "other.pt")
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    for name in ("other.pt", "other.safetensors"):
        loaded = load_model(tmp_path / name, f"{package}.models:make", digits)
        assert same(loaded.network, other) and loaded.file == tmp_path / name


@pytest.mark.parametrize(
    ("source", "model", "message"),
    [
        (None, "{}.bad:make", "model: cannot import .*No module named 'does_not_exist'"),
        (None, "{}.models:broken", r"broken\(\) failed \(RuntimeError: no such weights\)"),
        (None, "{}.models:number", "must return a torch.nn.Module, got int"),
        (None, "digits-teacher", "needs a checkpoint"),
        ("w.pt", None, r"run: .*does not say which network it is; name it with --model"),
        ("w.pt", "{}.models:wide", r"run: .*w\.pt does not fit .*:wide with 10 classes: .*size mismatch"),
        ("run", "digits-teacher", "model: .* holds 'digits-student', not 'digits-teacher'"),
    ],
)
def test_networks_that_are_refused(tmp_path, digits, package, source, model, message):
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict(), tmp_path / "w.pt")
    run_folder(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        load_model(source and tmp_path / source, model and model.format(package), digits)


# ---- settings -----------------------------------------------------------------------------------------------------


def test_settings_come_from_the_run_unless_they_are_given(tmp_path):
    run = tmp_path / "run"
    run_folder(run, eval_batch_size=77, test_subset=50, subset=60)
    made = settings(run=run)
    assert (made.dataset, made.eps, made.batch_size, made.norm) == ("digits", 0.15, 77, "linf")
    assert (made.split, made.n_examples, made.seed) == ("test", 50, 1234567)
    assert made.curve == (0.0, *(factor * 0.15 for factor in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)))
    assert made.attacks is None and made.out == run / "evaluation"
    assert settings(run=run, split="train").n_examples == 60  # those it was trained on
    inside = settings(run=run / "last.safetensors")
    assert inside.eps == 0.15 and inside.out == run / "last-evaluation"
    other = settings(run=run, split="val", eps="8/255", eps_curve="1/255, 0,1/255", mean="0.5,0.25", std="1")
    assert other.n_examples is None and other.eps == 8 / 255 and other.curve == (0.0, 1 / 255)
    assert (other.mean, other.std) == ((0.5, 0.25), (1.0,))
    assert settings(run=run, norm="l2", eps="1.5").curve[-1] == 3.0
    assert max(settings(run=run, eps="0.6").curve) == pytest.approx(0.9)  # 1.2 is no radius of pixels in [0, 1]
    assert settings(run=run, eps_curve="none").curve == ()


def test_results_never_overwrite_others(tmp_path):
    run_folder(tmp_path / "run")
    for expected in ("evaluation", "evaluation-2", "evaluation-3"):
        out = settings(run=tmp_path / "run").out
        assert out.name == expected
        out.mkdir()
        (out / "results.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"out: .* already holds an evaluation"):
        settings(run=tmp_path / "run", out=out)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "run: expected the folder of a run"),
        ({"run": "{0}/none"}, "run: no such folder or file"),
        ({"run": "{0}"}, "is not the folder of a run"),
        ({"run": "{0}/loose.pt"}, r"dataset: .*loose\.pt is not part of a run, so name one with --dataset"),
        ({"model": "a.b:c"}, "dataset: a.b:c is not part of a run"),
        ({"model": "a.b:c", "dataset": "digits", "data_dir": "d"}, "data_dir: expected none for digits.*--dataset"),
        ({"model": "a.b:c", "dataset": "digitz"}, "unknown dataset 'digitz'; did you mean 'digits'"),
        ({"run": "{0}/run", "eps": "8"}, r"eps: expected 0 to 1, .*\(8/255, not 8\), got 8"),
        ({"run": "{0}/run", "eps": "8/0"}, "eps: expected a number"),
        ({"run": "{0}/run", "eps": "nan"}, "eps: expected"),
        ({"run": "{0}/run", "norm": "l2"}, "eps: --norm l2 needs --eps"),
        ({"run": "{0}/run", "norm": "l1"}, "norm: unknown value 'l1'"),
        ({"run": "{0}/run", "split": "tset"}, "split: unknown value 'tset'; did you mean 'test'"),
        ({"run": "{0}/run", "attacks": "clean,pdg20"}, "attacks: unknown attack 'pdg20'; did you mean 'pgd20'"),
        ({"run": "{0}/run", "attacks": ","}, "attacks: expected names"),
        ({"run": "{0}/run", "eps_curve": "0,x"}, "eps_curve: expected a number such as 8/255"),
        ({"run": "{0}/run", "eps_curve": "0,2"}, r"eps_curve: expected 0 to 1, .*got 2"),
        ({"run": "{0}/run", "eps_curve": ","}, "eps_curve: expected radii"),
        ({"run": "{0}/run", "n_examples": "0"}, "n_examples: expected at least 1, got 0"),
        ({"run": "{0}/run", "batch_size": "1.5"}, "batch_size: expected a whole number"),
        ({"run": "{0}/run", "seed": "-1"}, "seed: expected at least 0, got -1"),
        ({"run": "{0}/run", "mean": "0.5"}, "mean: mean and std go together"),
        ({"run": "{0}/run", "mean": "0.5", "std": "0"}, "std: expected a number for each channel.* got '0"),
        ({"run": "{0}/run", "channels_last": "yes"}, "channels_last: unknown value 'yes'"),
    ],
)
def test_settings_that_are_refused(tmp_path, flags, message):
    run_folder(tmp_path / "run")
    (tmp_path / "loose.pt").write_bytes(b"")
    with pytest.raises((ValueError, OSError), match=message):
        resolve_settings({key: value.format(tmp_path) for key, value in flags.items()})
