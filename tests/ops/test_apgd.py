"""The Auto-PGD step against the formulas in plain torch: bit for bit in L-infinity, against float64 in L2."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from property_tensors import (
    EDGES,
    UNIT,
    Layout,
    floats,
    layouts,
    permutation,
    same,
    seeds,
    shapes,
    shares,
    sizes,
    with_edges,
)
from torch import Tensor

from ard_fast import functional as F
from ard_fast import reference
from ard_fast.functional import _ops
from ard_fast.reference import APGDIterate

pytestmark = pytest.mark.sanitizer

EDGE_LOSSES = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0)
# Drawn balls are wider than the bounds.
APGDRun = partial(F.APGDRun, check_bounds=False)
norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def fresh(x: Tensor, start: Tensor, grad_dtype: torch.dtype = torch.float32) -> APGDIterate:
    """Before the first call: nothing but x_adv holds anything yet."""
    x_prev, x_best, x_fooled = (torch.full_like(x, math.nan) for _ in range(3))
    grad_best = torch.full_like(x, math.nan, dtype=grad_dtype)
    state = torch.full((7, x.shape[0]), math.nan, device=x.device)
    return APGDIterate(start.clone(), x_prev, x_best, grad_best, x_fooled, state)


def copied(iterate: APGDIterate, dtype: torch.dtype | None = None) -> APGDIterate:
    """The same values in other memory."""
    return APGDIterate(*(t.to(dtype or t.dtype, copy=True) for t in iterate))


def call(
    iterate,
    grad,
    x,
    loss_rows,
    correct,
    *,
    eps,
    norm="linf",
    first=False,
    window=0,
    rho=0.75,
    momentum=0.75,
    levels=None,
):
    """The operator with the signature of the reference; what it returns lies in the same memory."""
    state_out = torch.full_like(iterate.state, math.nan)
    radii, radius = (eps, 0.0) if isinstance(eps, Tensor) else (None, eps)
    read = grad, x, loss_rows, correct, radii, radius
    numbers = norm == "l2", first, window, rho, momentum, 0.0, 1.0
    _ops.apgd_step_(*iterate, state_out, *read, *numbers, *() if levels is None else (levels,))
    x_adv, x_prev = iterate.x_adv, iterate.x_prev
    if grad is not None:
        x_adv, x_prev = x_prev, x_adv
    return APGDIterate(x_adv, x_prev, *iterate[2:5], state_out)


def images(generator, shape, device="cpu"):
    """Images and starts around them."""
    x = torch.rand(shape, generator=generator)
    start = (x + 0.05 * (2 * torch.rand(shape, generator=generator) - 1)).clamp(0, 1)
    return x.to(device), start.to(device)


def rounds(generator, x, count, grad_dtype=torch.float32, share=0.0):
    """Gradients, losses and flags that make every kind of decision likely, `share` of them edge values."""
    for i in range(count):
        grad = with_edges(torch.randn(x.shape, generator=generator), share, EDGES, generator)
        loss = torch.randint(-3, 4, (len(x),), generator=generator) / 3 + 0.2 * i
        loss = with_edges(loss, share, EDGE_LOSSES, generator)
        correct = torch.rand(len(x), generator=generator) < 0.5
        yield i, torch.empty_like(x, dtype=grad_dtype).copy_(grad), loss.to(x.device), correct.to(x.device)


def window_at(i: int) -> int:
    """A checkpoint at every third call."""
    return 3 if i and i % 3 == 0 else 0


def assert_same(mine: APGDIterate, expected: APGDIterate, atol: float | None) -> None:
    """The decisions exactly; the next point too, or in L2 to `atol`."""
    for name, a, b in zip(APGDIterate._fields, mine, expected, strict=True):
        if name == "x_adv" and atol is not None:
            torch.testing.assert_close(a, b.float(), rtol=0, atol=atol)
        else:
            assert same(a, b.to(a.dtype)), name


def check_step(mine, grad, x, loss, correct, **settings):
    """One step by the operator, checked against the formula; what it leaves."""
    if settings["norm"] == "linf":
        expected, atol = reference.apgd_step(copied(mine), grad, x, loss, correct, **settings), None
    else:
        exact = copied(mine, torch.float64), None if grad is None else grad.double(), x.double(), loss.double()
        expected = reference.apgd_step(*exact, correct, **settings)
        atol = 2e-6 * max(float(torch.as_tensor(settings["eps"]).max()), 0.1)
    mine = call(mine, grad, x, loss, correct, **settings)
    assert_same(mine, expected, atol)
    return mine


# 1: a single pixel; 33: a tail of every vector width; 3x32x32: CIFAR; 5000: several pieces and blocks of a sample.
@pytest.mark.parametrize("shape", [(3, 1), (5, 33), (4, 3, 32, 32), (3, 5000), (1, 20_001)], ids=str)
@norms
def test_a_run_of_steps(shape, norm, device, on_cpu):
    """Whose samples halve their steps and go back to their best points; the last call has no gradient."""
    shape = shape if on_cpu or shape[0] > 1 else (1, 6001)  # for an emulated GPU's sake
    for grad_dtype, memory_format in (
        (torch.float32, torch.contiguous_format),
        (torch.float16, torch.channels_last),
        (torch.bfloat16, torch.contiguous_format),
    ):
        generator = torch.Generator().manual_seed(sum(shape))
        x, start = images(generator, shape, device)
        if len(shape) == 4:
            x, start = (t.contiguous(memory_format=memory_format) for t in (x, start))
        eps = 0.05 if norm == "linf" else 0.05 * math.prod(shape[1:]) ** 0.5
        radii = torch.linspace(0.5 * eps, eps, len(x), device=device) if grad_dtype == torch.float16 else eps
        mine = fresh(x, start, grad_dtype)
        halved = restarted = False
        for i, grad, loss, correct in rounds(generator, x, 12, grad_dtype):
            at = mine.x_adv.clone()
            settings = {"eps": radii, "norm": norm, "first": i == 0, "window": window_at(i)}
            if norm == "linf" and grad_dtype == torch.bfloat16:  # the eps of whole levels
                settings |= {"eps": 13 / 255, "levels": 255}
            mine = check_step(mine, None if i == 11 else grad, x, loss, correct, **settings)
            halved |= bool((mine.state[0] < 2 * eps).any())
            restarted |= i < 11 and not same(mine.x_prev, at)
            assert mine.x_adv.stride() == x.stride()
        assert (halved and restarted) or shape[0] == 1


@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_edge_values(grad_dtype, device):
    """NaN, infinities, zeros and subnormals among the gradients, losses and pixels."""
    generator = torch.Generator().manual_seed(3)
    x, start = images(generator, (50, 41), device)
    start[::7, ::5] = math.nan
    for momentum, rho in ((0.75, 0.75), (1.0, 0.3), (0.0, 1.0)):
        mine = fresh(x, start, grad_dtype)
        for i, grad, loss, correct in rounds(generator, x, 12, grad_dtype, share=0.3):
            settings = {"first": i == 0, "window": window_at(i), "momentum": momentum, "rho": rho}
            mine = check_step(mine, grad, x, loss, correct, eps=0.05, norm="linf", **settings)


def test_l2_gradients_of_any_size(device):
    """No overflow and no underflow; a zero gradient does not move; NaN entries count as 0, infinite as the largest."""
    generator = torch.Generator().manual_seed(4)
    x, _ = images(generator, (9, 500), device)
    direction = torch.randn(500, generator=generator).to(device)
    scales = torch.tensor([3e38, 1e20, 1.0, 1e-12, 1e-25, 1e-36, 1e-44, 0.0, 1.0], device=device)
    grad = (direction / direction.abs().max()) * scales[:, None]
    grad[8, ::4], grad[8, 1] = math.nan, math.inf
    loss, correct = torch.zeros(9, device=device), torch.ones(9, dtype=torch.bool, device=device)
    settings = {"eps": 0.05, "norm": "l2", "first": True}
    mine = call(fresh(x, x), grad, x, loss, correct, **settings)
    largest = torch.finfo(torch.float32).max
    wide = copied(fresh(x, x), torch.float64), grad.double().clamp(-largest, largest), x.double(), loss.double()
    torch.testing.assert_close(
        mine.x_adv, reference.apgd_step(*wide, correct, **settings).x_adv.float(), rtol=0, atol=2e-7
    )
    moved = (mine.x_adv - x).norm(dim=1)  # pixels at the bounds lose some of it
    assert moved[7] == 0 and (moved[:7] > 0.04).all() and moved[8] > 0.03


# ---- whole runs of any kind


@dataclass(frozen=True)
class Case:
    """A whole run: images, a start, and what a network would answer at every point."""

    shape: tuple
    seed: int
    share: float
    dtype: torch.dtype
    layouts: tuple[Layout, Layout]
    steps: int
    settings: dict

    def values(self):
        """x and start, contiguous."""
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.rand(self.shape, generator=generator)
        start = x + self.settings["eps"] * (2 * torch.rand(self.shape, generator=generator) - 1)
        return x, start.clamp(0.0, 1.0)

    def rounds(self):
        x, _ = self.values()
        return rounds(torch.Generator().manual_seed(self.seed + 1), x, self.steps + 1, self.dtype, self.share)


@st.composite
def cases(draw):
    settings = {
        "eps": draw(sizes),
        "rho": draw(st.sampled_from((0.0, 0.75, 1.0))),
        "momentum": draw(st.sampled_from((0.0, 0.75, 1.0))),
    }
    placed = draw(layouts()), draw(layouts())
    return Case(
        draw(shapes(most=4)), draw(seeds), draw(shares), draw(floats), placed, draw(st.integers(1, 7)), settings
    )


def run(case, norm, rows=None):
    """The finished run and the points it went through; `rows` some of its samples, in plain memory."""
    x, start = case.values()
    some = slice(None) if rows is None else rows
    x, start = (case.layouts[0].place(x), case.layouts[1].place(start)) if rows is None else (x[rows], start[rows])
    attack, points = APGDRun(x, start, norm=norm, steps=case.steps, **case.settings), []
    for k, grad, loss, correct in case.rounds():
        if k == case.steps:
            return attack.finish(loss[some], correct[some]), points
        attack.step(case.layouts[1].place(grad) if rows is None else grad[rows], loss[some], correct[some])
        points.append(attack.x_adv.clone())
    raise AssertionError("no rounds")


@given(cases(), st.sampled_from((None, None, 16, 255)))
def test_linf_runs_have_the_bits_of_the_formula(case, levels):
    if levels is not None:
        eps = max(case.settings["eps"], 1 / levels)
        case = replace(case, settings={**case.settings, "eps": eps, "levels": levels})
    found, points = run(case, "linf")
    x, start = case.values()
    iterate, windows = fresh(x, start, case.dtype), (*F.checkpoint_windows(case.steps), 0)
    for k, grad, loss, correct in case.rounds():
        last = k == case.steps
        settings = {"norm": "linf", "first": k == 0, "window": windows[k], **case.settings}
        iterate = reference.apgd_step(copied(iterate), None if last else grad, x, loss, correct, **settings)
        assert last or same(points[k], iterate.x_adv), f"step {k}"
    assert same(found.x_best, iterate.x_best) and same(found.x_fooled, iterate.x_fooled)
    assert same(found.state, iterate.state)


@norms
@given(case=cases())
def test_points_and_answers(norm, case):
    """Points stay in the ball and the bounds; x_best is that of the highest loss, x_fooled the last misclassified."""
    x, start = case.values()
    found, points = run(case, norm)
    eps = float(torch.tensor(case.settings["eps"]))
    for point in points:
        assert (point >= 0).all() and (point <= 1).all()
        if norm == "linf":
            assert (point <= (x + eps).clamp(0, 1)).all() and (point >= (x - eps).clamp(0, 1)).all()
        elif x.numel():
            assert ((point - x.double()).reshape(len(x), -1).norm(dim=1) <= eps * (1 + 2 * UNIT) + 1e-44).all()
    visited = torch.stack([start, *points])  # [N, B, ...]: the answer at k is of the k-th of them
    losses, correct = (torch.stack(rows) for rows in list(zip(*case.rounds(), strict=True))[2:])
    for b in range(case.shape[0]):
        numbers = (~losses[:, b].isnan()).nonzero().flatten()
        if len(numbers):
            first = int(numbers[losses[numbers, b].argmax()])
            assert found.loss_best[b] == losses[first, b] and same(found.x_best[b], visited[first, b])
        else:
            assert found.loss_best[b].isnan()
        fooled = (~correct[:, b]).nonzero().flatten()
        assert bool(found.fooled[b]) == bool(len(fooled))
        assert same(found.x_fooled[b], visited[int(fooled[-1]) if len(fooled) else 0, b])


@norms
@given(case=cases(), after=st.integers(0, 7))
def test_samples_do_not_see_one_another(norm, case, after):
    """Some alone, from the start or taken out of the run later, go on as they would have."""
    _, points = run(case, norm)
    rows = permutation(case.shape[0], case.seed)[: (case.shape[0] + 1) // 2]
    other, others = run(case, norm, rows)
    for a, b in zip(others, points, strict=True):
        # In L2 a sum may be taken in another order in another layout.
        assert same(a, b[rows]) if norm == "linf" else ((a - b[rows]).abs() <= 1e-5).all()
    x, start = case.values()
    part, kept = APGDRun(x, start, norm=norm, steps=case.steps, **case.settings), slice(None)
    for k, grad, loss, correct in case.rounds():
        if k == after or k == case.steps:
            part, kept = (part.take(rows), rows) if k == after else (part, kept)
        if k == case.steps:
            part.finish(loss[kept], correct[kept])
        else:
            part.step(grad[kept], loss[kept], correct[kept])
    taken = rows if after > case.steps else slice(None)
    assert same(part.x_best[taken], other.x_best) and same(part.state[:, taken], other.state)


def test_the_schedule():
    """Checkpoints of 100 steps after the paper: 22 steps, then intervals shorter by 3 down to 6."""
    at = [i for i, window in enumerate(F.checkpoint_windows(100)) if window]
    assert at == [22, 41, 57, 70, 80, 87, 93, 99]
    assert [w for w in F.checkpoint_windows(100) if w] == [22, 19, 16, 13, 10, 7, 6, 6]
    assert F.checkpoint_windows(1) == (0,)
    assert F.checkpoint_windows(5) == (0, 1, 1, 1, 1)
    assert F.checkpoint_windows(10, first=0.5, decrement=0.2, minimum=0.2) == (0, 0, 0, 0, 0, 5, 0, 0, 3, 0)


def test_the_run_finds_the_greatest_loss(device):
    """Of sum(weight * x^2), a convex function of each pixel alone, so that its greatest value is at a corner."""
    x, start = images(torch.Generator().manual_seed(10), (6, 3, 8, 8), device)
    x, start = 0.2 + 0.6 * x, 0.2 + 0.6 * start  # away from 0, where the gradient vanishes
    kept = x.clone(), start.clone()
    weight = torch.linspace(-1, 1, 192, device=device).view(3, 8, 8)
    attack = F.APGDRun(x, start, steps=40, eps=0.1)
    for _ in range(40):
        loss = (weight * attack.x_adv**2).flatten(1).sum(1)
        attack.step(2 * weight * attack.x_adv, loss, loss < 1)
    loss = (weight * attack.x_adv**2).flatten(1).sum(1)
    attack.finish(loss, loss < 1)
    corners = torch.stack(((x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1)))
    torch.testing.assert_close(attack.loss_best, (weight * corners**2).amax(0).flatten(1).sum(1))
    torch.testing.assert_close(attack.loss_best, (weight * attack.x_best**2).flatten(1).sum(1))
    assert (attack.step_size < 0.2).all() and attack.fooled.equal(attack.loss_best >= 1)
    assert x.equal(kept[0]) and start.equal(kept[1])


def op_arguments():
    x, start = images(torch.Generator().manual_seed(0), (2, 3, 4, 4))
    arguments = dict(zip(APGDIterate._fields, fresh(x, start), strict=True))
    arguments |= {"state_out": torch.zeros(7, 2), "grad": torch.ones_like(x), "x": x, "loss_rows": torch.zeros(2)}
    arguments |= {"correct": torch.ones(2, dtype=torch.bool), "eps_per_sample": None, "eps": 0.1, "l2": False}
    return arguments | {"first": True, "window": 0, "rho": 0.75, "momentum": 0.75, "lower": 0.0, "upper": 1.0}


def bad_tensors():
    good = op_arguments()
    x, state, memory = good["x"], good["state"], torch.rand(200)
    yield "x_adv must be float32.*float64", {"x_adv": x.double()}
    yield "x_best must be float32, got float16", {"x_best": x.half()}
    yield "x_prev must have the shape of x_adv", {"x_prev": x[:1].clone()}
    yield "x_fooled must have the memory layout", {"x_fooled": x.contiguous(memory_format=torch.channels_last)}
    yield r"grad must have the dtype of grad_best \(float32\), got bfloat16", {"grad": x.bfloat16()}
    yield r"state must have shape \[7, 2\], got \[2, 7\]", {"state": torch.zeros(2, 7)}
    yield "state_out must be float32", {"state_out": torch.zeros(7, 2, dtype=torch.float64)}
    yield "state must be contiguous", {"state": torch.zeros(2, 7).T}
    yield r"loss_rows must have shape \[2\]", {"loss_rows": torch.zeros(3)}
    yield "correct must be bool, got uint8", {"correct": torch.zeros(2, dtype=torch.uint8)}
    yield r"eps must have shape \[2\]", {"eps_per_sample": torch.zeros(2, 1)}
    yield "window must be at least 0, got -1", {"window": -1}
    yield "x_adv must not overlap x in memory", {"x_adv": x, "x": x}
    near = memory[:96].view(2, 3, 4, 4), memory[95:191].view(2, 3, 4, 4)
    yield "x_best must not overlap x_fooled in memory", dict(zip(("x_best", "x_fooled"), near, strict=True))
    yield "state_out must not overlap state in memory", {"state_out": state, "state": state}
    moved = {name: t.transpose(0, 1) for name, t in good.items() if isinstance(t, Tensor) and t.dim() == 4}
    yield "x_adv must have its batch dimension outermost", moved


@pytest.mark.parametrize(("message", "changes"), list(bad_tensors()))
def test_bad_tensors(message, changes):
    arguments = op_arguments() | changes
    before = arguments["x_prev"].clone()
    with pytest.raises(RuntimeError, match=message):
        _ops.apgd_step_(**arguments)
    assert same(arguments["x_prev"], before)


def test_bad_runs():
    x = torch.rand(2, 3, 4, 4)
    for message, arguments, error in (
        ("norm must be one of 'linf', 'l2', got 'l1'", {"norm": "l1"}, ValueError),
        ("steps must be at least 1 .*, got 0", {"steps": 0}, ValueError),
        ("steps must be an int, got float", {"steps": 2.0}, TypeError),
        ("rho must be finite", {"rho": math.nan}, ValueError),
        (r"momentum must be in \[0, 1\], got 1.5", {"momentum": 1.5}, ValueError),
        ("bounds must be", {"bounds": (1, 0)}, ValueError),
        (r"start must have the shape of x \[2, 3, 4, 4\]", {"start": x[:1]}, RuntimeError),
    ):
        with pytest.raises(error, match=message):
            F.APGDRun(**({"x": x, "start": x, "eps": 0.1} | arguments))
    attack = F.APGDRun(x, x, eps=0.1, steps=1)
    answers = torch.zeros(2), torch.ones(2, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="finish must be called once, after the steps"):
        attack.finish(*answers)
    with pytest.raises(RuntimeError, match="grad must have the shape of x_adv"):
        attack.step(x[:1], *answers)
    attack.step(torch.ones_like(x), *answers)
    with pytest.raises(RuntimeError, match="more than steps = 1 times"):
        attack.step(torch.ones_like(x), *answers)
    attack.finish(*answers)
    with pytest.raises(RuntimeError, match="finish must be called once"):
        attack.finish(*answers)
