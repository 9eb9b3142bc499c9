"""Where a run's batches come from."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any, Protocol

import torch

from ard_fast.data.batches import Batch
from ard_fast.data.epochs import EpochLoader
from ard_fast.data.splits import Split
from ard_fast.data.streamed import StreamedLoader
from ard_fast.functional._arguments import one_of

RESIDENT = ("auto", "always", "never")
_RESIDENT_SHARE = 0.5  # of the free memory; the rest is for activations, and they are not there yet


class Loader(Protocol):
    """The batches of any epoch, the same ones every time they are asked for."""

    steps: int
    """Steps an epoch."""

    def batches(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """The micro-batches of an epoch (from 0), from `first_step` on: the same number for every step."""
        ...


class ResidentLoader(EpochLoader):
    """Batches from images that are all on the device.

    Args:
        split: copied to the device where it is not there yet.
        settings: as `EpochLoader`.
    """

    def __init__(self, split: Split, **settings: Any) -> None:
        super().__init__(split, **settings)
        self.images = split.images.to(self.device).contiguous()

    def batches(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch, made without waiting for the device."""
        plan = self._plan(epoch).to(self.device)
        for step, share in self._shares(first_step):
            yield self._batch(plan, step, share, self.images, plan.order[share.images], self.ids)


def make_loader(split: Split, *, device: torch.device, resident: str = "auto", **settings: Any) -> Loader:
    """The loader for a training split: with all images on the device where they fit, else streamed from the host.

    Either gives the same batches, bit for bit.

    Args:
        split: on the host, or on `device` already.
        device: where the batches are wanted.
        resident: "always", "never", or "auto": when the images take at most half of the device's free memory (of the
            machine's memory, for the CPU).
        settings: as `EpochLoader`.

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
