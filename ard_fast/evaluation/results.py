"""What an evaluation runs and what it finds: attacks, lines of the table, costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from ard_fast.data import Split

EVALUATION_SEED = 1234567  # the same for all runs: every network is attacked from the same starting points


def check_not_empty(split: Split) -> None:
    if not len(split):
        raise ValueError("split: expected at least one image, got none")


@dataclass
class Cost:
    """Passes through the network, the images in them, and time."""

    forwards: int = 0
    forward_images: int = 0
    backwards: int = 0
    backward_images: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(a - b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


class Attack(Protocol):
    """What an evaluation calls. Its `repr` is one line with all parameters: equal text, equal results."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: Tensor, sample_ids: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Step:
    """A line of an evaluation: one attack, or an ensemble whose stages attack what earlier stages did not fool.

    Attributes:
        name: of the line.
        stages: names and attacks.
        source: the name of the network that is attacked instead; its adversarial images are then shown to the network
            that is evaluated.
    """

    name: str
    stages: tuple[tuple[str, Attack], ...]
    source: str | None = None


@dataclass(frozen=True)
class Agreement:
    """An attack made in bfloat16 and again in float32, on the same images; all verdicts are in float32.

    Attributes:
        images: their number; all are classified correctly when clean.
        equal: those with the same verdict.
        robust: those still classified correctly under the attack made in bfloat16.
        robust_fp32: those still classified correctly under the attack made in float32.
    """

    images: int
    equal: int
    robust: int
    robust_fp32: int

    def __str__(self) -> str:
        return (
            f"verdicts equal on {self.equal} of {self.images} images; still correct: {self.robust} (bf16), "
            f"{self.robust_fp32} (fp32)"
        )


@dataclass(frozen=True)
class StageResult:
    """What one attack did.

    Attributes:
        name: of the attack.
        parameters: its `repr`.
        attacked: images it was given.
        left: those of them still classified correctly.
        outside: results that left the ball or the pixel range; they count as not fooled.
        reused: the same attack was run earlier in this evaluation; its outcome was reused.
        cost: passes and time, including those that judge the result.
        redone: of an attack in bfloat16: images fooled in bfloat16 only, which were attacked again in float32.
        agreement: of an attack in bfloat16, with the same attack in float32.
    """

    name: str
    parameters: str
    attacked: int
    left: int
    outside: int
    reused: bool
    cost: Cost
    redone: int = 0
    agreement: Agreement | None = None


@dataclass(frozen=True)
class StepResult:
    """A line of the table.

    Attributes:
        name: of the attack or ensemble.
        attacked: images it was given.
        robust: images classified correctly both clean and under this attack alone; None in a cascade, where that is
            not known.
        worst_case: images classified correctly under everything up to here.
        total: images of the data set.
        stages: one for a single attack.
        source: the network that was attacked, where it is another one.
    """

    name: str
    attacked: int
    robust: int | None
    worst_case: int
    total: int
    stages: tuple[StageResult, ...]
    source: str | None = None

    @property
    def robust_acc(self) -> float | None:
        """Percent of all images."""
        return None if self.robust is None else 100.0 * self.robust / self.total

    @property
    def worst_case_acc(self) -> float:
        """Percent of all images."""
        return 100.0 * self.worst_case / self.total

    @property
    def cost(self) -> Cost:
        return sum((stage.cost for stage in self.stages), Cost())


class CurvePoint(NamedTuple):
    """Accuracy in percent at a radius."""

    eps: float
    robust_acc: float
    stage: StageResult
