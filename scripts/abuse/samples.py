"""Small random tensors for valid calls."""

from __future__ import annotations

import random

import torch
from torch import Tensor

SHAPE = (3, 2, 4, 5)  # of images
BATCH, CLASSES = 3, 6
GRAD_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def generator(rng: random.Random) -> torch.Generator:
    """torch's generator at a state that `rng` decides."""
    return torch.Generator().manual_seed(rng.getrandbits(60))


def images(rng: random.Random, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Pixels in [0, 1], contiguous or channels_last."""
    x = torch.rand(shape, generator=generator(rng))
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 and rng.random() < 0.3 else x


def normal(rng: random.Random, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=generator(rng)).to(dtype)


def grad_like(rng: random.Random, x: Tensor) -> Tensor:
    """A gradient in the layout of x, of any of the three dtypes."""
    return torch.empty_like(x, dtype=rng.choice(GRAD_DTYPES)).copy_(normal(rng, *x.shape))


def labels(rng: random.Random, batch: int = BATCH, classes: int = CLASSES) -> Tensor:
    """int64 `[batch]`."""
    return torch.randint(classes, (batch,), generator=generator(rng))


def size(rng: random.Random, value: float, batch: int = BATCH) -> float | Tensor:
    """A number, or now and then a tensor with one for each sample."""
    return torch.full((batch,), value) if rng.random() < 0.3 else value


def maybe(rng: random.Random, value: Tensor) -> Tensor | None:
    """The tensor or None."""
    return value if rng.random() < 0.5 else None
