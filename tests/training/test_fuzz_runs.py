"""Damaged, foreign and hostile files of runs, checkpoints, configurations and teacher logits."""

import contextlib
import dataclasses
import functools
import io
import json
import pickle
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from fuzz_files import altered, damaged, read, scalars, trees
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import often
from test_compare import make_run

from ard_fast import compare
from ard_fast.models import build_model
from ard_fast.training.checkpoint import (
    DamagedRun,
    TrainingState,
    load_network,
    load_state,
    read_weights,
    save_state,
    save_weights,
)
from ard_fast.training.comparison import read_run
from ard_fast.training.config import TrainConfig, read_yaml, resolve, to_yaml
from ard_fast.training.run_folder import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore")


@functools.cache
def folder():
    return Path(tempfile.mkdtemp(prefix="ard-fast-fuzz-"))


# ---- configurations -----------------------------------------------------------------------------------------------


@functools.cache
def configuration():
    return to_yaml(resolve({"method": "ard", "teacher": "digits-teacher"})).encode()


def resolved(path):
    return resolve({}, file=read_yaml(path))


@given(damaged(configuration(), b"eps: 8/255\nmilestones: [3, 5]\nflip: true\n", b"a: &x [1]\nb: *x\n"))
@often
def test_configuration_files(content):
    path = folder() / "config.yaml"
    path.write_bytes(content)
    found, _ = read(lambda: read_yaml(path), path)
    if found is not None:
        assert found.keys() <= set(TrainConfig.model_fields)
        read(lambda: resolve({}, file=found), "", errors=(ValueError, FileNotFoundError))


# A name with a colon is code that the user asks for; nothing to import is among these.
fields = st.sampled_from(list(TrainConfig.model_fields))
values = trees.filter(lambda value: not (isinstance(value, str) and ":" in value))


@given(st.dictionaries(fields, values, min_size=1, max_size=4))
@often
def test_configurations_of_any_values(content):
    """A value of another type or range is refused by its field's name; what is accepted can be written and read."""
    path = folder() / "any.yaml"
    path.write_text(yaml.safe_dump(content))
    found, refusal = read(lambda: resolved(path), "", errors=(ValueError, FileNotFoundError))
    if found is None:
        names = list(TrainConfig.model_fields)
        assert any(name in str(refusal) for name in names) or str(path) in str(refusal)
    else:
        path.write_text(to_yaml(found))
        assert TrainConfig(**read_yaml(path)) == found


# ---- weights ------------------------------------------------------------------------------------------------------


@functools.cache
def weights():
    """The same small network as safetensors and as `torch.save` writes it, wrapped and not."""
    torch.manual_seed(0)
    network = build_model("digits-student")
    path = folder() / "whole.safetensors"
    save_weights(path, network, name="digits-student", num_classes=10, in_channels=1)
    whole = [path.read_bytes()]
    state = {key: value[:2].clone() for key, value in network.state_dict().items() if value.dim()}  # small files
    for content in (state, {"state_dict": {f"module.{key}": value for key, value in state.items()}}):
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
            whole.append(file.getvalue())
    return whole


def _read_weights(path, content):
    path.write_bytes(content)
    # torch asks for as much as a file of its old format says before it reads (and touches) any of it.
    room = 1 << (29 if content[:2] == b"PK" or path.suffix == ".safetensors" else 36)
    found, _ = read(lambda: read_weights(path, argument="run"), "run: ", path, room=room)
    if found is not None:
        tensors, metadata = found.tensors, found.metadata
        assert all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in tensors.items())
        assert all(isinstance(value, str) for value in metadata.values())
    read(lambda: load_network(path, num_classes=10, in_channels=1, model="digits-student"), "teacher", path, room=room)


@given(damaged(weights()[0]))
@often
def test_safetensors_files(content):
    _read_weights(folder() / "damaged.safetensors", content)


@given(damaged(*weights()[1:]))
@often
def test_files_of_torch_save(content):
    _read_weights(folder() / "damaged.pt", content)


class Runs:
    """Code, if it is ever unpickled."""

    def __reduce__(self):
        return __import__("os").system, ("touch executed",)


tensors = st.sampled_from(
    (
        torch.zeros(3),
        torch.zeros(()),
        torch.zeros(0),
        torch.full((8, 1, 3, 3), torch.nan),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(3, dtype=torch.bool),
        torch.zeros(9).to(torch.float8_e4m3fn),
        torch.eye(3).to_sparse(),
        torch.zeros(1).expand(1 << 40),  # terabytes, by what it says
        torch.zeros(4).as_strided((1 << 20, 1 << 20), (0, 0)),
        torch.zeros(2, device="meta"),
        torch.nn.Parameter(torch.zeros(2)),
    )
)
own = build_model("digits-student").state_dict()
keys = st.sampled_from((*own, "mean", "std", "module.x", "state_dict", "model", "", "\0", 3))
states = st.recursive(
    tensors | scalars | st.builds(Runs),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=8,
)


@given(states | st.dictionaries(keys, tensors, max_size=6), st.booleans())
@often
def test_state_dicts_of_others(content, zipped):
    path = folder() / "other.pt"
    try:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    except (RuntimeError, NotImplementedError, TypeError, pickle.PicklingError, OverflowError):
        return  # what torch itself cannot save
    _read_weights(path, path.read_bytes())


# ---- training states ----------------------------------------------------------------------------------------------


@functools.cache
def training_state():
    state = TrainingState(epoch=1, step=2, rows=[{"epoch": 1, "val_clean": 1.0}], config={"eps": 0.1},
                          model={"a": torch.arange(5.0)}, optimizer={"state": {0: {"m": torch.zeros(3)}}})  # fmt: skip
    path = folder() / "whole_state.pt"
    save_state(path, state)
    return state, path.read_bytes()


def unchanged(found, state):
    """Whether a state that was accepted is the one that was written."""
    return all(repr(getattr(found, item.name)) == repr(getattr(state, item.name)) for item in dataclasses.fields(state))


@given(damaged(training_state()[1]))
@often
def test_training_states(content):
    path = folder() / "training_state.pt"
    path.write_bytes(content)
    found, _ = read(lambda: load_state(path), path, errors=(DamagedRun,))
    assert found is None or unchanged(found, training_state()[0])


@given(st.dictionaries(st.sampled_from([item.name for item in dataclasses.fields(TrainingState)]), states, max_size=3))
@often
def test_training_states_of_any_values(changes):
    path = folder() / "any_state.pt"
    content = {"schema": 4, **vars(training_state()[0]), **changes}
    try:
        torch.save(content, path)
    except (RuntimeError, NotImplementedError, TypeError, pickle.PicklingError, OverflowError):
        return
    read(lambda: load_state(path), path, errors=(DamagedRun,))


# ---- run folders --------------------------------------------------------------------------------------------------


@functools.cache
def finished():
    """A finished run that was evaluated, and its files' bytes."""
    path = make_run(folder() / "run", attacks={"apgd-ce": (39.0, {})})
    return path, {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def restore():
    path, files = finished()
    for file, content in files.items():
        file.write_bytes(content)
    return path, files


def readers(path):
    run = RunFolder(path)
    return [lambda: run.config(whole=True), run.metrics, run.summary, lambda: read_run(run)]


def compared(path):
    """`python -m ard_fast.compare`: its exit code and what it says."""
    said = io.StringIO()
    shutil.rmtree(folder() / "out", ignore_errors=True)
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = compare.main([str(path), "--out", str(folder() / "out")])
    return code, said.getvalue()


@given(st.data())
def test_run_folders(data):
    path, files = restore()
    file = data.draw(st.sampled_from(list(files)))
    content = data.draw(damaged(files[file]))
    file.write_bytes(content)
    for reader in readers(path):
        _, refusal = read(reader, "", errors=(ValueError,))
        assert refusal is None or str(file) in str(refusal) or "config" in file.name
    (code, said), _ = read(lambda: compared(path), errors=())
    assert code == 0 or (code == 2 and said.startswith(("error: ", "left out: ")))


@given(st.data())
def test_run_folders_of_any_values(data):
    """Whole JSON with other values in it: said by the file's name, or taken for what it is, never half way."""
    path, files = restore()
    file = data.draw(st.sampled_from([file for file in files if file.suffix in (".json", ".jsonl")]))
    if file.suffix == ".json":
        content = json.dumps(data.draw(altered(json.loads(files[file]))))
    else:
        rows = [json.loads(line) for line in files[file].splitlines()]
        content = "".join(json.dumps(row) + "\n" for row in data.draw(altered(rows)))
    file.write_text(content)
    for reader in readers(path):
        _, refusal = read(reader, "", errors=(ValueError,))
        assert refusal is None or str(file) in str(refusal)
    (code, said), _ = read(lambda: compared(path), errors=())
    assert code == 0 or (code == 2 and str(file) in said)
