"""A batch norm in eval mode, folded into the convolution in front of it."""

from __future__ import annotations

import torch
from torch import Tensor

from ard_fast._typing import known


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
