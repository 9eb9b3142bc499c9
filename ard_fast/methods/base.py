"""What every training method is."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor, nn

from ard_fast.data import Batch


class StepResult(NamedTuple):
    """The outcome of a method on one batch, still on the device.

    Attributes:
        loss: scalar, to be differentiated.
        logits: `[B, num_classes]`, of the images the student was updated on (adversarial ones for at and ard).
    """

    loss: Tensor
    logits: Tensor


class Method(Protocol):
    """A callable that gives a batch's loss. It holds the teacher and the attack, never the student or the optimiser."""

    name: str

    def __call__(self, student: nn.Module, batch: Batch) -> StepResult:
        """The loss of `batch` for `student`, which is in training mode."""
        ...

    def conventions(self) -> list[str]:
        """The method's conventions in words, printed when a run starts."""
        ...
