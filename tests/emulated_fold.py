"""The CUDA kernel of `fold_batch_norm_` on the host emulator, called with torch CPU tensors."""

from __future__ import annotations

import torch
from emulator import _bits, _dtype, _flat, load
from fold_cases import Layer


def fold_batch_norm_(weights: torch.Tensor, affine: torch.Tensor, layers: list[Layer], places: list[int]) -> None:
    """As the operator, by the CUDA kernel."""
    arrays = []
    for i, layer in enumerate(layers):
        tensors = [None if tensor is None else _flat(tensor) for tensor in layer.tensors]
        inner = spatial = 0
        if layer.weight is not None:
            _, inner, height, width = layer.weight.shape
            spatial = height * width
            if layer.weight.is_contiguous(memory_format=torch.channels_last):
                inner, spatial = inner * spatial, 1
        arrays.append((tensors, [layer.channels, inner, spatial, *places[3 * i : 3 * i + 3]], layer.eps))
    load().fold_batch_norm_(weights=_bits(weights), dtype=_dtype(weights), affine=_bits(affine), layers=arrays)
