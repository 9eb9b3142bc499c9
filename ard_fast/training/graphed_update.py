"""A training step whose device work is captured once as a CUDA graph and replayed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from ard_fast._typing import known
from ard_fast.attacks.cuda_graph import CudaGraphs, GraphedFunction, GraphWarning
from ard_fast.attacks.model_mode import network_tensors
from ard_fast.data import Batch
from ard_fast.teachers import Teacher
from ard_fast.training.host_values import changed, host_values
from ard_fast.training.step import Decisions, Update

_PATIENCE = 3  # changes of a method's plain values within epochs, which a phase of its training does not make


class _Step(NamedTuple):
    """What of a step is not in tensors."""

    decisions: Decisions
    batches: tuple[tuple[int | None, int, bool], ...]
    teachers: tuple[Teacher, ...]


class GraphedUpdate:
    """Called like the update itself, and the same to the bit, by replay of a graph wherever that can be.

    One graph holds a whole step: attack, teacher, loss, gradient, optimiser, average, over all replays and
    micro-batches. The batch is copied in; so are the logits of teachers that have a cache, since which rows are known
    is decided on the host. Rates and decays are read from the device; whatever else the host decides (`Decisions`, the
    plain values in the method's attributes) selects the graph: a phase that has begun gets a graph of its own, after a
    few eager steps.

    Steps of another size than a whole batch are eager, as is every step once a capture has failed, or once the method
    has turned out to change its plain values from step to step, which a replay would not do; each is said once, by a
    `GraphWarning`.

    Args:
        update: made with `recordable`; its world has one process.
        batch_size: images of a whole step.
        backend: None takes CUDA graphs.
        fallback: called once when all further steps are going to be eager.
    """

    def __init__(
        self,
        update: Update,
        batch_size: int,
        *,
        backend: CudaGraphs | None = None,
        fallback: Callable[[], object] | None = None,
    ) -> None:
        self.update, self.batch_size, self._fallback = update, batch_size, fallback
        self._graphed = GraphedFunction(self._run, name="the training step", backend=backend, fixed=self._fixed)
        self._step: _Step | None = None
        self._before: tuple[int, tuple[tuple[str, Hashable], ...]] | None = None
        self._changes = 0
        self._unsteady = False

    @property
    def replays(self) -> int:
        """How many steps were replays."""
        return self._graphed.replays

    @property
    def failed(self) -> bool:
        """Whether all further steps are eager."""
        return self._unsteady or self._graphed.failed is not None

    def __call__(self, parts: list[Batch], *, epoch: int, rates: Sequence[float]) -> Tensor:
        """As `Update`; the result stays until the next call."""
        if self.failed and self._fallback is not None:
            self._fallback()
            self._fallback = None
        if self.failed or not self._is_whole(parts):
            return self.update(parts, epoch=epoch, rates=rates)
        values = self._look(epoch)
        if self._unsteady:
            return self.update(parts, epoch=epoch, rates=rates)
        parts = [self._with_teacher_logits(batch) for batch in parts]
        self._step = _Step(
            self.update.decide(epoch, rates),
            tuple((batch.global_size, batch.offset, batch.filler) for batch in parts),
            tuple(parts[0].teacher_logits),
        )
        return self._graphed(_tensors(parts, self._step.teachers), (self._step, values))

    def forget(self) -> None:
        """Give back the graphs and their memory; further steps warm up and capture anew."""
        self._graphed.forget()

    def _run(self, inputs: dict[str, Tensor]) -> Tensor:
        """The device's part of the present step."""
        step = known(self._step)
        return self.update.run(list(_batches(inputs, step)), step.decisions)

    def _is_whole(self, parts: list[Batch]) -> bool:
        size = parts[0].global_size
        return (sum(batch.count for batch in parts) if size is None else size) == self.batch_size

    def _with_teacher_logits(self, batch: Batch) -> Batch:
        """The batch with the logits of teachers that have a cache: a graph cannot look them up."""
        cached = [teacher for teacher in self.update.method.clean_teachers() if teacher.open_cache() is not None]
        return replace(batch, teacher_logits={teacher: teacher.clean(batch) for teacher in cached})

    def _look(self, epoch: int) -> tuple[tuple[str, Hashable], ...]:
        """The method's plain values; notices when it changes them from step to step."""
        method, before = self.update.method, self._before
        values = host_values(method, opaque=(Teacher,))
        self._before = epoch, values
        if before is not None and before[0] == epoch and before[1] != values:
            self._changes += 1
            if self._changes >= _PATIENCE:
                self._unsteady = True
                self._graphed.forget()
                names = ", ".join(changed(before[1], values))
                warnings.warn(
                    f"the training step runs without a CUDA graph: method {method.name} changes {names} from step to "
                    "step, which a graph cannot; keep it in a tensor that is written in place",
                    GraphWarning,
                    stacklevel=4,
                )
        return values

    def _fixed(self) -> Iterator[Tensor]:
        """What the graph reads and writes in place."""
        update = self.update
        yield from network_tensors(update.student)
        for state in update.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))
        yield from update.method.state_dict().values()
        yield from (value for value in vars(update.method).values() if isinstance(value, Tensor))


def _tensors(parts: list[Batch], teachers: tuple[Teacher, ...]) -> dict[str, Tensor]:
    """The tensors of a step by name."""
    found = {}
    for index, batch in enumerate(parts):
        found.update({f"{index} {name}": getattr(batch, name) for name in ("x", "y", "ids", "seed")})
        found.update({f"{index} teacher {number}": batch.teacher_logits[each] for number, each in enumerate(teachers)})
    return found


def _batches(inputs: dict[str, Tensor], step: _Step) -> Iterator[Batch]:
    """The micro-batches in the graph's own buffers. Without their views, so that nobody asks a cache."""
    for index, (global_size, offset, filler) in enumerate(step.batches):
        yield Batch(
            **{name: inputs[f"{index} {name}"] for name in ("x", "y", "ids", "seed")},
            global_size=global_size,
            offset=offset,
            filler=filler,
            teacher_logits={each: inputs[f"{index} teacher {number}"] for number, each in enumerate(step.teachers)},
        )
