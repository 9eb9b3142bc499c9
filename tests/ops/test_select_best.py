"""The selection of the best iterate across restarts."""

import math

import pytest
import torch

from ard_fast import functional as F
from ard_fast import reference

pytestmark = pytest.mark.sanitizer

EDGES = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, -1e-45, 1.0, 2.0]


def pairs(device):
    """Every pair of edge values as (best_loss, loss)."""
    edges = torch.tensor(EDGES, device=device)
    return tuple(t.flatten().clone() for t in torch.meshgrid(edges, edges, indexing="ij"))


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 8, 8), (3, 5, 5), (3, 32, 32), (4099,)])
def test_every_pair_of_losses(shape, lower, device):
    best_loss, loss = pairs(device)
    best, candidate = torch.rand(2, len(loss), *shape, device=device)
    candidate.view(-1)[::7] = math.nan  # pixels are moved, not judged
    before = best_loss.clone(), loss.clone(), candidate.clone()
    expected, expected_loss = reference.select_best(best, best_loss, candidate, loss, lower=lower)
    out = F.select_best_(best, best_loss, candidate, loss, lower=lower)
    torch.testing.assert_close(best, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(out, expected_loss, rtol=0, atol=0, equal_nan=True)
    for tensor, was in zip((best_loss, loss, candidate), before, strict=True):
        torch.testing.assert_close(tensor, was, rtol=0, atol=0, equal_nan=True)


def test_rules(device):
    """NaN never wins and always loses; at a tie the earlier one stays."""
    best_loss = torch.tensor([1.0, 1.0, math.nan, math.nan, 1.0], device=device)
    loss = torch.tensor([1.0, math.nan, -math.inf, math.nan, 2.0], device=device)
    best, candidate = torch.zeros(5, 3, device=device), torch.ones(5, 3, device=device)
    out = F.select_best_(best, best_loss, candidate, loss)
    assert best[:, 0].tolist() == [0, 0, 1, 0, 1]
    assert out.tolist()[:3] == [1.0, 1.0, -math.inf] and math.isnan(out[3]) and out[4] == 2.0


def test_layouts_and_views(device):
    best_loss, loss = torch.tensor([0.0, 1.0, 0.0], device=device), torch.tensor([1.0, 0.0, 2.0], device=device)
    best, candidate = torch.rand(2, 3, 3, 6, 5, device=device)
    expected, _ = reference.select_best(best, best_loss, candidate, loss)
    last = torch.channels_last
    for formats in ((False, True), (True, False), (True, True)):
        images = zip((best, candidate), formats, strict=True)
        tensors = [t.contiguous(memory_format=last) if f else t.clone() for t, f in images]
        F.select_best_(tensors[0], best_loss, tensors[1], loss)
        assert tensors[0].equal(expected)
    for shift in (1, 2, 3):
        buffer, source = torch.rand(2, 300, device=device)
        guard = buffer.clone()
        view, other = buffer[shift : shift + 270].view(3, 90), source[shift - 1 : shift + 269].view(3, 90)
        wanted, _ = reference.select_best(view, best_loss, other, loss)
        F.select_best_(view, best_loss, other, loss)
        assert view.equal(wanted)
        assert buffer[:shift].equal(guard[:shift]) and buffer[shift + 270 :].equal(guard[shift + 270 :])
    # Losses of any stride.
    strided = torch.stack((loss, best_loss), 1)
    assert F.select_best_(best.clone(), strided[:, 1], candidate, strided[:, 0]).equal(torch.maximum(loss, best_loss))


def test_a_candidate_that_is_the_best_itself(device):
    best = torch.rand(2, 5, device=device)
    before = best.clone()
    out = F.select_best_(best, torch.zeros(2, device=device), best, torch.ones(2, device=device))
    assert best.equal(before) and out.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (4, 0)])
def test_empty(shape, device):
    best = torch.empty(shape, device=device)
    best_loss, loss = torch.zeros(shape[0], device=device), torch.ones(shape[0], device=device)
    assert F.select_best_(best, best_loss, best.clone(), loss).equal(loss)


def bad_calls():
    x, rows = torch.rand(2, 3, 4, 4), torch.zeros(2)
    yield "candidate must have the shape of best", (x, rows, x[:1], rows), RuntimeError
    yield "best must be float32, got float64", (x.double(), rows, x, rows), RuntimeError
    yield "candidate must be float32, got float16", (x, rows, x.half(), rows), RuntimeError
    yield r"best_loss must have shape \[2\]", (x, torch.zeros(3), x, rows), RuntimeError
    yield r"loss must have shape \[2\]", (x, rows, x, torch.zeros(2, 1)), RuntimeError
    yield "loss must be float32, got float64", (x, rows, x, rows.double()), RuntimeError
    yield "best must be dense", (torch.rand(2, 3, 4, 8)[..., ::2], rows, x, rows), RuntimeError
    yield (
        "best must have its batch dimension outermost",
        (
            x.transpose(0, 1),
            torch.zeros(3),
            x.transpose(0, 1),
            torch.zeros(3),
        ),
        RuntimeError,
    )
    flat = torch.rand(200)
    yield (
        "best must not partly overlap candidate",
        (flat[:96].view(2, 48), rows, flat[4:100].view(2, 48), rows),
        (RuntimeError),
    )
    yield "best must not require grad", (x.clone().requires_grad_(), rows, x, rows), ValueError


@pytest.mark.parametrize("message, arguments, error", list(bad_calls()))
def test_bad_calls(message, arguments, error):
    before = arguments[0].detach().clone()
    with pytest.raises(error, match=message):
        F.select_best_(*arguments)
    assert arguments[0].detach().equal(before)


def test_losses_may_not_be_written_in_place():
    """Several blocks read a sample's losses while one writes the new one."""
    x, rows = torch.rand(2, 5), torch.zeros(4)
    with pytest.raises(RuntimeError, match="best_loss_out must not overlap best_loss"):
        torch.ops.ard_fast.select_best_(x, x.clone(), rows[:2], rows[2:], rows[1:3], False)


def test_the_write_is_counted():
    best = torch.rand(2, 5)
    product = torch.rand(2, 5, requires_grad=True) * best
    F.select_best_(best, torch.zeros(2), torch.rand(2, 5), torch.ones(2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
