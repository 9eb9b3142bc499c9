"""Wrong calls: refused by the name of what is wrong, nothing written."""

import inspect
import math
import re

import numpy as np
import pytest
import torch
from op_cases import CASES, prepared

from ard_fast import attacks, functional, reference
from ard_fast.functional import _ops
from ard_fast.losses import ARDLoss

X = torch.rand(3, 2, 4, 5)
LOGITS = torch.randn(3, 6)

OPERATORS = {}
for case in CASES:
    OPERATORS.setdefault(CASES[case][0]._schema.name.removeprefix("ard_fast::"), case)

WRONG = {
    "dtype": lambda t: t.to(torch.complex64),
    "device": lambda t: t.to("meta"),  # torch would call the shape function instead, which writes nothing
    "shape": lambda t: torch.cat([t, t[:1]]) if t.dim() else t.expand(2),
    "dimensions": lambda t: t.unsqueeze(0),
}
# What may have another number of entries or dimensions.
FREE = {"crop_flip": ("positions", "seed"), "random_start": ("x", "seed"), "fold_batch_norm_": ("weights", "affine")}


def wrong_calls(op, case):
    """Arguments with one tensor changed: its name, what is wrong with it, all arguments."""
    for place, argument in enumerate(op._schema.arguments):
        arguments = list(prepared(case, "cpu")[1])
        if place >= len(arguments) or not isinstance(arguments[place], torch.Tensor):
            continue
        for what, change in WRONG.items():
            if what in ("dtype", "device") or argument.name not in FREE.get(op._schema.name[10:], ()):
                yield argument.name, what, [*arguments[:place], change(arguments[place]), *arguments[place + 1 :]]
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        written = arguments[place]
        for other, value in enumerate(arguments):  # the same memory, an element further on
            if other != place and isinstance(value, torch.Tensor) and value.dtype == written.dtype:
                memory = torch.rand(max(written.numel(), value.numel()) + 1).to(written.dtype)
                changed = list(arguments)
                changed[place] = memory[: written.numel()].view(written.shape)
                changed[other] = memory[1 : 1 + value.numel()].view(value.shape)
                yield argument.name, "overlap", changed


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_wrong_tensor_of_an_operator_is_refused_by_name_before_anything_is_written(operator):
    op, _ = prepared(OPERATORS[operator], "cpu")
    names = [argument.name.removesuffix("_per_sample") for argument in op._schema.arguments]
    for name, what, arguments in wrong_calls(op, OPERATORS[operator]):
        kept = [t.clone() if isinstance(t, torch.Tensor) and t.device.type == "cpu" else t for t in arguments]
        with pytest.raises(RuntimeError) as said:
            op(*arguments)
        # Of two tensors that do not fit together either may be named.
        expected = [name.removesuffix("_per_sample")] if what in ("dtype", "device") else names
        assert re.search(rf"\b({'|'.join(expected)})", str(said.value)), (name, what, str(said.value))
        for before, after in zip(kept, arguments, strict=True):
            if isinstance(before, torch.Tensor) and before.device.type == "cpu":
                torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)


# ---- what random wrong calls have found ------------------------------------------------------------------------------


def test_a_loss_of_logits_on_two_devices_is_not_garbage():
    with pytest.raises(RuntimeError, match="must be on the device of"):
        functional.kl_distill_loss(LOGITS, LOGITS.to("meta"))
    with pytest.raises(RuntimeError, match=r"tensors must be on the device of weights \(cpu\), got meta"):
        numbers = [1e-5], [0, -1, 0]
        layer = [torch.rand(4, 1, 1, 1, device="meta"), *[None] * 3, torch.rand(4), torch.rand(4)]
        _ops.fold_batch_norm_(torch.zeros(4), torch.zeros(4), layer, *numbers)


def test_none_for_a_tensor_of_an_operator_is_named():
    with pytest.raises(RuntimeError, match="x must be a tensor, got None"):
        _ops.pgd_l2_step_(X.clone(), X, None, None, None, 0.1, 0.1, False, 0.0, 1.0)
    with pytest.raises(RuntimeError, match="labels must be a tensor, got None"):
        _ops.pair_loss(LOGITS, LOGITS, None, None, False, 1.0, 1.0, 1.0, 1.0, True, False)


@pytest.mark.parametrize("name", ["step_size", "eps"])
def test_sizes_do_not_share_memory_with_what_is_written(name):
    x_adv = torch.rand(3, 4)
    sizes = {"step_size": 0.1, "eps": 0.1, name: x_adv.view(-1)[:3]}
    for step_ in (functional.pgd_linf_step_, functional.pgd_l2_step_):
        with pytest.raises(RuntimeError, match=f"x_adv must not overlap {name} in memory"):
            step_(x_adv, torch.rand(3, 4), torch.rand(3, 4), **sizes)


@pytest.mark.parametrize("init, norm", [("surface", "linf"), ("surface", "l2"), ("uniform", "l2")])
def test_a_radius_for_another_batch_is_not_broadcast(init, norm):
    with pytest.raises(RuntimeError, match=r"eps must have shape \[3\], one entry a sample, got \[1\]"):
        functional.random_start(X, eps=torch.rand(1), init=init, norm=norm)


@pytest.mark.parametrize("value", [10**400, 1e39, math.inf])
def test_numbers_beyond_float32(value):
    with pytest.raises(ValueError, match="eps must be finite and at least 0"):
        functional.pgd_linf_step_(X.clone(), X, X, step_size=0.1, eps=value)
    with pytest.raises(ValueError, match="bounds must be"):
        attacks.PGD(bounds=(0.0, 10**400))


def test_a_step_count_that_the_state_cannot_count():
    with pytest.raises(ValueError, match="steps must be at least 1 and at most 16777216, got 1000000000"):
        functional.checkpoint_windows(10**9)


# Losses that take more than one tensor by position, and how many: the order of these is torch's own.
SEVERAL = {"kl_distill_loss": 2, "attack_loss": 2, "attack_gradient": 2}
LOSSES = [(part, name) for part in (functional, reference) for name in part.__all__ if name.endswith("_loss")]


@pytest.mark.parametrize(("part", "name"), [*LOSSES, (functional, "attack_gradient"), (ARDLoss, "forward")])
def test_of_several_logits_only_the_first_is_positional(part, name):
    parameters = list(inspect.signature(getattr(part, name)).parameters.values())
    parameters = [parameter for parameter in parameters if parameter.name != "self"]
    positional = [parameter for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
    assert len(positional) == SEVERAL.get(name, 1)


def test_logits_in_the_order_of_a_paper_are_refused():
    """With four logits of one shape any order would give a number."""
    student, teacher, clean, y = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0, 1, 2])
    for loss, given in (
        (functional.ard_loss, (student, teacher, clean, y)),
        (functional.rslad_loss, (student, clean, teacher)),
        (functional.trades_loss, (student, clean, y)),
        (functional.mart_loss, (student, clean, y)),
        (ARDLoss(), (student, teacher)),
    ):
        with pytest.raises(TypeError, match=r"takes . positional arguments? but . were given"):
            loss(*given)


def test_the_loss_module_says_at_once_what_is_wrong():
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 2.0"):
        ARDLoss(alpha=2)
    with pytest.raises(TypeError, match="temperature must be a number, got str"):
        ARDLoss(temperature="30")
    with pytest.raises(ValueError, match="reduction must be one of"):
        ARDLoss(reduction="average")


def test_a_start_on_another_device_than_the_images():
    with pytest.raises(RuntimeError, match=r"start must be on the device of x \(cpu\), got meta"):
        functional.APGDRun(X, X.to("meta"), eps=0.1)


def test_an_eps_without_numbers_is_named():
    with pytest.raises(RuntimeError, match=r"^ard_fast: eps must"):
        functional.pgd_linf_step_(X.clone(), X, X, step_size=0.1, eps=torch.empty(0))


def test_check_bounds_is_a_flag():
    with pytest.raises(TypeError, match=r"^check_bounds must be True or False, got"):
        functional.pgd_linf_step_(X.clone(), X, X, step_size=0.1, eps=0.1, check_bounds=np.zeros(3))
