"""In place: steps of the attacks (direction, projection onto the ball and clamp in one pass), the best of restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ard_fast.functional import _ops
from ard_fast.functional._arguments import (
    Array,
    bounds_pair,
    check_precondition,
    flag,
    nonnegative,
    number_or_per_sample,
    tensor,
    with_layout_of,
    written_tensor,
)
from ard_fast.functional._levels import check_levels, level_count, whole_radius, whole_step


def pgd_linf_step_(
    x_adv: Array,
    grad: Array,
    x: Array,
    *,
    step_size: float | Array,
    eps: float | Array,
    targeted: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
    levels: int | None = None,
    check_bounds: bool = True,
) -> Tensor:
    """Take one L-infinity PGD step in place: signed step, projection onto the eps-ball, clamp, in one pass.

    Bit for bit `clamp(min(max(x_adv + step_size * sign(grad), x - eps), x + eps), *bounds)` in float32, the order of
    operations of the published ARD code (Madry et al. 2018, section 2.1, is the method). `sign` is torch's: 0 for NaN
    and both zeros. A NaN pixel stays NaN.

    With `levels`, 255 for images of 8 bits, each pixel of the result is k / levels for a whole number k, the bits that
    `pixels.float() / levels` has on a CPU: saved as uint8 and read again it is the same image. eps is taken down to
    whole levels (8/255 is 8, .031 is 7) and `step_size` up (.003 is 1, .007 is 2), so that a pixel with a gradient
    always moves unless it is at the edge of the ball or the range.

    Args:
        x_adv: iterate `[B, ...]`, float32, dense in memory (contiguous, channels_last, ...). Updated in place.
        grad: gradient of the loss at `x_adv`, same shape, float32, float16 or bfloat16.
        x: clean images, same shape, float32.
        step_size: a number or a tensor `[B]` with one for each sample, at least 0.
        eps: radius of the ball, likewise. Tensors are not checked for their values: that would wait for the GPU.
        targeted: descend the loss instead of ascending it.
        bounds: lowest and highest pixel value.
        levels: the level that stands for 1.0, 1 to 255, or None for pixels of any value. `x` must hold whole levels,
            and `bounds` be (0, 1).
        check_bounds: check that `x` is inside `bounds` (and at whole `levels`) and eps no wider. On the CPU only, and
            not while tracing: on CUDA it would wait. It reads `x` once more, 4 bytes a pixel beside the 16 of the step.

    Returns:
        `x_adv`.

    Raises:
        ValueError: a number is negative or not finite, bounds are not increasing, `x_adv` requires grad, eps is less
            than one level, or (CPU) `x` is not inside `bounds` or not at whole levels, or eps is wider.
        RuntimeError: shapes, dtypes, devices or memory layouts do not fit; the message names the argument.
    """
    x_adv, grad, x, sizes, bounds = _prepare(
        x_adv, grad, x, step_size, eps, bounds, "linf", flag(check_bounds, "check_bounds"), levels
    )
    step_per_sample, eps_per_sample, *numbers = sizes
    if targeted is False and levels is None and bounds == (0.0, 1.0) and step_per_sample is eps_per_sample is None:
        _ops.direct(_ops.pgd_linf_step_)(x_adv, grad, x, *numbers)
    else:
        rest = targeted, *bounds, levels or 0, step_per_sample, eps_per_sample
        _ops.pgd_linf_step_(x_adv, grad, x, *numbers, *rest)
    # The dispatcher does not count the write of an operator like this one; without the count autograd would not
    # notice that a tensor it saved has changed.
    torch.autograd.graph.increment_version(x_adv)
    return x_adv


def pgd_l2_step_(
    x_adv: Array,
    grad: Array,
    x: Array,
    *,
    step_size: float | Array,
    eps: float | Array,
    targeted: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
    check_bounds: bool = True,
) -> Tensor:
    """Take one L2 PGD step in place: step of a given length, projection onto the L2 ball, clamp, in one operator.

    `clamp(x + P(x_adv - x + step_size * grad / |grad|_2), *bounds)` with norms over each sample, P scaling to a norm of
    at most eps (Madry et al. 2018, section 2.1, in the L2 norm). The norms are exact in double; the last addition is
    rounded towards `x`, so that the distance from `x` does not exceed eps by more than its own last float32 digit. A
    gradient of zero moves nothing. In the gradient NaN counts as 0 and an infinity as the largest float32; a NaN pixel
    makes the norm of its sample, and with it the sample, NaN.

    Args:
        x_adv: iterate `[B, ...]`, float32, dense, batch outermost in memory (contiguous, channels_last, ...). Updated
            in place.
        grad: gradient of the loss at `x_adv`, same shape, float32, float16 or bfloat16. Of any size: only its direction
            counts.
        x: clean images, same shape, float32.
        step_size: length of the step in the L2 norm, a number or a tensor `[B]`, at least 0.
        eps: radius of the ball, likewise. Tensors are not checked for their values: that would wait for the GPU.
        targeted: descend the loss instead of ascending it.
        bounds: lowest and highest pixel value.
        check_bounds: check that `x` is inside `bounds` and eps no wider. On the CPU only, and not while tracing: on
            CUDA it would wait. It reads `x` once more, 4 bytes a pixel beside the 16 of the step.

    Returns:
        `x_adv`.

    Raises:
        ValueError: a number is negative or not finite, bounds are not increasing, `x_adv` requires grad, or (CPU) `x`
            is not inside `bounds` or eps is wider.
        RuntimeError: shapes, dtypes, devices or memory layouts do not fit; the message names the argument.
    """
    x_adv, grad, x, sizes, bounds = _prepare(
        x_adv, grad, x, step_size, eps, bounds, "l2", flag(check_bounds, "check_bounds")
    )
    _ops.pgd_l2_step_(x_adv, grad, x, *sizes, targeted, *bounds)
    torch.autograd.graph.increment_version(x_adv)
    return x_adv


def mifgsm_step_(
    x_adv: Array,
    momentum: Array,
    grad: Array,
    x: Array,
    *,
    step_size: float | Array,
    eps: float | Array,
    decay: float = 1.0,
    targeted: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
    levels: int | None = None,
    check_bounds: bool = True,
) -> Tensor:
    """Take one MI-FGSM step in place (Dong et al. 2018, equations 6 and 7, with the L-infinity projection).

    `momentum = decay * momentum + grad / |grad|_1` with the norm over each sample, then `pgd_linf_step_` along the
    momentum. A gradient of zero adds nothing; in the gradient NaN counts as 0 and an infinity as the largest float32.

    Args:
        x_adv: iterate `[B, ...]`, float32, dense, batch outermost in memory. Updated in place.
        momentum: accumulated gradient, same shape, float32; zeros at the start. Updated in place.
        grad: gradient of the loss at `x_adv`, same shape, float32, float16 or bfloat16.
        x: clean images, same shape, float32.
        step_size: a number or a tensor `[B]`, at least 0.
        eps: radius of the L-infinity ball, likewise. Tensors are not checked for their values.
        decay: weight of the earlier momentum, at least 0 (mu in the paper, 1.0 there).
        targeted: descend the loss instead of ascending it; the momentum accumulates the gradient either way.
        bounds: lowest and highest pixel value.
        levels: the level that stands for 1.0, for a result at whole levels; see `pgd_linf_step_`.
        check_bounds: check that `x` is inside `bounds` and eps no wider. On the CPU only, and not while tracing: on
            CUDA it would wait. It reads `x` once more, 4 bytes a pixel beside the 16 of the step.

    Returns:
        `x_adv`.

    Raises:
        ValueError: a number is negative or not finite, bounds are not increasing, a tensor to be written requires
            grad, or (CPU) `x` is not inside `bounds` or eps is wider.
        RuntimeError: shapes, dtypes, devices or memory layouts do not fit; `momentum` has another layout than `x_adv`
            or shares memory with an argument. The message names the argument.
    """
    decay = nonnegative(decay, "decay")
    momentum = written_tensor(momentum, "momentum")
    if momentum.requires_grad and torch.is_grad_enabled():
        raise ValueError("momentum must not require grad: the step is not differentiable; pass momentum.detach()")
    x_adv, grad, x, sizes, bounds = _prepare(
        x_adv, grad, x, step_size, eps, bounds, "linf", flag(check_bounds, "check_bounds"), levels
    )
    _ops.mifgsm_step_(x_adv, momentum, grad, x, *sizes, decay, targeted, *bounds, levels or 0)
    torch.autograd.graph.increment_version((x_adv, momentum))
    return x_adv


def select_best_(best: Array, best_loss: Array, candidate: Array, loss: Array, *, lower: bool = False) -> Tensor:
    """Keep, sample by sample, the images with the higher loss: in place over `best`, in one pass.

    Only the pixels of winning candidates are read and written, and nothing is read back to choose them. At equal losses
    `best` stays. A NaN loss never wins, and loses to any number.

    Args:
        best: images `[B, ...]`, float32, dense, batch outermost in memory. Updated in place.
        best_loss: their losses `[B]`, float32. Start with -inf, or +inf for `lower`.
        candidate: images of the same shape, float32.
        loss: the candidates' losses `[B]`, float32.
        lower: the lower loss wins instead.

    Returns:
        The losses of what `best` now holds, a new tensor `[B]`.

    Raises:
        ValueError: `best` requires grad.
        RuntimeError: shapes, dtypes, devices or memory layouts do not fit; the message names the argument.
    """
    best, candidate = written_tensor(best, "best"), tensor(candidate, "candidate")
    best_loss, loss = tensor(best_loss, "best_loss"), tensor(loss, "loss")
    if best.requires_grad and torch.is_grad_enabled():
        raise ValueError("best must not require grad: the selection is not differentiable; pass best.detach()")
    candidate = with_layout_of(candidate.detach(), best)
    best_loss, loss = best_loss.detach().contiguous(), loss.detach().contiguous()
    best_loss_out = torch.empty_like(best_loss)
    _ops.select_best_(best, candidate, best_loss, loss, best_loss_out, lower)
    # The dispatcher does not count the write of an operator like this one.
    torch.autograd.graph.increment_version(best)
    return best_loss_out


def _prepare(
    x_adv: Array,
    grad: Array,
    x: Array,
    step_size: float | Array,
    eps: float | Array,
    bounds: tuple[float, float],
    norm: str,
    check_bounds: bool,
    levels: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor | None, Tensor | None, float, float], tuple[float, float]]:
    """x_adv, grad and x in its layout, the sizes as the operators take them, and the bounds."""
    if not (type(x_adv) is type(grad) is type(x) is Tensor):
        x_adv, grad, x = written_tensor(x_adv, "x_adv"), tensor(grad, "grad"), tensor(x, "x")
    if TYPE_CHECKING:  # a comparison of types tells a checker nothing
        assert isinstance(x_adv, Tensor)
        assert isinstance(grad, Tensor)
        assert isinstance(x, Tensor)
    if x_adv.requires_grad and torch.is_grad_enabled():
        raise ValueError("x_adv must not require grad: the step is not differentiable; pass x_adv.detach()")
    step_scalar, step_tensor = number_or_per_sample(step_size, "step_size", x_adv)
    eps_scalar, eps_tensor = number_or_per_sample(eps, "eps", x_adv)
    if grad.requires_grad or x.requires_grad:
        grad, x = grad.detach(), x.detach()
    if not (x_adv.is_contiguous() and grad.is_contiguous() and x.is_contiguous()):
        grad, x = with_layout_of(grad, x_adv), with_layout_of(x, x_adv)
    bounds = bounds_pair(bounds)
    if check_bounds and x.device.type == "cpu":
        check_precondition(x, eps_scalar if eps_tensor is None else eps_tensor, bounds, norm)
    if levels is not None:
        level_count(levels, norm, bounds)
        if check_bounds and x.device.type == "cpu":
            check_levels(x, levels)
        step_scalar, eps_scalar = whole_step(step_scalar, levels), whole_radius(eps_scalar, levels)
        step_tensor = None if step_tensor is None else whole_step(step_tensor, levels)
        eps_tensor = None if eps_tensor is None else whole_radius(eps_tensor, levels)
    return x_adv, grad, x, (step_tensor, eps_tensor, step_scalar, eps_scalar), bounds
