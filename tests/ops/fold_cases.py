"""Layers to fold, as the operator takes them, and what must come out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from property_tensors import EDGES, with_edges
from torch import Tensor

from ard_fast import reference

# Of a weight; None for a norm alone, of 5 channels. Channels shorter than a vector, of odd length, and of many blocks;
# one and many spatial places; more channels than threads.
SHAPES = [
    (1, 1, 1, 1),
    (7, 5, 3, 3),
    (9, 1, 3, 3),
    (600, 3, 1, 1),
    (4, 3, 3, 5),
    (3, 2051, 1, 1),
    (2, 300, 5, 5),
    (24, 16, 1, 1),
    None,
]
# Which of bias, gamma, beta, and the norm as a whole are there.
PARTS = [(bias, gamma, beta, True) for bias in (0, 1) for gamma in (0, 1) for beta in (0, 1)]
PARTS += [(0, 0, 0, False), (1, 0, 0, False)]


class Layer(NamedTuple):
    """One layer's tensors, any of them None."""

    weight: Tensor | None
    bias: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float

    @property
    def tensors(self):
        return list(self[:6])

    @property
    def channels(self):
        return len(self.var if self.weight is None else self.weight)


def make_layers(*, edges=False, channels_last=False, offset=0, device="cpu", shapes=SHAPES, parts=PARTS):
    """A layer of each shape with each choice of its parts; the tensors begin `offset` elements into their memory."""
    generator = torch.Generator().manual_seed(0)

    def placed(tensor):
        layout = torch.channels_last if channels_last and tensor.dim() == 4 else torch.contiguous_format
        buffer = torch.zeros(tensor.numel() + offset, device=device)
        view = buffer[offset:].as_strided(
            tensor.shape, tensor.contiguous(memory_format=layout).stride(), buffer[offset:].storage_offset()
        )
        return view.copy_(tensor)

    def values(*shape):
        return with_edges(torch.randn(shape, generator=generator), 0.2 if edges else 0.0, EDGES, generator)

    def drawn(here, *shape):
        return placed(values(*shape)) if here else None

    layers = []
    for shape in shapes:
        for bias, gamma, beta, norm in parts:
            if shape is None and (bias or not norm):
                continue
            o = 5 if shape is None else shape[0]
            var = placed(values(o).square()) if norm else None
            weight = drawn(shape is not None, *(shape or ()))
            rest = [drawn(here, o) for here in (bias, gamma, beta, norm)]
            layers.append(Layer(weight, *rest, var, 1e-5 if len(layers) % 2 else 0.01))
    return layers


def places(layers):
    """Where each layer's weight, scale and shift go, 3 numbers a layer, and how many elements there are of both."""
    at, weights, affine = [], 0, 0
    for layer in layers:
        scale = -1
        if layer.weight is None:
            scale, affine = affine, affine + layer.channels
        at += [-1 if layer.weight is None else weights, scale, affine]
        weights += 0 if layer.weight is None else -(-layer.weight.numel() // 4) * 4 + 4
        affine += layer.channels
    return at, weights, affine


def read(layers, at, weights, affine):
    """Weight `[O, I, H, W]`, scale and shift of each layer out of the memory that they were written to."""
    found = []
    for layer, (weight_at, scale_at, shift_at) in zip(layers, zip(*[iter(at)] * 3, strict=True), strict=True):
        weight = scale = None
        if layer.weight is not None:
            o, i, h, w = layer.weight.shape
            weight = weights[weight_at : weight_at + o * i * h * w].view(o, h, w, i).permute(0, 3, 1, 2)
        else:
            scale = affine[scale_at : scale_at + layer.channels]
        found.append((weight, scale, affine[shift_at : shift_at + layer.channels]))
    return found


def expected(layer, dtype=torch.float32):
    """By the formula, in float32 or float64."""
    tensors = [None if tensor is None else tensor.to(dtype) for tensor in layer.tensors]
    weight, scale, shift = reference.fold_batch_norm(*tensors, layer.eps)
    return weight, None if layer.weight is not None else scale, shift


def same_bits(a, b):
    """Equal bit for bit, where any NaN equals any NaN; both may be None."""
    if a is None or b is None:
        return a is b
    kind = torch.int32 if a.dtype == torch.float32 else torch.int16
    a, b = a.contiguous(), b.contiguous()
    return a.dtype == b.dtype and bool(((a.view(kind) == b.view(kind)) | (a.isnan() & b.isnan())).all())
