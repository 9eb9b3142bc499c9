"""What stands between the convolutions of a network whose weights do not change: one pass, one bit an element kept."""

from __future__ import annotations

import torch
from torch import Tensor

from ard_fast.functional import _ops
from ard_fast.functional._arguments import Array, flag, optional_tensor, tensor, with_layout_of, written_tensor


def affine_relu_(
    x: Array,
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    *,
    relu: bool = True,
    mask: bool = False,
) -> Tensor:
    """As `affine_relu`, written over `x`.

    Returns:
        The mask, empty unless asked for.

    Raises:
        ValueError, RuntimeError: as `affine_relu`.
    """
    x = written_tensor(x, "x")
    scale, shift, residual = _prepare(x, scale, shift, residual, relu, mask)
    bits = _ops.affine_relu_(x, scale, shift, residual, relu, mask)
    # The dispatcher does not count the write; see pgd_linf_step_.
    torch.autograd.graph.increment_version(x)
    return bits


def affine_relu(
    x: Array,
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    *,
    relu: bool = True,
    mask: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return `relu(x * scale[c] + shift[c] + residual)` and, if asked for, where it is above 0, one bit an element.

    Float32 arithmetic, each operation rounded in this order (no fused multiply-add), one rounding to the dtype of `x`
    at the end: the same bits on CPU and CUDA. What is None is left out. NaN stays NaN.

    The mask is all that the backward pass needs of the activations, 1/32 of their size in float32. Its bits follow
    the memory order of `x`: bit i % 8 of byte i // 8 is set where element i of the result, as rounded, is not <= 0
    (where `torch.relu` passes the gradient on; so NaN passes). Bits beyond the last element are 0.

    No autograd: `affine_relu_backward` is the derivative.

    Args:
        x: `[B, C, ...]`, float32, float16 or bfloat16, contiguous or channels_last.
        scale: float32 `[C]`.
        shift: float32 `[C]`.
        residual: like `x` in shape and dtype; another memory layout costs a copy.
        relu: apply ReLU.
        mask: return the mask; needs `relu`.

    Returns:
        `(y, mask)`, like `x` and uint8 `[ceil(n / 8)]`, or `[0]` without `mask=True`.

    Raises:
        ValueError: a mask without relu is asked for, or a tensor requires grad while gradients are recorded.
        RuntimeError: shapes, dtypes, devices or memory layouts do not fit; the message names the argument.
    """
    x = tensor(x, "x")
    scale, shift, residual = _prepare(x, scale, shift, residual, relu, mask)
    return _ops.affine_relu(x.detach(), scale, shift, residual, relu, mask)


def affine_relu_backward(grad: Array, mask: Array | None, scale: Array | None = None, *, relu: bool = True) -> Tensor:
    """Return the gradient for `x` of `affine_relu`: `grad` where the mask is set and 0 elsewhere, times `scale[c]`.

    Without a scale this is also the gradient for `residual`.

    Args:
        grad: gradient for y, `[B, C, ...]`, float32, float16 or bfloat16, in the memory layout of the forward's `x`
            (the bits follow it; nothing here can tell another layout of the same size).
        mask: uint8 `[ceil(n / 8)]` of the forward; with `relu=False` not read, and may be None.
        scale: float32 `[C]` of the forward.
        relu: as in the forward.

    Returns:
        A new tensor like `grad`.

    Raises:
        ValueError: there is no mask, but `relu`.
        RuntimeError: shapes, dtypes, devices or memory layouts do not fit; the message names the argument.
    """
    if flag(relu, "relu") and mask is None:
        raise ValueError("mask must be given with relu=True, got None")
    grad, mask, scale = tensor(grad, "grad"), optional_tensor(mask, "mask"), optional_tensor(scale, "scale")
    return _ops.affine_relu_backward(grad.detach(), mask if relu else None, scale)


def _prepare(
    x: Tensor, scale: Array | None, shift: Array | None, residual: Array | None, relu: bool, mask: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """scale, shift, and the residual in the layout of x."""
    scale, shift = optional_tensor(scale, "scale"), optional_tensor(shift, "shift")
    residual = optional_tensor(residual, "residual")
    relu, mask = flag(relu, "relu"), flag(mask, "mask")
    if mask and not relu:
        raise ValueError("mask must be False with relu=False: there is nothing to mask")
    if torch.is_grad_enabled():
        for name, given in (("x", x), ("scale", scale), ("shift", shift), ("residual", residual)):
            if given is not None and given.requires_grad:
                raise ValueError(f"{name} must not require grad: affine_relu is not recorded for autograd")
    return scale, shift, None if residual is None else with_layout_of(residual.detach(), x)
