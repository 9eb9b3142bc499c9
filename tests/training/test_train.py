"""Runs from end to end: files, exact resume, stopping, divergence, teachers, the comparison."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_files import fake_cifar
from safetensors.torch import load_file
from torch import nn

from ard_fast._progress import Progress
from ard_fast.data import load_dataset
from ard_fast.evaluation import Accuracy
from ard_fast.evaluation.self_checks import collapsed
from ard_fast.models import build_model
from ard_fast.train import main
from ard_fast.training import runs as experiment
from ard_fast.training import trainer
from ard_fast.training.checkpoint import load_network, load_state, save_weights
from ard_fast.training.run_folder import SUMMARY_KEYS, RunFolder
from ard_fast.training.step import Update

CLEAN = ["--subset", "96", "--batch-size", "32", "--val-steps", "1"]
TINY = [*CLEAN, "--steps", "2"]
AT = ["--method", "at", *TINY]
FILES = {
    "config.yaml",
    "places.json",
    "metrics.jsonl",
    "summary.json",
    "best.safetensors",
    "last.safetensors",
    "training_state.pt",
    "plot.png",
    "pictures.png",
    "report.md",
}
WORK = ("images_per_s", "elapsed_s", "teacher_cache_hits", "clean_teacher_cache_hits")  # of this process, not results


VAL, TEST = 40, 50


def short_digits(name, **settings):
    """Every data set as it is, except for the digits: few validation and test images."""
    data = load_dataset(name, **settings)
    if name != "digits":
        return data
    short = {"val": data.val.take(torch.arange(VAL)), "test": data.test.take(torch.arange(TEST))}
    return dataclasses.replace(data, **short)


@pytest.fixture(autouse=True)
def small_and_tidy(monkeypatch):
    """Cut validation and test images of the digits short, and put back the thread count that `main` sets."""
    monkeypatch.setattr(experiment, "load_dataset", short_digits)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def metrics(folder):
    """The lines of metrics.jsonl without the times."""
    return [{key: row[key] for key in row if key not in WORK} for row in RunFolder(folder).metrics()]


def same_weights(a, b):
    a, b = load_file(a), load_file(b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ---- one run ------------------------------------------------------------------------------------------------------


def test_streamed_images_train_the_same_network(tmp_path):
    """To the bit; and its configuration says how it was trained."""
    for resident in ("always", "never"):
        out = tmp_path / resident
        assert main([*AT, "--epochs", "2", "--resident", resident, "--out", str(out)]) == 0
        assert f"resident: {resident}" in (out / "config.yaml").read_text()
    assert same_weights(tmp_path / "always" / "last.safetensors", tmp_path / "never" / "last.safetensors")
    assert metrics(tmp_path / "always") == metrics(tmp_path / "never")


def test_a_run_writes_its_files_and_its_config_repeats_it(tmp_path, capsys):
    first, again = tmp_path / "first", tmp_path / "again"
    assert main([*AT, "--epochs", "2", "--out", str(first)]) == 0
    assert {path.name for path in first.iterdir()} == FILES
    summary = json.loads((first / "summary.json").read_text())
    assert tuple(summary) == SUMMARY_KEYS
    assert summary["method"] == "at" and summary["student"] == "digits-student" and summary["teacher"] is None
    assert summary["epochs"] == 2 and summary["images_per_s"] > 0 and summary["elapsed_s"] > 0
    assert 0 <= summary["pgd20_acc"] <= summary["clean_acc"] <= 100
    assert [row["epoch"] for row in metrics(first)] == [1, 2]
    assert (first / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert f"{summary['pgd20_acc']:.2f}" in (first / "report.md").read_text()
    printed = capsys.readouterr().out
    assert f"run folder: {first}" in printed and "pixels in [0, 1]" in printed and "batch norm: " in printed

    assert main(["--config", str(first / "config.yaml"), "--out", str(again)]) == 0
    assert same_weights(first / "last.safetensors", again / "last.safetensors")
    assert metrics(first) == metrics(again)


def test_the_best_checkpoint_is_the_best_validation_epoch(tmp_path, monkeypatch):
    robust = iter([30.0, 50.0, 40.0])
    kept = {}
    real = trainer.evaluate

    def scripted(model, split, **settings):
        if len(split) != VAL:
            return real(model, split, **settings)
        accuracy = trainer.Accuracy(90.0, next(robust))
        kept[accuracy.robust] = {key: value.clone() for key, value in model.state_dict().items()}
        return accuracy

    monkeypatch.setattr(trainer, "evaluate", scripted)
    assert main([*AT, "--epochs", "3", "--out", str(tmp_path / "run")]) == 0
    best, last = (load_file(tmp_path / "run" / f"{name}.safetensors") for name in ("best", "last"))
    assert all(torch.equal(best[key], kept[50.0][key]) for key in best)
    assert all(torch.equal(last[key], kept[40.0][key]) for key in last)
    assert load_state(tmp_path / "run" / "training_state.pt").best_epoch == 2


def test_a_network_trained_on_clean_images_is_selected_by_its_clean_accuracy(tmp_path, monkeypatch):
    scores = iter([(80.0, 3.0), (95.0, 1.0), (90.0, 2.0)])
    real = trainer.evaluate

    def scripted(model, split, **settings):
        return trainer.Accuracy(*next(scores)) if len(split) == VAL else real(model, split, **settings)

    monkeypatch.setattr(trainer, "evaluate", scripted)
    assert main(["--method", "natural", *CLEAN, "--epochs", "3", "--out", str(tmp_path / "run")]) == 0
    assert load_state(tmp_path / "run" / "training_state.pt").best_epoch == 2


def test_seeds_and_methods(tmp_path):
    for name, extra in {"s0": [], "s1": ["--seed", "1"]}.items():
        assert main([*AT, "--epochs", "1", "--out", str(tmp_path / name), *extra]) == 0
    assert not same_weights(tmp_path / "s0" / "last.safetensors", tmp_path / "s1" / "last.safetensors")


def test_validation_may_be_rarer(tmp_path):
    assert main([*AT, "--epochs", "3", "--val-every", "2", "--out", str(tmp_path / "run")]) == 0
    assert [row["val_robust"] is None for row in metrics(tmp_path / "run")] == [True, False, False]


def test_a_second_run_does_not_overwrite_the_first(tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main([*AT, "--epochs", "1", "--out", out]) == 0
    assert main([*AT, "--epochs", "1", "--out", out]) == 2
    assert "already holds a run" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["bin", "py"])
def test_cifar10_trains_a_cifar_network(tmp_path, layout):
    fake_cifar(tmp_path, layout=layout)
    arguments = ["--dataset", "cifar10", "--data-dir", str(tmp_path), "--method", "at", "--student", "resnet18-tiny"]
    sizes = ["--epochs", "1", "--val-size", "20", "--batch-size", "64", "--steps", "1", "--val-steps", "1"]
    assert main([*arguments, *sizes, "--channels-last", "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["dataset"] == "cifar10"


def test_a_network_for_other_images_is_refused(tmp_path, capsys):
    fake_cifar(tmp_path)
    cifar = ["--dataset", "cifar10", "--data-dir", str(tmp_path), "--val-size", "20"]
    assert main([*cifar, "--method", "at", "--student", "digits-student", "--out", str(tmp_path / "r")]) == 2
    assert "student: digits-student takes 8x8 images, cifar10 has 32x32" in capsys.readouterr().err
    assert main([*cifar, "--method", "ard", "--teacher", "digits-teacher", "--out", str(tmp_path / "r")]) == 2
    assert "teacher: digits-teacher takes 8x8 images" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_normalisers_belong_to_the_networks(tmp_path, capsys):
    arguments = ["--method", "kd", *CLEAN, "--epochs", "1", "--teacher", "digits-teacher", "--teacher-mean", "0.3"]
    out = tmp_path / "run"
    assert main([*arguments, "--teacher-std", "0.4", "--student-mean", "1/2", "--student-std", "0.25,0.1"]) == 2
    assert "student_std: expected a number for each of the 1 channels of digits" in capsys.readouterr().err
    arguments += ["--teacher-std", "0.4", "--student-mean", "1/2", "--student-std", "0.25"]
    assert main([*arguments, "--out", str(out)]) == 0
    for folder, mean, std in ((out, 0.5, 0.25), (out / "teacher", 0.3, 0.4)):
        weights = load_file(folder / "best.safetensors")
        assert (weights["mean"].item(), weights["std"].item()) == (pytest.approx(mean), pytest.approx(std))


def flat_network():
    """A network with a batch norm that cannot train on one image, for `--student test_train:flat_network`."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


# 97 images: batches of 32 leave one; in two parts 98 leave two, of one image each, and 99 in two parts leave three.
@pytest.mark.parametrize(
    ("subset", "extra", "said"),
    [
        ("97", [], "the last image joins the previous batch: batch norm cannot train on one image"),
        ("98", ["--accumulate", "2"], "the last 2 images join the previous batch"),
        ("99", ["--accumulate", "3"], "the last 3 images join the previous batch"),
        ("97", ["--resident", "never"], "the last image joins the previous batch"),
        ("98", [], None),
    ],
)
def test_no_batch_leaves_one_image_to_a_batch_norm_that_needs_two(tmp_path, capsys, subset, extra, said):
    arguments = ["--method", "at", *TINY, "--epochs", "1", "--student", "test_train:flat_network", "--subset", subset]
    assert main([*arguments, *extra, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert said in printed if said else "joins the previous batch" not in printed
    batches = load_file(tmp_path / "run" / "last.safetensors")["2.num_batches_tracked"]
    assert batches == (3 if said else 4) * (int(extra[1]) if "--accumulate" in extra else 1)


def test_batches_that_all_leave_one_image_to_such_a_batch_norm_are_refused(tmp_path, capsys):
    arguments = ["--method", "at", *TINY, "--student", "test_train:flat_network", "--out", str(tmp_path / "run")]
    assert main([*arguments, "--batch-size", "5", "--accumulate", "3"]) == 2
    assert "batch_size: 5 images in 3 parts leave a part with one image" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*AT, "--epochs", "1", "--subset", "97", "--out", str(tmp_path / "run")]) == 0  # spatial: one will do
    assert "joins the previous batch" not in capsys.readouterr().out


# ---- stopping and going on ----------------------------------------------------------------------------------------


def stop_after(monkeypatch, steps, method="step"):
    """Request a stop once `steps` training steps (or validations) of this process are done."""
    done = 0
    requests = []
    real_enter = trainer.StopRequest.__enter__
    real = getattr(Progress, method)

    def enter(self):
        requests.append(self)
        return real_enter(self)

    def counted(self, *args, **kwargs):
        nonlocal done
        done += 1
        if done == steps:
            requests[-1].requested = True
        return real(self, *args, **kwargs)

    monkeypatch.setattr(trainer.StopRequest, "__enter__", enter)
    monkeypatch.setattr(Progress, method, counted)


# 3 steps an epoch. 1, 2: inside the first epoch; 3: after its last step, before its validation; 5: inside the second;
# 9: before the last validation.
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, capsys, steps):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*AT, "--epochs", "3", "--out", str(whole)]) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        assert main([*AT, "--epochs", "3", "--out", str(stopped)]) == 130
    assert f"--resume {stopped}" in capsys.readouterr().err
    state = load_state(stopped / "training_state.pt")
    assert state.epoch * 3 + state.step == steps
    assert (stopped / "last.safetensors").is_file() and not (stopped / "summary.json").exists()
    assert main(["--resume", str(stopped)]) == 0
    for name in ("best.safetensors", "last.safetensors"):
        assert same_weights(whole / name, stopped / name)
    assert metrics(whole) == metrics(stopped)


@pytest.mark.parametrize(("extra", "where"), [([], (2, 0)), (["--save-every-seconds", "0"], (2, 1))])
def test_a_run_killed_without_warning_goes_on_from_its_last_save(tmp_path, monkeypatch, extra, where):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*AT, "--epochs", "3", "--out", str(whole)]) == 0
    real = Progress.step
    steps = 0

    def step(self):
        nonlocal steps
        steps += 1
        if steps == 8:
            raise MemoryError("killed")
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "step", step)
        with pytest.raises(MemoryError):
            main([*AT, "--epochs", "3", *extra, "--out", str(killed)])
    state = load_state(killed / "training_state.pt")
    assert (state.epoch, state.step) == where
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "cut sho')
    assert main(["--resume", str(killed)]) == 0
    assert same_weights(whole / "last.safetensors", killed / "last.safetensors")
    assert metrics(whole) == metrics(killed)


def test_ard_stopped_in_its_teacher_goes_on(tmp_path, monkeypatch):
    arguments = ["--method", "ard", "--teacher", "digits-teacher", *TINY, "--epochs", "2"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*arguments, "--out", str(whole)]) == 0
    for steps in (4, 4):  # inside the teacher's second epoch, then inside the student's
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            assert main(["--resume", str(stopped)] if stopped.exists() else [*arguments, "--out", str(stopped)]) == 130
    assert main(["--resume", str(stopped)]) == 0
    assert same_weights(whole / "last.safetensors", stopped / "last.safetensors")
    assert json.loads((whole / "summary.json").read_text())["teacher"] == "digits-teacher"


def save_images(path, seed=0):
    rng = np.random.default_rng(seed)
    images = {
        f"x_{part}": rng.integers(0, 256, (count, 8, 8), np.uint8) for part, count in (("train", 116), ("test", 30))
    }
    labels = {name.replace("x", "y"): np.arange(len(value)) % 3 for name, value in images.items()}
    np.savez(path, **images, **labels)


@pytest.fixture
def stopped_project(tmp_path, monkeypatch):
    """A folder with images, a teacher, a run taught by it (whole) and the same run stopped in its second epoch
    (stopped); all paths as given are relative to the folder, which is the working directory."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    save_images("data.npz")
    save_teacher(Path("teacher.safetensors"), num_classes=3)
    arguments = ["--dataset", "npz", "--data-dir", "data.npz", "--method", "kd", "--teacher", "teacher.safetensors"]
    arguments += ["--student", "digits-student", "--crop-padding", "0", "--val-size", "20", "--batch-size", "32"]
    arguments += ["--val-steps", "1", "--epochs", "2", "--out"]
    assert main([*arguments, "whole"]) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert main([*arguments, "stopped"]) == 130
    return project


@pytest.mark.parametrize("how", ["another working directory", "the project moved", "named anew"])
def test_a_run_goes_on_where_its_inputs_lie_now(stopped_project, tmp_path, monkeypatch, how):
    project, more = stopped_project, []
    if how != "another working directory":
        project = project.rename(tmp_path / "moved")
    if how == "named anew":
        for name in ("data.npz", "teacher.safetensors"):
            (project / name).rename(tmp_path / f"other-{name}")
        more = ["--data-dir", "other-data.npz", "--teacher", "other-teacher.safetensors", "--threads", "1"]
    monkeypatch.chdir(tmp_path)
    assert main(["--resume", str(project / "stopped"), *more]) == 0
    for name in ("best.safetensors", "last.safetensors"):
        assert same_weights(project / "whole" / name, project / "stopped" / name)
    assert metrics(project / "whole") == metrics(project / "stopped")
    config = RunFolder(project / "stopped").config()
    assert Path(config.data_dir).is_file() and Path(config.teacher).is_file()  # for the next --resume, or --config


def test_a_run_goes_on_with_its_own_images_and_teacher_only(stopped_project, capsys):
    save_images("other.npz", seed=1)
    save_weights(
        Path("other.safetensors"), build_model("digits-teacher", 3), name="digits-teacher", num_classes=3, in_channels=1
    )
    before = Path("stopped/training_state.pt").read_bytes()
    for arguments, message in (
        (["--data-dir", "other.npz"], r"data_dir: .*other.npz holds other training images than stopped was started"),
        (["--teacher", "other.safetensors"], "teacher: .*other.safetensors holds other weights than stopped was"),
        (["--teacher", "digits-teacher"], "teacher: beside --resume only another place of the same weights; the run"),
        (["--clean-teacher", "teacher.safetensors"], "clean_teacher: beside --resume .*; the run has none, got"),
        (["--device", "tpu"], "device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["--lr", "0.1"], "remove --lr. Places may change: --data-dir, --image-cache, --teacher, "),
    ):
        assert main(["--resume", "stopped", *arguments]) == 2
        assert re.search(message, capsys.readouterr().err)
    assert Path("stopped/training_state.pt").read_bytes() == before
    assert main(["--resume", "stopped", "--data-dir", "data.npz", "--teacher", "teacher.safetensors"]) == 0


def test_resuming_a_finished_run_changes_nothing(tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*AT, "--epochs", "1", "--out", str(out)]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(["--resume", str(out)]) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert "already finished" in capsys.readouterr().out


def test_a_damaged_training_state_is_said(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert main([*AT, "--epochs", "3", "--out", str(tmp_path / "run")]) == 130
    (tmp_path / "run" / "training_state.pt").write_bytes(b"nonsense")
    assert main(["--resume", str(tmp_path / "run")]) == 2
    assert "training_state.pt is not a training state of this version" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_usable_checkpoint(tmp_path, number):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ard_fast.train", *AT, "--epochs", "100000", "--out", str(out)]
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    )
    try:
        deadline = time.monotonic() + 240
        while not (out / "metrics.jsonl").exists():
            assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(number)
        error = process.communicate(timeout=240)[1]
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert f"go on with: python -m ard_fast.train --resume {out}" in error and "Traceback" not in error
    state = load_state(out / "training_state.pt")
    last = load_file(out / "last.safetensors")
    assert all(torch.equal(last[key], state.model[key]) for key in last)


def test_a_start_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    """Unless the folder was there before, or something has been trained."""

    def fail(self):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(trainer.Trainer, "run", fail)
    (tmp_path / "mine").mkdir()
    for name in ("runs", "mine"):
        with pytest.raises(RuntimeError, match="out of luck"):
            main([*AT, "--out", str(tmp_path / name)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    monkeypatch.undo()
    real = trainer.Trainer.run
    monkeypatch.setattr(trainer.Trainer, "run", lambda self: real(self) if self.config.method == "at" else fail(self))
    arguments = ["--method", "ard", "--teacher", "digits-teacher", *TINY, "--epochs", "1", "--out"]
    with pytest.raises(RuntimeError, match="out of luck"):
        main([*arguments, str(tmp_path / "taught")])
    assert (tmp_path / "taught" / "teacher" / "best.safetensors").is_file()


# ---- collapse -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clean", "robust", "counts", "wrong"),
    [
        (9.8, 9.8, [98, *[100] * 8, 102], "it predicts the same class for every image (9.80 % are right"),
        (80.0, 80.0, [80, 20], "it predicts the same class for every image"),  # far above the chance of two classes
        (80.0, 79.0, [80, 20], None),
        (11.0, 3.0, [100] * 10, "11.00 % of 1000 images are right, not clearly more than guessing gives (10.00 %)"),
        (35.0, 0.0, [100] * 10, None),
        (3.0, 1.0, [10] * 100, None),
        (1.5, 1.0, [10] * 100, "1.50 % of 1000 images are right"),
    ],
)
def test_what_a_collapse_is(clean, robust, counts, wrong):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    found = collapsed(Accuracy(clean, robust), labels, len(counts))
    assert found is None if wrong is None else wrong in found


def test_a_collapsed_run_says_so(tmp_path, capsys):
    """In its output while it trains and at its end, in its report and in its summary; its exit code is 0."""
    arguments = ["--method", "at", *CLEAN, "--steps", "1", "--schedule", "constant", "--epochs", "4", "--lr", "1e-9"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("warning: after 3 epochs the run has collapsed") == 1
    (warning,) = json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"]
    assert warning.startswith("the best checkpoint has collapsed: ") and "--lr 1e-10 instead of 1e-09" in warning
    assert f"warning: {warning}" in printed and warning in (tmp_path / "run" / "report.md").read_text()
    assert main(["--method", "natural", *CLEAN, "--subset", "960", "--epochs", "4", "--out", str(tmp_path / "b")]) == 0
    assert "warning" not in capsys.readouterr().out
    assert json.loads((tmp_path / "b" / "summary.json").read_text())["warnings"] == []


# ---- divergence ---------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, capsys):
    good, bad = tmp_path / "good", tmp_path / "bad"
    assert main([*AT, "--epochs", "1", "--schedule", "constant", "--out", str(good)]) == 0
    monkeypatch.setattr(trainer, "learning_rate", lambda config, epoch: config.lr if epoch < 1 else 1e30)
    assert main([*AT, "--epochs", "3", "--schedule", "constant", "--out", str(bad)]) == 1
    error = capsys.readouterr().err
    assert re.search(r"the loss became (nan|inf) in epoch 2", error)
    assert "the checkpoint of the epoch before is kept" in error
    assert same_weights(good / "last.safetensors", bad / "last.safetensors")
    assert load_state(bad / "training_state.pt").epoch == 1
    assert len(metrics(bad)) == 1


# ---- teachers -----------------------------------------------------------------------------------------------------


def save_teacher(path, name="digits-teacher", num_classes=10):
    torch.manual_seed(0)
    model = build_model(name, num_classes)
    save_weights(path, model, name=name, num_classes=num_classes, in_channels=1)
    return model


@pytest.mark.parametrize("method", ["kd", "ard"])
def test_teacher_from_a_folder_or_a_file_is_the_same(tmp_path, method):
    (tmp_path / "teacher").mkdir()
    save_teacher(tmp_path / "teacher" / "best.safetensors")
    for name, source in (("a", tmp_path / "teacher"), ("b", tmp_path / "teacher" / "best.safetensors")):
        tiny = CLEAN if method == "kd" else TINY
        arguments = ["--method", method, *tiny, "--epochs", "1", "--teacher", str(source)]
        assert main([*arguments, "--out", str(tmp_path / name)]) == 0
    assert same_weights(tmp_path / "a" / "last.safetensors", tmp_path / "b" / "last.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A robust and a natural network for the digits, trained for a moment."""
    folder = tmp_path_factory.mktemp("trained")
    for name, method in (("robust", ["at", "--steps", "3"]), ("natural", ["natural"])):
        arguments = ["--method", *method, "--student", "digits-teacher", "--epochs", "8", "--val-steps", "1"]
        assert main([*arguments, "--out", str(folder / name)]) == 0
    return folder


def takes_bytes(network):
    """A network that expects pixels in [0, 255], as if trained behind ToTensor times 255."""
    network.features[0].weight.data /= 255
    return network


@pytest.mark.parametrize(
    ("teacher", "method", "figures", "warning"),
    [
        ("robust", "ard", r"teacher \S+robust: clean [89]\d\.\d %, PGD-10 [1-9]\d\.\d % on 40 validation images", None),
        ("natural", "kd", r"teacher \S+natural: clean [\d.]+ %, PGD-10 [\d.]+ % on 40 validation images", None),
        ("natural", "ard", "clean", "PGD-10 .* it is not robust, but this method relies on a robust teacher"),
        ("bytes", "kd", "clean", r"and [\d.]+ % with --teacher-mean 0 --teacher-std 0.003922: "),
        ("bytes_of_a_run", "kd", "clean", r"and guessing gives 10.0 %"),  # with the normalisation of its training
        ("average", "kd", "clean", "and guessing gives 10.0 %"),  # of zeros, beside the trained weights
        ("probabilities", "kd", "clean", "looks like probabilities; .*: the teacher must return logits"),
        (
            "random",
            "ard",
            "clean",
            r"and guessing gives 10.0 %. Are its weights loaded, .*\(--teacher-mean and --teacher-std\)",
        ),
    ],
)
def test_every_teacher_is_measured_first(trained, tmp_path, capsys, teacher, method, figures, warning):
    (trained / teacher).mkdir(exist_ok=True)
    if teacher == "random":
        save_teacher(trained / teacher / "best.safetensors")
    elif teacher.startswith("bytes"):
        network = takes_bytes(load_network(trained / "natural", num_classes=10, in_channels=1))
        path = trained / teacher / "best.safetensors"
        save_weights(path, network, name="digits-teacher", num_classes=10, in_channels=1)
        if teacher == "bytes_of_a_run":
            shutil.copy(trained / "natural" / "config.yaml", path.parent)
    steps = [] if method == "kd" else ["--steps", "1"]
    if teacher == "probabilities":
        network = load_network(trained / "natural", num_classes=10, in_channels=1)
        torch.save(nn.Sequential(network).state_dict(), trained / teacher / "best.pt")
        teacher += "/best.pt"
        steps = ["--teacher-model", "test_train:with_softmax"]
    elif teacher == "average":
        state = load_network(trained / "natural", num_classes=10, in_channels=1).state_dict()
        zeros = {key: torch.zeros_like(value) for key, value in state.items()}
        torch.save({"model": state, "ema": zeros}, trained / teacher / "best.pt")
        teacher += "/best.pt"
        steps = ["--teacher-model", "digits-teacher", "--teacher-weights", "ema"]
    arguments = ["--method", method, "--subset", "64", *steps, "--epochs", "1", "--teacher", str(trained / teacher)]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert re.search(figures, printed)
    report, summary = ((tmp_path / "run" / name).read_text() for name in ("report.md", "summary.json"))
    assert re.search(figures, report) and json.loads(summary)["teachers"]["teacher"]["images"] == VAL
    found = [text for text in json.loads(summary)["warnings"] if text.startswith("teacher: ")]
    assert len(found) == (warning is not None)
    if warning:
        assert re.search(warning, found[0]) and f"warning: {found[0]}" in printed and found[0] in report


def with_softmax():
    """For `--teacher-model test_train:with_softmax`."""
    return nn.Sequential(build_model("digits-teacher"), nn.Softmax(1))


def test_a_student_that_returns_probabilities_is_told(tmp_path, capsys):
    assert main(["--method", "at", *TINY, "--out", str(tmp_path / "run"), "--student", "test_train:with_softmax"]) == 0
    assert "student: warning: its output looks like probabilities" in capsys.readouterr().out


def untrained():
    """For `--teacher test_train:untrained`."""
    return build_model("digits-teacher")


def test_a_factory_with_random_weights_is_no_teacher(tmp_path, capsys):
    arguments = ["--method", "ard", *TINY, "--out", str(tmp_path / "run"), "--teacher", "test_train:untrained"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "teacher: test_train:untrained makes an untrained network: clean " in error
    assert "--method at --student test_train:untrained" in error and "--teacher-model test_train:untrained" in error
    assert not (tmp_path / "run").exists()


def test_loaded_networks_are_frozen_and_equal(tmp_path):
    model = save_teacher(tmp_path / "t.safetensors")
    loaded = load_network(tmp_path / "t.safetensors", num_classes=10, in_channels=1)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded(x), model.eval()(x))


def test_published_files_load_without_prefix_and_dead_weights(tmp_path):
    model = build_model("wrn-34-10", in_channels=1, depth=10, widen=1)
    weights = {f"module.{key}": value for key, value in build_model("resnet18", in_channels=1).state_dict().items()}
    weights["module.sub_block1.layer.0.bn1.weight"] = torch.zeros(3)
    torch.save({"state_dict": weights}, tmp_path / "t.pt")
    loaded = load_network(tmp_path / "t.pt", num_classes=10, in_channels=1, model="resnet18")
    assert torch.equal(loaded.conv1.weight, weights["module.conv1.weight"])
    torch.save(model.state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt does not fit resnet18 with 10 classes"):
        load_network(tmp_path / "other.pt", num_classes=10, in_channels=1, model="resnet18")


def test_teachers_that_do_not_fit_are_refused(tmp_path, capsys):
    save_teacher(tmp_path / "t.safetensors", num_classes=7)
    out = str(tmp_path / "run")
    assert main(["--method", "ard", "--teacher", str(tmp_path / "t.safetensors"), "--out", out]) == 2
    assert "has num_classes 7, the data set needs 10" in capsys.readouterr().err
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    assert main(["--method", "ard", "--teacher", str(tmp_path / "x.safetensors"), "--out", out]) == 2
    assert "is not a safetensors file" in capsys.readouterr().err
    torch.save(build_model("digits-teacher").state_dict(), tmp_path / "x.pt")
    assert main(["--method", "ard", "--teacher", str(tmp_path / "x.pt"), "--out", out]) == 2
    assert "does not say which network it is; name it with --teacher-model" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["--method", "ard", "--teacher", str(tmp_path / "empty"), "--out", out]) == 2
    assert "holds no best.safetensors" in capsys.readouterr().err


class Malicious:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_pickled_code_in_a_teacher_is_refused(tmp_path):
    torch.save({"state_dict": Malicious()}, tmp_path / "t.pt")
    with pytest.raises(ValueError, match=r"cannot read .*as a state dict"):
        load_network(tmp_path / "t.pt", num_classes=10, in_channels=1, model="digits-teacher")


# ---- the comparison -----------------------------------------------------------------------------------------------


def test_the_default_job_at_tiny_settings(tmp_path, monkeypatch, capsys):
    out = tmp_path / "compare"
    assert main([*TINY, "--epochs", "1", "--compare-seeds", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for name in ("teacher, at (digits-teacher)", "at (digits-student)", "ard (digits-student)"):
        assert re.search(
            re.escape(f"| {name} ")
            + r" *\| +[\w-]+ \| +2 \| +[\d.]+ ± [\d.]+ \| +[\d.]+ ± [\d.]+ \| +\d+ \| +[\d.]+ \|",
            printed,
        )
    assert "ard (digits-student) - at (digits-student) under PGD-20: " in printed and f"run folder: {out}" in printed
    runs = {f"seed{seed}-{name}" for seed in (0, 1) for name in ("teacher", "at", "ard")}
    assert {path.name for path in out.iterdir()} == runs | FILES - {"training_state.pt", "pictures.png"}
    summary = json.loads((out / "summary.json").read_text())
    assert tuple(summary) == (*SUMMARY_KEYS, "runs")
    singles = [json.loads((out / f"seed{seed}-ard" / "summary.json").read_text()) for seed in (0, 1)]
    assert summary["pgd20_acc"] == pytest.approx(sum(one["pgd20_acc"] for one in singles) / 2)
    assert summary["seed"] == [0, 1] and summary["runs"]["ard"] == singles
    assert {row["run"] for row in RunFolder(out).metrics()} == runs

    again = tmp_path / "again"  # stopped in the second seed's ARD run, resumed: the same networks
    with monkeypatch.context() as patch:
        stop_after(patch, 3 * 5 + 1)
        assert main(["--config", str(out / "config.yaml"), "--out", str(again)]) == 130
    assert main(["--resume", str(again)]) == 0
    for name in ("best.safetensors", "last.safetensors"):
        assert same_weights(out / name, again / name)


def test_a_comparison_starts_its_students_from_the_same_weights(tmp_path, monkeypatch):
    starts = {}
    real = trainer.Trainer.run

    def run(self):
        starts[self.folder.path.name] = {key: value.clone() for key, value in self.student.state_dict().items()}
        return real(self)

    monkeypatch.setattr(trainer.Trainer, "run", run)
    arguments = ["--compare-methods", "at,kd,ard", "--compare-seeds", "1", *TINY, "--epochs", "1"]
    assert main([*arguments, "--out", str(tmp_path / "c")]) == 0
    for name in ("seed0-kd", "seed0-ard"):
        assert all(torch.equal(starts["seed0-at"][key], value) for key, value in starts[name].items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_training_step_on_cuda_never_waits_for_the_device(tmp_path, monkeypatch):
    real = Update.__call__

    def watched(*args, **kwargs):
        torch.cuda.set_sync_debug_mode("error")  # until the step is done
        return real(*args, **kwargs)

    monkeypatch.setattr(Update, "__call__", watched)
    real_step = Progress.step

    def step(self):
        torch.cuda.set_sync_debug_mode("default")
        real_step(self)

    monkeypatch.setattr(Progress, "step", step)
    try:
        options = ["--epochs", "2", "--device", "cuda", "--graph", "off", "--channels-last"]
        assert main([*AT, *options, "--out", str(tmp_path / "run")]) == 0
    finally:
        torch.cuda.set_sync_debug_mode("default")
