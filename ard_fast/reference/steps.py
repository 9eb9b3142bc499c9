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
