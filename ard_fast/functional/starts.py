"""Random points near the images, where attacks start."""

from __future__ import annotations

from torch import Tensor

from ard_fast import _ops
from ard_fast._arguments import bounds_pair, nonnegative, number_or_per_sample, seed_tensor
from ard_fast.functional._layout import is_plain


def random_start(
    x: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    init: str = "uniform",
    std: float = 0.001,
    clamp: bool = True,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int | Tensor | None = None,
    sample_ids: Tensor | None = None,
) -> Tensor:
    """Return a random point near each image, where an attack starts.

    The noise comes from Philox4x32-10 keyed by (seed, sample id, element): the same bits on CPU and CUDA, whatever
    the memory layout, and for a given sample id whatever batch the sample is in.

    Args:
        x: images `[B, ...]`, float32.
        eps: radius of the uniform noise, a number or a tensor `[B]`; at least 0. Not used by `init="normal"`.
        norm: "linf".
        init: "uniform" on (-eps, eps) (Madry et al. 2018), or "normal", `std` * N(0, 1) (the TRADES code).
        std: standard deviation of the normal noise, in pixel units.
        clamp: clamp to `bounds`. The published ARD, TRADES and RSLAD codes do not.
        bounds: lowest and highest pixel value.
        seed: an int, an int64 tensor with one element on the device of `x` (read when the kernel runs), or None to draw
            one from torch's generator of that device.
        sample_ids: int64 `[B]`, what identifies each sample; None takes 0, 1, ..., B - 1.

    Returns:
        `[B, ...]`, float32, in the memory layout of `x` where that is contiguous or channels_last, else contiguous.

    Raises:
        ValueError: a number or a name is out of range.
        RuntimeError: shapes, dtypes or devices do not fit; the message names the argument.
    """
    if norm != "linf":
        raise ValueError(f"norm must be 'linf', got {norm!r}")
    if init not in ("uniform", "normal"):
        raise ValueError(f"init must be 'uniform' or 'normal', got {init!r}")
    std = nonnegative(std, "std")
    lower, upper = bounds_pair(bounds)
    x = x.detach()
    if not is_plain(x):
        x = x.contiguous()
    eps_scalar, eps_tensor = number_or_per_sample(eps, "eps", x)
    return _ops.random_start(
        x, eps_tensor, eps_scalar, seed_tensor(seed, x.device), sample_ids, init == "normal", std, clamp, lower, upper
    )
