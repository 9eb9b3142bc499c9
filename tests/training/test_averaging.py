"""SWA and EMA of the weights: the formulas. Kept, validated and resumed: test_train.py."""

import pytest
import torch
from safetensors.torch import load_file
from short_runs import AT, metrics, same_weights, small_and_tidy
from torch import nn

from ard_fast.train import main
from ard_fast.training.averaging import WeightAverage
from ard_fast.training.checkpoint import load_state

__all__ = ["small_and_tidy"]  # a fixture


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def wander(student, generator):
    """Other weights and statistics, as after an update."""
    with torch.no_grad():
        for value in student.state_dict().values():
            value.copy_(torch.rand(value.shape, generator=generator) * 9)
    return {name: value.clone() for name, value in student.state_dict().items()}


def test_swa_is_the_mean_of_the_epochs_from_the_first_on():
    student, generator = network(), torch.Generator().manual_seed(0)
    average = WeightAverage(student, kind="swa", first_epoch=2)
    seen = []
    for epoch in range(6):
        seen.append(wander(student, generator))
        assert average.count_update(epoch) is None
        average.after_epoch(epoch)
        average.after_epoch(epoch)  # a run that stopped in the validation comes by again
        assert (average.network is student) == (epoch < 2)
    for name, value in average.network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert value == seen[-1][name]
        else:
            assert torch.allclose(value, torch.stack([one[name] for one in seen[2:]]).mean(0), atol=1e-5), name


def test_ema_follows_its_recursion_with_a_decay_that_grows():
    student, generator = network(), torch.Generator().manual_seed(0)
    average = WeightAverage(student, kind="ema", decay=0.3, first_epoch=0)
    expected = None
    for update in range(6):
        now = {name: value.double() for name, value in wander(student, generator).items()}
        share = average.count_update(0)
        average.move(torch.tensor(share) if update % 2 else share)  # a number, or on the device
        decay = min(0.3, (1 + update) / (10 + update))
        expected = now if expected is None else {k: decay * expected[k] + (1 - decay) * now[k] for k in now}
    assert decay == 0.3
    for name, value in average.network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.allclose(value.double(), expected[name], atol=1e-5), name
    average.after_epoch(0)
    assert average.count == 6 and not any(parameter.requires_grad for parameter in average.network.parameters())


@pytest.mark.parametrize(("kind", "count"), [("swa", 2), ("ema", 6)])
def test_the_average_is_what_a_run_keeps_and_its_training_is_the_same(tmp_path, kind, count):
    plain, averaged = tmp_path / "plain", tmp_path / "averaged"
    assert main([*AT, "--epochs", "4", "--out", str(plain)]) == 0
    assert main([*AT, "--epochs", "4", "--averaging", kind, "--out", str(averaged)]) == 0
    state, last = load_state(averaged / "training_state.pt"), load_file(averaged / "last.safetensors")
    assert int(state.average["count"]) == count  # from the third epoch on
    assert all(torch.equal(value, state.average[f"network.{name}"]) for name, value in last.items())
    assert all(torch.equal(value, state.model[name]) for name, value in load_file(plain / "last.safetensors").items())
    assert not same_weights(plain / "last.safetensors", averaged / "last.safetensors")
    losses = [[row["train_loss"] for row in metrics(folder)] for folder in (plain, averaged)]
    assert losses[0] == losses[1]
