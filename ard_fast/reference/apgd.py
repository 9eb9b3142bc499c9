"""One iteration of Auto-PGD in plain torch, for any floating dtype."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ard_fast.reference.steps import per_sample


class APGDIterate(NamedTuple):
    """What an iteration of Auto-PGD hands to the next: points `[B, ...]` and the state `[7, B]`."""

    x_adv: Tensor
    x_prev: Tensor
    x_best: Tensor
    grad_best: Tensor
    x_fooled: Tensor
    state: Tensor


def apgd_step(
    iterate: APGDIterate,
    grad: Tensor | None,
    x: Tensor,
    loss_rows: Tensor,
    correct: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    first: bool = False,
    window: int = 0,
    rho: float = 0.75,
    momentum: float = 0.75,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> APGDIterate:
    """Croce & Hein 2020, algorithm 1: judge `x_adv` by its loss, then step; the result's `x_adv` is the next point.

    With `first`, only `x_adv` of the iterate is read. Without a gradient nothing moves.
    """
    radius = per_sample(eps, x)

    def images(mask: Tensor) -> Tensor:
        return mask.reshape(-1, *(1,) * (x.dim() - 1))

    x_adv, x_prev, x_best, grad_best, x_fooled, state = iterate
    if first:
        ones = torch.ones_like(loss_rows)
        fooled = (~correct).to(ones.dtype)
        state = torch.stack((2.0 * eps * ones, loss_rows, 0 * ones, 0 * ones, loss_rows, ones, fooled))
        x_prev = x_best = x_fooled = x_adv
        grad_best = grad if grad is not None else grad_best
        momentum = 1.0
    else:
        step_size, loss_best, loss_prev, increases, loss_at_check, reduced, fooled = state
        improved = (loss_rows > loss_best) | (loss_best.isnan() & ~loss_rows.isnan())
        loss_best = torch.where(improved, loss_rows, loss_best)
        x_best = torch.where(images(improved), x_adv, x_best)
        if grad is not None:
            grad_best = torch.where(images(improved), grad, grad_best)
        x_fooled = torch.where(images(correct), x_fooled, x_adv)
        fooled = torch.where(correct, fooled, torch.ones_like(fooled))
        increases = increases + (loss_rows > loss_prev)
        if window:
            halve = (increases <= rho * window) | ((reduced == 0) & (loss_at_check >= loss_best))
            step_size = torch.where(halve, step_size / 2, step_size)
            reduced, loss_at_check, increases = halve.to(reduced.dtype), loss_best, torch.zeros_like(increases)
            if grad is not None:
                x_adv = torch.where(images(halve), x_best, x_adv)
                grad = torch.where(images(halve), grad_best, grad)
        state = torch.stack((step_size, loss_best, loss_rows, increases, loss_at_check, reduced, fooled))
    if grad is None:
        return APGDIterate(x_adv, x_prev, x_best, grad_best, x_fooled, state)

    def project(point: Tensor) -> Tensor:
        if norm == "linf":
            return torch.clamp(torch.min(torch.max(point, x - radius), x + radius), *bounds)
        delta = point - x
        lengths = images(delta.flatten(1).norm(dim=1))
        return torch.clamp(x + torch.where(lengths > radius, delta * (radius / lengths), delta), *bounds)

    if norm == "linf":
        direction = torch.sign(grad.to(x.dtype))
    else:
        limits = torch.finfo(torch.float32)
        wide = torch.nan_to_num(grad.double(), nan=0.0, posinf=limits.max, neginf=limits.min)
        lengths = images(wide.flatten(1).norm(dim=1))
        direction = torch.where(lengths > 0, wide / lengths, 0.0).to(x.dtype)
    stepped = project(x_adv + images(state[0]) * direction)
    mixed = x_adv + (stepped - x_adv) * momentum + (x_adv - x_prev) * (1.0 - momentum)
    return APGDIterate(project(mixed), x_adv, x_best, grad_best, x_fooled, state)
