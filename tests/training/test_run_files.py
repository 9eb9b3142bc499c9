"""Files of a run that are cut short, altered, hostile or cannot be written: clear errors, nothing run or lost."""

import json
import os
import pickle
import resource
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file
from short_runs import AT, assert_same_run, short_digits, small_and_tidy, stop_after

from ard_fast._files import NotWritten, write_atomic
from ard_fast.train import main
from ard_fast.training import runs, trainer
from ard_fast.training.checkpoint import DamagedRun, load_state, save_state
from ard_fast.training.run_folder import RunFolder

__all__ = ["small_and_tidy"]  # a fixture


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """A run of three epochs of three steps, stopped inside its second."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "load_dataset", short_digits)  # the fixture is of one test
        stop_after(patch, 4)
        assert main([*AT, "--epochs", "3", "--out", str(out)]) == 130
    return out


@pytest.fixture
def run(stopped_run, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(stopped_run, tmp_path / "run")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- files that cannot be used --------------------------------------------------------------------------------------


class Malicious:
    """Leaves a file behind when it is unpickled as code."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def altered(path):
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:  # not between its records, where nothing is
        content[content.index(max(map(archive.read, archive.namelist()), key=len))] ^= 1
    path.write_bytes(content)


def of_another_run(run):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("seed: 0\n", "seed: 1\n"))


def cut_short(run):
    lines = (run / "config.yaml").read_text().splitlines(keepends=True)
    (run / "config.yaml").write_text("".join(lines[:5]))


def with_field(name, value):
    def write(run):
        state = load_state(run / "training_state.pt")
        setattr(state, name, value)
        save_state(run / "training_state.pt", state)

    return write


def of_an_older_schema(run):
    content = torch.load(run / "training_state.pt", weights_only=True)
    torch.save({**content, "schema": 3}, run / "training_state.pt")


NO_STATE = "training_state.pt is not a training state of this version"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "training_state.pt").write_bytes(b"nonsense"), NO_STATE),
        (lambda run: (run / "training_state.pt").write_bytes(pickle.dumps(Malicious())), NO_STATE),
        (lambda run: torch.save({"schema": 4, "model": Malicious()}, run / "training_state.pt"), NO_STATE),
        (lambda run: altered(run / "training_state.pt"), "checksum"),
        (lambda run: (run / "training_state.pt").unlink(), "training_state.pt is missing"),
        (of_an_older_schema, f"{NO_STATE}: another schema"),
        (of_another_run, "are not of the same run; they differ in seed"),
        (with_field("extra", 1), f"{NO_STATE}: "),
        (with_field("model", {}), "does not fit the run"),
        (with_field("optimizer", {}), "does not fit the run"),
        (with_field("method", {"x": torch.zeros(1)}), "does not fit the run: resume: method at keeps no state"),
        (lambda run: (run / "summary.json").write_text('{"method": "at"'), "summary.json is damaged"),
        (cut_short, "config.yaml is cut short"),
    ],
)
def test_a_run_does_not_go_on_from_a_damaged_file(run, monkeypatch, capsys, spoil, message):
    monkeypatch.chdir(run)
    spoil(run)
    before = contents(run)
    assert main(["--resume", str(run)]) == 2
    assert message in capsys.readouterr().err
    assert contents(run) == before  # nothing executed, nothing lost


def test_a_run_of_a_comparison_does_not_go_on_with_other_settings_than_the_comparisons(run):
    folder = RunFolder(run)
    config = folder.config().replace(epochs=9)
    with pytest.raises(DamagedRun, match="was started with another configuration"):
        runs._start(config, folder, None, resume=True)


@pytest.mark.parametrize("damage", ["", "short", "[1]\n", "long"])
def test_metrics_and_weights_are_made_again_from_the_state(run, damage):
    """A run may be killed between its files; the state is the one that counts."""
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    spoilt = {"short": whole[:-20], "long": whole + b'{"epoch": 2, "cut'}
    path.write_bytes(spoilt.get(damage, damage.encode()))
    (run / "last.safetensors").write_bytes((run / "best.safetensors").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        assert main(["--resume", str(run)]) == 130
    assert path.read_bytes() == whole
    state, last = load_state(run / "training_state.pt"), load_file(run / "last.safetensors")
    assert all(torch.equal(last[name], value) for name, value in state.model.items())


def test_damaged_metrics_are_said(run):
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b"nonsense\n" + whole)
    with pytest.raises(DamagedRun, match="line 2, is damaged"):
        RunFolder(run).metrics()
    path.write_bytes(whole + whole[:-20])
    assert len(RunFolder(run).metrics()) == 1


def test_a_run_killed_before_its_best_weights_were_written_has_them_in_its_state(tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*AT, "--epochs", "2", "--out", str(whole)]) == 0

    def kill(self):
        raise MemoryError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_write_weights", kill)
        with pytest.raises(MemoryError):
            main([*AT, "--epochs", "2", "--out", str(killed)])
    assert not (killed / "best.safetensors").exists() and load_state(killed / "training_state.pt").is_best
    assert main(["--resume", str(killed)]) == 0
    assert_same_run(whole, killed)


# ---- files that cannot be written -----------------------------------------------------------------------------------


@pytest.fixture
def largest_file():
    """Limits the size of files, so that writing fails as on a full disk; the limit is lifted after the test."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_a_file_that_cannot_be_written_leaves_the_former_one(tmp_path, largest_file):
    path = tmp_path / "file"
    path.write_text("former")
    largest_file(1000)
    for write in (lambda part: part.write_bytes(bytes(5000)), lambda part: torch.save(torch.zeros(5000), part)):
        with pytest.raises(NotWritten, match=f"cannot write {path}: ") as caught:
            write_atomic(path, write)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # it goes to the other processes
    assert contents(tmp_path) == {"file": b"former"}


def test_a_full_disk_keeps_the_former_checkpoint_and_the_run_goes_on_later(tmp_path, monkeypatch, capsys, largest_file):
    whole, full = tmp_path / "whole", tmp_path / "full"
    assert main([*AT, "--epochs", "3", "--out", str(whole)]) == 0
    real, kept = trainer.save_state, {}

    def save(path, state):
        if state.epoch == 2:
            kept.update(contents(full))
            largest_file(10_000)
        real(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_state", save)
        assert main([*AT, "--epochs", "3", "--out", str(full)]) == 1
    largest_file(resource.RLIM_INFINITY)
    error = capsys.readouterr().err
    assert "cannot write" in error and "goes on from its last checkpoint with --resume" in error
    assert contents(full) == kept and load_state(full / "training_state.pt").epoch == 1
    assert main(["--resume", str(full)]) == 0
    assert_same_run(whole, full)
    assert json.loads((full / "summary.json").read_text())["epochs"] == 3


def test_a_folder_is_of_one_process_at_a_time(tmp_path, monkeypatch, capsys):
    real = trainer.Trainer.run

    def run(self):
        assert main(["--resume", str(tmp_path / "run")]) == 2
        return real(self)

    monkeypatch.setattr(trainer.Trainer, "run", run)
    assert main([*AT, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    assert "out: another process is training in" in capsys.readouterr().err
