"""The model of an iteration's cost: its counts against formulas and against whole updates, and its page."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import _cost_count  # noqa: E402
import cost_model  # noqa: E402
from _cost_count import Cost, Network, Passes, Tally, counted, method_passes  # noqa: E402
from cost_model import Machine, Setup, iteration  # noqa: E402

from ard_fast.data import Batch  # noqa: E402
from ard_fast.methods import METHODS, MethodContext, build_method  # noqa: E402
from ard_fast.models import build_model  # noqa: E402
from ard_fast.teachers import Teacher  # noqa: E402
from ard_fast.training.config import resolve  # noqa: E402


def test_a_grouped_convolution_by_hand():
    with FakeTensorMode():
        conv, x = nn.Conv2d(8, 12, 3, padding=1, groups=4, bias=False), torch.empty(5, 8, 6, 7, requires_grad=True)
        forward = counted(lambda: conv(x))
        both = counted(lambda: conv(x).backward(torch.empty(5, 12, 6, 7)))
        to_input = counted(lambda: torch.autograd.grad(conv(x), x, torch.empty(5, 12, 6, 7)))
    outputs, inputs, weights = 5 * 12 * 6 * 7, 5 * 8 * 6 * 7, 12 * 2 * 9
    macs = outputs * 2 * 9
    assert forward == Cost(macs, 4 * (inputs + outputs + weights))
    assert both.macs == 3 * macs and to_input.macs == 2 * macs
    assert both.bytes == forward.bytes + 4 * (outputs + inputs + weights + inputs + weights)


def test_a_matrix_product_by_hand():
    with FakeTensorMode(), torch.no_grad():
        linear, x = nn.Linear(6, 10), torch.empty(4, 6)
        assert counted(lambda: linear(x)) == Cost(4 * 6 * 10, 4 * (24 + 60 + 10 + 40))
        assert counted(lambda: x.view(2, 12).detach()) == Cost()


# methods.md of the papers: K = 10 steps; in forward passes of the student and of the teachers
UNITS = {
    "at": (23, 0),
    "trades": (27, 0),
    "fgsm-rs": (5, 0),
    "ard": (23, 1),
    "rslad": (26, 1),
    "iad-i": (26, 2),
    "mtard": (26, 2),
    "adaad": (23, 21),
    "fgsm-ard": (5, 1),
}


@pytest.mark.parametrize("method", UNITS)
def test_the_passes_of_the_methods(method):
    passes = dict(method_passes(method, 10 if METHODS[method].defaults.get("steps", 1) > 1 else None, False))
    assert (passes.pop("student").units, sum(role.units for role in passes.values())) == UNITS[method]


def test_the_cache_and_the_mode_of_batch_norm():
    assert method_passes("mtard", 3, True)["clean_teacher"].forward == 0
    assert method_passes("mtard", 3, True)["teacher"].forward == 1  # sees x'
    assert method_passes("adaad", 3, True) == method_passes("adaad", 3, False)
    assert method_passes("ard", 3, False)["student"] == Passes(forward=4, to_input=3, full=1, synced=1)
    assert method_passes("rslad", 3, False)["student"].synced == 2


@pytest.mark.parametrize(("method", "student"), [("ard", "mobilenetv2"), ("adaad", "resnet18-narrow")])
def test_an_iteration_is_what_a_whole_update_counts(method, student):
    """The passes put together against one update of the real networks, nothing taken apart."""
    setup = Setup(method=method, student=student, teacher="resnet18-narrow", batch=6, steps=2)
    with FakeTensorMode():
        network, teacher = build_model(student).train(), Teacher(build_model(setup.teacher))
        context = MethodContext(num_classes=10, epochs=10, train_size=100, teachers={"teacher": teacher})
        instance = build_method(method, resolve({"method": method, "dataset": "digits", "steps": 2}), context)
        ids = torch.zeros(6, dtype=torch.int64)
        with Tally() as tally:
            batch = Batch(torch.rand(6, 3, 32, 32), ids, ids, ids[:1])
            inner = instance.attack(network, batch)
            instance.loss(network, batch, inner).loss.backward()
    found = iteration(setup).total
    assert found.macs == tally.cost.macs
    # what the attack and the losses move is not the networks', and small
    assert found.bytes == pytest.approx(tally.cost.bytes, rel=0.02)


def test_a_batch_costs_by_the_image():
    network = Network("resnet18-tiny", 16, 10)
    assert network.forward(7) == _cost_count._forward(network, 7)
    assert network.to_input(7) + network.forward(7) == _cost_count._forward_and_to_input(network, 7)
    assert network.full(7) + network.forward(7) == _cost_count._forward_and_full(network, 7)


def test_growth():
    base = Setup(student="resnet18-tiny", teacher="resnet18-tiny", batch=8, size=16)
    cost = iteration(base)
    assert iteration(replace(base, batch=16)).total.macs == 2 * cost.total.macs
    assert iteration(replace(base, steps=20)).teacher == cost.teacher
    assert iteration(replace(base, cached=True)).teacher == Cost()
    assert iteration(replace(base, size=32)).total.macs == pytest.approx(4 * cost.total.macs, rel=0.01)
    assert cost.sent == cost.messages == 0


def test_gpus_share_the_batch_and_send_gradients_and_statistics():
    base = Setup(student="resnet18-tiny", teacher="resnet18-tiny", batch=8, size=16)
    network = Network("resnet18-tiny", 16, 10)
    with FakeTensorMode():
        built = build_model("resnet18-tiny")
    channels = [module.num_features for module in built.modules() if isinstance(module, nn.BatchNorm2d)]
    gradients = 4 * sum(parameter.numel() for parameter in built.parameters())
    statistics = sum(8 * (2 * c + 1) + 8 * 2 * c for c in channels)
    assert network.parameters * 4 == gradients
    for gpus in (2, 4):
        found = iteration(replace(base, gpus=gpus))
        assert found.total.macs == iteration(base).total.macs
        assert found.sent == pytest.approx(2 * (gpus - 1) / gpus * (gradients + statistics))
        assert found.messages == 1 + 2 * len(channels)
    with pytest.raises(ValueError, match="gpus: expected a divisor of the batch of 8, got 3"):
        iteration(replace(base, gpus=3))


def test_the_bound_of_a_machine():
    found = cost_model.Iteration(Cost(10**12, 10**9), Cost(0, 10**9), sent=10**9, messages=1)
    assert found.seconds(Machine(1.0, 1e9, 10.0), 1) == pytest.approx(2.0 + 0.1)  # arithmetic, then the link
    assert found.seconds(Machine(1e9, 1.0, 10.0), 2) == pytest.approx(1.0 + 0.1)  # memory, shared by two


def test_the_page_holds_what_the_script_prints():
    page = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    expected = cost_model.modelled(Machine())
    assert cost_model.section(page, "modelled") == expected, "run python benchmarks/cost_model.py --page docs/cost.md"
    assert "thread(s), torch" in cost_model.section(page, "measured")


def test_sections_of_a_page():
    page = "a\n<!-- modelled -->\nold\nlines\n<!-- end of modelled -->\nb\n"
    assert cost_model.section(cost_model.with_section(page, "modelled", "new | line"), "modelled") == "new | line"
    with pytest.raises(ValueError, match="expected one section"):
        cost_model.section(page, "measured")


def test_measured_on_this_cpu():
    base = Setup(student="resnet18-tiny", teacher="resnet18-tiny", batch=2, size=8, steps=1)
    table = cost_model.measured([base, replace(base, cached=True)], rounds=1)
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines() if " | " in line]
    assert [row[0] for row in rows[1:]] == ["as above", "teacher cached"]
    assert rows[1][2:5] == ["1.00", "1.00", "1.00"] and float(rows[2][3]) < 1
    assert "thread(s)" in table
