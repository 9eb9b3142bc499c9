"""The CUDA kernels of TRADES and MART, run on the host emulator, against float64 and the CPU op."""

from __future__ import annotations

import math

import emulator
import pytest
import torch
from emulated_pair import pair_loss
from loss_cases import DTYPES, KINDS, random_labels, rows_of_logits
from tolerances import GRAD_RTOL, LOSS_RTOL

from ard_fast import _ops, reference

VARIANTS = ["warp", "block", "block_uncached"]
BOTH = [False, True]  # TRADES, MART


def exact(adv, clean, labels, mart, beta, weight=None):
    leaves = [t.double().requires_grad_() for t in (adv, clean)]
    loss_fn = reference.mart_loss if mart else reference.trades_loss
    wide = None if weight is None else weight.double()
    rows = loss_fn(leaves[0], clean_logits=leaves[1], labels=labels, beta=beta, reduction="none", weight=wide)
    return rows.detach(), *torch.autograd.grad(rows.sum(), leaves)


def assert_results(got, expected, dtype):
    loss, *grads = got
    error = (loss.double() - expected[0]).abs()
    assert (error <= LOSS_RTOL * expected[0].abs() + 1e-11).all(), (loss, expected[0])
    for grad, want in zip(grads, expected[1:], strict=True):
        assert grad.dtype == dtype
        scale = want.abs().amax(1, keepdim=True)
        # Below 1e-9 the gradients of rows as far apart as these are float64's own cancellation.
        smallest = 6.2e-5 if dtype == torch.float16 else 1e-9
        error = (grad.double() - want).abs() / scale.clamp_min(1e-30)
        assert error[(scale > smallest).expand_as(error)].le(GRAD_RTOL[dtype]).all()


@pytest.mark.parametrize("mart", BOTH)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows(kind, variant, mart):
    # Around a warp, around the vector width, and what is left over of both.
    for classes in [2, 7, 10, 32, 33, 129, 1000]:
        adv, clean = rows_of_logits(kind, 2, 3, classes, torch.float32, "cpu")
        labels = random_labels(3, classes, "cpu")
        labels[0] = adv[0].argmax()
        got = pair_loss(adv, clean, labels, mart=mart, kl_weight=6.0, variant=variant)
        assert_results(got, exact(adv, clean, labels, mart, 6.0), torch.float32)


@pytest.mark.parametrize("mart", BOTH)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_weights_and_many_classes(dtype, mart):
    weight = torch.tensor([0.0, 0.5, 3.0])
    for classes in [10, 64, 1024, 1025, 4099, 32003]:
        adv, clean = rows_of_logits("plain", 2, 3, classes, dtype, "cpu")
        labels = random_labels(3, classes, "cpu")
        got = pair_loss(adv, clean, labels, mart=mart, kl_weight=2.0, weight=weight)
        assert_results(got, exact(adv, clean, labels, mart, 2.0, weight), dtype)


@pytest.mark.parametrize("variant", VARIANTS)
def test_among_equal_rivals_the_lowest_class_counts(variant):
    for classes in [5, 40, 300]:
        adv, clean = rows_of_logits("plain", 2, 3, classes, torch.float32, "cpu")
        adv = adv.clamp_max(3.0)
        adv[:, [1, 3, classes - 2]] = 4.0
        for labels in (torch.tensor([0, 2, classes - 1]), torch.tensor([1, 1, 3])):
            got = pair_loss(adv, clean, labels, mart=True, variant=variant)
            assert_results(got, exact(adv, clean, labels, True, 1.0), torch.float32)


@pytest.mark.parametrize("mart", BOTH)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_strides_and_unaligned_rows(dtype, variant, mart):
    for offset in (0, 1, 2):
        for classes in [2, 8, 10, 37, 256, 1001]:
            wide = [torch.randn(4, classes + 3 + k).to(dtype) for k in range(2)]
            adv, clean = (w[:, offset:][:, :classes] for w in wide)
            labels = random_labels(4, classes, "cpu")
            strided = pair_loss(adv, clean, labels, mart=mart, variant=variant)
            dense = pair_loss(adv.contiguous(), clean.contiguous(), labels, mart=mart, variant=variant)
            for a, b in zip(strided, dense, strict=True):
                # The way a row is loaded may change the order of its sum, and nothing else.
                assert torch.allclose(a.float(), b.float(), rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=1e-6)


@pytest.mark.parametrize("mart", BOTH)
@pytest.mark.parametrize("variant", VARIANTS)
def test_bad_numbers_and_labels_stay_in_their_row(variant, mart):
    adv, clean = rows_of_logits("plain", 2, 37, 40, torch.float32, "cpu")
    labels = random_labels(37, 40, "cpu")
    adv[17, 3], clean[20, 0], labels[5], labels[6] = math.nan, math.inf, 40, -1
    loss, *grads = pair_loss(adv, clean, labels, mart=mart, variant=variant)
    bad = torch.zeros(37, dtype=torch.bool)
    bad[[5, 6, 17, 20]] = True
    for result in (loss[:, None], *grads):
        assert result.isnan().any(1).equal(bad)
    for grad in grads:
        assert grad[[5, 6]].isnan().all()
    good = ~bad
    expected = exact(adv[good], clean[good], labels[good], mart, 1.0)
    assert_results([t[good] for t in (loss, *grads)], expected, torch.float32)


@pytest.mark.parametrize("mart", BOTH)
@pytest.mark.parametrize("variant", ["auto", "warp", "block"])
def test_no_rows_and_no_gradient(variant, mart):
    adv, clean = rows_of_logits("plain", 2, 5, 10, torch.float32, "cpu")
    labels = random_labels(5, 10, "cpu")
    loss, *grads = pair_loss(adv[:0], clean[:0], labels[:0], mart=mart, variant=variant)
    assert loss.shape == (0,) and grads[0].shape == grads[1].shape == (0, 10)
    alone = pair_loss(adv, clean, labels, mart=mart, with_grad=False, variant=variant)
    assert alone[1] is alone[2] is None
    assert alone[0].equal(pair_loss(adv, clean, labels, mart=mart, variant=variant)[0])


@pytest.mark.parametrize("mart", BOTH)
def test_agrees_with_the_cpu_op(mart):
    adv, clean = rows_of_logits("plain", 2, 6, 50, torch.float32, "cpu")
    labels = random_labels(6, 50, "cpu")
    by_cpu = _ops.pair_loss(adv, clean, labels, None, mart, 5.0, 1.0, 5.0, 1.0, False, True)
    by_kernel = pair_loss(adv, clean, labels, mart=mart, kl_weight=5.0)
    for a, b in zip(by_kernel, by_cpu, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mart", BOTH)
@pytest.mark.parametrize("variant", ["warp", "block"])
@pytest.mark.parametrize("order", ["reverse", "shuffled"])
def test_order_of_threads_does_not_matter(order, variant, mart):
    adv, clean = rows_of_logits("plain", 2, 5, 300, torch.float32, "cpu")
    labels = random_labels(5, 300, "cpu")
    forward = pair_loss(adv, clean, labels, mart=mart, variant=variant)
    emulator.set_order(order, 3)
    try:
        other = pair_loss(adv, clean, labels, mart=mart, variant=variant)
    finally:
        emulator.set_order("forward")
    for a, b in zip(forward, other, strict=True):
        assert a.equal(b)
