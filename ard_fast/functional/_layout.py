"""Memory layouts of pixel tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def is_plain(x: Tensor) -> bool:
    """Contiguous, or channels_last in two or three dimensions."""
    if x.is_contiguous():
        return True
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.dim() in formats and x.is_contiguous(memory_format=formats[x.dim()])


def with_layout_of(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` in the memory layout of `like`: itself, or a copy. Other shapes are left for the operator to refuse."""
    if tensor.shape != like.shape:
        return tensor
    strides = zip(tensor.shape, tensor.stride(), like.stride(), strict=True)
    if all(size == 1 or a == b for size, a, b in strides):
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
