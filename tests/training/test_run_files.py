"""Files of a run that are cut short, altered, hostile or cannot be written: clear errors, nothing run or lost."""

import io
import json
import os
import pickle
import resource
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file
from test_train import AT, same_weights, short_digits, small_and_tidy, stop_after  # noqa: F401 - the fixture holds for all tests

from ard_fast._files import NotWritten, write_atomic
from ard_fast.train import main
from ard_fast.training import runs as experiment
from ard_fast.training import trainer
from ard_fast.training.checkpoint import DamagedRun, load_network, load_state, read_weights, save_state
from ard_fast.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """A run of three epochs of three steps, stopped inside its second."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "load_dataset", short_digits)  # the fixture is of one test
        stop_after(patch, 4)
        assert main([*AT, "--epochs", "3", "--out", str(out)]) == 130
    return out


@pytest.fixture
def run(stopped_run, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(stopped_run, tmp_path / "run")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same_tree(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_tree(a[key], b[key]) for key in a)
    return a == b


class Malicious:
    """Leaves a file behind when it is unpickled as code."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def cut_and_flipped(content, count=40):
    """The content cut short at many lengths, and with one byte altered at many places."""
    places = [round(index * (len(content) - 1) / count) for index in range(count)]
    for place in places:
        yield content[:place]
        yield content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]


# ---- training_state.pt --------------------------------------------------------------------------------------------


def test_a_cut_or_altered_state_is_refused_or_unharmed(run):
    path = run / "training_state.pt"
    whole, refused = load_state(path), 0
    for content in cut_and_flipped(path.read_bytes()):
        path.write_bytes(content)
        try:
            state = load_state(path)
        except DamagedRun:
            refused += 1
        else:  # a byte that nothing reads, such as the padding between two tensors
            assert same_tree(vars(state), vars(whole))
    assert refused >= 60


def test_altered_weights_inside_a_state_are_noticed(run):
    path = run / "training_state.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedRun, match="checksum"):
        load_state(path)


def as_pickle(path, what):
    path.write_bytes(pickle.dumps(what))


def as_torch(path, what):
    torch.save(what, path)


@pytest.mark.parametrize("write", [as_pickle, as_torch])
@pytest.mark.parametrize("content", [Malicious(), {"schema": 4, "model": Malicious()}, [1], {"schema": 4}, None])
def test_hostile_states_are_refused(run, monkeypatch, capsys, write, content):
    monkeypatch.chdir(run)
    write(run / "training_state.pt", content)
    before = contents(run)
    assert main(["--resume", str(run)]) == 2
    assert "training_state.pt is not a training state of this version" in capsys.readouterr().err
    assert contents(run) == before


def test_states_of_runs_on_the_first_images_are_refused(run, capsys):
    """Until schema 3 --subset took other images than now."""
    content = torch.load(run / "training_state.pt", weights_only=True)
    torch.save({**content, "schema": 3}, run / "training_state.pt")
    assert main(["--resume", str(run)]) == 2
    assert "training_state.pt is not a training state of this version: another schema" in capsys.readouterr().err


def test_a_compressed_archive_is_refused_before_it_grows(tmp_path):
    with zipfile.ZipFile(tmp_path / "s.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(DamagedRun, match="compressed"):
        load_state(tmp_path / "s.pt")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epoch", -5, "epoch is -5"),
        ("epoch", 1.5, "epoch is float"),
        ("step", True, "step is bool"),
        ("loss_sum", float("nan"), "loss_sum is nan"),
        ("model", [], "model is list"),
        ("rows", {}, "rows is dict"),
        ("model", {}, "does not fit the run"),
        ("optimizer", {}, "does not fit the run"),
        ("method", {"x": torch.zeros(1)}, "does not fit the run: resume: method at keeps no state"),
        ("extra", 1, "its keys differ: extra"),
    ],
)
def test_states_with_odd_fields_are_refused(run, capsys, name, value, message):
    state = load_state(run / "training_state.pt")
    setattr(state, name, value)
    save_state(run / "training_state.pt", state)
    before = contents(run)
    assert main(["--resume", str(run)]) == 2
    assert message in capsys.readouterr().err
    assert contents(run) == before


def test_a_missing_state_is_not_taken_for_a_new_run(run, capsys):
    (run / "training_state.pt").unlink()
    before = contents(run)
    assert main(["--resume", str(run)]) == 2
    assert "training_state.pt is missing" in capsys.readouterr().err
    assert contents(run) == before


def test_a_state_of_another_run_is_refused(run, capsys):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("seed: 0\n", "seed: 1\n"))
    assert main(["--resume", str(run)]) == 2
    assert "are not of the same run; they differ in seed" in capsys.readouterr().err


# ---- the other files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors"])
def test_cut_or_altered_weights_are_refused_or_unharmed(run, name):
    path = run / name
    whole = load_file(path)
    for content in cut_and_flipped(path.read_bytes()):
        path.write_bytes(content)
        try:
            weights = read_weights(path, argument="teacher").tensors
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert same_tree(weights, whole)


def test_weights_that_differ_from_the_state_are_written_again(run):
    """Killed between the two files; the state is the one that counts."""
    state = load_state(run / "training_state.pt")
    (run / "last.safetensors").write_bytes((run / "best.safetensors").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        assert main(["--resume", str(run)]) == 130
    assert load_state(run / "training_state.pt").step == state.step + 1
    assert same_tree(load_file(run / "last.safetensors"), load_state(run / "training_state.pt").model)


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
    for name in ("best.safetensors", "last.safetensors"):
        assert same_weights(whole / name, killed / name)


@pytest.mark.parametrize("damage", ["", "short", "\xff\xfe\n", "[1]\n", "[" * 100_000 + "\n", "long"])
def test_damaged_metrics_are_made_again_from_the_state(run, damage):
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    spoilt = {"short": whole[:-20], "long": whole + b'{"epoch": 2, "cut'}
    path.write_bytes(spoilt.get(damage, damage.encode("latin-1")))
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        assert main(["--resume", str(run)]) == 130
    assert path.read_bytes() == whole


def test_damaged_metrics_are_said(run):
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b"nonsense\n" + whole)
    with pytest.raises(DamagedRun, match="line 2, is damaged"):
        RunFolder(run).metrics()
    path.write_bytes(whole + whole[:-20])
    assert len(RunFolder(run).metrics()) == 1


def test_a_cut_or_altered_configuration_is_refused_or_the_same(run):
    path = run / "config.yaml"
    folder = RunFolder(run)
    whole, content = folder.config(whole=True), path.read_bytes()
    for place in range(0, len(content) - 1, 29):
        path.write_bytes(content[:place])
        with pytest.raises(ValueError, match="config"):
            folder.config(whole=True)
    path.write_bytes(content)
    assert folder.config(whole=True) == whole


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", "[" * 100_000, '{"method": "at"'])
def test_a_damaged_summary_is_said(run, capsys, text):
    (run / "summary.json").write_text(text)
    before = contents(run)
    assert main(["--resume", str(run)]) == 2
    assert "summary.json is damaged" in capsys.readouterr().err
    assert contents(run) == before


def test_hostile_weights_in_pickles_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(1000)}, buffer)
    whole = buffer.getvalue()
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 1
    for index, content in enumerate([pickle.dumps(Malicious()), whole[:500], bytes(altered), b""]):
        (path := tmp_path / f"{index}.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read .*as a state dict|is cut short|is an empty file"):
            load_network(path, num_classes=10, in_channels=1, model="digits-teacher")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["0.pt", "1.pt", "2.pt", "3.pt"]


# ---- files that cannot be written ---------------------------------------------------------------------------------


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
    assert same_weights(whole / "last.safetensors", full / "last.safetensors")
    assert json.loads((full / "summary.json").read_text())["epochs"] == 3
