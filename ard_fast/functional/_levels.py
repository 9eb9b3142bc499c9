"""Whole pixel levels, k / levels: what an image of 8 bits holds for levels=255. The kernels: csrc/common/levels.h."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

from ard_fast.functional._arguments import Bounds, can_be_read, int_between

Size = TypeVar("Size", float, Tensor)

_ROUNDING = 1e-4  # of a level: what float32 may take off the whole levels of a size, several times over
_OFF = 1e-3  # of a level: pixels that were normalised and put back are off by a tenth of it


def level_count(levels: int | None, norm: str, bounds: Bounds) -> int:
    """`levels` as the operators take it, 0 for None."""
    if levels is None:
        return 0
    int_between(levels, "levels", 1, 255)
    if norm != "linf":
        raise ValueError(f"levels must be None for norm={norm!r}: only the L-infinity ball has whole levels")
    if bounds != (0.0, 1.0):
        raise ValueError(f"levels must be None for bounds={bounds}: level k stands for k / levels, from 0 to 1")
    return levels


def levels_within(eps: float, levels: int) -> int:
    """The most levels that a pixel may move within `eps`."""
    return math.floor(eps * levels + _ROUNDING)


def whole_radius(eps: Size, levels: int) -> Size:
    """The whole levels within `eps`, in units of the pixels: 8/255 stays, .031 becomes 7/255 with 255 levels.

    Raises:
        ValueError: a number above 0 that is less than one level.
    """
    if isinstance(eps, Tensor):
        return (eps * levels + _ROUNDING).floor() / levels
    within = levels_within(eps, levels)
    if eps > 0 and not within:
        raise ValueError(f"eps must be at least 1/{levels} (or 0) with levels={levels}, got {eps:.4g}: less than one")
    return within / levels


def whole_step(step_size: Size, levels: int) -> Size:
    """The step taken up to whole levels: .007 becomes 2/255; any above 0 is at least one, or no pixel would move."""
    if isinstance(step_size, Tensor):
        least = (step_size > 0).to(step_size.dtype)
        return torch.maximum((step_size * levels - _ROUNDING).ceil(), least) / levels
    return max(math.ceil(step_size * levels - _ROUNDING), int(step_size > 0)) / levels


def nearest_levels(x: Tensor, levels: int) -> Tensor:
    """Images in [0, 1] at their nearest whole levels, with the bits of `pixels.float() / levels` on a CPU.

    Divided by a tensor: by a number, CUDA multiplies by the reciprocal, which rounds half of the values otherwise.
    """
    return (x * levels).round() / torch.full((), levels, dtype=torch.float32, device=x.device)


def check_levels(x: Tensor, levels: int) -> None:
    """Every pixel but NaN is a whole level. Waits for the device of `x`; looks where `check_precondition` does.

    Raises:
        ValueError: names `x` and `levels`, and what was found.
    """
    if not can_be_read(x) or not x.numel():
        return
    scaled = x.detach() * levels
    off = (scaled - scaled.round()).abs().nan_to_num(0.0).flatten()
    worst = int(off.argmax())
    if float(off[worst]) > _OFF:
        raise ValueError(
            f"x must hold whole levels, k/{levels} (levels={levels}), got {float(x.flatten()[worst]):.5g}, which is "
            f"{float(scaled.flatten()[worst]):.2f}/{levels}: give images as they are stored, or round them first"
        )
