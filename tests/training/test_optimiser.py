"""The optimiser of a run: numbers on the host or on the device, one kind of checkpoint."""

import copy
import math

import pytest
import torch
from graph_runs import Run
from torch import nn

from ard_fast.training.config import resolve
from ard_fast.training.optimiser import SGD, Scalars

RATES = [0.3, 0.3, 0.05, 0.0]


def problem(fused, nesterov=False):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    config = resolve({"method": "at", "momentum": 0.9, "weight_decay": 0.01, "nesterov": nesterov})
    return network, SGD(network.parameters(), config, fused=fused)


def step(network, optimizer, rate, seed):
    torch.manual_seed(seed)
    optimizer.zero_grad()
    network(torch.randn(6, 4)).square().mean().backward()
    optimizer.set_rate(rate)
    optimizer.step()


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_rate_on_the_device_gives_the_steps_of_a_number(nesterov):
    rates = Scalars(1, torch.device("cpu"))
    (one, fused), (other, plain) = problem(True, nesterov), problem(False, nesterov)
    for seed, rate in enumerate(RATES):
        rates.write([rate])
        step(one, fused, rates[0], seed)
        step(other, plain, rate, seed)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7) and not torch.equal(a, torch.zeros_like(a))


@pytest.mark.parametrize(("saved", "loaded"), [(True, False), (False, True), (True, True), (False, False)])
def test_a_checkpoint_goes_from_any_form_to_any(saved, loaded):
    rates = Scalars(1, torch.device("cpu"))
    rates.write([0.25])
    rate = {True: rates[0], False: 0.25}
    network, optimizer = problem(saved)
    for seed in range(2):
        step(network, optimizer, rate[saved], seed)
    state = copy.deepcopy(optimizer.state_dict())
    (group,) = state["param_groups"]
    assert type(group["lr"]) is float and group["lr"] == 0.25
    again, other = problem(loaded)
    again.load_state_dict(network.state_dict())
    other.load_state_dict(state)
    assert [group["fused"] for group in other.param_groups] == [loaded or None]
    step(network, optimizer, rate[saved], 2)
    step(again, other, rate[loaded], 2)
    for a, b in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_numbers_on_the_device_stay_where_they_are():
    numbers = Scalars(2, torch.device("cpu"))
    first, second = numbers[0], numbers[1]
    numbers.write([0.5, 0.125])
    assert (first.item(), second.item()) == (0.5, 0.125) and first.dtype == torch.float32
    numbers.write([0.5, 2.0])
    assert (first.item(), second.item()) == (0.5, 2.0)
    plain = Scalars(2, None)
    plain.write([0.1, 3.0])
    assert plain[0] == 0.1 and type(plain[1]) is float


def test_each_batch_repeat_of_free_training_has_its_own_learning_rate():
    trainer = Run("free", lr=1.0).trainer  # cosine over 2 passes of 7 steps, each of 2 updates
    trainer.state.epoch, trainer.state.step = 1, 3
    shares = [10 / 14, 10.5 / 14]  # of all steps that are done
    assert trainer.rates() == pytest.approx([0.5 + 0.5 * math.cos(math.pi * share) for share in shares])
