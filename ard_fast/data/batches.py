"""What a training step is given: its images, this process's share of them, and the random choices of an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ard_fast.functional.augmentation import crop_flip

_ORDER, _VIEWS, _OWN, _EXTRA = 1, 2, 3, 4  # purposes of a run's seed; 0 is the student's initial weights


def derive_seed(*keys: int) -> int:
    """A seed from several numbers (run seed, purpose, epoch, ...) such that near keys give unrelated streams."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Mix(NamedTuple):
    """Whole batches in part of extra images, which come last in the split.

    Both kinds are drawn without replacement over the epochs: each is shuffled anew when all of it has been drawn.

    Attributes:
        extra: how many images of the split are extra ones.
        batch_size: images of every batch.
        share: how many of them are extra ones, 1 to `batch_size` - 1.
    """

    extra: int
    batch_size: int
    share: int

    def order(self, count: int, *, seed: int, epoch: int, steps: int) -> Tensor:
        """The positions of an epoch among `count` images, int64 `[steps * batch_size]`; mixed inside each batch."""
        own = count - self.extra
        kinds = ((_OWN, 0, own, self.batch_size - self.share), (_EXTRA, own, self.extra, self.share))
        drawn = []
        for purpose, first, size, each in kinds:
            start, number = epoch * steps * each, steps * each
            shuffles = range(start // size, (start + number - 1) // size + 1)
            series = torch.cat([_shuffled(size, seed, purpose, index) for index in shuffles])
            drawn.append(first + series[start % size :][:number].view(steps, each))
        places = torch.stack([_shuffled(self.batch_size, seed, _ORDER, epoch, step) for step in range(steps)])
        return torch.cat(drawn, 1).gather(1, places).flatten()


def _shuffled(count: int, *keys: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(*keys)))


@dataclass(frozen=True)
class EpochPlan:
    """Every random choice about one epoch's data and attacks, drawn from (seed, epoch).

    Because nothing else is drawn while the epoch runs, a run stopped at any step goes on exactly: the plan is drawn
    again. It is drawn on the CPU, so that the data order does not depend on the device.

    Attributes:
        order: int64 `[N]`, or as many as the batches of an epoch hold: positions in the training split.
        views: likewise, the crop and flip of each image in this order (see `Batch.views`); (seed, epoch) and the id
            of an image decide it.
        attack_seeds: int64 `[steps, 1]`, one for each step's random start.
    """

    order: Tensor
    views: Tensor
    attack_seeds: Tensor

    @classmethod
    def draw(
        cls,
        ids: Tensor,
        *,
        seed: int,
        epoch: int,
        steps: int,
        padding: int,
        flip: bool,
        counted: bool = True,
        mix: Mix | None = None,
    ) -> EpochPlan:
        """The plan of one epoch over the images with these ids `[N]`, or over batches drawn from them by `mix`;
        `counted`: images are neither shifted nor cut (see `crop_flip`)."""
        generator = torch.Generator().manual_seed(derive_seed(seed, _ORDER, epoch))
        order = torch.randperm(len(ids), generator=generator)
        if mix is not None:
            order = mix.order(len(ids), seed=seed, epoch=epoch, steps=steps)
        attack_seeds = torch.randint(0, 2**62, (steps, 1), generator=generator)
        no_pixels = torch.zeros(len(ids), 1, 1, 1, dtype=torch.uint8)
        view_seed = derive_seed(seed, _VIEWS, epoch)
        how: dict[str, Any] = (
            {"padding": padding, "flip": flip} if counted else {"padding": 0, "cutout": 1}
        )  # then nothing decides it
        _, views = crop_flip(no_pixels, order, seed=view_seed, ids=ids, levels=1, **how)
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
        views: int64 `[B]` on the host, which crop and flip each image is: (row * (2 p + 1) + column) * 2 + flipped;
            any number where images are shifted or cut, too (see `crop_flip`).
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
