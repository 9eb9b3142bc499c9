"""Every method as a run: from the command line, stopped inside an epoch, and on to the same bits."""

import pytest
import torch
from test_train import metrics, same_weights, save_teacher, small_and_tidy, stop_after

from ard_fast.methods import METHODS
from ard_fast.train import main
from ard_fast.training import trainer
from ard_fast.training.checkpoint import load_state

__all__ = ["small_and_tidy"]  # the fixture that shortens the digits


@pytest.fixture(autouse=True)
def without_plots(monkeypatch):
    monkeypatch.setattr(trainer, "write_run_report", lambda *args, **settings: None)


def command(name, folder):
    """A run of 4 epochs, replays counted, of 3 batches, the last of them smaller."""
    spec = METHODS[name]
    arguments = ["--method", name, "--subset", "80", "--batch-size", "32", "--val-steps", "1", "--epochs", "4"]
    if "steps" in spec.defaults():
        arguments += ["--steps", "2"]
    if "replays" in spec.defaults():
        arguments += ["--replays", "2"]
    for role in spec.teachers:
        path = folder / f"{role}.safetensors"
        if not path.exists():
            torch.manual_seed(3)
            save_teacher(path)
        arguments += [f"--{role.replace('_', '-')}", str(path)]
    return arguments


@pytest.mark.parametrize("name", METHODS)
def test_a_run_of_the_method_stops_and_goes_on_to_the_same_bits(tmp_path, monkeypatch, name):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*command(name, tmp_path), "--out", str(whole)]) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 5)  # inside the second pass
        assert main([*command(name, tmp_path), "--out", str(stopped)]) == 130
    assert load_state(stopped / "training_state.pt").step == 2
    assert main(["--resume", str(stopped)]) == 0
    assert same_weights(whole / "last.safetensors", stopped / "last.safetensors")
    assert metrics(whole) == metrics(stopped)
    one, other = (load_state(folder / "training_state.pt").method for folder in (whole, stopped))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
