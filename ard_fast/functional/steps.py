"""Steps of the attacks, in place: gradient direction, projection onto the eps-ball and clamp in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ard_fast import _ops
from ard_fast._arguments import bounds_pair, number_or_per_sample
from ard_fast.functional._layout import with_layout_of


def pgd_linf_step_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    step_size: float | Tensor,
    eps: float | Tensor,
    targeted: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Take one L-infinity PGD step in place: signed step, projection onto the eps-ball, clamp, in one pass.

    Bit for bit `clamp(min(max(x_adv + step_size * sign(grad), x - eps), x + eps), *bounds)` in float32, the order of
    operations of the published ARD code (Madry et al. 2018, section 2.1, is the method). `sign` is torch's: 0 for NaN
    and both zeros. A NaN pixel stays NaN.

    Args:
        x_adv: iterate `[B, ...]`, float32, dense in memory (contiguous, channels_last, ...). Updated in place.
        grad: gradient of the loss at `x_adv`, same shape, float32, float16 or bfloat16.
        x: clean images, same shape, float32.
        step_size: a number or a tensor `[B]` with one for each sample, at least 0.
        eps: radius of the ball, likewise. Tensors are not checked for their values: that would wait for the GPU.
        targeted: descend the loss instead of ascending it.
        bounds: lowest and highest pixel value.

    Returns:
        `x_adv`.

    Raises:
        ValueError: a number is negative or not finite, bounds are not increasing, or `x_adv` requires grad.
        RuntimeError: shapes, dtypes, devices or memory layouts do not fit; the message names the argument.
    """
    if x_adv.requires_grad and torch.is_grad_enabled():
        raise ValueError("x_adv must not require grad: the step is not differentiable; pass x_adv.detach()")
    step_scalar, step_tensor = number_or_per_sample(step_size, "step_size", x_adv)
    eps_scalar, eps_tensor = number_or_per_sample(eps, "eps", x_adv)
    lower, upper = bounds_pair(bounds)
    stride = x_adv.stride()
    if grad.requires_grad or grad.stride() != stride:
        grad = with_layout_of(grad.detach(), x_adv)
    if x.requires_grad or x.stride() != stride:
        x = with_layout_of(x.detach(), x_adv)
    _ops.pgd_linf_step_(x_adv, grad, x, step_tensor, eps_tensor, step_scalar, eps_scalar, targeted, lower, upper)
    # The dispatcher does not count the write of an operator like this one; without the count autograd would not
    # notice that a tensor it saved has changed.
    torch.autograd.graph.increment_version(x_adv)
    return x_adv
