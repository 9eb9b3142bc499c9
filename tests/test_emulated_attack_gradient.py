"""The CUDA kernels of `attack_gradient`, run on the host emulator, against the CPU op (itself against float64)."""

from __future__ import annotations

import math

import emulator
import pytest
import torch
from emulated_attack_gradient import attack_gradient
from test_attack_gradient import LEAST_CLASSES, arguments, make_logits, scale_of_rows, sure_logits
from tolerances import GRAD_RTOL, LOSS_RTOL

from ard_fast import functional as F

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LOSSES = ["ce", "margin", "dlr", "dlr_targeted"]
VARIANTS = ["warp", "block", "block_uncached"]


def assert_as_cpu(logits: torch.Tensor, target: torch.Tensor, settings: dict, variant: str) -> None:
    grad, rows, correct = attack_gradient(logits, target, variant=variant, **settings)
    expected = F.attack_gradient(logits, target, with_rows=True, **settings)
    assert correct.equal(expected.correct)
    # Another exp and another order of the sum for cross-entropy; the same operations, bit for bit, for the others.
    if settings["loss"] == "ce":
        error = (grad.double() - expected.grad.double()).abs()
        assert (error <= GRAD_RTOL[logits.dtype] * scale_of_rows("ce", logits, expected.grad.double()) + 1e-37).all()
        torch.testing.assert_close(rows, expected.loss, rtol=LOSS_RTOL, atol=1e-37)
    else:
        torch.testing.assert_close(grad, expected.grad, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(rows, expected.loss, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["plain", "wide", "tied", "sorted"])
@pytest.mark.parametrize("loss", LOSSES)
def test_as_the_cpu_op(loss: str, kind: str, dtype: torch.dtype, variant: str) -> None:
    # Around a warp, around the vector width, and what is left over of both.
    for classes in [2, 3, 4, 10, 32, 33, 64, 129, 1000]:
        if classes >= LEAST_CLASSES[loss]:
            logits = make_logits(kind, 7, classes, 0).to(dtype)
            assert_as_cpu(logits, *arguments(loss, logits), variant)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_many_classes(loss: str, dtype: torch.dtype) -> None:
    """As the launcher decides: blocks of 8 to 32 warps, and rows that no shared memory holds."""
    for classes in [1024, 1025, 1032, 8200, 32003, 70000]:
        logits = make_logits("plain", 2, classes, 0).to(dtype)
        assert_as_cpu(logits, *arguments(loss, logits), "auto")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_scaled(loss: str, dtype: torch.dtype, variant: str) -> None:
    """As the CPU op scales them, factors and gradients; NaN has the factor 1."""
    for classes in [4, 10, 33, 64, 1000]:
        for logits in (sure_logits(9, classes, 0), make_logits("tied", 9, classes, 0)):
            logits = logits.to(dtype)
            target, settings = arguments(loss, logits)
            logits[8, 1] = math.nan
            scale = torch.full((9,), math.nan)
            grad, rows, _ = attack_gradient(logits, target, variant=variant, scale=scale, **settings)
            expected, factors = F.attack_gradient(logits, target, with_rows=True, scaled=True, **settings)
            # An exp that differs in its last bit may lie on the other side of a power of two.
            ratio = scale / factors
            assert ratio.eq(1).all() if loss != "ce" else (ratio.log2().abs() <= 1).all()
            rtol = GRAD_RTOL[dtype] if loss == "ce" else 0
            torch.testing.assert_close(
                grad / ratio[:, None].to(dtype), expected.grad, rtol=rtol, atol=1e-6, equal_nan=True
            )
            torch.testing.assert_close(rows, expected.loss, rtol=LOSS_RTOL, atol=1e-37, equal_nan=True)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_strided_and_unaligned_rows(loss: str, dtype: torch.dtype, variant: str) -> None:
    for classes in [8, 37, 256]:
        for start in (0, 1, 8):
            wide = make_logits("plain", 5, classes + 24, 1).to(dtype)
            logits = wide[:, start : start + classes]
            assert_as_cpu(logits, *arguments(loss, logits), variant)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_not_finite(loss: str, variant: str) -> None:
    for classes in [4, 10, 33, 100]:
        for value in (math.nan, math.inf, -math.inf):
            logits = make_logits("plain", 5, classes, 0)
            target, settings = arguments(loss, logits)
            logits[0, 1] = logits[1, 2] = logits[2, classes - 1] = value
            logits[3] = value
            grad, rows, correct = attack_gradient(logits, target, variant=variant, **settings)
            expected = F.attack_gradient(logits, target, with_rows=True, **settings)
            torch.testing.assert_close(grad, expected.grad, rtol=1e-5, atol=1e-7, equal_nan=True)
            torch.testing.assert_close(rows, expected.loss, rtol=1e-5, atol=1e-7, equal_nan=True)
            assert correct.equal(expected.correct)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_class_out_of_range_shows_as_nan(loss: str, variant: str) -> None:
    """A kernel cannot raise; the rows between are as they should be."""
    logits = make_logits("plain", 4, 10, 0)
    right, settings = arguments(loss, logits)
    expected = attack_gradient(logits, right, variant=variant, **settings)
    for wrong in (torch.tensor([10, 0, -1, 0]), torch.tensor([2**40, 0, -(2**40), 0])):
        odd = wrong != 0
        grad, rows, correct = attack_gradient(logits, torch.where(odd, wrong, right), variant=variant, **settings)
        assert rows.isnan().equal(odd) and grad.isnan().all(1).equal(odd) and not correct[odd].any()
        assert grad[~odd].equal(expected[0][~odd]) and rows[~odd].equal(expected[1][~odd])
    if loss == "dlr_targeted":
        settings["labels"] = torch.tensor([10, 1, -1, 1])
        grad, rows, _ = attack_gradient(logits, right, variant=variant, **settings)
        assert rows.isnan().tolist() == [True, False, True, False]


@pytest.mark.parametrize("variant", ["auto", "warp", "block"])
@pytest.mark.parametrize("loss", LOSSES)
def test_no_rows_and_the_gradient_alone(loss: str, variant: str) -> None:
    logits = make_logits("plain", 5, 10, 0)
    target, settings = arguments(loss, logits)
    grad = attack_gradient(logits, target, variant=variant, **settings)[0]
    alone, rows, correct = attack_gradient(logits, target, with_rows=False, variant=variant, **settings)
    assert alone.equal(grad) and rows is None and correct is None
    none = {name: value[:0] if isinstance(value, torch.Tensor) else value for name, value in settings.items()}
    assert attack_gradient(logits[:0], target[:0], variant=variant, **none)[0].shape == (0, 10)


@pytest.mark.parametrize("variant", ["warp", "block"])
@pytest.mark.parametrize("order", ["reverse", "shuffled"])
@pytest.mark.parametrize("loss", LOSSES)
def test_order_of_threads_does_not_matter(loss: str, order: str, variant: str) -> None:
    logits = make_logits("tied", 9, 300, 0)
    target, settings = arguments(loss, logits)
    forward = attack_gradient(logits, target, variant=variant, **settings)
    emulator.set_order(order, 3)
    try:
        other = attack_gradient(logits, target, variant=variant, **settings)
    finally:
        emulator.set_order("forward")
    for a, b in zip(forward, other, strict=True):
        assert torch.equal(a, b)
