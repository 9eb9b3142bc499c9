"""The steps of the attacks, as the published codes write them."""

from __future__ import annotations

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
) -> Tensor:
    """The step as the published ARD code writes it."""
    step_size, eps = per_sample(step_size, x), per_sample(eps, x)
    stepped = x_adv + (-step_size if targeted else step_size) * torch.sign(grad.to(x_adv.dtype))
    projected = torch.min(torch.max(stepped, x - eps), x + eps)
    return torch.clamp(projected, *bounds)


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
) -> tuple[Tensor, Tensor]:
    """New (x_adv, momentum): the momentum gains the L1-normalised gradient, and the sign step follows it."""
    grad = finite_gradient(grad)
    norm = _norm(grad, 1)
    gain = grad / norm.where(norm > 0, torch.ones_like(norm))
    momentum = (decay * momentum.double() + gain).to(momentum.dtype)
    return pgd_linf_step(x_adv, momentum, x, step_size=step_size, eps=eps, targeted=targeted, bounds=bounds), momentum


def finite_gradient(grad: Tensor) -> Tensor:
    """The gradient in float64, NaN as 0 and infinities as the largest float32."""
    largest = torch.finfo(torch.float32).max
    return torch.nan_to_num(grad.double(), nan=0.0, posinf=largest, neginf=-largest)


def _norm(values: Tensor, order: int) -> Tensor:
    """The norm of each sample, shaped to broadcast over it."""
    flat = values.reshape(values.shape[0], -1) if values.numel() else values.new_zeros(values.shape[0], 1)
    norm = flat.abs().sum(1) if order == 1 else torch.linalg.vector_norm(flat, dim=1)
    return norm.reshape(-1, *(1,) * (values.dim() - 1))
