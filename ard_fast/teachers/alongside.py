"""A teacher's forward pass on clean images while the student is attacked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from ard_fast.data import Batch
from ard_fast.teachers.ahead import CudaStreams, Streams
from ard_fast.teachers.teacher import Teacher


class TeacherAlongside:
    """Runs teachers on a stream of their own, for logits that are needed once the attack is over.

    The attack is a long row of small kernels that leave much of a large GPU idle; the teacher fills it. Eagerly the
    host would have to launch both fast enough; in a CUDA graph the two are branches.

    On a CPU, and without teachers, nothing happens. Teachers with a cache are left alone: see `TeacherAhead`.

    Args:
        teachers: of which a step needs the logits, in its loss only (`Method.teacher_alongside`).
        device: of the batches.
        streams: how its streams are reached; by default CUDA's, and none on a CPU.
    """

    def __init__(self, teachers: Iterable[Teacher], device: torch.device, *, streams: Streams | None = None) -> None:
        self._teachers = tuple(teachers)
        if streams is None and device.type == "cuda" and self._teachers:
            streams = CudaStreams(device, priority=0)  # the attack's kernels come first
        self._streams, self._done = streams, None

    def begin(self, parts: list[Batch]) -> list[Batch]:
        """The micro-batches of a step with logits under way, to be read after `join` only."""
        self._done: Any = None
        teachers = [teacher for teacher in self._teachers if teacher.open_cache() is None]
        streams = self._streams
        if streams is None or not teachers:
            return parts
        before = streams.record()
        with streams.beside():
            streams.wait(before)
            taught = []
            for batch in parts:
                found = {each: each.clean(batch) for each in teachers if each not in batch.taught}
                taught.append((replace(batch, taught={**batch.taught, **found}), list(found.values())))
            self._done = streams.record()
        for _, made in taught:
            for logits in made:
                streams.lend(logits)
        return [batch for batch, _ in taught]

    def join(self) -> None:
        """What follows on the current stream is done once the logits are there."""
        if self._done is not None and self._streams is not None:
            self._streams.wait(self._done)
            self._done = None
