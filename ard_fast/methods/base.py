"""What every training method is: an inner problem, an outer loss, and what the teacher sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ard_fast.data import Batch
from ard_fast.teachers import Teacher

Network = Callable[[Tensor], Tensor]
"""Maps images `[B, ...]` to logits `[B, C]`: a module, or the function that stands for it."""


class StepResult(NamedTuple):
    """The outcome of a method on one batch, still on the device.

    Attributes:
        loss: scalar, to be differentiated: a mean over the batch.
        logits: `[B, num_classes]`, of the images the student was updated on (adversarial ones for at and ard).
    """

    loss: Tensor
    logits: Tensor


@dataclass
class Inner:
    """What the inner problem hands to the outer loss. Nothing in it carries a gradient, except the `x_adv` of methods
    whose update also moves the perturbation.

    Attributes:
        x_adv: adversarial images like `batch.x`; None for methods that attack nothing.
        target: teacher logits `[B, num_classes]`, at the images that the method's teacher sees.
        clean_target: logits of the second teacher, or of the same one at other images.
        weight: float32 `[B]`, of each sample's loss.
        delta: the perturbation that a method keeps between its replays; it requires grad.
        record: what `loss` leaves for `after_backward`, which is where a method changes its state: a loss may be taken
            twice in a step.
    """

    x_adv: Tensor | None = None
    target: Tensor | None = None
    clean_target: Tensor | None = None
    weight: Tensor | None = None
    delta: Tensor | None = None
    record: Tensor | None = None


def same(value: Tensor) -> Tensor:
    """The sum or the minimum over all processes, where there is one."""
    return value


def constant_rate(epoch: int) -> float:
    """The relative learning rate where nothing changes it."""
    return 1.0


@dataclass(frozen=True)
class MethodContext:
    """What a method may know of the run besides its own settings.

    Attributes:
        num_classes: C.
        epochs: passes of the whole run.
        train_size: images of the training split.
        teachers: by role, "teacher" and "clean_teacher".
        processes: of the run.
        all_reduce: sums a tensor over all processes of the run, without a host synchronisation; may work in place.
        all_min: the minimum, likewise.
        device: where the batches are, and with them the method's state.
        relative_rate: the learning rate at the beginning of an epoch (from 0) in units of `lr`, for methods whose own
            rates follow it.
    """

    num_classes: int
    epochs: int
    train_size: int
    teachers: Mapping[str, Teacher] = field(default_factory=dict[str, Teacher])
    processes: int = 1
    all_reduce: Callable[[Tensor], Tensor] = same
    all_min: Callable[[Tensor], Tensor] = same
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    relative_rate: Callable[[int], float] = constant_rate


class Method(ABC):
    """One training method. It holds teachers, attack and its own state, never the student or the optimiser.

    For each batch the trainer calls `attack`, then `loss`, differentiates it, calls `after_backward` and updates the
    student; `replays` times in a row. Nothing in these may wait for the device.

    What the three compute may be recorded once and repeated for the following batches (a CUDA graph), without running
    any Python. So what changes from step to step or from epoch to epoch is either a tensor that is written in place
    (what `state_dict` gives; a rate that follows the schedule), or a plain value in an attribute (whether a term has
    begun), at whose every new value the step is recorded anew.
    """

    name: str
    replays: int = 1
    """Updates on each batch; the run then makes epochs / replays passes over the data."""

    @abstractmethod
    def attack(self, student: Network, batch: Batch) -> Inner:
        """The inner problem for the student, which is in training mode and must be left without a trace.

        Where the attack takes it in eval mode it may be another form of the same function of the images: it is only
        called, or given to an attack, here.
        """

    @abstractmethod
    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        """The outer loss. `student` gives float32 logits and is only called here: it may be wrapped (data-parallel)."""

    def after_backward(self, batch: Batch, inner: Inner) -> None:  # noqa: B027 - most methods need none
        """Called once the loss has been differentiated, before the student's update."""

    def clean_teachers(self) -> tuple[Teacher, ...]:
        """The teachers that each step asks for their logits at the batch's own images (`Teacher.clean`)."""
        return ()

    def begin_epoch(self, epoch: int) -> None:  # noqa: B027 - most methods need none
        """Called before the first batch of an epoch (from 0), and when a run goes on inside one."""

    def end_epoch(self) -> dict[str, float]:
        """Called after an epoch's last batch: updates what changes once an epoch; its figures go into the metrics."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """What must survive a stop, as tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put `state_dict`'s tensors back."""
        if state:
            raise ValueError(f"resume: method {self.name} keeps no state, got {', '.join(state)}")

    @abstractmethod
    def conventions(self) -> list[str]:
        """The method's conventions in words, printed when a run starts."""


@dataclass(frozen=True)
class Quirk:
    """A departure of a published code from its formulas, or from good practice, that changes results.

    Attributes:
        text: for people.
        settings: what reproduces it: fields of the run's configuration.
    """

    text: str
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
