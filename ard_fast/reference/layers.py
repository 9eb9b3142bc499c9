"""Scale, shift, residual, ReLU and the bits that its backward pass needs; batch norms folded into convolutions."""

from __future__ import annotations

import torch
from torch import Tensor

from ard_fast._typing import known


def affine_relu(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    relu: bool = True,
    mask: bool = False,
) -> tuple[Tensor, Tensor]:
    """One operation after the other, in float32 at least, rounded to the dtype of `x` at the end."""
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    if scale is not None:
        y = y * _per_channel(scale, y)
    if shift is not None:
        y = y + _per_channel(shift, y)
    if residual is not None:
        y = y + residual
    if relu:
        y = torch.relu(y)
    y = y.to(x.dtype)
    return y, pack_mask(y) if mask else x.new_empty(0, dtype=torch.uint8)


def affine_relu_backward(
    grad: Tensor, mask: Tensor | None, scale: Tensor | None = None, *, relu: bool = True
) -> Tensor:
    """The gradient for `x` and, without a scale, for `residual`."""
    out = grad.to(torch.promote_types(grad.dtype, torch.float32))
    if relu:
        out = out.where(unpack_mask(known(mask), grad), torch.zeros_like(out))
    if scale is not None:
        out = out * _per_channel(scale, out)
    return out.to(grad.dtype)


def pack_mask(y: Tensor) -> Tensor:
    """uint8 `[ceil(n / 8)]`: bit i % 8 of byte i // 8 says that element i of `y`, in memory order, is not <= 0."""
    bits = _in_memory_order(y).le(0).logical_not()
    bits = torch.nn.functional.pad(bits, (0, -len(bits) % 8)).view(-1, 8)
    weights = 2 ** torch.arange(8, dtype=torch.int32, device=y.device)
    return (bits * weights).sum(1).to(torch.uint8)


def unpack_mask(mask: Tensor, like: Tensor) -> Tensor:
    """bool, in the shape and memory order of `like`."""
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    bits = torch.empty_like(like, dtype=torch.bool)
    _in_memory_order(bits).copy_(((mask[:, None] >> places) & 1).flatten()[: like.numel()])
    return bits


def fold_batch_norm(
    weight: Tensor | None,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Folded weight `[O, I / groups, kh, kw]`, scale `[O]` and shift `[O]` of one layer.

    The norm's output is `conv(x, folded weight) + shift`, or `scale x + shift` where there is no convolution. Every
    argument but `eps` may be missing: without `mean` and `var` there is no norm.
    """
    some = known(weight if var is None else var)
    channels = some.shape[0]
    bias = some.new_zeros(channels) if bias is None else bias
    if var is None:
        return weight, some.new_ones(channels), bias
    # by way of float64 rounded correctly, which torch's float32 root on a CPU is not
    root = (var + torch.full_like(var, eps)).double().sqrt().to(var.dtype)
    scale = (some.new_ones(channels) if gamma is None else gamma) / root
    shift = (some.new_zeros(channels) if beta is None else beta) + scale * (bias - known(mean))
    return None if weight is None else weight * scale.view(-1, 1, 1, 1), scale, shift


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).view(1, -1, *(1,) * (like.dim() - 2))


def _in_memory_order(dense: Tensor) -> Tensor:
    """`[n]`, the memory of a dense tensor."""
    return dense.as_strided((dense.numel(),), (1,))
