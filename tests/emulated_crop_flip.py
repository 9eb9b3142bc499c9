"""The CUDA kernel of `crop_flip` on the host emulator, called with torch CPU tensors."""

from __future__ import annotations

import numpy as np
import torch
from emulator import load


def crop_flip(
    images: torch.Tensor,
    positions: torch.Tensor,
    *,
    padding: int,
    levels: int,
    seed: int | None = None,
    ids: torch.Tensor | None = None,
    flip: bool = True,
    channels_last: bool = False,
    views: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``ard_fast.functional.crop_flip``, by the CUDA kernel.

    ``out``, float32 `[B * C * H * W]`, takes the place of a new tensor; its alignment decides on 16-byte stores.
    """
    batch, (count, channels, height, width) = len(positions), images.shape
    if out is None:
        out = torch.full((batch * channels * height * width,), 7.0)
    view = torch.full((batch,), -7)
    load().crop_flip(
        images=images.view(-1).numpy(),
        positions=positions.numpy(),
        seed=None if seed is None else np.array([seed], dtype=np.int64),
        ids=None if ids is None else ids.numpy(),
        views=None if views is None else views.numpy(),
        x=out.numpy(),
        view=view.numpy(),
        count=count,
        channels=channels,
        height=height,
        width=width,
        padding=padding,
        flip=flip,
        levels=levels,
        channels_last=channels_last,
    )
    if channels_last:
        return out.view(batch, height, width, channels).permute(0, 3, 1, 2), view
    return out.view(batch, channels, height, width), view
