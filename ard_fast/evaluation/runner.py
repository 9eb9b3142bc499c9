"""Attacks over a data set, and the accounting of who fooled which image."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from ard_fast._interrupts import Interrupted
from ard_fast._precision import full_precision
from ard_fast.attacks import attack_mode
from ard_fast.data import Split
from ard_fast.data.splits import pixels
from ard_fast.evaluation.accuracy import EVALUATION_SEED
from ard_fast.evaluation.ball import inside_ball
from ard_fast.evaluation.counting import Cost, CountedAttack, CountedModel


class Attack(Protocol):
    """What an evaluation calls. Its `repr` is one line with all parameters: equal text, equal results."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: Tensor, sample_ids: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Step:
    """A line of an evaluation: one attack, or an ensemble whose stages attack what the stages before left right."""

    name: str
    stages: tuple[tuple[str, Attack], ...]


@dataclass(frozen=True)
class StageResult:
    """What one attack did.

    Attributes:
        name: of the attack.
        parameters: its `repr`.
        attacked: images it was given.
        left: those of them that stayed right.
        outside: results that left the ball or the pixel range; they count as not fooled.
        reused: the same attack had been run before in this evaluation; its outcome was taken over.
        cost: passes and time, those that judge the result included.
    """

    name: str
    parameters: str
    attacked: int
    left: int
    outside: int
    reused: bool
    cost: Cost


@dataclass(frozen=True)
class StepResult:
    """A line of the table.

    Attributes:
        name: of the attack or ensemble.
        attacked: images it was given.
        robust: images right as they are and under this attack alone; None in a cascade, where that is not known.
        worst_case: images right under everything up to here.
        total: images of the data set.
        stages: one for a single attack.
    """

    name: str
    attacked: int
    robust: int | None
    worst_case: int
    total: int
    stages: tuple[StageResult, ...]

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


class Listener:
    """Hears how an evaluation goes on. The methods do nothing; a subclass shows what it likes."""

    def stage_started(self, name: str, count: int) -> None:
        """An attack on `count` images begins."""

    def tick(self, forwards: int) -> None:
        """The network is about to be called; it has been called `forwards` times so far."""

    def batch_done(self, done: int, left: int) -> None:
        """`done` images of the stage have been attacked, `left` of them stayed right."""

    def stage_done(self, step: Step, result: StageResult, total: int) -> None:
        """A stage of an ensemble is finished; `total` images are in the data set."""

    def step_done(self, result: StepResult) -> None:
        """A line of the table is finished."""


class Evaluator:
    """Runs attacks over a split.

    Every attack is given the images that the network gets right as they are: those it gets wrong count as wrong under
    every attack, and are not attacked. So an attack's own accuracy is exact, and does not depend on which attacks were
    run before it; beside it stands the worst case, the images that no attack so far has fooled. In a `cascade`,
    images fooled by any attack before are dropped too: less work, and only the worst case is a figure of the whole.
    The stages of an ensemble always drop what the stages before have fooled.

    An attack that was run before with the same text (`repr`) and the same seed is not run again.

    The network is evaluated in eval mode and without weight gradients, in full float32 precision, and is left as it
    was. Results do not depend on `batch_size`, up to the rounding of the network itself.

    Args:
        model: gives logits `[B, num_classes]` of pixels in [0, 1]; on the split's device.
        split: images uint8 `[N, C, H, W]`.
        levels: the uint8 value that stands for 1.0.
        norm: "linf" or "l2", in which results are checked.
        eps: the radius, likewise.
        seed: of every attack.
        batch_size: images a batch.
        channels_last: give the network images in that layout.
        cascade: see above.
        listener: told how it goes on.
        stop: asked before every forward pass, or once a batch while an attack replays its CUDA graph; true ends the
            evaluation.

    Attributes:
        right: bool `[N]`, on the CPU: right as they are.
        worst: bool `[N]`: right under everything so far.
        adversarial: float32 `[N, C, H, W]`, on the CPU: for a fooled image the first result that fooled it, else the
            last attempt.
        fooled_by: for each image the name of the first attack that fooled it, "clean" if it was wrong as it is, None
            if it is still right.
        results: of the attacks that are finished.
        unfinished: stages done of an ensemble that is still running or was stopped.

    Raises:
        ValueError: the split is empty.
        Interrupted: `stop()` was true; what is finished stands.
    """

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        *,
        levels: int,
        norm: str,
        eps: float,
        seed: int = EVALUATION_SEED,
        batch_size: int = 500,
        channels_last: bool = False,
        cascade: bool = False,
        listener: Listener | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        if not len(split):
            raise ValueError("split: expected at least one image, got none")
        self.model, self.split, self.levels = CountedModel(model, self._before_forward), split, levels
        self.norm, self.eps, self.seed, self.batch_size, self.cascade = norm, eps, seed, batch_size, cascade
        self.results: list[StepResult] = []
        self.unfinished: list[StageResult] = []
        self.fooled_by: list[str | None] = [None] * len(split)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._listener, self._stop = listener or Listener(), stop
        self._seed_tensor = torch.tensor([seed], dtype=torch.int64, device=split.images.device)
        self._known: dict[str, tuple[Tensor, Tensor]] = {}  # attack -> (attacked [N], right [N])
        self.adversarial = pixels(split.images.cpu(), levels)
        self.right = self.worst = torch.zeros(len(split), dtype=torch.bool)

    def clean(self) -> StepResult:
        """Which images are right as they are; to be called first."""
        before, right = self._cost(), torch.zeros(len(self.split), dtype=torch.bool)
        with evaluation_mode(self.model), torch.no_grad():
            for positions in self._batches(torch.arange(len(self.split))):
                x, y, _ = self._batch(positions)
                right[positions] = (self.model(x).argmax(1) == y).cpu()
        self.right, self.worst = right, right.clone()
        self.fooled_by = [None if good else "clean" for good in right.tolist()]
        count = int(right.sum())
        stage = StageResult("clean", "the images as they are", len(right), count, 0, False, self._cost_since(before))
        return self._finish(StepResult("clean", len(right), count, count, len(right), (stage,)))

    def run(self, step: Step) -> StepResult:
        """Attack with one attack or ensemble."""
        given = self.worst if self.cascade else self.right
        left, stages = given.clone(), self.unfinished
        for name, attack in step.stages:
            full_name = name if name == step.name else f"{step.name}: {name}"
            right, stage = self.attack(name, attack, left, self.eps, full_name)
            left = right
            stages.append(stage)
            if len(step.stages) > 1:
                self._listener.stage_done(step, stage, len(self.split))
        self.worst = self.worst & (left | ~given)
        robust = int(left.sum()) if torch.equal(given, self.right) else None
        attacked = int(given.sum())
        self.unfinished = []
        return self._finish(
            StepResult(step.name, attacked, robust, int(self.worst.sum()), len(self.split), tuple(stages))
        )

    def attack(
        self, name: str, attack: Attack, chosen: Tensor, eps: float, keep_as: str | None = None
    ) -> tuple[Tensor, StageResult]:
        """One attack on the chosen images.

        Args:
            name: of the attack.
            attack: made for radius `eps`.
            chosen: bool `[N]`, on the CPU; images that are right so far.
            eps: the radius its results are checked against.
            keep_as: the name under which `adversarial` and `fooled_by` take the results; None leaves them alone.

        Returns:
            (bool `[N]`: chosen and still right, the result)
        """
        key, before = repr(attack), self._cost()
        outside, known = 0, self._known.get(key)
        reused = known is not None and bool((known[0] | ~chosen).all())
        if reused:
            assert known is not None
            right = known[1] & chosen
        else:
            right = torch.zeros_like(chosen)
            self._listener.stage_started(name, int(chosen.sum()))
            done, counted = 0, CountedAttack(attack)
            with evaluation_mode(self.model):
                for positions in self._batches(chosen.nonzero().squeeze(1)):
                    x, y, ids = self._batch(positions)
                    x_adv = counted(self.model, x, y, seed=self._seed_tensor, sample_ids=ids)
                    valid = inside_ball(x_adv, x, norm=self.norm, eps=eps)
                    with torch.no_grad():
                        still = (self.model(x_adv).argmax(1) == y) | ~valid
                    outside += int((~valid).sum())
                    right[positions] = still.cpu()
                    if keep_as is not None:
                        self._keep(keep_as, positions, x_adv.cpu(), still.cpu(), valid.cpu())
                    done += len(positions)
                    self._listener.batch_done(done, int(right.sum()))
            self._known[key] = (chosen.clone(), right.clone())
        counts = (int(chosen.sum()), int(right.sum()), outside)
        return right, StageResult(name, key, *counts, reused, self._cost_since(before))

    def _keep(self, name: str, positions: Tensor, x_adv: Tensor, still: Tensor, valid: Tensor) -> None:
        for row, position in enumerate(positions.tolist()):
            if self.fooled_by[position] is None and valid[row]:
                self.adversarial[position] = x_adv[row]
                if not still[row]:
                    self.fooled_by[position] = name

    def _finish(self, result: StepResult) -> StepResult:
        self.results.append(result)
        self._listener.step_done(result)
        return result

    def _batches(self, positions: Tensor) -> Sequence[Tensor]:
        return positions.split(self.batch_size) if len(positions) else ()

    def _batch(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(images float32 in [0, 1], labels, ids) on the split's device."""
        part = self.split.take(positions.to(self.split.images.device))
        return self._pixels(part.images), part.labels, part.ids

    def predict(self, images: Tensor) -> Tensor:
        """Predicted classes, int64 `[N]` on the CPU, of images that are uint8 levels or float32 in [0, 1]."""
        device, found = self.split.images.device, []
        with evaluation_mode(self.model), torch.no_grad():
            for part in images.split(self.batch_size):
                part = part.to(device)
                x = self._pixels(part) if part.dtype == torch.uint8 else part.contiguous(memory_format=self._layout)
                found.append(self.model(x).argmax(1).cpu())
        return torch.cat(found)

    def _pixels(self, images: Tensor) -> Tensor:
        return pixels(images, self.levels).contiguous(memory_format=self._layout)

    def _before_forward(self) -> None:
        if self._stop():
            raise Interrupted("stopped on request")
        self._listener.tick(self.model.cost.forwards)

    def _cost(self) -> Cost:
        return replace(self.model.cost, seconds=time.perf_counter())

    def _cost_since(self, before: Cost) -> Cost:
        return self._cost() - before


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, no weight gradients, and float32 without TF32 or autocast, all put back on leaving.

    Some attacks of other packages call `backward()`, which would fill every trainable parameter's `.grad`.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with full_precision(), attack_mode(model, "eval"):
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
