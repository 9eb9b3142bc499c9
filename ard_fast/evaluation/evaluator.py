"""Attacks over a split: which attack fooled which image, and what it cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ard_fast._devices import autocast, full_precision
from ard_fast.attacks import GraphedPGD, as_graph, attack_mode
from ard_fast.attacks.base import GradientAttack
from ard_fast.data import Split
from ard_fast.data.splits import pixels
from ard_fast.evaluation.results import (
    EVALUATION_SEED,
    Agreement,
    Attack,
    Cost,
    CurvePoint,
    StageResult,
    Step,
    StepResult,
    check_not_empty,
)

# float32 rounding of x + delta moves a pixel by up to 6e-8, a norm over thousands of pixels by a few 1e-6.
_TOLERANCE = {"linf": 1e-6, "l2": 1e-5}


def inside_ball(x_adv: Tensor, x: Tensor, *, norm: str, eps: float) -> Tensor:
    """Whether each sample is within eps of its original and all its pixels are in [0, 1], up to float32 rounding.

    Args:
        x_adv: `[B, ...]`; a sample that holds a NaN is outside.
        x: like `x_adv`.
        norm: "linf" or "l2".
        eps: radius.

    Returns:
        bool `[B]`.
    """
    tolerance, flat = _TOLERANCE[norm], x_adv.flatten(1)
    in_range = ((flat >= -tolerance) & (flat <= 1.0 + tolerance)).all(1)
    difference = flat.to(torch.float64) - x.flatten(1).to(torch.float64)
    distance = difference.abs().amax(1) if norm == "linf" else difference.square().sum(1).sqrt()
    return in_range & (distance <= eps + tolerance)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, no weight gradients, and float32 without TF32 or autocast, all restored on leaving.

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


class CountedModel(nn.Module):
    """The network itself, its passes counted in `cost`.

    Args:
        model: the network; a submodule, so that modes set here reach it.
        before_forward: called before every forward pass; may raise, to stop.
        precision: "fp32", or "bf16": the network runs under bfloat16 autocast, and its logits are float32 again.
        folded: called in the network's place: the same function up to rounding.
    """

    def __init__(
        self,
        model: nn.Module,
        before_forward: Callable[[], None],
        precision: str = "fp32",
        folded: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.precision, self.folded = model, precision, folded
        self.cost = Cost()
        self._before_forward = before_forward

    def forward(self, x: Tensor) -> Tensor:
        self._before_forward()
        count = len(x)
        self.cost.forwards += 1
        self.cost.forward_images += count
        if self.precision == "bf16":
            with autocast("bf16", x.device):
                logits = self.model(x).float()
        else:
            logits = (self.folded or self.model)(x)
        if logits.requires_grad:

            def count_backward(_: Tensor) -> None:
                self.cost.backwards += 1
                self.cost.backward_images += count

            logits.register_hook(count_backward)
        return logits


class _CountedAttack:
    """An attack on a `CountedModel`, run as a CUDA graph where that is possible.

    The replay of a graph does not call the model. It is charged what the last call on as many images cost.
    """

    def __init__(self, attack: Any) -> None:
        self._attack = as_graph(attack)
        self._costs: dict[int, Cost] = {}

    def __call__(self, model: CountedModel, x: Tensor, y: Tensor, **options: Any) -> Tensor:
        if not isinstance(self._attack, GraphedPGD):
            return self._attack(model, x, y, **options)
        before, replays = replace(model.cost), self._attack.replays
        x_adv = self._attack(model, x, y, **options)
        if self._attack.replays == replays:
            self._costs[len(x)] = model.cost - before
        else:
            model.cost = before + self._costs[len(x)]
        return x_adv


class Listener:
    """Called while an evaluation runs; these methods do nothing."""

    def stage_started(self, name: str, count: int, batch: int, passes: int | None) -> None:
        """An attack on `count` images begins, `batch` at a time, each with about so many forward passes if known."""

    def progress(self, forwards: int, done: int, left: int) -> None:
        """`done` images of the stage have been attacked, `left` are still classified correctly; the network has been
        called `forwards` times since the evaluation began."""

    def stage_done(self, result: StageResult, total: int) -> None:
        """A stage of an ensemble is finished; `total` images are in the data set."""

    def step_done(self, result: StepResult) -> None:
        """A line of the table is finished."""


# ---- the loop -----------------------------------------------------------------------------------------------------


class Evaluator:
    """Runs attacks over a split.

    Every attack is given the images that the network classifies correctly when clean; the others count as wrong under
    every attack, and are not attacked. So an attack's own accuracy is exact and does not depend on which attacks were
    run before it. Beside it stands the worst case: the images that no attack so far has fooled. In a `cascade`, images
    fooled by any earlier attack are dropped too: less work, and only the worst case covers the whole data set. The
    stages of an ensemble always drop what earlier stages have fooled.

    An attack that was run before with the same `repr` is not run again.

    The network is evaluated in eval mode and without weight gradients, in full float32 precision, and is unchanged
    afterwards. Results do not depend on `batch_size`, up to the rounding of the network itself.

    Under `precision="bf16"` the attacks see the network in bfloat16. Which images are fooled is decided in float32, so
    robust accuracy is an upper bound as ever. Images that are fooled in bfloat16 only are attacked again in float32.
    To compare, the first batch of each attack is attacked in float32 too (`Agreement`). Likewise, where attacks see a
    folded form of the network, it is itself that decides, and images that fool the folded form only are attacked again.

    Args:
        model: gives logits `[B, num_classes]` of pixels in [0, 1]; on the split's device.
        split: images uint8 `[N, C, H, W]`.
        levels: the uint8 value that stands for 1.0.
        norm: "linf" or "l2", in which results are checked.
        eps: the radius, likewise.
        seed: of every attack.
        batch_size: images a batch.
        channels_last: give the network images in that layout.
        precision: "fp32" or "bf16", of the networks while they are attacked.
        sources: the networks that a `Step` may name, frozen, in eval mode and on the same device.
        folded: the network in eval mode, up to rounding, for gradient attacks that are made in that mode.
        cascade: see above.
        listener: called as the evaluation proceeds.
        before_forward: called before every forward pass, or once a batch while an attack replays its CUDA graph; may
            raise, to stop: what is finished stands.

    Attributes:
        right: bool `[N]`, on the CPU: classified correctly when clean.
        worst: bool `[N]`: classified correctly under everything so far.
        robust: for each attack whose own accuracy is known, bool `[N]`: classified correctly both clean and under it.
        adversarial: float32 `[N, C, H, W]`, on the CPU: for a fooled image the first result that fooled it, else the
            last attempt.
        fooled_by: for each image the name of the first attack that fooled it, "clean" if the clean image is
            misclassified, None if it is still classified correctly.
        results: of the attacks that are finished.
        unfinished: finished stages of an ensemble that is still running or was stopped.

    Raises:
        ValueError: the split is empty.
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
        precision: str = "fp32",
        sources: Mapping[str, nn.Module] | None = None,
        folded: Callable[[Tensor], Tensor] | None = None,
        cascade: bool = False,
        listener: Listener | None = None,
        before_forward: Callable[[], None] = lambda: None,
    ) -> None:
        check_not_empty(split)
        self.model, self.split, self.levels = CountedModel(model, self._before_pass), split, levels
        networks: dict[str | None, nn.Module] = {None: model}
        networks.update(sources or {})
        self._attacked = {name: self._counted(network, precision) for name, network in networks.items()}
        self._folded = None if folded is None else CountedModel(model, self._before_pass, folded=folded)
        self.norm, self.eps, self.batch_size, self.cascade = norm, eps, batch_size, cascade
        self.results: list[StepResult] = []
        self.unfinished: list[StageResult] = []
        self.fooled_by: list[str | None] = [None] * len(split)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._listener, self._before_forward = listener or Listener(), before_forward
        self._seed_tensor = torch.tensor([seed], dtype=torch.int64, device=split.images.device)
        self._known: dict[str, tuple[Tensor, Tensor]] = {}  # attack -> (attacked [N], right [N])
        self._done = self._left = 0  # images of the stage under way
        self.adversarial = pixels(split.images.cpu(), levels)
        self.right = self.worst = torch.zeros(len(split), dtype=torch.bool)
        self.robust: dict[str, Tensor] = {}

    def clean(self) -> StepResult:
        """Which images are classified correctly when clean; to be called first."""
        before = self._cost()
        right = self.predict(self.split.images) == self.split.labels.cpu()
        self.right, self.worst = right, right.clone()
        self.fooled_by = [None if good else "clean" for good in right.tolist()]
        count = int(right.sum())
        stage = StageResult("clean", "the images as they are", len(right), count, 0, False, self._cost() - before)
        return self._finish(StepResult("clean", len(right), count, count, len(right), (stage,)))

    def run(self, step: Step) -> StepResult:
        """Attack with one attack or ensemble."""
        given = self.worst if self.cascade else self.right
        left, stages = given.clone(), self.unfinished
        for name, attack in step.stages:
            full_name = name if name == step.name else f"{step.name}: {name}"
            left, stage = self.attack(name, attack, left, self.eps, full_name, step.source)
            stages.append(stage)
            if len(step.stages) > 1:
                self._listener.stage_done(stage, len(self.split))
        self.worst = self.worst & (left | ~given)
        robust = None
        if torch.equal(given, self.right):
            robust, self.robust[step.name] = int(left.sum()), left
        self.unfinished = []
        counts = (int(given.sum()), robust, int(self.worst.sum()), len(self.split))
        return self._finish(StepResult(step.name, *counts, tuple(stages), step.source))

    def curve(self, name: str, make_attack: Callable[[float], Attack], radii: Sequence[float]) -> Iterator[CurvePoint]:
        """Attack at growing radii, and yield a point after each; `worst`, `adversarial` and `results` are left alone.

        An image fooled inside one ball is fooled inside every larger one, so each radius attacks only what smaller
        ones did not fool, and the curve never rises.

        Args:
            name: of the attack, for the listener.
            make_attack: the attack for a radius.
            radii: in any order; duplicates are dropped.
        """
        left = self.right.clone()
        for eps in sorted(set(radii)):
            if eps > 0:
                left, stage = self.attack(f"{name} at eps {eps:.4g}", make_attack(eps), left, eps)
            else:
                stage = self.results[0].stages[0]
            yield CurvePoint(eps, 100.0 * int(left.sum()) / len(left), stage)

    def attack(
        self,
        name: str,
        attack: Attack,
        chosen: Tensor,
        eps: float,
        keep_as: str | None = None,
        source: str | None = None,
    ) -> tuple[Tensor, StageResult]:
        """One attack on the chosen images.

        Args:
            name: of the attack.
            attack: made for radius `eps`.
            chosen: bool `[N]`, on the CPU; images that are classified correctly so far.
            eps: the radius its results are checked against.
            keep_as: the name under which `adversarial` and `fooled_by` take the results; None leaves them alone.
            source: the network to attack, of `sources`; None is the one that is evaluated.

        Returns:
            (bool `[N]`: chosen and still classified correctly, the result)
        """
        key, before, outside = f"{attack!r} on {source}" if source else repr(attack), self._cost(), 0
        attacked_model, redone = self._attacked[source], 0
        if self._folded is not None and source is None and isinstance(attack, GradientAttack) and attack.bn == "eval":
            attacked_model = self._folded
        attacked, found = self._known.get(key, (torch.zeros_like(chosen), torch.zeros_like(chosen)))
        reused = key in self._known and bool((attacked | ~chosen).all())
        if reused:
            right = found & chosen
        else:
            right, counted = torch.zeros_like(chosen), _CountedAttack(attack)
            self._done = self._left = 0
            self._listener.stage_started(name, int(chosen.sum()), self.batch_size, _passes(attack))
            with evaluation_mode(self.model), evaluation_mode(attacked_model):
                for positions in _batches(chosen.nonzero().squeeze(1), self.batch_size):
                    outcome = x_adv, still, valid = self._try(counted, attacked_model, positions, eps)
                    exact = attacked_model.precision == "fp32" and attacked_model.folded is None
                    if not exact and source is None:
                        redone += self._redo(attack, attacked_model, positions, eps, outcome)
                    outside += int((~valid).sum())
                    right[positions] = still.cpu()
                    if keep_as is not None:
                        self._keep(keep_as, positions, x_adv.cpu(), still.cpu(), valid.cpu())
                    self._done, self._left = self._done + len(positions), int(right.sum())
                    self._tell()
            self._known[key] = (chosen.clone(), right.clone())
        counts = (int(chosen.sum()), int(right.sum()), outside)
        result = StageResult(name, key, *counts, reused, self._cost() - before)
        if attacked_model.precision != "fp32" and keep_as is not None and chosen.any() and not reused:
            agreement = self._agreement(attack, attacked_model.model, chosen, right)
            result = replace(result, redone=redone, agreement=agreement)
        return right, result

    def _try(self, attack: Any, model: CountedModel, positions: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """Attack one batch: adversarial images, whether each is still classified correctly, and inside the ball."""
        part = self.split.take(positions.to(self.split.images.device))
        x, y = self._pixels(part.images), part.labels
        x_adv = attack(model, x, y, seed=self._seed_tensor, sample_ids=part.ids)
        valid = inside_ball(x_adv, x, norm=self.norm, eps=eps)
        with torch.no_grad():
            return x_adv, (self.model(x_adv).argmax(1) == y) | ~valid, valid

    def _redo(
        self,
        attack: Attack,
        model: CountedModel,
        positions: Tensor,
        eps: float,
        outcome: tuple[Tensor, Tensor, Tensor],
    ) -> int:
        """Attack on the network itself, in float32, the images that fool `model` only, and put that in their places.

        An attack stops at such images, or keeps them for fooled, so without this it would be weaker.

        Returns:
            How many there were.
        """
        x_adv, still, valid = outcome
        with torch.no_grad():
            fooled = model(x_adv).argmax(1) != self.split.labels[positions.to(self.split.labels.device)]
        rows = still & valid & fooled
        if rows.any():
            for whole, part in zip(outcome, self._try(attack, self.model, positions[rows.cpu()], eps), strict=True):
                whole[rows] = part
        return int(rows.sum())

    def _agreement(self, attack: Attack, network: nn.Module, chosen: Tensor, right: Tensor) -> Agreement:
        """The attack in float32 on the first batch of the chosen images, of which `right` are left in bfloat16."""
        positions = chosen.nonzero().squeeze(1)[: self.batch_size]
        model = self._counted(network, "fp32")
        with evaluation_mode(self.model), evaluation_mode(model):
            still = self._try(attack, model, positions, self.eps)[1].cpu()
        bf16 = right[positions]
        return Agreement(len(positions), int((still == bf16).sum()), int(bf16.sum()), int(still.sum()))

    def predict(self, images: Tensor) -> Tensor:
        """Predicted classes, int64 `[N]` on the CPU, of images that are uint8 levels or float32 in [0, 1]."""
        found = []
        with evaluation_mode(self.model), torch.no_grad():
            for part in _batches(images, self.batch_size):
                found.append(self.model(self._pixels(part.to(self.split.images.device))).argmax(1).cpu())
        return torch.cat(found)

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

    def _pixels(self, images: Tensor) -> Tensor:
        """Images of the network: float32 in [0, 1], in the chosen layout."""
        x = images if images.is_floating_point() else pixels(images, self.levels)
        return x.contiguous(memory_format=self._layout)

    def _before_pass(self) -> None:
        self._before_forward()
        self._tell()

    def _counted(self, network: nn.Module, precision: str) -> CountedModel:
        return CountedModel(network, self._before_pass, precision)

    def _tell(self) -> None:
        self._listener.progress(self._cost().forwards, self._done, self._left)

    def _cost(self) -> Cost:
        counted = (self.model, *self._attacked.values(), *([] if self._folded is None else [self._folded]))
        return replace(sum((model.cost for model in counted), Cost()), seconds=time.perf_counter())


def _passes(attack: Any) -> int | None:
    """The forward passes that a batch takes at most, if the attack's arguments say so."""
    steps = getattr(attack, "queries", getattr(attack, "steps", None))
    if not isinstance(steps, int):
        return None
    repeats = ("eot", "restarts", "n_targets", "targets")
    return steps * math.prod(number for name in repeats if isinstance(number := getattr(attack, name, 1), int)) + 1


def _batches(rows: Tensor, size: int) -> Sequence[Tensor]:
    return rows.split(size) if len(rows) else ()
