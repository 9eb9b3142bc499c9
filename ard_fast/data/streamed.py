"""Batches of images that stay on the host, or on disk, and are brought to the device ahead of their use."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ard_fast.data.batches import Batch, EpochPlan
from ard_fast.data.epochs import EpochLoader
from ard_fast.data.prefetch import Prefetcher
from ard_fast.data.shards import Share
from ard_fast.data.splits import Split

_AHEAD = 3  # batches


class _Slot:
    """One batch's bytes on their way: a (pinned) buffer on the host and one on the device."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.host = torch.empty(shape, dtype=torch.uint8, pin_memory=self.on_cuda)
        self.array = self.host.numpy()
        self.device = torch.empty(shape, dtype=torch.uint8, device=device) if self.on_cuda else self.host
        if self.on_cuda:
            self.copied, self.used = torch.cuda.Event(), torch.cuda.Event()
            self.release()  # the memory may have been another tensor's, which the current stream still reads

    def fill(self, source: np.ndarray, positions: np.ndarray, side: torch.cuda.Stream | None) -> None:
        """Gather rows and send them off. Called by the prefetch thread; waits for the copy before, not for the GPU's
        other work."""
        count = len(positions)
        if side is not None:
            self.copied.synchronize()
        np.take(source, positions, axis=0, out=self.array[:count], mode="clip")  # "raise" would go through a copy
        if side is not None:
            with torch.cuda.stream(side):
                side.wait_event(self.used)
                self.device[:count].copy_(self.host[:count], non_blocking=True)
                self.copied.record(side)

    def images(self, count: int) -> Tensor:
        """The bytes, to be used on the current stream."""
        if self.on_cuda:
            torch.cuda.current_stream(self.device.device).wait_event(self.copied)
        return self.device[:count]

    def release(self) -> None:
        """What uses the bytes has been launched."""
        if self.on_cuda:
            self.used.record(torch.cuda.current_stream(self.device.device))


class StreamedLoader(EpochLoader):
    """The batches of `ResidentLoader`, bit for bit, from images that need not fit on the device.

    A thread gathers the next batches' rows; on CUDA into pinned memory, from where they are copied on a stream of their
    own. Another thread's CUDA calls spoil a graph capture in the default mode: capture with
    `capture_error_mode="thread_local"` while an epoch is under way.

    Args:
        split: with its images on the host; they may lie in a memory-mapped file.
        settings: as `EpochLoader`.

    Raises:
        ValueError: the images are not uint8 on the host, or a number is out of range.
    """

    def __init__(self, split: Split, **settings: Any) -> None:
        super().__init__(split, **settings)
        images = split.images
        if images.device.type != "cpu" or images.dtype != torch.uint8:
            raise ValueError(f"split: expected uint8 images on the CPU, got {images.dtype} on {images.device}")
        self._source = images.numpy()
        self._places = torch.arange(self._most(), device=self.device)
        self._side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def batches(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch; the thread ends with the iterator."""
        plan = self._plan(epoch)
        on_device = plan.to(self.device)
        # One being filled, _AHEAD waiting, one at the consumer.
        shape = (len(self._places), *self._source.shape[1:])
        slots = [_Slot(shape, self.device) for _ in range(_AHEAD + 2)]
        try:
            with Prefetcher(self._filled(plan, first_step, slots), _AHEAD) as ready:
                for step, share, slot, count in ready:
                    yield self._from_slot(on_device, step, share, slot, count)
        finally:
            if self._side is not None:  # the buffers go back to torch, and a copy may be under way
                torch.cuda.current_stream(self.device).wait_stream(self._side)

    def _most(self) -> int:
        """Images in this process's largest batch: the first micro-batch of the first step or of the last."""
        chosen = [self._share(step, 0).images for step in (0, self.steps - 1)]
        return max(images.stop - images.start for images in chosen)

    def _filled(self, plan: EpochPlan, first_step: int, slots: list[_Slot]) -> Iterator[tuple[int, Share, _Slot, int]]:
        order = plan.order.numpy()
        for number, (step, share) in enumerate(self._shares(first_step)):
            positions, slot = order[share.images], slots[number % len(slots)]
            slot.fill(self._source, positions, self._side)
            yield step, share, slot, len(positions)

    def _from_slot(self, plan: EpochPlan, step: int, share: Share, slot: _Slot, count: int) -> Batch:
        batch = self._batch(plan, step, share, slot.images(count), self._places[:count])
        slot.release()
        return batch
