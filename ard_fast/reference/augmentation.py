"""The random crop and flip."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ard_fast._typing import known
from ard_fast.reference.starts import philox_bits


def crop_flip(
    images: Tensor,
    positions: Tensor,
    *,
    padding: int,
    levels: int,
    seed: int | None = None,
    ids: Tensor | None = None,
    flip: bool = True,
    channels_last: bool = False,
    views: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The views of the padded images, one after the other, divided by `levels`."""
    if views is None:
        chosen = positions if ids is None else ids[positions]
        views = draw_views(chosen, seed=known(seed), padding=padding, flip=flip)
    height, width = images.shape[2:]
    padded = pad(images, (padding,) * 4)
    divisor = torch.full((), levels, dtype=torch.float32, device=images.device)  # of a number CUDA takes the reciprocal
    x = torch.empty((len(positions), *images.shape[1:]), device=images.device)
    for b, (position, view) in enumerate(zip(positions.tolist(), views.tolist(), strict=True)):
        row, column = divmod(view // 2, 2 * padding + 1)
        crop = padded[position, :, row : row + height, column : column + width]
        x[b] = (crop.flip(-1) if view % 2 else crop).to(torch.float32) / divisor
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format), views


def draw_views(ids: Tensor, *, seed: int, padding: int, flip: bool) -> Tensor:
    """int64 `[B]`: the view of each image, from the first three words of its own Philox stream."""
    row, column, half = philox_bits(3, seed=seed, sample_ids=ids.cpu()).unbind(1)
    span = 2 * padding + 1
    crop = (row * span >> 32) * span + (column * span >> 32)
    return (2 * crop + (half >> 31) * flip).to(ids.device)
