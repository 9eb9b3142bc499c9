"""A teacher's logits of the next batch, while the device is at the present one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ard_fast._typing import known
from ard_fast.data import Batch
from ard_fast.teachers.teacher import Teacher

_HIGH = -1  # priority: the few small kernels of a lookup must not queue behind a whole training step


class Streams(Protocol):
    """A device's current stream and one beside it."""

    def beside(self) -> AbstractContextManager[Any]:
        """Within, the other stream is the current one."""
        ...

    def record(self) -> Any:
        """A mark that is reached when the current stream has done what it has been given so far."""
        ...

    def wait(self, mark: Any) -> None:
        """The current stream does nothing more before the mark is reached; the host goes on."""
        ...

    def wait_on_host(self, mark: Any) -> None:
        """The host does nothing more before the mark is reached."""
        ...

    def lend(self, tensor: Tensor) -> None:
        """The current stream uses a tensor of the other one: whoever drops it, its memory is not given away before
        what the current stream has been given by then is done."""
        ...


class CudaStreams:
    """The streams of a CUDA device.

    Args:
        device: which CUDA device.
        priority: of the stream beside; the lower number comes first.
    """

    def __init__(self, device: torch.device, priority: int = _HIGH) -> None:
        self._device, self._beside = device, torch.cuda.Stream(device, priority=priority)

    def beside(self) -> AbstractContextManager[Any]:
        """As `Streams`."""
        return torch.cuda.stream(self._beside)

    def record(self) -> torch.cuda.Event:
        """As `Streams`."""
        return cast("torch.cuda.Event", torch.cuda.current_stream(self._device).record_event())

    def wait(self, mark: torch.cuda.Event) -> None:
        """As `Streams`."""
        torch.cuda.current_stream(self._device).wait_event(mark)

    def wait_on_host(self, mark: torch.cuda.Event) -> None:
        """As `Streams`."""
        mark.synchronize()

    def lend(self, tensor: Tensor) -> None:
        """As `Streams`."""
        tensor.record_stream(torch.cuda.current_stream(self._device))


class TeacherAhead:
    """Fills `Batch.taught` with what teachers say to clean images, beside the training.

    Which rows a cache lacks is known on the device only, so while it is not full every batch makes the host wait. Where
    the host waits for the stream of the training, the device runs dry at each step. Here a batch is made, looked up and
    completed on a stream of its own: the host, having launched step k, asks for step k + 1 and waits for that stream,
    while the device is busy with step k.

    Nothing is asked of the loader before its time, so a run stops and goes on inside an epoch as it does without: a
    batch that was made and not trained has left rows in the cache and nothing else.

    Order, on CUDA: the stream beside begins step k + 1 only when step k - 1 is done, and the host waits until step k
    has been made; so it is never more than three steps before the device, whose memory therefore holds few batches. The
    training's stream waits for a batch before it is handed out. Tensors of a batch are lent to it in the allocator's
    sense (`record_stream`), because a method may keep them as long as it likes.

    Args:
        teachers: those whose logits at clean images every step asks for (`Method.clean_teachers`). The ones without a
            cache are left alone: their forward pass waits for nothing.
        device: of the batches.
        streams: how its streams are reached; by default CUDA's, and none on a CPU.
    """

    def __init__(self, teachers: Iterable[Teacher], device: torch.device, *, streams: Streams | None = None) -> None:
        self._teachers = tuple(teachers)
        self._streams = CudaStreams(device) if streams is None and device.type == "cuda" else streams

    def steps(self, steps: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """The same steps, of one epoch, each with the logits of the teachers that have a cache.

        Without any it is the iterator itself; on a CPU, and where every row is known already, the lookups are made on
        the current stream when a step is asked for. An exception of the iterator or of a teacher is raised at the
        consumer. Closing closes the iterator.

        Args:
            steps: micro-batches of each step, made when they are asked for.
        """
        cached = [teacher for teacher in self._teachers if teacher.open_cache() is not None]
        if not cached:
            return steps
        if self._streams is None or all(known(teacher.cache).complete for teacher in cached):
            return _taught(steps, cached)
        return _beside(_taught(steps, cached), self._streams)


def _taught(steps: Iterator[list[Batch]], teachers: list[Teacher]) -> Iterator[list[Batch]]:
    try:
        for parts in steps:
            yield [replace(batch, taught={teacher: teacher.clean(batch) for teacher in teachers}) for batch in parts]
    finally:
        close = getattr(steps, "close", None)
        if close is not None:
            close()


def _beside(steps: Iterator[list[Batch]], streams: Streams) -> Iterator[list[Batch]]:
    begun = streams.record()  # weights, images and tables were made on the current stream
    made = None
    try:
        while True:
            if made is not None:
                streams.wait_on_host(made)
            launched = streams.record()
            with streams.beside():
                streams.wait(begun)
                parts = next(steps, None)
                made = streams.record()
            if parts is None:
                return
            streams.wait(made)
            for batch in parts:
                for tensor in _tensors(batch):
                    streams.lend(tensor)
            begun = launched
            yield parts
    finally:
        with streams.beside():
            steps.close()  # type: ignore[attr-defined]  # a generator
            made = streams.record()
        streams.wait(made)


def _tensors(batch: Batch) -> Iterator[Tensor]:
    values = [getattr(batch, field.name) for field in fields(batch)]
    yield from (value for value in values if isinstance(value, Tensor))
    yield from batch.taught.values()
