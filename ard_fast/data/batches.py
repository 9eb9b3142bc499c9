"""What a training step is given, and the random choices of an epoch behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
        view_seed: int64 `[1]`; with the id of an image it decides its crop and flip (`functional.crop_flip`).
        attack_seeds: int64 `[steps, 1]`, one for each step's random start.
    """

    order: Tensor
    view_seed: Tensor
    attack_seeds: Tensor

    @classmethod
    def draw(cls, count: int, *, seed: int, epoch: int, steps: int) -> EpochPlan:
        """The plan of one epoch over `count` images, on the CPU."""
        generator = torch.Generator().manual_seed(derive_seed(seed, _ORDER, epoch))
        order = torch.randperm(count, generator=generator)
        attack_seeds = torch.randint(0, 2**62, (steps, 1), generator=generator)
        return cls(order, torch.tensor([derive_seed(seed, _VIEWS, epoch)]), attack_seeds)

    def to(self, device: torch.device) -> EpochPlan:
        """The same plan on `device`."""
        return EpochPlan(self.order.to(device), self.view_seed.to(device), self.attack_seeds.to(device))


@dataclass(frozen=True)
class Batch:
    """One step's images and what belongs to them.

    Attributes:
        x: float32 `[B, C, H, W]`, pixels in [0, 1].
        y: int64 `[B]`.
        ids: int64 `[B]`.
        seed: int64 `[1]`, for the attack's random start.
        views: int64 `[B]`, which crop and flip each image is: (row * (2 p + 1) + column) * 2 + flipped.
        global_size: images of the whole update, over all processes and micro-batches; None for B.
        offset: position of the first image in the update's whole batch.
        filler: the process has no image in this batch; it goes through the motions with another one's, without weight.
        taught: logits `[B, num_classes]` of these images that are known already, by teacher.
    """

    x: Tensor
    y: Tensor
    ids: Tensor
    seed: Tensor
    views: Tensor | None = None
    global_size: int | None = None
    offset: int = 0
    filler: bool = False
    taught: Mapping[Any, Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many images count, B or 0."""
        return 0 if self.filler else len(self.y)

    @property
    def share(self) -> float:
        """The share of the update's images that count here, 0 to 1; the weight of this batch's mean."""
        return 1.0 if self.global_size is None else self.count / self.global_size
