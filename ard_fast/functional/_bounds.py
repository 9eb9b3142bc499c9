"""What everything that clamps to `bounds` takes for granted: the images are inside them, and the ball fits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Bounds = tuple[float, float]


def check_precondition(x: Tensor, eps: float | Tensor, bounds: Bounds, norm: str | None) -> None:
    """Images `[B, ...]` inside `bounds` and a ball no wider than they are. Waits for the device of `x`.

    Nothing is looked at while something traces, batches or fakes the call: there are no values then.

    Args:
        norm: of the ball; None where eps plays no part.

    Raises:
        ValueError: names `bounds` and what was found, and says what to do.
    """
    if not can_be_read(x) or not x.numel():
        return
    if norm is not None:
        check_radius(eps, bounds, norm, x.shape[1:].numel())
    check_inside(x, bounds)


def can_be_read(x: Tensor) -> bool:
    """Whether `x` is of a kind that is taken at all, and has values to look at."""
    return (
        not torch.compiler.is_compiling()
        and x.dtype == torch.float32
        and x.layout == torch.strided
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and not hasattr(x, "fake_mode")
        and x.device.type in ("cpu", "cuda")
    )


def check_inside(x: Tensor, bounds: Bounds) -> None:
    """Every value of `x` but NaN is inside `bounds`, in one pass."""
    lower, upper = bounds
    lowest, highest = _range(x)
    # Pixels that come back from a normalised form, (x - mean) / std * std + mean, are off by up to four roundings, two
    # units in the last place of the largest; twice that is no perturbation to anybody.
    largest = max((abs(bound) for bound in bounds if math.isfinite(bound)), default=0.0)
    slack = 4 * torch.finfo(torch.float32).eps * largest
    if lowest >= lower - slack and highest <= upper + slack:
        return
    raise ValueError(
        f"x must be inside bounds={bounds}, got values from {lowest:.4g} to {highest:.4g}; the clamp to bounds would "
        f"move them by more than eps. {_what_to_do(lowest, highest, bounds)}"
    )


def check_radius(eps: float | Tensor, bounds: Bounds, norm: str, numel: int = 1) -> None:
    """eps is at most the width of `bounds`, in the L2 norm their diagonal for `numel` pixels."""
    width = bounds[1] - bounds[0]
    if norm == "l2":
        width *= math.sqrt(numel)
    if isinstance(eps, Tensor):
        if not can_be_read(eps) or not eps.numel():
            return  # the operator refuses it
        eps = float(eps.max())
    if not eps > width * (1.0 + torch.finfo(torch.float32).eps):
        return
    limit = "the width" if norm == "linf" else f"the diagonal for {numel} pixels"
    levels = bounds == (0.0, 1.0) and eps <= 255.0
    hint = f": eps is in the units of the pixels, {eps:g}/255, not {eps:g}" if levels else ""
    raise ValueError(f"eps must be at most {width:.4g}, {limit} of bounds={bounds}, got {eps:g}{hint}")


def _range(x: Tensor) -> tuple[float, float]:
    """The lowest and the highest value, without NaN."""
    x = x.detach()
    lowest, highest = (float(value) for value in x.aminmax())
    if math.isnan(lowest):  # a single one makes both NaN
        lowest = float(x.nan_to_num(math.inf, math.inf, -math.inf).min())
        highest = float(x.nan_to_num(-math.inf, math.inf, -math.inf).max())
    return lowest, highest


def _what_to_do(lowest: float, highest: float, bounds: Bounds) -> str:
    lower, upper = bounds
    if lowest >= 0.0 and 16.0 < highest <= 255.0 and bounds == (0.0, 1.0):
        return "Divide them by 255, or pass bounds=(0, 255) with eps and step_size in the same units"
    normaliser = (
        "Give the pixels as they are before normalisation, and put that into the model: "
        "ard_fast.models.Normalised(model, mean, std)"
    )
    margin = 0.25 * (upper - lower)
    if lower - margin <= lowest and highest <= upper + margin:
        return f"{normaliser}. Where an interpolation overshoots, clamp: x.clamp({lower:g}, {upper:g})"
    return normaliser
