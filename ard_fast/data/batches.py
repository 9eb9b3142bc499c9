"""What a training step is given: its images, this process's share of them, and the random choices of an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ard_fast.functional.augmentation import crop_flip

_ORDER, _VIEWS = 1, 2  # purposes of a run's seed; 0 is the student's initial weights


def derive_seed(*keys: int) -> int:
    """A seed from several numbers (run seed, purpose, epoch, ...) such that near keys give unrelated streams."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class EpochPlan:
    """Every random choice about one epoch's data and attacks, drawn from (seed, epoch).

    Because nothing else is drawn while the epoch runs, a run stopped at any step goes on exactly: the plan is drawn
    again. It is drawn on the CPU, so that the data order does not depend on the device.

    Attributes:
        order: int64 `[N]`, positions in the training split.
        views: int64 `[N]`, the crop and flip of each image in this order (see `Batch.views`); (seed, epoch) and the id
            of an image decide it.
        attack_seeds: int64 `[steps, 1]`, one for each step's random start.
    """

    order: Tensor
    views: Tensor
    attack_seeds: Tensor

    @classmethod
    def draw(cls, ids: Tensor, *, seed: int, epoch: int, steps: int, padding: int, flip: bool) -> EpochPlan:
        """The plan of one epoch over the images with these ids `[N]`, on the CPU."""
        generator = torch.Generator().manual_seed(derive_seed(seed, _ORDER, epoch))
        order = torch.randperm(len(ids), generator=generator)
        attack_seeds = torch.randint(0, 2**62, (steps, 1), generator=generator)
        no_pixels = torch.zeros(len(ids), 1, 1, 1, dtype=torch.uint8)
        view_seed = derive_seed(seed, _VIEWS, epoch)
        _, views = crop_flip(no_pixels, order, seed=view_seed, ids=ids, padding=padding, flip=flip, levels=1)
        return cls(order, views, attack_seeds)

    def to(self, device: torch.device) -> EpochPlan:
        """The same plan on `device`."""
        return EpochPlan(self.order.to(device), self.views.to(device), self.attack_seeds.to(device))


@dataclass(frozen=True)
class Batch:
    """One step's images and what belongs to them.

    Attributes:
        x: float32 `[B, C, H, W]`, pixels in [0, 1].
        y: int64 `[B]`.
        ids: int64 `[B]`.
        seed: int64 `[1]`, for the attack's random start.
        views: int64 `[B]` on the host, which crop and flip each image is: (row * (2 p + 1) + column) * 2 + flipped.
        host_ids: int64 `[B]`, the ids on the host; given with `views`.
        global_size: images of the whole update, over all processes and micro-batches; None for B.
        offset: position of the first image in the update's whole batch.
        is_padding: the process has no image in this batch; it computes with another one, which has no weight.
        teacher_logits: logits `[B, num_classes]` of these images that are known already, by teacher.
    """

    x: Tensor
    y: Tensor
    ids: Tensor
    seed: Tensor
    views: Tensor | None = None
    host_ids: Tensor | None = None
    global_size: int | None = None
    offset: int = 0
    is_padding: bool = False
    teacher_logits: Mapping[Any, Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many images count, B or 0."""
        return 0 if self.is_padding else len(self.y)

    @property
    def share(self) -> float:
        """The share of the update's images that count here, 0 to 1; the weight of this batch's mean."""
        return 1.0 if self.global_size is None else self.count / self.global_size


class Share(NamedTuple):
    """One process's part of a micro-batch.

    Attributes:
        images: positions in the epoch's order; never empty.
        global_size: images of the whole step, over all processes and micro-batches.
        offset: of the first image inside the step.
        is_padding: whether the part was empty; `images` is then the step's first image, which must not count.
    """

    images: slice
    global_size: int
    offset: int
    is_padding: bool


def share_bounds(count: int, index: int, parts: int) -> tuple[int, int]:
    """Start and end of the contiguous part `index` of `count` items; sizes differ by at most one, larger first."""
    size, larger = divmod(count, parts)
    start = index * size + min(index, larger)
    return start, start + size + (index < larger)
