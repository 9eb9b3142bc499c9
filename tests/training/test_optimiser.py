"""The optimiser of a run: numbers on the host or on the device, one kind of checkpoint."""

import copy
import math
import sys

import pytest
import torch
from graph_runs import Run
from torch import nn

from ard_fast.training.config import resolve
from ard_fast.training.optimiser import Scalars, learning_rate, make_optimiser

RATES = [0.3, 0.3, 0.05, 0.0]


FORMS = {
    "sgd": {"momentum": 0.9},
    "nesterov": {"nesterov": True},
    "adam": {"optimiser": "adam"},
    "adamw": {"optimiser": "adamw"},
}


def problem(fused, form="sgd"):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 3))
    config = resolve({"method": "at", "weight_decay": 0.01, **FORMS[form]})
    return network, make_optimiser(network.parameters(), config, fused=fused)


def step(network, optimizer, rate, seed):
    torch.manual_seed(seed)
    optimizer.zero_grad()
    network(torch.randn(6, 4)).square().mean().backward()
    optimizer.set_rate(rate)
    optimizer.step()


@pytest.mark.parametrize("form", FORMS)
def test_a_rate_on_the_device_gives_the_steps_of_a_number(form):
    rates = Scalars(1, torch.device("cpu"))
    (one, fused), (other, plain) = problem(True, form), problem(False, form)
    for seed, rate in enumerate(RATES):
        rates.write([rate])
        step(one, fused, rates[0], seed)
        step(other, plain, rate, seed)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7) and not torch.equal(a, torch.zeros_like(a))


@pytest.mark.parametrize("form", ["sgd", "adamw"])
@pytest.mark.parametrize(("saved", "loaded"), [(True, False), (False, True), (True, True), (False, False)])
def test_a_checkpoint_goes_from_any_form_to_any(saved, loaded, form):
    rates = Scalars(1, torch.device("cpu"))
    rates.write([0.25])
    rate = {True: rates[0], False: 0.25}
    network, optimizer = problem(saved, form)
    for seed in range(2):
        step(network, optimizer, rate[saved], seed)
    state = copy.deepcopy(optimizer.state_dict())
    (group,) = state["param_groups"]
    assert type(group["lr"]) is float and group["lr"] == 0.25
    again, other = problem(loaded, form)
    again.load_state_dict(network.state_dict())
    other.load_state_dict(state)
    assert [group["fused"] for group in other.param_groups] == [loaded or None]
    assert all(group.get("capturable", loaded) == loaded for group in other.param_groups)
    step(network, optimizer, rate[saved], 2)
    step(again, other, rate[loaded], 2)
    for a, b in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "kind", "group"),
    [
        ({"momentum": 0.5, "nesterov": True}, torch.optim.SGD, {"momentum": 0.5, "nesterov": True}),
        ({"optimiser": "adam"}, torch.optim.Adam, {"decoupled_weight_decay": False}),
        ({"optimiser": "adamw"}, torch.optim.AdamW, {"decoupled_weight_decay": True}),
    ],
)
def test_an_optimiser_has_the_settings_of_the_run(settings, kind, group):
    config = resolve({"method": "at", "weight_decay": 0.01, "lr": 0.2, **settings})
    optimizer = make_optimiser([torch.zeros(1)], config, fused=False)
    assert isinstance(optimizer, kind)
    assert optimizer.param_groups[0].items() >= {"weight_decay": 0.01, "lr": 0.2, **group}.items()


@pytest.mark.parametrize(("settings", "kept"), [({}, True), ({"cutout": 2}, False), ({"cropshift": 2}, False)])
def test_teacher_logits_are_kept_where_views_can_be_counted(settings, kept):
    assert (Run("ard", **settings).trainer.teachers["teacher"].open_cache() is not None) == kept


def test_onecycle_is_torchs():
    steps = 1000
    config = resolve({"method": "at", "schedule": "onecycle", "epochs": 10, "lr": 0.2})
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=steps)
    theirs = []
    for _ in range(steps):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    ours = [learning_rate(config, 10 * step / steps) for step in range(steps)]
    assert ours == pytest.approx(theirs, abs=0.2 * 3 / steps)  # which rises for a step less
    assert (ours[0], learning_rate(config, 10)) == pytest.approx((theirs[0], theirs[-1]))


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


def test_a_single_epoch_has_no_drop():
    assert learning_rate(resolve({"method": "at", "schedule": "multistep", "epochs": 1, "lr": 0.3}), 0.5) == 0.3


def test_each_batch_repeat_of_free_training_has_its_own_learning_rate():
    trainer = Run("free", lr=1.0).trainer  # cosine over 2 passes of 7 steps, each of 2 updates
    trainer.state.epoch, trainer.state.step = 1, 3
    shares = [10 / 14, 10.5 / 14]  # of all steps that are done
    assert trainer.rates() == pytest.approx([0.5 + 0.5 * math.cos(math.pi * share) for share in shares])


@pytest.mark.parametrize("form", FORMS)
def test_no_method_of_an_optimiser_imports_torch_dynamo(form, monkeypatch):
    torch.manual_seed(0)  # imports it in torch 2.11, at its first call only
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # its import fails
    network, optimizer = problem(False, form)
    step(network, optimizer, 0.1, seed=0)
    optimizer.load_state_dict(optimizer.state_dict())
    assert len(optimizer.state) == len(list(network.parameters()))
