"""Which network is evaluated, with which settings, and what is refused in one clear line."""

import os

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
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 11))

def broken():
    raise RuntimeError("no such weights")

def number():
    return 3

ready = make()
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


# ---- networks -----------------------------------------------------------------------------------------------------


def test_a_run_and_its_checkpoint_are_the_same_network(tmp_path, digits):
    network = run_folder(tmp_path / "run")
    folder = load_model(tmp_path / "run", None, digits)
    file = load_model(tmp_path / "run" / "best.safetensors", None, digits)
    assert same(folder.network, network) and same(file.network, network)
    assert folder.name == "digits-student" and folder.sha256 == file.sha256 and len(folder.sha256) == 64
    assert load_model(tmp_path / "run" / "last.safetensors", None, digits).sha256 != folder.sha256


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickle_of_tensors(tmp_path, digits, wrapped):
    network = build_model("digits-teacher")
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "weights.pt")
    loaded = load_model(tmp_path / "weights.pt", "digits-teacher", digits)
    assert same(loaded.network, network) and not loaded.network.training
    with pytest.raises(ValueError, match=r"run: .*does not say which network it is; name it with --model"):
        load_model(tmp_path / "weights.pt", None, digits)


def test_a_pickle_that_runs_code_is_refused(tmp_path, digits, package):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    for model in ("digits-teacher", f"{package}.models:make"):
        with pytest.raises(ValueError, match=r"run: cannot read .*evil\.pt"):
            load_model(tmp_path / "evil.pt", model, digits)
    assert not (tmp_path / "ran").exists()


def test_a_factory_alone_and_with_weights(tmp_path, digits, package):
    from safetensors.torch import save_file

    made = load_model(None, f"{package}.models:make", digits)
    assert isinstance(made.network, nn.Sequential) and made.network.training and made.weights is None
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    torch.save(other.state_dict(), tmp_path / "other.pt")
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    for name in ("other.pt", "other.safetensors"):
        loaded = load_model(tmp_path / name, f"{package}.models:make", digits)
        assert same(loaded.network, other) and loaded.weights == tmp_path / name
    assert isinstance(load_model(None, f"{package}.models:ready", digits).network, nn.Module)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.models:make", "model: cannot import 'nowhere.models'"),
        ("{}.bad:make", "model: cannot import .*No module named 'does_not_exist'"),
        ("{}.models:mak", "has no 'mak'; did you mean .*models:make"),
        ("{}.models:broken", r"broken\(\) failed \(RuntimeError: no such weights\)"),
        ("{}.models:number", "must return a torch.nn.Module, got int"),
        ("digits-teecher", "did you mean 'digits-teacher'"),
        ("digits-teacher", "needs a checkpoint"),
    ],
)
def test_factories_that_do_not_work(digits, package, path, message):
    with pytest.raises(ValueError, match=message):
        load_model(None, path.format(package), digits)


def test_weights_that_do_not_fit(tmp_path, digits, package):
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"run: .*w\.pt does not fit .*:wide with 10 classes: .*size mismatch"):
        load_model(tmp_path / "w.pt", f"{package}.models:wide", digits)
    with pytest.raises(ValueError, match=r"run: .*w\.pt does not fit digits-teacher"):
        load_model(tmp_path / "w.pt", "digits-teacher", digits)
    run_folder(tmp_path / "run")
    with pytest.raises(ValueError, match=r"model: .* holds 'digits-student', not 'digits-teacher'"):
        load_model(tmp_path / "run", "digits-teacher", digits)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"run: .* is not a safetensors file"):
        load_model(tmp_path / "junk.safetensors", "digits-teacher", digits)


# ---- settings -----------------------------------------------------------------------------------------------------


def test_a_run_says_what_it_was(tmp_path):
    run_folder(tmp_path / "run", eval_batch_size=77, test_subset=50)
    settings = resolve_settings({"run": str(tmp_path / "run")})
    assert (settings.dataset, settings.eps, settings.batch_size, settings.norm) == ("digits", 0.15, 77, "linf")
    assert settings.n_examples == 50 and settings.split == "test"
    assert settings.curve == (0.0, *(factor * 0.15 for factor in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)))
    assert settings.out == tmp_path / "run" / "evaluation"
    run_folder(tmp_path / "part", subset=60)
    assert (
        resolve_settings({"run": str(tmp_path / "part"), "split": "train"}).n_examples == 60
    )  # those it was trained on
    inside = resolve_settings({"run": str(tmp_path / "run" / "last.safetensors")})
    assert inside.eps == 0.15 and inside.out == tmp_path / "run" / "last-evaluation"
    other = resolve_settings({"run": str(tmp_path / "run"), "split": "val", "eps": "8/255", "eps_curve": "0, 1/255"})
    assert other.n_examples is None and other.eps == 8 / 255 and other.curve == (0.0, 1 / 255)


def test_results_never_overwrite_others(tmp_path):
    run_folder(tmp_path / "run")
    for expected in ("evaluation", "evaluation-2", "evaluation-3"):
        out = resolve_settings({"run": str(tmp_path / "run")}).out
        assert out.name == expected
        out.mkdir()
        (out / "results.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"out: .* already holds an evaluation"):
        resolve_settings({"run": str(tmp_path / "run"), "out": str(out)})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "run: expected the folder of a run"),
        ({"run": "{0}/none"}, "run: no such folder or file"),
        ({"run": "{0}"}, "is not the folder of a run"),
        ({"run": "{0}/loose.pt"}, r"dataset: .*loose\.pt is not part of a run, so name one with --dataset"),
        ({"model": "a.b:c"}, "dataset: a.b:c is not part of a run"),
        ({"model": "a.b:c", "dataset": "digitz"}, "unknown dataset 'digitz'; did you mean 'digits'"),
        ({"run": "{0}/run", "eps": "8"}, r"eps: expected 0 to 1, .*\(8/255, not 8\), got 8"),
        ({"run": "{0}/run", "eps": "8/0"}, "eps: expected a number such as 8/255"),
        ({"run": "{0}/run", "eps": "nan"}, "eps: expected 0 to 1"),
        ({"run": "{0}/run", "norm": "l2"}, "eps: --norm l2 needs --eps"),
        ({"run": "{0}/run", "norm": "l1"}, "norm: unknown value 'l1'"),
        ({"run": "{0}/run", "split": "tset"}, "split: unknown value 'tset'; did you mean 'test'"),
        ({"run": "{0}/run", "attacks": "clean,pdg20"}, "attacks: unknown attack 'pdg20'; did you mean 'pgd20'"),
        ({"run": "{0}/run", "attacks": ","}, "attacks: expected names"),
        ({"run": "{0}/run", "eps_curve": "0,x"}, "eps_curve: expected a number such as 8/255"),
        ({"run": "{0}/run", "n_examples": "0"}, "n_examples: expected a whole number of at least 1, got '0'"),
        ({"run": "{0}/run", "batch_size": "1.5"}, "batch_size: expected a whole number"),
        ({"run": "{0}/run", "seed": "-1"}, "seed: expected a whole number of at least 0"),
    ],
)
def test_settings_that_are_refused(tmp_path, flags, message):
    run_folder(tmp_path / "run")
    (tmp_path / "loose.pt").write_bytes(b"")
    with pytest.raises((ValueError, OSError), match=message):
        resolve_settings({key: value.format(tmp_path) for key, value in flags.items()})


def test_l2_has_its_own_attacks_and_radii(tmp_path):
    run_folder(tmp_path / "run")
    settings = resolve_settings({"run": str(tmp_path / "run"), "norm": "l2", "eps": "1.5"})
    assert settings.eps == 1.5 and settings.curve[-1] == 3.0 and settings.attacks is None
    wide = resolve_settings({"run": str(tmp_path / "run"), "eps": "0.6"})
    assert max(wide.curve) == pytest.approx(0.9)  # 1.2 would be no radius of pixels in [0, 1]
    assert resolve_settings({"run": str(tmp_path / "run"), "eps_curve": "none"}).curve == ()
