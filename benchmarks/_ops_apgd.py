"""A step of Auto-PGD outside the network, and the ways it is done today. For bench_ops.py.

    autoattack   the expressions of AutoAttack's autopgd_base.py, with indices from nonzero
    inplace      the same by torch.where, in place: no wait for the device
    compile      torch.compile of the same, in place (L2: to new tensors)
    fused        the operator behind ard_fast.functional.APGDRun

The step is as it is in nine calls of ten, between two checkpoints: half of the samples have improved, a quarter are
misclassified. Least traffic, an element of fp32 images: read x_adv, x_prev, grad, x and write the next iterate (20
bytes with fp32 gradients), and write x_best, grad_best and x_fooled of the samples that are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from _ops_steps import EPS, EPS_L2, SIZES, TINY, images
from _run import Problem, Row, Sets, compiled, copies, require_close
from torch import Tensor

MOMENTUM, RHO = 0.75, 0.75

State = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""x_adv, x_prev, x_best, grad_best, x_fooled, loss_best and where the next loss_best goes: so that every call improves
the same samples, however often it is repeated."""


def _project(point: Tensor, x: Tensor, l2: bool) -> Tensor:
    if not l2:
        return torch.clamp(torch.min(torch.max(point, x - EPS), x + EPS), 0.0, 1.0)
    delta = point - x
    length = (delta**2).view(len(x), -1).sum(-1).sqrt().view(-1, 1, 1, 1)
    return torch.clamp(x + delta / (length + TINY) * torch.min(EPS_L2 * torch.ones_like(x), length), 0.0, 1.0)


def _direction(grad: Tensor, l2: bool) -> Tensor:
    if not l2:
        return torch.sign(grad)
    return grad / ((grad**2).view(len(grad), -1).sum(-1).sqrt().view(-1, 1, 1, 1) + TINY)


def autoattack_step(
    state: State, grad: Tensor, x: Tensor, loss: Tensor, correct: Tensor, step_size: Tensor, l2: bool
) -> Tensor:
    """One step as in AutoAttack (fra31/auto-attack, autoattack/autopgd_base.py); returns the next iterate."""
    x_adv, x_prev, x_best, grad_best, x_fooled, loss_best, loss_best_next = state
    fooled = (correct == 0).nonzero().squeeze()
    x_fooled[fooled] = x_adv[fooled] + 0.0
    y1 = loss.detach().clone()
    ind = (y1 > loss_best).nonzero().squeeze()
    x_best[ind] = x_adv[ind].clone()
    grad_best[ind] = grad[ind].clone()
    loss_best_next[ind] = y1[ind] + 0
    grad2 = x_adv - x_prev
    x_adv_old = x_adv.clone()
    x_adv_1 = _project(x_adv + step_size * _direction(grad, l2), x, l2)
    x_adv_1 = _project(x_adv_old + (x_adv_1 - x_adv) * MOMENTUM + grad2 * (1 - MOMENTUM), x, l2)
    return x_adv_1 + 0.0


def new_step(
    state: State, grad: Tensor, x: Tensor, loss: Tensor, correct: Tensor, step_size: Tensor, l2: bool
) -> tuple[Tensor, ...]:
    """The same without a wait, to new tensors: next iterate, x_best, grad_best, x_fooled, loss_best.

    For the compiler in L2: inductor (torch 2.13, CPU) fails on the form that writes over its inputs.
    """
    x_adv, x_prev, x_best, grad_best, x_fooled, loss_best, _ = state
    better = loss > loss_best
    keep = better.view(-1, 1, 1, 1)
    moved = _project(x_adv + step_size * _direction(grad.to(x.dtype), l2), x, l2)
    return (
        _project(x_adv + (moved - x_adv) * MOMENTUM + (x_adv - x_prev) * (1 - MOMENTUM), x, l2),
        torch.where(keep, x_adv, x_best),
        torch.where(keep, grad, grad_best),
        torch.where(correct.view(-1, 1, 1, 1), x_fooled, x_adv),
        torch.where(better, loss, loss_best),
    )


def inplace_step_(
    state: State, grad: Tensor, x: Tensor, loss: Tensor, correct: Tensor, step_size: Tensor, l2: bool
) -> Tensor:
    """The same in place; the next iterate is written over x_prev."""
    _, x_prev, x_best, grad_best, x_fooled, _, loss_best_next = state
    new = new_step(state, grad, x, loss, correct, step_size, l2)
    for old, value in zip((x_prev, x_best, grad_best, x_fooled, loss_best_next), new, strict=True):
        old.copy_(value)
    return x_prev


def apgd(norm: str, size: str, dtype: torch.dtype, device: torch.device, sets: Sets) -> Problem:
    """Returns a step of Auto-PGD in `norm`, "linf" or "l2", at `size`; the gradients are of `dtype`."""
    from ard_fast.functional import _ops

    l2 = norm == "l2"
    eps = EPS_L2 if l2 else EPS
    x0, x_adv0, x_prev0, grad0 = images(size, device)
    grad0 = grad0.to(dtype)
    b = len(x0)
    rows = torch.arange(b, device=device)
    loss, correct = torch.where(rows % 2 == 0, 1.0, -1.0), rows % 4 != 1
    loss_best, loss_best_next = torch.zeros(b, device=device), torch.zeros(b, device=device)
    step_size = torch.full((b, 1, 1, 1), 2 * eps, device=device)
    n = sets(x0.numel() * (20 + 2 * dtype.itemsize))
    x, x_adv, x_prev, grad = (copies(t, n) for t in (x0, x_adv0, x_prev0, grad0))
    x_best, grad_best, x_fooled = copies(x0, n), copies(torch.zeros_like(grad0), n), copies(x0, n)
    # what the operator remembers of each sample: see functional.APGDRun.state
    remembered = torch.zeros(7, b, device=device)
    remembered[0] = 2 * eps
    remembered_next = torch.empty_like(remembered)

    def state(i: int) -> State:
        return x_adv[i], x_prev[i], x_best[i], grad_best[i], x_fooled[i], loss_best, loss_best_next

    def reset(n: int) -> None:
        for i in range(n):
            x_prev[i].copy_(x_prev0)
            x_best[i].copy_(x0)
            grad_best[i].zero_()
            x_fooled[i].copy_(x0)

    def fused(i: int) -> Tensor:
        _ops.apgd_step_(
            *state(i)[:5], remembered, remembered_next, grad[i], x[i], loss, correct, None, eps, l2, False, 0, RHO,
            MOMENTUM, 0.0, 1.0,
        )  # fmt: skip
        return x_prev[i]

    def over(step: Callable[..., Any]) -> Callable[[int], object]:
        return lambda i: step(state(i), grad[i], x[i], loss, correct, step_size, l2)

    def check(name: str, out: Any) -> Row:
        start = (x_adv0, x_prev0, x0, torch.zeros_like(grad0), x0, loss_best, loss_best_next)
        doubles = [t.double() for t in (*start, grad0, x0, loss)]
        want = new_step(tuple(doubles[:7]), *doubles[7:], correct, step_size.double(), l2)  # type: ignore[arg-type]
        got = out[:4] if isinstance(out, tuple) else (out, x_best[0], grad_best[0], x_fooled[0])
        for what, have, should in zip(("x_best", "grad_best", "x_fooled"), got[1:], want[1:4], strict=True):
            require_close(name, what, have, should, 0.0)
        # autoattack's L2 norm is taken in bf16 when the gradient is
        tolerance = 2e-3 if dtype != torch.float32 and name == "autoattack" else 1e-6
        return require_close(name, "x_adv", got[0], want[0], tolerance)

    pixels = x0[0].numel()
    return Problem(
        shape=SIZES[size],
        bytes_min=x0.numel() * (16 + dtype.itemsize)
        + pixels * ((4 + dtype.itemsize) * int((loss > loss_best).sum()) + 4 * int((~correct).sum())),
        traffic="x_adv, x_prev, grad, x read, iterate written, and what is kept of 1/2 and 1/4 of the samples",
        baseline="autoattack",
        makers={
            "autoattack": lambda: over(autoattack_step),
            "inplace": lambda: over(inplace_step_),
            "compile": lambda: over(compiled(new_step if l2 else inplace_step_)),
            "fused": lambda: fused,
        },
        check=check,
        reset=reset,
        uncapturable=("autoattack",),
    )
