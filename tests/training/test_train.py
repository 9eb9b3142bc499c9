"""`python -m ard_fast.train` from end to end: files, exact resume, stopping, teachers, the comparison."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_files import fake_cifar
from safetensors.torch import load_file
from short_runs import (
    AT,
    CLEAN,
    TINY,
    VAL,
    assert_same_run,
    metrics,
    same_weights,
    save_teacher,
    small_and_tidy,
    stop_after,
)
from torch import nn

from ard_fast import evaluate
from ard_fast.models import build_model
from ard_fast.train import main
from ard_fast.training import trainer
from ard_fast.training.checkpoint import load_network, load_state, save_weights
from ard_fast.training.run_folder import SUMMARY_KEYS, RunFolder
from ard_fast.training.step import Update

__all__ = ["metrics", "same_weights", "save_teacher", "small_and_tidy", "stop_after"]

FILES = {
    "config.yaml",
    "places.json",
    "metrics.jsonl",
    "summary.json",
    "best.safetensors",
    "last.safetensors",
    "training_state.pt",
}
REPORT = {"plot.png", "plot.pdf", "pictures.png", "pictures.pdf", "report.md"}


# ---- one run ------------------------------------------------------------------------------------------------------


def test_a_run_writes_its_files_and_figures_and_its_config_repeats_it(tmp_path, monkeypatch, capsys):
    first, again = tmp_path / "first", tmp_path / "again"
    with monkeypatch.context() as patch:
        from ard_fast.training import report

        for name in ("write_run_report", "draw_examples"):
            patch.setattr(trainer, name, getattr(report, name))
        assert main([*AT, "--epochs", "2", "--out", str(first)]) == 0
    assert {path.name for path in first.iterdir()} == FILES | REPORT
    summary = json.loads((first / "summary.json").read_text())
    assert tuple(summary) == SUMMARY_KEYS
    assert summary["method"] == "at" and summary["student"] == "digits-student" and summary["teacher"] is None
    assert summary["epochs"] == 2 and summary["images_per_s"] > 0 and summary["elapsed_s"] > 0
    assert 0 <= summary["pgd20_acc"] <= summary["clean_acc"] <= 100
    assert [row["epoch"] for row in metrics(first)] == [1, 2]
    assert all((first / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for name in ("plot.png", "pictures.png"))
    report = (first / "report.md").read_text()
    assert f"{summary['pgd20_acc']:.2f}" in report and "(plot.png)" in report and "(pictures.png)" in report
    printed = capsys.readouterr().out
    assert f"are in {first}\n" in printed and "pixels in [0, 1]" in printed and "batch norm: " in printed

    # The same configuration, with images that are streamed instead of resident: the same run.
    assert main(["--config", str(first / "config.yaml"), "--resident", "never", "--out", str(again)]) == 0
    assert_same_run(first, again)
    assert main(["--config", str(first / "config.yaml"), "--seed", "1", "--out", str(tmp_path / "other")]) == 0
    assert not same_weights(first / "last.safetensors", tmp_path / "other" / "last.safetensors")

    before = {path.name: path.read_bytes() for path in first.iterdir()}
    assert main([*AT, "--epochs", "2", "--out", str(first)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main(["--resume", str(first)]) == 0
    assert "already finished" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before

    assert evaluate.main([str(first), "--attacks", "fgsm", "--eps-curve", "none", "--out", str(tmp_path / "e")]) == 0


@pytest.mark.parametrize(
    ("method", "scores", "best"),
    [
        ("at", [(90.0, 30.0), (80.0, 50.0), (95.0, 40.0)], 1),  # by robust accuracy
        ("natural", [(80.0, 3.0), (95.0, 1.0), (90.0, 2.0)], 1),  # by clean accuracy
    ],
)
def test_the_best_checkpoint_is_the_best_validation_epoch(tmp_path, monkeypatch, method, scores, best):
    kept = []
    real = trainer.evaluate

    def scripted(model, split, **settings):
        """Validation accuracies as given; on the test images the epoch whose weights these are."""
        weights = model.state_dict()
        if len(split) != VAL:
            (epoch,) = (n for n, old in enumerate(kept) if all(torch.equal(old[key], weights[key]) for key in old))
            return trainer.Accuracy(float(epoch), float(epoch))
        kept.append({key: value.clone() for key, value in weights.items()})
        real(model, split, **settings)
        return trainer.Accuracy(*scores[len(kept) - 1])

    monkeypatch.setattr(trainer, "evaluate", scripted)
    tiny = TINY if method == "at" else CLEAN
    assert main(["--method", method, *tiny, "--epochs", "3", "--out", str(tmp_path / "run")]) == 0
    for name, epoch in (("best", best), ("last", 2)):
        weights = load_file(tmp_path / "run" / f"{name}.safetensors")
        assert all(torch.equal(weights[key], kept[epoch][key]) for key in weights), name
    assert load_state(tmp_path / "run" / "training_state.pt").best_epoch == best + 1
    assert RunFolder(tmp_path / "run").summary()["clean_acc"] == best
    assert [row["val_robust"] for row in metrics(tmp_path / "run")] == [robust for _, robust in scores]


def test_validation_may_be_rarer_and_leaves_the_training_alone(tmp_path):
    for every in ("1", "2"):
        assert main([*AT, "--epochs", "3", "--val-every", every, "--out", str(tmp_path / every)]) == 0
    assert [row["val_robust"] is None for row in metrics(tmp_path / "2")] == [True, False, False]
    assert same_weights(tmp_path / "1" / "last.safetensors", tmp_path / "2" / "last.safetensors")
    losses = [[row["train_loss"] for row in metrics(tmp_path / every)] for every in ("1", "2")]
    assert losses[0] == losses[1]


def test_normalisers_belong_to_the_networks(tmp_path):
    arguments = ["--method", "kd", *CLEAN, "--epochs", "1", "--teacher", "digits-teacher", "--teacher-mean", "0.3"]
    arguments += ["--teacher-std", "0.4", "--student-mean", "1/2", "--student-std", "0.25"]
    out = tmp_path / "run"
    assert main([*arguments, "--out", str(out)]) == 0
    for folder, mean, std in ((out, 0.5, 0.25), (out / "teacher", 0.3, 0.4)):
        weights = load_file(folder / "best.safetensors")
        assert (weights["mean"].item(), weights["std"].item()) == (pytest.approx(mean), pytest.approx(std))


def flat_network():
    """A network with a batch norm that cannot train on one image, for `--student test_train:flat_network`."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def with_softmax():
    """For `--student test_train:with_softmax` and `--teacher-model`."""
    return nn.Sequential(build_model("digits-teacher"), nn.Softmax(1))


def untrained():
    """For `--teacher test_train:untrained`."""
    return build_model("digits-teacher")


# 97 images: batches of 32 leave one; in two parts 98 leave two, of one image each.
@pytest.mark.parametrize(
    ("subset", "extra", "said"),
    [
        ("97", [], "the last image joins the previous batch: batch norm cannot train on one image"),
        ("98", ["--accumulate", "2"], "the last 2 images join the previous batch"),
        ("98", [], None),
    ],
)
def test_no_batch_leaves_one_image_to_a_batch_norm_that_needs_two(tmp_path, capsys, subset, extra, said):
    arguments = [*AT, "--epochs", "1", "--student", "test_train:flat_network", "--subset", subset]
    assert main([*arguments, *extra, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert said in printed if said else "joins the previous batch" not in printed
    batches = load_file(tmp_path / "run" / "last.safetensors")["2.num_batches_tracked"]
    assert batches == (3 if said else 4) * (2 if extra else 1)


# ---- what is refused ----------------------------------------------------------------------------------------------


def files_to_refuse(folder):
    """Teachers and data sets that fit nothing."""
    save_teacher(folder / "seven.safetensors", num_classes=7)
    (folder / "empty").mkdir()
    broken = save_teacher(folder / "broken.safetensors")
    for parameter in broken.parameters():
        parameter.data.view(-1)[0] = 3e38  # finite as it is, its logits are not
    save_weights(folder / "broken.safetensors", broken, name="digits-teacher", num_classes=10, in_channels=1)
    fake_cifar(folder)


ARD, CIFAR = ["--method", "ard"], ["--dataset", "cifar10", "--data-dir", ".", "--val-size", "20"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [*CIFAR, "--method", "at", "--student", "digits-student"],
            "student: digits-student takes 8x8 images, cifar10",
        ),
        ([*CIFAR, *ARD, "--teacher", "digits-teacher"], "teacher: digits-teacher takes 8x8 images"),
        ([*ARD, "--teacher", "seven.safetensors"], "has num_classes 7, the data set needs 10"),
        ([*ARD, "--teacher", "empty"], "holds no best.safetensors"),
        ([*ARD, "--teacher", "broken.safetensors"], "teacher: logits of 4 of 4 clean images are not finite"),
        (
            [*ARD, "--teacher", "test_train:untrained"],
            "teacher: test_train:untrained makes an untrained network: clean",
        ),
        (
            ["--method", "at", "--student-mean", "1/2", "--student-std", "0.25,0.1"],
            "student_std: expected a number for each of the 1 channels of digits",
        ),
        (
            [*AT, "--student", "test_train:flat_network", "--batch-size", "5", "--accumulate", "3"],
            "batch_size: 5 images in 3 parts leave a part with one image",
        ),
        (["--method", "at", "--graph", "iteration"], "graph: expected auto or off on device cpu"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_any_work(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    files_to_refuse(tmp_path)
    assert main([*arguments, "--out", "run"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("run").exists()


# ---- stopping and going on ----------------------------------------------------------------------------------------


# 3 steps an epoch. 2: inside the first epoch; 3: after its last step, before its validation; 7: inside the third, from
# which the weights begin to be averaged; 9: before the last validation.
@pytest.mark.parametrize("steps", [2, 3, 7, 9])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, capsys, steps):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = [*AT, "--epochs", "3", "--averaging", "ema" if steps % 2 else "swa", "--schedule", "multistep"]
    arguments += ["--milestones", "1,2", "--accumulate", "2" if steps == 2 else "1"]
    arguments += (
        ["--optimiser", "adamw", "--warmup-epochs", "1.5", "--lr", "0.01", "--cutout", "3", "--cropshift", "2"]
        if steps == 7
        else []
    )
    if steps == 3:
        for name, value in (("more", 7), ("other", 8)):
            np.savez(tmp_path / name, image=np.full((40, 8, 8), value, np.uint8), label=np.arange(40) % 10)
        arguments += ["--extra-data", str(tmp_path / "more.npz"), "--extra-fraction", "0.25"]
    loaders, make = [], trainer.make_loader
    monkeypatch.setattr(trainer, "make_loader", lambda *args, **how: loaders.append(make(*args, **how)) or loaders[-1])
    assert main([*arguments, "--out", str(whole)]) == 0
    (loader,) = loaders
    assert loader._mix == ((40, 32, 8) if steps == 3 else None) and len(loader.labels) == 96 + 40 * (steps == 3)
    assert [loader.augmentation[name] for name in ("cropshift", "cutout")] == ([2, 3] if steps == 7 else [0, 0])
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        assert main([*arguments, "--out", str(stopped)]) == 130
    assert f"--resume {stopped}" in capsys.readouterr().err
    state = load_state(stopped / "training_state.pt")
    assert state.epoch * 3 + state.step == steps
    assert (stopped / "last.safetensors").is_file() and not (stopped / "summary.json").exists()
    if steps == 3:
        assert main(["--resume", str(stopped), "--extra-data", str(tmp_path / "other.npz")]) == 2
        assert "extra_data: " in (printed := capsys.readouterr().err) and "holds other extra images than" in printed
    assert main(["--resume", str(stopped)]) == 0
    assert_same_run(whole, stopped)


def test_a_killed_run_goes_on_from_its_last_save(tmp_path):
    """Killed by SIGKILL in the second step of its second epoch."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*AT, "--epochs", "2", "--out", str(whole)]) == 0
    code = (
        "import os, signal, sys, short_runs as s; s.runs.load_dataset = s.short_digits\n"
        "done, real = [0], s.trainer.Progress.step\n"
        "def step(self):\n"
        "    done[0] += 1\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if done[0] == 5 else real(self)\n"
        "s.trainer.Progress.step = step\n"
        "from ard_fast.train import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *AT, "--epochs", "2", "--save-every-seconds", "0", "--out", str(killed)]
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode == -signal.SIGKILL
    state = load_state(killed / "training_state.pt")
    assert (state.epoch, state.step) == (1, 1)
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "cut sho')
    assert main(["--resume", str(killed)]) == 0
    assert_same_run(whole, killed)


def test_ard_stopped_in_its_teacher_goes_on(tmp_path, monkeypatch):
    arguments = ["--method", "ard", "--teacher", "digits-teacher", *TINY, "--epochs", "2"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*arguments, "--out", str(whole)]) == 0
    for steps in (4, 4):  # inside the teacher's second epoch, then inside the student's
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            assert main(["--resume", str(stopped)] if stopped.exists() else [*arguments, "--out", str(stopped)]) == 130
    assert main(["--resume", str(stopped)]) == 0
    assert_same_run(whole, stopped)
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
    """A folder with images, a teacher, a run that uses it (whole) and the same run stopped in its second epoch
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


@pytest.mark.parametrize("named", [False, True])
def test_a_run_goes_on_where_its_inputs_lie_now(stopped_project, tmp_path, monkeypatch, named):
    """The project has moved, its images and teacher with it or to another place that is given."""
    project, more = stopped_project.rename(tmp_path / "moved"), []
    if named:
        for name in ("data.npz", "teacher.safetensors"):
            (project / name).rename(tmp_path / f"other-{name}")
        more = ["--data-dir", "other-data.npz", "--teacher", "other-teacher.safetensors", "--threads", "1"]
    monkeypatch.chdir(tmp_path)
    assert main(["--resume", str(project / "stopped"), *more]) == 0
    assert_same_run(project / "whole", project / "stopped")
    config = RunFolder(project / "stopped").config()
    assert Path(config.data_dir).is_file() and Path(config.teacher).is_file()  # for the next --resume, or --config


def test_a_run_goes_on_with_its_own_images_and_teacher_only(stopped_project, capsys):
    save_images("other.npz", seed=1)
    other = build_model("digits-teacher", 3)
    save_weights(Path("other.safetensors"), other, name="digits-teacher", num_classes=3, in_channels=1)
    before = Path("stopped/training_state.pt").read_bytes()
    for arguments, message in (
        (["--data-dir", "other.npz"], r"data_dir: .*other.npz holds other training images than stopped was started"),
        (["--teacher", "other.safetensors"], "teacher: .*other.safetensors holds other weights than stopped was"),
        (["--teacher", "digits-teacher"], "teacher: beside --resume only another place of the same weights; the run"),
        (["--clean-teacher", "teacher.safetensors"], "clean_teacher: beside --resume .*; the run has none, got"),
        (["--lr", "0.1"], "remove --lr. Places may change: --data-dir, --image-cache, --extra-data, --teacher, "),
    ):
        assert main(["--resume", "stopped", *arguments]) == 2
        assert re.search(message, capsys.readouterr().err)
    assert Path("stopped/training_state.pt").read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_signal_leaves_a_usable_checkpoint(tmp_path):
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
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=240)[1]
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert f"continue with: python -m ard_fast.train --resume {out}" in error and "Traceback" not in error
    state, last = load_state(out / "training_state.pt"), load_file(out / "last.safetensors")
    assert all(torch.equal(last[key], state.model[key]) for key in last)


def test_a_start_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    """Unless the folder was there before, or something has been trained."""

    def fail(self):
        raise RuntimeError("out of luck")

    real = trainer.Trainer.run
    monkeypatch.setattr(trainer.Trainer, "run", fail)
    (tmp_path / "mine").mkdir()
    for name in ("runs", "mine"):
        with pytest.raises(RuntimeError, match="out of luck"):
            main([*AT, "--out", str(tmp_path / name)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    monkeypatch.setattr(trainer.Trainer, "run", lambda self: real(self) if self.config.method == "at" else fail(self))
    arguments = ["--method", "ard", "--teacher", "digits-teacher", *TINY, "--epochs", "1", "--out"]
    with pytest.raises(RuntimeError, match="out of luck"):
        main([*arguments, str(tmp_path / "ard")])
    assert (tmp_path / "ard" / "teacher" / "best.safetensors").is_file()


# ---- teachers and students that learned nothing ---------------------------------------------------------------------


def test_a_collapsed_run_says_so(tmp_path, capsys):
    """In its output while it trains and at its end, and in its summary; its exit code is 0."""
    arguments = ["--method", "at", *CLEAN, "--steps", "1", "--schedule", "constant", "--epochs", "4", "--lr", "1e-9"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("warning: after 3 epochs the run has collapsed") == 1
    (warning,) = json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"]
    assert warning.startswith("the best checkpoint has collapsed: ") and "--lr 1e-10 instead of 1e-09" in warning
    assert f"warning: {warning}" in printed


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A natural network for the digits, trained for a moment."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = ["--method", "natural", "--student", "digits-teacher", "--epochs", "4", "--val-steps", "1"]
    assert main([*arguments, "--out", str(folder / "natural")]) == 0
    return folder


@pytest.mark.parametrize(
    ("teacher", "method", "warning"),
    [
        ("robustbench:Net", "kd", None),
        ("natural", "ard", "PGD-10 .* it is not robust, but this method relies on a robust teacher"),
        ("bytes", "kd", r"and [\d.]+ % with --teacher-mean 0 --teacher-std 0.003922: "),
        ("probabilities", "kd", "looks like probabilities; .*: the teacher must return logits"),
        ("random", "ard", r"and guessing gives 10.0 %. Check that its weights .*\(--teacher-mean and --teacher-std\)"),
    ],
)
def test_every_teacher_is_measured_first(trained, tmp_path, monkeypatch, capsys, teacher, method, warning):
    (trained / teacher).mkdir(exist_ok=True)
    natural = load_network(trained / "natural", num_classes=10, in_channels=1)
    source, more = trained / teacher, [] if method == "kd" else ["--steps", "1"]
    if teacher == "robustbench:Net":
        source, package = teacher, types.ModuleType("robustbench")
        package.__spec__ = ModuleSpec("robustbench", None)  # it is installed
        package.load_model = lambda **settings: natural
        monkeypatch.setitem(sys.modules, "robustbench", package)
        monkeypatch.setitem(sys.modules, "robustbench.utils", package)
    if teacher == "random":
        save_teacher(source / "best.safetensors")
    elif teacher == "bytes":  # a network that expects pixels in [0, 255]
        natural.features[0].weight.data /= 255
        save_weights(source / "best.safetensors", natural, name="digits-teacher", num_classes=10, in_channels=1)
    elif teacher == "probabilities":
        source = source / "best.pt"
        torch.save(nn.Sequential(natural).state_dict(), source)
        more = ["--teacher-model", "test_train:with_softmax"]
    arguments = ["--method", method, "--subset", "64", *more, "--epochs", "1", "--teacher", str(source)]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    measured = r"teacher \S+: clean [\d.]+ %, PGD-10 [\d.]+ % on 41 validation images"
    assert re.search(measured, " ".join(printed.split()))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["teachers"]["teacher"]["images"] == VAL
    found = [text for text in summary["warnings"] if text.startswith("teacher: ")]
    assert len(found) == (warning is not None)
    if warning:
        assert re.search(warning, found[0]) and f"warning: {found[0]}" in printed


def test_a_student_that_returns_probabilities_is_told(tmp_path, capsys):
    out = ["--epochs", "1", "--out", str(tmp_path / "run"), "--student", "test_train:with_softmax"]
    assert main([*AT, *out]) == 0
    assert "student: warning: its output looks like probabilities" in capsys.readouterr().out


# ---- the comparison -------------------------------------------------------------------------------------------------


def test_the_default_job_at_tiny_settings(tmp_path, monkeypatch, capsys):
    """A table, a plot and a summary; a run that is stopped in the second seed goes on to the same networks."""
    out, again, starts = tmp_path / "compare", tmp_path / "again", {}
    real = trainer.Trainer.run

    def run(self):
        starts[self.folder.path] = {key: value.clone() for key, value in self.student.state_dict().items()}
        return real(self)

    monkeypatch.setattr(trainer.Trainer, "run", run)
    assert main([*TINY, "--epochs", "1", "--compare-seeds", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    students = [f"{name} (digits-student)" for name in ("at", "at-ema", "ard")]
    for name in ("teacher, at (digits-teacher)", *students):
        assert re.search(
            re.escape(f"| {name} ") + r" *\| +[\d.]+ ± [\d.]+ \| +[\d.]+ ± [\d.]+ \| +[\d.]+ \|",
            printed,
        )
    summary = json.loads((out / "summary.json").read_text())
    ((stronger, scores),) = summary["stronger"].items()
    assert stronger == max(("at", "at-ema"), key=scores.get)
    line = f"of at and at-ema the stronger is {stronger}, by the validation images alone: at {scores['at']:.2f} %, at-"
    gap = f"ard (digits-student) - {stronger} (digits-student) under PGD-20: "
    for text in (printed, (out / "report.md").read_text()):
        assert line in text and gap in text and text.count("under PGD-20: ") == 1
    assert f"are in {out}\n" in printed
    names = "teacher|at|at-ema|ard"
    assert len(re.findall(rf"(?m)^ +\d/8  (?:{names}) +[01] +[\d.]+ +[\d.]+  +[\d:]+ +[\d:]+$", printed)) == 8
    runs = {f"seed{seed}-{name}" for seed in (0, 1) for name in names.split("|")}
    own = {
        "config.yaml",
        "places.json",
        "metrics.jsonl",
        "summary.json",
        "report.md",
        "report.tex",
    }
    assert {path.name for path in out.iterdir()} == runs | own
    assert set(summary) == {*SUMMARY_KEYS, "best", "stronger", "runs"} and (out / summary["best"]).is_file()
    singles = [json.loads((out / f"seed{seed}-ard" / "summary.json").read_text()) for seed in (0, 1)]
    assert summary["pgd20_acc"] == pytest.approx(sum(one["pgd20_acc"] for one in singles) / 2)
    assert summary["seed"] == [0, 1] and summary["runs"]["ard"] == singles
    assert {row["run"] for row in RunFolder(out).metrics()} == runs
    for key, value in starts[out / "seed0-at"].items():  # every method starts from the same weights
        assert torch.equal(value, starts[out / "seed0-ard"][key]), key

    shutil.copytree(out, again)  # the first seed is done; the second one's ARD run is stopped
    shutil.rmtree(again / "seed1-ard")
    (again / "summary.json").unlink()
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert main(["--resume", str(again)]) == 130
    assert main(["--resume", str(again)]) == 0
    for name in ("best.safetensors", "last.safetensors"):
        assert same_weights(out / "seed1-ard" / name, again / "seed1-ard" / name)
    assert evaluate.main([str(out)]) == 2  # which of them?
    assert f"run: {out} holds several runs; name the folder of one: seed0-ard, seed0-at," in capsys.readouterr().err
    config = again / "config.yaml"  # whose settings are no longer those of the runs inside
    config.write_text(config.read_text().replace("momentum: 0.9", "momentum: 0.8"))
    assert main(["--resume", str(again)]) == 2
    assert "seed0-teacher was started with another configuration" in capsys.readouterr().err


# ---- on a GPU -------------------------------------------------------------------------------------------------------

if torch.cuda.is_available():

    @pytest.mark.gpu
    def test_a_training_step_on_cuda_never_waits_for_the_device(tmp_path, monkeypatch):
        real, real_step = Update.__call__, trainer.Progress.step

        def watched(*args, **kwargs):
            torch.cuda.set_sync_debug_mode("error")  # until the step is done
            return real(*args, **kwargs)

        def step(self):
            torch.cuda.set_sync_debug_mode("default")
            real_step(self)

        monkeypatch.setattr(Update, "__call__", watched)
        monkeypatch.setattr(trainer.Progress, "step", step)
        try:
            options = ["--epochs", "2", "--device", "cuda", "--graph", "off", "--channels-last"]
            assert main([*AT, *options, "--out", str(tmp_path / "run")]) == 0
        finally:
            torch.cuda.set_sync_debug_mode("default")
