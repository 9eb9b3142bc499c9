"""Where a run's batches come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from ard_fast.data.batches import Batch, EpochPlan, make_batch, pad_images
from ard_fast.data.splits import Split


class Loader(Protocol):
    """The batches of any epoch, the same ones every time they are asked for."""

    steps: int
    """Batches an epoch."""

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (from 0), from `first_step` on."""
        ...


class ResidentLoader:
    """Batches of images that are on the device already.

    Args:
        split: the training split, on the device.
        levels: the uint8 value that stands for 1.0.
        seed: of the run; with the epoch it decides order, augmentation and the attacks' seeds.
        batch_size: images a step; the last step takes what is left.
        padding: border of zeros for random crops.
        flip: random horizontal flips.
        layout: memory format of the images.
    """

    def __init__(
        self,
        split: Split,
        *,
        levels: int,
        seed: int,
        batch_size: int,
        padding: int,
        flip: bool,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.split, self.levels, self.layout = split, levels, layout
        self.seed, self.batch_size, self.padding, self.flip = seed, batch_size, padding, flip
        self.padded = pad_images(split, padding)
        self.steps = -(-len(split) // batch_size)

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, made without waiting for the device."""
        plan = EpochPlan.draw(
            len(self.split),
            seed=self.seed,
            epoch=epoch,
            batch_size=self.batch_size,
            padding=self.padding,
            flip=self.flip,
            device=self.split.images.device,
        )
        for step in range(first_step, self.steps):
            yield make_batch(self.split, self.padded, plan, step, levels=self.levels, layout=self.layout)
