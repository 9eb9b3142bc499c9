"""A step of Auto-PGD outside the network, and the ways it is done today. For bench_steps.py.

The step as it is in nine calls of ten, between two checkpoints: half of the samples have improved and are kept, a
quarter are misclassified and are kept, and all move on. Variants:

    autoattack   the expressions of AutoAttack's autopgd_base.py, with indices from nonzero
    lean         the same by torch.where, in place: no wait for the device
    compile      torch.compile of the same, in place (L2: to new tensors, see below)
    fused        the operator behind ard_fast.functional.APGDRun

Least traffic, an element: read x_adv, x_prev, grad, x and write the next iterate (20 bytes with fp32 gradients), and
write x_best, grad_best and x_fooled of the samples that are kept.
"""

from __future__ import annotations

import torch
from _cli import Row, WrongResult
from _problem import Problem, compiled, copies, require_close
from _steps_images import EPS, EPS_L2, SIZES, images
from _timing import Variant
from torch import Tensor

NORMS = ("apgd-linf", "apgd-l2")
VARIANTS = ("autoattack", "lean", "compile", "fused")
MOMENTUM = 0.75
RHO = 0.75
TINY = 1e-12

State = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""x_adv, x_prev, x_best, grad_best, x_fooled, loss_best and where the next loss_best goes: so that every call improves
the same samples, however often it is repeated."""


def _project(point: Tensor, x: Tensor, l2: bool) -> Tensor:
    if not l2:
        return torch.clamp(torch.min(torch.max(point, x - EPS), x + EPS), 0.0, 1.0)
    delta = point - x
    norm = (delta**2).view(len(x), -1).sum(-1).sqrt().view(-1, 1, 1, 1)
    return torch.clamp(x + delta / (norm + TINY) * torch.min(EPS_L2 * torch.ones_like(x), norm), 0.0, 1.0)


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


def lean_step_(
    state: State, grad: Tensor, x: Tensor, loss: Tensor, correct: Tensor, step_size: Tensor, l2: bool
) -> Tensor:
    """The same without a wait; the next iterate is written over x_prev."""
    x_adv, x_prev, x_best, grad_best, x_fooled, loss_best, loss_best_next = state
    better = loss > loss_best
    keep = better.view(-1, 1, 1, 1)
    x_fooled.copy_(torch.where(correct.view(-1, 1, 1, 1), x_fooled, x_adv))
    x_best.copy_(torch.where(keep, x_adv, x_best))
    grad_best.copy_(torch.where(keep, grad, grad_best))
    loss_best_next.copy_(torch.where(better, loss, loss_best))
    moved = _project(x_adv + step_size * _direction(grad.float(), l2), x, l2)
    return x_prev.copy_(_project(x_adv + (moved - x_adv) * MOMENTUM + (x_adv - x_prev) * (1 - MOMENTUM), x, l2))


def new_step(
    state: State, grad: Tensor, x: Tensor, loss: Tensor, correct: Tensor, step_size: Tensor, l2: bool
) -> tuple[Tensor, ...]:
    """The same to new tensors: next iterate, x_best, grad_best, x_fooled, loss_best.

    For the compiler in L2: inductor (torch 2.13, CPU) fails on the form that writes over its inputs.
    """
    x_adv, x_prev, x_best, grad_best, x_fooled, loss_best, _ = state
    better = loss > loss_best
    keep = better.view(-1, 1, 1, 1)
    moved = _project(x_adv + step_size * _direction(grad.float(), l2), x, l2)
    return (
        _project(x_adv + (moved - x_adv) * MOMENTUM + (x_adv - x_prev) * (1 - MOMENTUM), x, l2),
        torch.where(keep, x_adv, x_best),
        torch.where(keep, grad, grad_best),
        torch.where(correct.view(-1, 1, 1, 1), x_fooled, x_adv),
        torch.where(better, loss, loss_best),
    )


def problem(norm: str, size: str, dtype: torch.dtype, device: torch.device, n_sets: int) -> Problem:
    """Returns a step of APGD in `norm` at `size`; the gradients are of `dtype`."""
    l2 = norm == "apgd-l2"
    eps = EPS_L2 if l2 else EPS
    generator = torch.Generator().manual_seed(0)
    x0, x_adv0, grad0 = images(size, generator, device)
    grad0 = grad0.to(dtype)
    x_prev0 = (x0 + torch.empty(x0.shape).uniform_(-EPS, EPS, generator=generator).to(device)).clamp_(0, 1)
    b = x0.shape[0]
    rows = torch.arange(b, device=device)
    loss, correct = torch.where(rows % 2 == 0, 1.0, -1.0), rows % 4 != 1
    loss_best, loss_best_next = torch.zeros(b, device=device), torch.zeros(b, device=device)
    step_size = torch.full((b, 1, 1, 1), 2 * eps, device=device)

    x, x_adv, x_prev, grad = (copies(t, n_sets) for t in (x0, x_adv0, x_prev0, grad0))
    x_best, grad_best, x_fooled = copies(x0, n_sets), copies(torch.zeros_like(grad0), n_sets), copies(x0, n_sets)
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
        from ard_fast.functional import _ops

        _ops.apgd_step_(
            *state(i)[:5], remembered, remembered_next, grad[i], x[i], loss, correct, None, eps, l2, False, 0, RHO,
            MOMENTUM, 0.0, 1.0,
        )  # fmt: skip
        return x_prev[i]

    def make(name: str) -> Variant:
        if name == "fused":
            return Variant(name, fused, reset)
        step = {
            "autoattack": lambda: autoattack_step,
            "lean": lambda: lean_step_,
            "compile": lambda: compiled(new_step if l2 else lean_step_),
        }[name]()
        return Variant(name, lambda i: step(state(i), grad[i], x[i], loss, correct, step_size, l2), reset)

    def check(variant: Variant) -> Row:
        reset(1)
        start = [t.double() for t in state(0)]
        want = lean_step_(tuple(start), grad0.double(), x0.double(), loss.double(), correct, step_size.double(), l2)  # type: ignore[arg-type]
        out = variant.call(0)
        got, *selected = out if isinstance(out, tuple) else (out, x_best[0], grad_best[0], x_fooled[0])
        # autoattack's L2 norm is taken in bf16 when the gradient is
        tolerance = 2e-3 if dtype != torch.float32 and variant.name == "autoattack" else 1e-6
        require_close(variant.name, "x_adv", got, want, tolerance)
        kept = loss > loss_best
        wanted = {
            "x_best": torch.where(kept.view(-1, 1, 1, 1), x_adv0, x0),
            "grad_best": torch.where(kept.view(-1, 1, 1, 1), grad0, torch.zeros_like(grad0)),
            "x_fooled": torch.where(correct.view(-1, 1, 1, 1), x0, x_adv0),
        }
        for (what, should), have in zip(wanted.items(), selected, strict=False):
            if not torch.equal(have, should):
                raise WrongResult(f"{variant.name}: {what} is not what it must be after the selection")
        return {"checked": f"within {tolerance:.0e}"}

    kept_elements = x0[0].numel() * int((loss > loss_best).sum())
    fooled_elements = x0[0].numel() * int((~correct).sum())
    return Problem(
        shape=SIZES[size],
        bytes_min=x0.numel() * (16 + dtype.itemsize) + kept_elements * (4 + dtype.itemsize) + fooled_elements * 4,
        traffic="x_adv, x_prev, grad, x read, iterate written, and what is kept of 1/2 and 1/4 of the samples",
        baseline="autoattack",
        names=VARIANTS,
        make=make,
        check=check,
        uncapturable=frozenset({"autoattack"}),
    )


def set_bytes(size: str, dtype: torch.dtype) -> int:
    """Returns the bytes of one buffer set."""
    return torch.Size(SIZES[size]).numel() * (20 + 2 * dtype.itemsize)
