"""Random points near the images, where attacks start."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ard_fast.functional import _ops
from ard_fast.functional._arguments import (
    Array,
    bounds_pair,
    check_precondition,
    flag,
    is_plain,
    nonnegative,
    number_or_per_sample,
    one_of,
    seed_tensor,
    tensor,
)
from ard_fast.functional._levels import check_levels, level_count, nearest_levels, whole_radius

_RADIUS_STREAM = 0x5DEECE66D1CE4E5B  # any constant: it only has to change the seed


def random_start(
    x: Array,
    *,
    eps: float | Array,
    norm: str = "linf",
    init: str = "uniform",
    std: float = 0.001,
    clamp: bool = True,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int | Array | None = None,
    sample_ids: Array | None = None,
    levels: int | None = None,
    check_bounds: bool = True,
) -> Tensor:
    """Return a random point near each image, where an attack starts.

    The noise comes from Philox4x32-10 keyed by (seed, sample id, element): the same on CPU and CUDA, whatever the
    memory layout, and for a given sample id whatever batch the sample is in. To the bit for `init="normal"` and the
    uniform L-infinity start; the others divide by a norm, whose last digit may depend on all that.

    Args:
        x: images `[B, ...]`, float32.
        eps: radius of the ball, a number or a tensor `[B]`; at least 0. Not used by `init="normal"`.
        norm: "linf" or "l2": the ball.
        init: "uniform" in the ball (L-infinity: each pixel on (-eps, eps), Madry et al. 2018), "surface", scaled so
            that the distance from `x` is eps (L-infinity: uniform noise by its largest entry; L2: a uniform direction;
            Croce & Hein 2020, the APGD code), or "normal", `std` * N(0, 1) in either norm (the TRADES code).
        std: standard deviation of the normal noise, in pixel units.
        clamp: clamp to `bounds`. The published ARD, TRADES and RSLAD codes do not.
        bounds: lowest and highest pixel value.
        seed: an int, an int64 tensor with one element on the device of `x` (read when the kernel runs), or None to draw
            one from torch's generator of that device.
        sample_ids: int64 `[B]`, what identifies each sample; None takes 0, 1, ..., B - 1.
        levels: the level that stands for 1.0, 1 to 255, as 255 for images of 8 bits: eps is taken down to whole levels,
            and each pixel of the start to its nearest one (see `pgd_linf_step_`). L-infinity and `clamp` only.
        check_bounds: where it clamps, look first whether `x` is inside `bounds` (and at whole `levels`) and eps no
            wider. On the CPU only, and not while tracing: on CUDA it would wait. It reads `x` once more.

    Returns:
        `[B, ...]`, float32, in the memory layout of `x` where that is contiguous or channels_last, else contiguous.

    Raises:
        ValueError: a number or a name is out of range, or (CPU) `x` is not inside `bounds` or eps is wider.
        RuntimeError: shapes, dtypes or devices do not fit; the message names the argument.
    """
    one_of(norm, "norm", ("linf", "l2"))
    one_of(init, "init", ("uniform", "surface", "normal"))
    std = nonnegative(std, "std")
    lower, upper = bounds_pair(bounds)
    x = tensor(x, "x").detach()
    if sample_ids is not None:
        sample_ids = tensor(sample_ids, "sample_ids")
    if not is_plain(x):
        x = x.contiguous()
    clamp, check_bounds = flag(clamp, "clamp"), flag(check_bounds, "check_bounds")
    eps_scalar, eps_tensor = number_or_per_sample(eps, "eps", x)
    if check_bounds and clamp and x.device.type == "cpu":
        radius = eps_scalar if eps_tensor is None else eps_tensor
        check_precondition(x, radius, (lower, upper), None if init == "normal" else norm)
    count = level_count(levels, norm, (lower, upper))
    if count:
        if not clamp:
            raise ValueError("clamp must be True with levels: beyond the bounds there are none")
        if check_bounds and x.device.type == "cpu":
            check_levels(x, count)
        if init != "normal":
            eps_scalar = whole_radius(eps_scalar, count)
            eps_tensor = None if eps_tensor is None else whole_radius(eps_tensor, count)
    seed = seed_tensor(seed, x.device)
    if init == "normal" or (norm, init) == ("linf", "uniform"):
        return _ops.random_start(
            x, eps_tensor, eps_scalar, seed, sample_ids, init == "normal", std, clamp, lower, upper, count
        )
    if eps_tensor is not None and eps_tensor.shape != x.shape[:1]:  # here no operator looks
        raise RuntimeError(f"eps must have shape {list(x.shape[:1])}, one entry a sample, got {list(eps_tensor.shape)}")
    radius = eps_scalar if eps_tensor is None else _over_samples(eps_tensor, x)
    if norm == "l2" and init == "uniform":
        # The share of the ball within radius r is r^E.
        numel = x.shape[1:].numel()
        radius = radius * _over_samples(_uniform(x, seed, sample_ids) ** (1.0 / max(numel, 1)), x)
    start = x + radius * _surface_direction(x, norm, seed, sample_ids)
    start = start.clamp_(lower, upper) if clamp else start
    return nearest_levels(start, count) if count else start


def _noise(like: Tensor, seed: Tensor, sample_ids: Tensor | None, normal: bool) -> Tensor:
    """Philox noise, uniform on (-1, 1) or standard normal, in the shape and layout of `like`."""
    return _ops.random_start(torch.zeros_like(like), None, 1.0, seed, sample_ids, normal, 1.0, False, 0.0, 1.0)


def _surface_direction(x: Tensor, norm: str, seed: Tensor, sample_ids: Tensor | None) -> Tensor:
    """Noise of norm 1 for each sample."""
    noise = _noise(x, seed, sample_ids, normal=norm == "l2")
    if noise.numel() == 0 or x.dim() == 1:
        return noise.sign()
    dims = tuple(range(1, x.dim()))
    if norm == "linf":
        return noise / torch.amax(noise.abs(), dims, keepdim=True)
    norms: Any = torch.linalg.vector_norm(noise, dim=dims, keepdim=True, dtype=torch.float64)
    return noise / cast("Tensor", norms.to(torch.float32))


def _uniform(x: Tensor, seed: Tensor, sample_ids: Tensor | None) -> Tensor:
    """One number on (0, 1) for each sample `[B]`, from another stream than the noise: a key with other bits."""
    noise = _noise(x.new_empty(x.shape[:1]), seed ^ _RADIUS_STREAM, sample_ids, normal=False)
    return (noise + 1.0) / 2.0


def _over_samples(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (x.dim() - 1))
