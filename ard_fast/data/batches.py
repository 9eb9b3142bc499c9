"""Batches from images that are already on the device: shuffled, cropped and flipped there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as tf
from torch import Tensor

from ard_fast.data.splits import Split


def derive_seed(*keys: int) -> int:
    """A seed from several numbers (run seed, purpose, epoch, ...) such that near keys give unrelated streams."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class EpochPlan:
    """Every random choice about one epoch's data and attacks, drawn at once from (seed, epoch).

    Because nothing is drawn while the epoch runs, a run stopped at any step goes on exactly: the plan is drawn again.
    It is drawn on the CPU, so that the data order does not depend on the device.

    Attributes:
        order: int64 `[N]`, positions in the training split.
        shift: int64 `[N, 2]`, row and column of the crop inside the padded image, 0 to 2 * padding.
        flip: bool `[N]`.
        attack_seeds: int64 `[steps, 1]`, one for each step's random start.
        batch_size: images a step; the last step takes what is left.
    """

    order: Tensor
    shift: Tensor
    flip: Tensor
    attack_seeds: Tensor
    batch_size: int

    @classmethod
    def draw(
        cls, count: int, *, seed: int, epoch: int, batch_size: int, padding: int, flip: bool, device: torch.device
    ) -> EpochPlan:
        """The plan of one epoch over `count` images."""
        generator = torch.Generator().manual_seed(derive_seed(seed, 1, epoch))
        order = torch.randperm(count, generator=generator)
        shift = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)
        flips = torch.rand(count, generator=generator) < (0.5 if flip else 0.0)
        steps = -(-count // batch_size)
        attack_seeds = torch.randint(0, 2**62, (steps, 1), generator=generator)
        return cls(order.to(device), shift.to(device), flips.to(device), attack_seeds.to(device), batch_size)

    @property
    def steps(self) -> int:
        return len(self.attack_seeds)


@dataclass(frozen=True)
class Batch:
    """One step's images and what belongs to them.

    Attributes:
        x: float32 `[B, C, H, W]`, pixels in [0, 1].
        y: int64 `[B]`.
        ids: int64 `[B]`.
        seed: int64 `[1]`, for the attack's random start.
        views: int64 `[B]`, which crop and flip each image is: (row * (2 p + 1) + column) * 2 + flipped.
    """

    x: Tensor
    y: Tensor
    ids: Tensor
    seed: Tensor
    views: Tensor | None = None


def pad_images(split: Split, padding: int) -> Tensor:
    """uint8 `[N, C, H + 2 p, W + 2 p]` with a border of zeros: what `make_batch` crops from. Made once a run."""
    return tf.pad(split.images, (padding,) * 4)


def make_batch(
    split: Split,
    padded: Tensor,
    plan: EpochPlan,
    step: int,
    *,
    levels: int,
    layout: torch.memory_format = torch.contiguous_format,
) -> Batch:
    """The batch of a step, cropped and flipped on the split's device without a host synchronisation.

    Args:
        split: the training split.
        padded: `pad_images(split, padding)` with the plan's padding.
        plan: the epoch's random choices.
        step: 0 to `plan.steps - 1`.
        levels: the uint8 value that stands for 1.0.
        layout: memory format of the images.
    """
    chosen = slice(step * plan.batch_size, (step + 1) * plan.batch_size)
    positions = plan.order[chosen]
    channels, height, width = split.images.shape[1:]
    device = padded.device
    rows = plan.shift[chosen, :1] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(len(positions), width)
    columns = torch.where(plan.flip[chosen, None], width - 1 - columns, columns) + plan.shift[chosen, 1:]
    pixels = padded[
        positions[:, None, None, None],
        torch.arange(channels, device=device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
    x = (pixels.to(torch.float32) / levels).contiguous(memory_format=layout)
    across = padded.shape[-1] - width + 1
    views = (plan.shift[chosen, 0] * across + plan.shift[chosen, 1]) * 2 + plan.flip[chosen]
    return Batch(x, split.labels[positions], split.ids[positions], plan.attack_seeds[step], views)
