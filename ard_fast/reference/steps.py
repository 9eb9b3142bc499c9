"""The steps of the attacks, as the published codes write them; Auto-PGD's; the best of restarts."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


def pgd_linf_step(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    step_size: float | Tensor,
    eps: float | Tensor,
    targeted: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
    levels: int | None = None,
) -> Tensor:
    """The step as the published ARD code writes it; with `levels` of whole ones, and at the nearest."""
    step_size, eps = per_sample(step_size, x), per_sample(whole_radius(eps, levels), x)
    if levels is not None:
        step_size = torch.as_tensor(step_size, dtype=None if isinstance(step_size, Tensor) else torch.float64)
        whole = (step_size * levels - 1e-4).ceil().clamp_min(1.0)
        step_size = torch.where(step_size > 0, whole, torch.zeros_like(whole)) / levels
    stepped = x_adv + (-step_size if targeted else step_size) * torch.sign(grad.to(x_adv.dtype))
    projected = torch.min(torch.max(stepped, x - eps), x + eps)
    return at_levels(torch.clamp(projected, *bounds), levels)


def at_levels(x: Tensor, levels: int | None) -> Tensor:
    """Each pixel at the nearest k / levels, if there are levels."""
    if levels is None:
        return x
    divisor = torch.full((), levels, dtype=torch.float32, device=x.device)  # of a number CUDA takes the reciprocal
    return torch.round(x * levels) / divisor


def whole_radius(eps: float | Tensor, levels: int | None) -> float | Tensor:
    """The whole levels within eps, if there are levels."""
    if levels is None:
        return eps
    if isinstance(eps, Tensor):
        return torch.floor(eps * levels + 1e-4) / levels
    return math.floor(eps * levels + 1e-4) / levels


def per_sample(value: float | Tensor, x: Tensor) -> float | Tensor:
    """A per-sample tensor shaped to broadcast over x."""
    if isinstance(value, Tensor) and value.dim() == 1:
        return value.to(x.dtype).reshape(-1, *(1,) * (x.dim() - 1))
    return value


def pgd_l2_step(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    step_size: float | Tensor,
    eps: float | Tensor,
    targeted: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """A step of length step_size along the gradient, then the projection onto the L2 ball, in float64."""
    step_size, eps = per_sample(step_size, x), per_sample(eps, x)
    grad = finite_gradient(grad)
    norm = _norm(grad, 2)
    direction = grad / norm.where(norm > 0, torch.ones_like(norm))
    delta = x_adv.double() + (-step_size if targeted else step_size) * direction - x.double()
    distance = _norm(delta, 2)
    shrink = torch.where(distance <= eps, torch.ones_like(distance), eps / distance)
    return torch.clamp(x.double() + shrink * delta, *bounds).to(x.dtype)


def mifgsm_step(
    x_adv: Tensor,
    momentum: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    step_size: float | Tensor,
    eps: float | Tensor,
    decay: float = 1.0,
    targeted: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
    levels: int | None = None,
) -> tuple[Tensor, Tensor]:
    """New (x_adv, momentum): the momentum gains the L1-normalised gradient, and the sign step follows it."""
    grad = finite_gradient(grad)
    norm = _norm(grad, 1)
    gain = grad / norm.where(norm > 0, torch.ones_like(norm))
    momentum = (decay * momentum.double() + gain).to(momentum.dtype)
    x_adv = pgd_linf_step(
        x_adv, momentum, x, step_size=step_size, eps=eps, targeted=targeted, bounds=bounds, levels=levels
    )
    return x_adv, momentum


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
    levels: int | None = None,
) -> APGDIterate:
    """Croce & Hein 2020, algorithm 1: judge `x_adv` by its loss, then step; the result's `x_adv` is the next point.

    With `first`, only `x_adv` of the iterate is read. Without a gradient nothing moves.
    """
    eps = whole_radius(eps, levels)
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
    stepped = project(x_adv + images(state[0] if levels is None else state[0].clamp_min(1.0 / levels)) * direction)
    mixed = x_adv + (stepped - x_adv) * momentum + (x_adv - x_prev) * (1.0 - momentum)
    return APGDIterate(at_levels(project(mixed), levels), x_adv, x_best, grad_best, x_fooled, state)


def select_best(
    best: Tensor, best_loss: Tensor, candidate: Tensor, loss: Tensor, *, lower: bool = False
) -> tuple[Tensor, Tensor]:
    """New (images, losses): the better of the two for each sample."""
    better = loss < best_loss if lower else loss > best_loss
    wins = better | (best_loss.isnan() & ~loss.isnan())
    chosen = wins.reshape(-1, *(1,) * (best.dim() - 1))
    return torch.where(chosen, candidate, best), torch.where(wins, loss, best_loss)


def finite_gradient(grad: Tensor) -> Tensor:
    """The gradient in float64, NaN as 0 and infinities as the largest float32."""
    largest = torch.finfo(torch.float32).max
    return torch.nan_to_num(grad.double(), nan=0.0, posinf=largest, neginf=-largest)


def _norm(values: Tensor, order: int) -> Tensor:
    """The norm of each sample, shaped to broadcast over it."""
    flat = values.reshape(values.shape[0], -1) if values.numel() else values.new_zeros(values.shape[0], 1)
    norm = flat.abs().sum(1) if order == 1 else torch.linalg.vector_norm(flat, dim=1)
    return norm.reshape(-1, *(1,) * (values.dim() - 1))
