"""The batches of an epoch: from images that lie on the device, or that are brought to it ahead of their use."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ard_fast.data.batches import Batch, EpochPlan, Mix, Share, share_bounds
from ard_fast.data.splits import Split
from ard_fast.functional._arguments import int_between, one_of, positive_int
from ard_fast.functional.augmentation import crop_flip

RESIDENT = ("auto", "always", "never")
_RESIDENT_SHARE = 0.5  # of the free memory; the rest is for activations, and they are not there yet
_AHEAD = 4  # batches that are filled while the device is at work


class Loader(ABC):
    """Order, augmentation and shares of every epoch; subclasses bring the images to the device.

    Args:
        split: the training split; labels and ids are kept on `device`.
        device: where the batches are wanted.
        levels: the uint8 value that stands for 1.0.
        seed: of the run; with the epoch it decides order, augmentation and the attacks' seeds.
        batch_size: images a step, over all processes; the last step takes what is left.
        padding: border of zeros for random crops.
        flip: random horizontal flips.
        cropshift, cutout: as in `crop_flip`; 0 for none.
        layout: memory format of the images.
        shard: (rank, processes): of each micro-batch this process takes one contiguous slice, so that all processes
            together see what one alone would.
        accumulate: micro-batches a step.
        merge_last: a last step of fewer than `batch_size` images becomes part of the one before.
        extra: how many of the split's images, the last ones, are extra ones. An epoch then has as many steps as without
            them, all of `batch_size` images.
        extra_fraction: the extra images' part of every batch, rounded to whole images.

    Attributes:
        steps: steps an epoch.
        count: images an epoch, those seen again included.

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
        cropshift: int = 0,
        cutout: int = 0,
        layout: torch.memory_format = torch.contiguous_format,
        shard: tuple[int, int] = (0, 1),
        accumulate: int = 1,
        merge_last: bool = False,
        extra: int = 0,
        extra_fraction: float = 0.7,
    ) -> None:
        self.batch_size = positive_int(batch_size, "batch_size")
        self.accumulate = positive_int(accumulate, "accumulate")
        processes = positive_int(shard[1], "shard: number of processes")
        self.shard = int_between(shard[0], "shard: rank", 0, processes - 1), processes
        self.device, self.levels, self.seed = device, levels, seed
        self.layout = layout
        self.augmentation: dict[str, Any] = {"padding": padding, "flip": flip, "cropshift": cropshift, "cutout": cutout}
        least = min(split.images.shape[2:])
        int_between(cropshift, "cropshift", 0, least - 1)
        int_between(cutout, "cutout", 0, least)
        self.labels, self.ids, self._host_ids = split.labels.to(device), split.ids.to(device), split.ids.cpu()
        own = len(split) - extra
        self.steps = max(own // batch_size, 1) if merge_last else -(-own // batch_size)
        self.count, self._mix = own, None
        if extra:
            share = round(extra_fraction * batch_size)
            if not 1 <= share < batch_size:
                raise ValueError(
                    f"extra_fraction: expected at least one image of each kind in a batch of {batch_size}, got "
                    f"{extra_fraction:g}"
                )
            self.count, self._mix = self.steps * batch_size, Mix(extra, batch_size, share)

    @abstractmethod
    def batches(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """The micro-batches of an epoch (from 0), from `first_step` on: the same ones every time they are asked for,
        and the same number for every step."""

    def _plan(self, epoch: int) -> EpochPlan:
        return EpochPlan.draw(
            self._host_ids,
            seed=self.seed,
            epoch=epoch,
            steps=self.steps,
            padding=self.augmentation["padding"],
            flip=self.augmentation["flip"],
            counted=not self.augmentation["cropshift"] and not self.augmentation["cutout"],
            mix=self._mix,
        )

    def _shares(self, first_step: int) -> Iterator[tuple[int, Share]]:
        """(step, this process's part of a micro-batch of it) in order."""
        for step in range(first_step, self.steps):
            for index in range(self.accumulate):
                yield step, self._share(step, index)

    def _share(self, step: int, index: int) -> Share:
        """This process's part of a micro-batch.

        A step's images are cut into micro-batches first and these among the processes, so that what a micro-batch holds
        (and with it synchronised batch statistics) does not depend on the number of processes.
        """
        first = step * self.batch_size
        size = self.count - first if step == self.steps - 1 else self.batch_size
        start, end = share_bounds(size, index, self.accumulate)
        lower, upper = share_bounds(end - start, *self.shard)
        if lower == upper:
            return Share(slice(first, first + 1), size, 0, is_padding=True)
        return Share(slice(first + start + lower, first + start + upper), size, start + lower, is_padding=False)

    def _batch(
        self, host_plan: EpochPlan, plan: EpochPlan, step: int, share: Share, images: Tensor, places: Tensor
    ) -> Batch:
        """The share's images, at `places` among uint8 `images` on the device; without waiting for it."""
        positions = plan.order[share.images]
        x, _ = crop_flip(
            images,
            places,
            views=plan.views[share.images],
            levels=self.levels,
            channels_last=self.layout == torch.channels_last,
            **self.augmentation,
        )
        return Batch(
            x,
            self.labels[positions],
            self.ids[positions],
            plan.attack_seeds[step],
            host_plan.views[share.images],
            self._host_ids[host_plan.order[share.images]],
            global_size=share.global_size,
            offset=share.offset,
            is_padding=share.is_padding,
        )


class ResidentLoader(Loader):
    """Batches from images that are all on the device.

    Args:
        split: copied to the device where it is not there yet.
        settings: as `Loader`.
    """

    def __init__(self, split: Split, **settings: Any) -> None:
        super().__init__(split, **settings)
        self.images = split.images.to(self.device).contiguous()

    def batches(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch, made without waiting for the device."""
        host_plan = self._plan(epoch)
        plan = host_plan.to(self.device)
        for step, share in self._shares(first_step):
            yield self._batch(host_plan, plan, step, share, self.images, plan.order[share.images])


class _Buffer:
    """One batch's bytes on their way: (pinned) memory on the host and memory on the device."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.host = torch.empty(shape, dtype=torch.uint8, pin_memory=self.on_cuda)
        self.array = self.host.numpy()
        self.device = torch.empty(shape, dtype=torch.uint8, device=device) if self.on_cuda else self.host
        if self.on_cuda:
            self.copied, self.used = torch.cuda.Event(), torch.cuda.Event()
            self.release()  # the memory may have been another tensor's, which the current stream still reads

    def fill(self, source: np.ndarray, positions: np.ndarray, side: torch.cuda.Stream | None) -> None:
        """Gather rows and send them off. Called by the thread; waits for the copy before, not for the GPU's other
        work."""
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


class StreamedLoader(Loader):
    """The batches of `ResidentLoader`, bit for bit, from images that need not fit on the device.

    A thread gathers the next batches' rows; on CUDA into pinned memory, from where they are copied on a stream of their
    own. Another thread's CUDA calls spoil a graph capture in the default mode: capture with
    `capture_error_mode="thread_local"` while an epoch is under way.

    Args:
        split: with its images on the host; they may lie in a memory-mapped file.
        settings: as `Loader`.

    Raises:
        ValueError: the images are not uint8 on the host, or a number is out of range.
    """

    def __init__(self, split: Split, **settings: Any) -> None:
        super().__init__(split, **settings)
        images = split.images
        if images.device.type != "cpu" or images.dtype != torch.uint8:
            raise ValueError(f"split: expected uint8 images on the CPU, got {images.dtype} on {images.device}")
        self._source = images.numpy()
        chosen = [self._share(step, 0).images for step in (0, self.steps - 1)]
        # The largest batch of this process is the first micro-batch of the first step or of the last.
        largest = max(images.stop - images.start for images in chosen)
        self._places = torch.arange(largest, device=self.device)
        self._side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def batches(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch; the thread ends with the iterator. An error of reading is raised at its batch."""
        host_plan = self._plan(epoch)
        plan, order = host_plan.to(self.device), host_plan.order.numpy()
        buffers = [_Buffer((len(self._places), *self._source.shape[1:]), self.device) for _ in range(_AHEAD)]
        shares, waiting = self._shares(first_step), deque()
        thread = ThreadPoolExecutor(1, "ard_fast prefetch")

        def fill_next(buffer: _Buffer) -> None:
            for step, share in shares:
                filled = thread.submit(buffer.fill, self._source, order[share.images], self._side)
                waiting.append((filled, buffer, step, share))
                return

        try:
            for buffer in buffers:
                fill_next(buffer)
            while waiting:
                filled, buffer, step, share = waiting.popleft()
                filled.result()
                count = share.images.stop - share.images.start
                batch = self._batch(host_plan, plan, step, share, buffer.images(count), self._places[:count])
                buffer.release()
                fill_next(buffer)
                yield batch
        finally:
            thread.shutdown(cancel_futures=True)
            if self._side is not None:  # the buffers go back to torch, and a copy may be under way
                torch.cuda.current_stream(self.device).wait_stream(self._side)


def make_loader(split: Split, *, device: torch.device, resident: str = "auto", **settings: Any) -> Loader:
    """The loader for a training split: with all images on the device where they fit, else streamed from the host.

    Either gives the same batches, bit for bit.

    Args:
        split: on the host, or on `device` already.
        device: where the batches are wanted.
        resident: "always", "never", or "auto": when the images take at most half of the device's free memory (of the
            machine's memory, for the CPU).
        settings: as `Loader`.

    Raises:
        ValueError: `resident` or a number is out of range.
    """
    one_of(resident, "resident", RESIDENT)
    if resident == "auto":
        there = split.images.device.type != "cpu"
        fits = split.images.numel() <= _RESIDENT_SHARE * _memory(device)
        resident = "always" if there or fits else "never"
    kind = ResidentLoader if resident == "always" else StreamedLoader
    return kind(split, device=device, **settings)


def _memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, those included that torch keeps from earlier runs; or that the machine has."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
