"""TRADES and MART against the textbook formulas in float64."""

import functools
import math

import pytest
import torch
from loss_cases import (
    DTYPES,
    KINDS,
    REDUCTIONS,
    assert_matches_float64,
    incoming_gradient,
    loss_and_gradients,
    random_labels,
    rows_of_logits,
)

from ard_fast import functional as F
from ard_fast import reference

B = 6


def by_position(loss):
    return lambda adv, clean, labels, **settings: loss(adv, clean_logits=clean, labels=labels, **settings)


LOSSES = {
    "trades": (by_position(F.trades_loss), by_position(reference.trades_loss)),
    "mart": (by_position(F.mart_loss), by_position(reference.mart_loss)),
}


def bound(name, labels, **settings):
    """The fused and the exact loss as functions of the two logits."""
    fused, exact = LOSSES[name]
    wide = {key: value.double() if isinstance(value, torch.Tensor) else value for key, value in settings.items()}
    return (
        lambda adv, clean: fused(adv, clean, labels, **settings),
        lambda adv, clean: exact(adv, clean, labels, **wide),
    )


# 2: the smallest; 3, 33: below and above a vector; 10, 100, 1000: the usual data sets; 1025, 4099: a block a row.
@pytest.mark.sanitizer
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 3, 10, 33, 100, 1000, 1025, 4099])
def test_rows(classes, kind, name, device):
    tensors = rows_of_logits(kind, 2, B, classes, torch.float32, device)
    labels = random_labels(B, classes, device)
    labels[:3] = tensors[0][:3].argmax(1)  # right, as well as wrong
    assert_matches_float64(*bound(name, labels, reduction="none"), tensors, incoming_gradient("none", B, device))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0, 300.0])
def test_reductions_weights_and_dtypes(beta, reduction, dtype, name, device):
    weight = torch.tensor([0.0, 0.2, 1.0, 3.0, 5.0, 0.5], device=device)
    for classes in (10, 37):
        for settings in ({}, {"weight": weight}):
            labels = random_labels(B, classes, device, seed=1)
            assert_matches_float64(
                *bound(name, labels, beta=beta, reduction=reduction, **settings),
                rows_of_logits("plain", 2, B, classes, dtype, device, seed=2),
                incoming_gradient(reduction, B, device),
            )


@pytest.mark.parametrize("name", LOSSES)
def test_defaults(name, device):
    """beta 6 and 5, averaged over the batch: the authors' settings."""
    adv, clean = rows_of_logits("plain", 2, B, 10, torch.float32, device)
    labels = random_labels(B, 10, device)
    given = LOSSES[name][0](adv, clean, labels, beta={"trades": 6.0, "mart": 5.0}[name], reduction="batchmean")
    assert LOSSES[name][0](adv, clean, labels).equal(given)


@pytest.mark.parametrize("name", LOSSES)
def test_certain_rows(name, device):
    """A network that is right by 20 on both images: 1 - p would be 0 in float32, the loss is not."""
    adv, clean = torch.zeros(2, 1, 4, device=device)
    adv[0, 1], clean[0, 1] = 18.0, 20.0
    labels = torch.tensor([1], device=device)
    assert_matches_float64(*bound(name, labels), [adv, clean], torch.ones((), device=device), smallest=1e-12)


def test_the_margin_term_is_bounded(device):
    """A rival as certain as can be costs log(1e4) beside its cross-entropy, and has a finite gradient."""
    adv = torch.zeros(1, 3, device=device)
    adv[0, 2] = 100.0
    labels = torch.tensor([0], device=device)
    rows, (grad, _) = loss_and_gradients(
        lambda a, c: F.mart_loss(a, clean_logits=c, labels=labels, beta=0.0, reduction="none"),
        [adv, adv.clone()],
        torch.ones(1, device=device),
    )
    torch.testing.assert_close(rows.item(), 100.0 + math.log(1e4), rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, torch.tensor([[-1.0, 0.0, 1.0]], device=device), rtol=0, atol=1e-6)


@pytest.mark.parametrize("classes", [5, 40, 1100])
def test_among_equal_rivals_the_lowest_class_counts(classes, device):
    adv, clean = rows_of_logits("plain", 2, 3, classes, torch.float32, device)
    adv = adv.clamp_max(3.0)
    labels = torch.tensor([0, 2, classes - 1], device=device)
    adv[:, [1, 3, classes - 2]] = 4.0  # row by row: all three tie, and the label is none of them
    _, (grad, _) = loss_and_gradients(
        functools.partial(LOSSES["mart"][0], labels=labels, beta=0.0, reduction="sum"),
        [adv, clean],
        torch.ones((), device=device),
    )
    assert (grad[:, 1] > grad[:, 3]).all() and grad[:, 3].equal(grad[:, classes - 2])
    assert_matches_float64(*bound("mart", labels), [adv, clean], torch.ones((), device=device))
    # The label itself, when it ties, is no rival.
    labels = torch.ones(3, dtype=torch.int64, device=device)
    assert_matches_float64(*bound("mart", labels), [adv, clean], torch.ones((), device=device))


@pytest.mark.parametrize("name", LOSSES)
def test_equal_logits(name, device):
    """No KL: what is left is the cross-entropy, and MART's margin."""
    (adv,) = rows_of_logits("plain", 1, B, 50, torch.float32, device)
    labels = random_labels(B, 50, device)
    rows = LOSSES[name][0](adv, adv.clone(), labels, reduction="none")
    assert rows.equal(LOSSES[name][0](adv, adv.clone(), labels, beta=0.0, reduction="none"))


@pytest.mark.sanitizer
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_views(dtype, name, device):
    """Rows with a stride, rows that start anywhere, classes that are not contiguous."""
    adv, clean = rows_of_logits("plain", 2, 6, 40, dtype, device)
    fused = functools.partial(LOSSES[name][0], reduction="none")
    for index in ((slice(None), slice(3, 36)), (slice(None, None, 2), slice(None)), (slice(1, None), slice(8, 40))):
        parts = [t[index] for t in (adv, clean)]
        labels = random_labels(len(parts[0]), parts[0].shape[1], device)
        expected = fused(*[part.contiguous() for part in parts], labels)
        torch.testing.assert_close(fused(*parts, labels), expected, rtol=1e-6, atol=0)
    labels = random_labels(40, 6, device)
    torch.testing.assert_close(
        fused(adv.t(), clean.t(), labels), fused(adv.t().contiguous(), clean.t().contiguous(), labels)
    )
    leaf = adv.clone().requires_grad_()
    LOSSES[name][0](leaf[::2, 3:36], clean[::2, 3:36], random_labels(3, 33, device)).backward()
    assert leaf.grad[1::2].abs().max() == 0 and leaf.grad[::2, 3:36].abs().max() > 0


def test_a_float16_mean_keeps_its_gradient():
    """Under a loss scale: what is representable at the end must not underflow on the way."""
    adv, clean = rows_of_logits("plain", 2, 64, 1000, torch.float16, "cpu")
    labels = random_labels(64, 1000, "cpu")
    for name in LOSSES:
        fused, exact = bound(name, labels, reduction="mean")
        scale = torch.tensor(65536.0)
        _, grads = loss_and_gradients(fused, [adv, clean], scale)
        _, expected = loss_and_gradients(exact, [adv.double(), clean.double()], scale)
        for grad, want in zip(grads, expected, strict=True):
            assert (grad.double() - want).norm() / want.norm() < 1e-3


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_second_backward_through_a_retained_graph(dtype, name, device):
    leaves = [t.requires_grad_() for t in rows_of_logits("plain", 2, B, 12, dtype, device)]
    loss = LOSSES[name][0](*leaves, random_labels(B, 12, device))
    first = torch.autograd.grad(loss, leaves, torch.tensor(3.0, device=device), retain_graph=True)
    kept = [grad.clone() for grad in first]
    second = torch.autograd.grad(loss, leaves, torch.tensor(-6.0, device=device))
    for grad, as_was, again in zip(first, kept, second, strict=True):
        assert grad.equal(as_was)
        torch.testing.assert_close(again, -2 * grad)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_only_where_needed(name, device):
    adv, clean = rows_of_logits("plain", 2, B, 12, torch.float32, device)
    labels = random_labels(B, 12, device)
    loss = LOSSES[name][0]
    assert loss(adv, clean, labels).grad_fn is None
    adv.requires_grad_()
    with torch.no_grad():
        assert loss(adv, clean, labels).grad_fn is None
    loss(adv, clean, labels).backward()
    assert adv.grad.abs().max() > 0 and clean.grad is None


@pytest.mark.parametrize("name", LOSSES)
def test_double_backward_is_refused(name, device):
    leaves = [t.requires_grad_() for t in rows_of_logits("plain", 2, B, 5, torch.float32, device)]
    loss = LOSSES[name][0](*leaves, random_labels(B, 5, device))
    grads = torch.autograd.grad(loss**2, leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        grads[1].sum().backward()


@pytest.mark.parametrize("name", LOSSES)
def test_empty_batch(name, device):
    empty = torch.empty(0, 10, device=device)
    labels = torch.empty(0, dtype=torch.int64, device=device)
    loss = LOSSES[name][0]
    assert loss(empty, empty, labels, reduction="none").shape == (0,)
    leaf = empty.clone().requires_grad_()
    loss(leaf, empty, labels, reduction="sum").backward()
    assert leaf.grad.shape == (0, 10)
    for reduction in ("mean", "batchmean"):
        with pytest.raises(ValueError, match="adv_logits must have at least one row"):
            loss(empty, empty, labels, reduction=reduction)


def bad_calls():
    s, labels = torch.randn(3, 4), torch.tensor([0, 1, 2])
    yield r"clean_logits must have the shape of adv_logits \[3, 4\], got \[3, 5\]", (s, torch.randn(3, 5)), {}
    yield r"adv_logits must be logits of shape \[B, C\] with C >= 2, got \[4\]", (s[0], s[0]), {}
    yield r"C >= 2, got \[3, 1\]; for a binary classifier", (s[:, :1], s[:, :1]), {}
    yield "clean_logits must be float32, float16 or bfloat16, got torch.float64", (s, s.double()), {}
    yield "beta must be finite and at least 0, got -1.0", (s, s), {"beta": -1.0}
    yield "beta must be a number, got str", (s, s), {"beta": "6"}
    yield "reduction must be one of 'none', 'sum', 'batchmean', 'mean', got 'avg'", (s, s), {"reduction": "avg"}
    yield "labels must be int64, got int32", (s, s), {"labels": labels.int()}
    yield r"labels must have shape \[3\], one entry a sample, got \[2\]", (s, s), {"labels": labels[:2]}
    yield r"labels must be in \[0, 4\), got 4 at position 1", (s, s), {"labels": labels + 3}
    yield r"labels must be in \[0, 4\), got -100", (s, s), {"labels": labels - 100}
    yield r"weight must have shape \[3\], one entry a sample, got \[4\]", (s, s), {"weight": torch.ones(4)}
    yield "weight must not require grad", (s, s), {"weight": torch.ones(3, requires_grad=True)}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("message, tensors, settings", list(bad_calls()))
def test_bad_calls(message, tensors, settings, name):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        LOSSES[name][0](*tensors, **{"labels": torch.tensor([0, 1, 2])} | settings)


@pytest.mark.gpu
@pytest.mark.sanitizer
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", LOSSES)
def test_a_label_out_of_range_on_cuda_makes_its_row_nan(name):
    leaves = [torch.randn(3, 40, device="cuda", requires_grad=True) for _ in range(2)]
    rows = LOSSES[name][0](*leaves, torch.tensor([0, 40, -1], device="cuda"), reduction="none")
    assert rows.isnan().tolist() == [False, True, True]
    for grad in torch.autograd.grad(rows.sum(), leaves):
        assert grad.isnan().all(1).tolist() == [False, True, True]
