"""Is an image inside the ball? Asked of every attack's result: a point outside fools nobody."""

from __future__ import annotations

import torch
from torch import Tensor

# float32 rounding of x + delta moves a pixel by up to 6e-8, a norm over thousands of pixels by a few 1e-6.
_TOLERANCE = {"linf": 1e-6, "l2": 1e-5}


def distances(x_adv: Tensor, x: Tensor, norm: str) -> Tensor:
    """The norm of each sample's perturbation.

    Args:
        x_adv: `[B, ...]`.
        x: like `x_adv`.
        norm: "linf" or "l2".

    Returns:
        float64 `[B]`.
    """
    difference = (x_adv.to(torch.float64) - x.to(torch.float64)).flatten(1)
    return difference.abs().amax(1) if norm == "linf" else difference.square().sum(1).sqrt()


def inside_ball(x_adv: Tensor, x: Tensor, *, norm: str, eps: float) -> Tensor:
    """Whether each sample is within eps of its original and all its pixels are in [0, 1], up to float32 rounding.

    A sample that holds a NaN is outside.

    Returns:
        bool `[B]`.
    """
    tolerance = _TOLERANCE[norm]
    pixels = x_adv.flatten(1)
    in_range = ((pixels >= -tolerance) & (pixels <= 1.0 + tolerance)).all(1)
    return in_range & (distances(x_adv, x, norm) <= eps + tolerance)
