"""What the loaders share: an epoch's plan, its cutting into batches, and the making of one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ard_fast import functional as F
from ard_fast.data.batches import Batch, EpochPlan
from ard_fast.data.shards import Share, share_of_step
from ard_fast.data.splits import Split
from ard_fast.functional._arguments import int_between, positive_int


class EpochLoader:
    """Order, augmentation and shares of every epoch; subclasses bring the images to the device.

    Args:
        split: the training split; labels and ids are kept on `device`.
        device: where the batches are wanted.
        levels: the uint8 value that stands for 1.0.
        seed: of the run; with the epoch it decides order, augmentation and the attacks' seeds.
        batch_size: images a step, over all processes; the last step takes what is left.
        padding: border of zeros for random crops.
        flip: random horizontal flips.
        layout: memory format of the images.
        shard: (rank, processes): of each micro-batch this process takes one contiguous slice, so that all processes
            together see what one alone would.
        accumulate: micro-batches a step.
        merge_last: a last step of fewer than `batch_size` images becomes part of the one before.

    Attributes:
        steps: steps an epoch.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        split: Split,
        *,
        device: torch.device,
        levels: int,
        seed: int,
        batch_size: int,
        padding: int,
        flip: bool,
        layout: torch.memory_format = torch.contiguous_format,
        shard: tuple[int, int] = (0, 1),
        accumulate: int = 1,
        merge_last: bool = False,
    ) -> None:
        self.batch_size = positive_int(batch_size, "batch_size")
        self.accumulate = positive_int(accumulate, "accumulate")
        processes = positive_int(shard[1], "shard: number of processes")
        self.shard = int_between(shard[0], "shard: rank", 0, processes - 1), processes
        self.device, self.levels, self.seed = device, levels, seed
        self.padding, self.flip, self.layout = padding, flip, layout
        self.labels, self.ids = split.labels.to(device), split.ids.to(device)
        self.steps = max(len(split) // batch_size, 1) if merge_last else -(-len(split) // batch_size)

    def _plan(self, epoch: int) -> EpochPlan:
        return EpochPlan.draw(len(self.labels), seed=self.seed, epoch=epoch, steps=self.steps)

    def _shares(self, first_step: int) -> Iterator[tuple[int, Share]]:
        """(step, this process's part of a micro-batch of it) in order."""
        for step in range(first_step, self.steps):
            for index in range(self.accumulate):
                yield step, self._share(step, index)

    def _share(self, step: int, index: int) -> Share:
        return share_of_step(
            len(self.labels),
            step,
            batch_size=self.batch_size,
            shard=self.shard,
            micro_batch=(index, self.accumulate),
            steps=self.steps,
        )

    def _batch(
        self, plan: EpochPlan, step: int, share: Share, images: Tensor, places: Tensor, ids: Tensor | None = None
    ) -> Batch:
        """A micro-batch, without waiting for the device.

        Args:
            plan: on the device.
            step: of the epoch.
            share: what this process takes.
            images: uint8 `[M, C, H, W]` on the device.
            places: int64 `[B]`, where among them the share's images are.
            ids: int64 `[M]`; None for those of the batch itself, where M is B.
        """
        positions = plan.order[share.images]
        own_ids = self.ids[positions]
        x, views = F.crop_flip(
            images,
            places,
            seed=plan.view_seed,
            ids=own_ids if ids is None else ids,
            padding=self.padding,
            flip=self.flip,
            levels=self.levels,
            channels_last=self.layout == torch.channels_last,
        )
        return Batch(
            x,
            self.labels[positions],
            own_ids,
            plan.attack_seeds[step],
            views,
            global_size=share.global_size,
            offset=share.offset,
            filler=share.filler,
        )
