"""Auto-PGD's state machine over several steps, for any shape, layout, dtype, loss and edge value."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from apgd_cases import EDGE_LOSSES, copied, fresh
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

from ard_fast import functional as F
from ard_fast import reference

# Drawn pixels lie outside the bounds, too, and balls are wider than they are.
APGDRun = partial(F.APGDRun, check_bounds=False)

NAMES = ("x_adv", "x_prev", "x_best", "grad_best", "x_fooled", "state")


@dataclass(frozen=True)
class Case:
    """A whole run: images, a start, and what a network would answer at every point."""

    shape: tuple
    seed: int
    share: float
    dtype: torch.dtype
    layout: Layout
    layout_grad: Layout
    steps: int
    settings: dict

    def values(self):
        """x and start, contiguous."""
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.rand(self.shape, generator=generator)
        start = x + self.settings["eps"] * (2 * torch.rand(self.shape, generator=generator) - 1)
        return x, start.clamp(0.0, 1.0)

    def rounds(self):
        """Gradient, losses and flags of each step; ties and every decision are likely."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        for k in range(self.steps + 1):
            grad = with_edges(torch.randn(self.shape, generator=generator), self.share, EDGES, generator).to(self.dtype)
            loss = torch.randint(-3, 4, self.shape[:1], generator=generator) + 0.2 * k
            loss = with_edges(loss, 3 * self.share, EDGE_LOSSES, generator)
            yield grad, loss, torch.rand(self.shape[:1], generator=generator) < 0.5


@st.composite
def cases(draw):
    settings = {
        "eps": draw(sizes),
        "rho": draw(st.sampled_from((0.0, 0.75, 1.0))),
        "momentum": draw(st.sampled_from((0.0, 0.75, 1.0))),
    }
    return Case(draw(shapes(most=4)), draw(seeds), draw(shares), draw(floats), draw(layouts()), draw(layouts()),
                draw(st.integers(1, 7)), settings)  # fmt: skip


def run(case, norm, *, only=None):
    """The finished run and the points it went through; `only` some of its samples."""
    x, start = case.values()
    rows = slice(None) if only is None else only
    x, start = x[rows], start[rows]
    if only is None:
        x, start = case.layout.place(x), case.layout_grad.place(start)
    run = APGDRun(x, start, norm=norm, steps=case.steps, **case.settings)
    points = []
    for k, (grad, loss, correct) in enumerate(case.rounds()):
        grad, loss, correct = grad[rows], loss[rows], correct[rows]
        if k < case.steps:
            run.step(case.layout_grad.place(grad) if only is None else grad, loss, correct)
            points.append(run.x_adv.clone())
        else:
            run.finish(loss, correct)
    return run, points


@given(cases())
def test_linf_runs_have_the_bits_of_the_formula(case):
    found, points = run(case, "linf")
    x, start = case.values()
    iterate = fresh(x, start, case.dtype)
    windows = F.checkpoint_windows(case.steps)
    for k, (grad, loss, correct) in enumerate(case.rounds()):
        last = k == case.steps
        iterate = reference.apgd_step(
            copied(iterate), None if last else grad, x, loss, correct, norm="linf", first=k == 0,
            window=0 if last else windows[k], **case.settings,
        )  # fmt: skip
        if not last:
            assert same(points[k], iterate.x_adv), f"step {k}"
    assert same(found.x_best, iterate.x_best) and same(found.x_fooled, iterate.x_fooled)
    assert same(found.state, iterate.state)


@given(cases(), st.sampled_from(("linf", "l2")))
def test_points_stay_in_the_ball_and_the_bounds(case, norm):
    x, _ = case.values()
    found, points = run(case, norm)
    eps = float(torch.tensor(case.settings["eps"]))
    for point in (*points, found.x_best, found.x_fooled):
        away = (point - x).double()
        assert (point >= 0).all() and (point <= 1).all()
        if norm == "linf":
            assert (point <= (x + eps).clamp(0, 1)).all() and (point >= (x - eps).clamp(0, 1)).all()
        elif point is not found.x_best and point is not found.x_fooled:  # these may be the start, which is not ours
            norms = away.reshape(len(x), -1).norm(dim=1) if x.numel() else away.sum()
            assert (norms <= eps * (1 + 2 * UNIT) + 1e-44).all()


@given(cases(), st.sampled_from(("linf", "l2")))
def test_the_best_point_is_the_one_of_the_highest_loss(case, norm):
    """By what was told of each point: its loss, and whether it is classified right."""
    _, start = case.values()
    found, points = run(case, norm)
    answers = list(case.rounds())
    visited = torch.stack([start, *points])  # [N, B, ...]: the answer at k is of the k-th of them
    losses = torch.stack([loss for _, loss, _ in answers])
    correct = torch.stack([flags for _, _, flags in answers])
    for b in range(case.shape[0]):
        known = losses[:, b].nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        if losses[:, b].isnan().all():
            assert found.loss_best[b].isnan()
        else:
            assert found.loss_best[b] == known.max()
            numbers = ~losses[:, b].isnan()
            first = int((numbers & (losses[:, b] == known.max())).nonzero()[0])
            assert same(found.x_best[b], visited[first, b])
        fooled = (~correct[:, b]).nonzero().flatten()
        assert bool(found.fooled[b]) == bool(len(fooled))
        assert same(found.x_fooled[b], visited[int(fooled[-1]) if len(fooled) else 0, b])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@given(case=cases())
def test_samples_do_not_see_one_another(norm, case):
    found, points = run(case, norm)
    order = permutation(case.shape[0], case.seed)
    for only in (order, order[:1]):
        other, others = run(case, norm, only=only)
        if norm == "linf":  # in L2 a sum may be taken in another order in another layout
            for a, b in zip(others, points, strict=True):
                assert same(a, b[only])
            assert same(other.state, found.state[:, only]) and same(other.x_best, found.x_best[only])
        else:
            for a, b in zip(others, points, strict=True):
                assert ((a - b[only]).abs() <= 1e-5).all()


@given(cases(), st.integers(0, 7))
def test_a_run_of_some_samples_goes_on_as_it_would_have(case, after):
    x, start = case.values()
    whole, part = (APGDRun(x, start, steps=case.steps, **case.settings) for _ in range(2))
    only = permutation(case.shape[0], case.seed)[: (case.shape[0] + 1) // 2]
    rows = torch.arange(case.shape[0])
    for k, (grad, loss, correct) in enumerate(case.rounds()):
        if k == after:
            part, rows = part.take(only), only
        if k == case.steps:
            whole.finish(loss, correct)
            part.finish(loss[rows], correct[rows])
        else:
            whole.step(grad, loss, correct)
            part.step(grad[rows], loss[rows], correct[rows])
    assert same(part.x_best, whole.x_best[rows]) and same(part.x_fooled, whole.x_fooled[rows])
    assert same(part.state, whole.state[:, rows])


@given(st.integers(1, 2000))
def test_checkpoints_are_apart_by_what_they_say(steps):
    windows = F.checkpoint_windows(steps)
    at = [k for k, window in enumerate(windows) if window]
    assert len(windows) == steps
    assert [windows[k] for k in at] == [b - a for a, b in zip([0, *at], at, strict=False)]
    assert [windows[k] for k in at] == sorted((windows[k] for k in at), reverse=True)
