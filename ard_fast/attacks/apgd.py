"""Auto-PGD (Croce and Hein, ICML 2020), the attack without a step size to choose, on the fused state machine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ard_fast._typing import known
from ard_fast.attacks.base import GradientAttack, Problem
from ard_fast.attacks.inputs import check_labels
from ard_fast.functional._arguments import int_between, nonnegative, one_of, positive_int, seed_tensor
from ard_fast.functional.apgd import APGDRun
from ard_fast.functional.gradients import AttackGradient
from ard_fast.functional.steps import select_best_

APGD_LOSSES = ("ce", "dlr", "dlr_targeted")


class Outcome(NamedTuple):
    """What a run found: points `[B, ...]`, whether they are misclassified, bool `[B]`, and the highest loss `[B]`."""

    x_adv: Tensor
    fooled: Tensor
    loss: Tensor

    def write(self, where: Tensor, part: Outcome) -> None:
        """Put an outcome of some samples in their places."""
        for whole, piece in zip(self, part, strict=True):
            whole[where] = piece


@dataclass(eq=False, repr=False)
class APGD(GradientAttack):
    """APGD-CE and APGD-DLR as AutoAttack runs them.

    The start lies on the surface of the ball. Steps have momentum and begin at 2 eps; where a sample's progress stalls,
    its step is halved and it returns to its best point. The result of a sample is its last misclassified point if there
    was one, else the point of the highest loss. With one restart nothing waits for the GPU; between restarts the attack
    waits and continues with the samples that are not yet misclassified.

    Args:
        eps: radius of the ball in pixel units, a number or a tensor `[B]`.
        steps: gradient steps of a run; it evaluates the model steps + 1 times.
        norm: "linf" or "l2".
        loss: "ce", "dlr" or "dlr_targeted" (see `PGD`).
        restarts: independent random starts.
        targeted: move towards the labels instead of away from them.
        bn: mode of the model during the attack: "eval", "train" or "train_frozen", see `attack_mode`.
        bounds: lowest and highest pixel value.
        levels: None, or 255 for iterates that are images of 8 bits (see `PGD`); no step is then shorter than one level.
        rho: at a checkpoint the step is halved unless more than this share of the steps since the last raised the loss.
        eot: forward and backward passes for each step, for randomised models: gradients are summed, losses
            averaged, and the last pass says whether the point is misclassified.
        drop_every: after every so many steps misclassified samples leave the batch; 0 for never. The other samples get
            the same results, and robust accuracy stays the same with fewer passes (a dropped sample keeps an earlier
            misclassified point). Waits for the GPU each time.

    Raises:
        ValueError: an argument is out of range; the message names it.

    Example:
        >>> x_adv = APGD(eps=0.5, norm="l2", loss="dlr")(model, x, y)
    """

    needs_rows = True
    scale_free = True

    step_size: float | Tensor | None = field(default=None, init=False)
    steps: int = 100
    random_start: bool = field(default=True, init=False)
    clamp_start: bool = field(default=True, init=False)
    init: str = field(default="surface", init=False)
    std: float = field(default=0.001, init=False)
    kappa: float = field(default=50.0, init=False)
    temperature: float = field(default=1.0, init=False)
    rho: float = field(default=0.75, kw_only=True)
    drop_every: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        one_of(self.loss, "loss", APGD_LOSSES)
        super().__post_init__()
        self.rho = nonnegative(self.rho, "rho")
        self.drop_every = int_between(self.drop_every, "drop_every", 0, 2**24)

    @property
    def why_eager(self) -> str | None:
        """Restarts and dropping look at what the device has found."""
        if self.restarts > 1:
            return "it waits for the device between restarts"
        return "it waits for the device to drop samples (drop_every)" if self.drop_every else None

    def search(self, problem: Problem, seed: int | Tensor | None) -> Tensor:
        """One run; further ones on what is left."""
        if self.restarts == 1:
            return self.attempt(problem, seed).x_adv
        seed = seed_tensor(seed, problem.x.device)
        kept = self._nothing_found(problem.x)
        for restart in range(self.restarts):
            if not self._try_on_the_rest(problem, kept, seed + restart):
                break
        return kept.x_adv

    def attempt(self, problem: Problem, seed: int | Tensor | None) -> Outcome:
        """One run from one start."""
        x_adv = self.project(self.start(problem, seed), problem)
        run = self.begin(problem, x_adv)
        whole = self._nothing_found(problem.x) if self.drop_every else None
        left = torch.arange(len(problem.x), device=problem.x.device)
        for step in range(self.steps):
            if whole is not None and step and step % self.drop_every == 0:
                fooled = run.fooled
                gone, stay = fooled.nonzero()[:, 0], (~fooled).nonzero()[:, 0]
                if len(gone):
                    whole.write(left[gone], Outcome(run.x_fooled[gone], fooled[gone], run.loss_best[gone]))
                    problem, run, left = problem.take(stay), run.take(stay), left[stay]
                if not len(left):
                    return whole
                x_adv = run.x_adv
            x_adv = self.advance(problem, x_adv, run)
        loss, correct = self.rows(problem, x_adv)
        run.finish(loss, known(correct))
        # The misclassified point where there is one, by the same operator that keeps the best of restarts.
        fooled = run.fooled.float()
        select_best_(run.x_best, torch.zeros_like(fooled), run.x_fooled, fooled)
        last = Outcome(run.x_best, run.fooled, run.loss_best)
        if whole is None:
            return last
        whole.write(left, last)
        return whole

    def _nothing_found(self, x: Tensor, fooled: Tensor | None = None) -> Outcome:
        """For `write`: the images themselves, of the lowest loss."""
        fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device) if fooled is None else fooled
        return Outcome(x.clone(), fooled, torch.full((len(x),), float("-inf"), device=x.device))

    def _try_on_the_rest(self, problem: Problem, kept: Outcome, seed: Tensor) -> bool:
        """One run on the samples not fooled yet, which keep what is better; False if there are none."""
        left = (~kept.fooled).nonzero()[:, 0]
        if not len(left):
            return False
        if len(left) == len(kept.fooled):
            found = self.attempt(problem, seed)
        else:
            found = self.for_samples(left).attempt(problem.take(left), seed)
        better = found.fooled | (found.loss > kept.loss[left])
        kept.write(left[better], Outcome(*(part[better] for part in found)))
        return True

    def begin(self, problem: Problem, x_adv: Tensor) -> APGDRun:
        """The state machine."""
        return APGDRun(
            problem.x,
            x_adv,
            eps=self.eps,
            norm=self.norm,
            steps=self.steps,
            rho=self.rho,
            bounds=self.bounds,
            levels=self.levels,
            check_bounds=False,
        )

    def step(self, x_adv: Tensor, outcome: AttackGradient, problem: Problem, state: Any) -> Tensor:
        """Best point, checkpoint, momentum step and both projections in one operator."""
        return state.step(outcome.grad, outcome.loss, outcome.correct)

    def _at_logits(
        self, logits: Tensor, problem: Problem, with_rows: bool, scaled: bool
    ) -> tuple[AttackGradient, Tensor | None]:
        """As for other attacks, but of the negative loss if targeted: APGD always ascends."""
        outcome, scale = super()._at_logits(logits, problem, with_rows, scaled)
        if not self.targeted:
            return outcome, scale
        if not with_rows:
            return outcome._replace(grad=-outcome.grad), scale
        return AttackGradient(-outcome.grad, -known(outcome.loss), ~known(outcome.correct)), scale


@dataclass(eq=False, repr=False)
class APGDT(APGD):
    """APGD-T: a run on the targeted DLR loss for each of the classes that are likeliest at the clean image.

    Samples that the model gets wrong stay as they are; each run takes those that no run before it has fooled. Waits for
    the GPU between runs, never within one.

    Args:
        n_targets: target classes, at least 1; no more are tried than the model has wrong classes.
        Others: as for `APGD`.

    Raises:
        ValueError: an argument is out of range, or the model has fewer than 4 classes.
    """

    scale_free = True

    loss: str = field(default="dlr_targeted", init=False)
    targeted: bool = field(default=False, init=False)
    restarts: int = field(default=1, kw_only=True)
    n_targets: int = field(default=9, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_int(self.n_targets, "n_targets")

    @property
    def takes_target_classes(self) -> bool:
        """It goes through all of them itself."""
        return False

    @property
    def why_eager(self) -> str | None:
        """Each target is tried on what is left."""
        return "it waits for the device between targets"

    def search(self, problem: Problem, seed: int | Tensor | None) -> Tensor:
        """All targets and restarts; run number r uses seed + r."""
        seed = seed_tensor(seed, problem.x.device)
        logits = self.predictions(problem.model, problem.x)
        labels = cast("Tensor", problem.y)
        check_labels(labels, logits)
        wrong = logits.scatter(1, labels[:, None], float("-inf")).argsort(dim=1, descending=True, stable=True)
        kept = self._nothing_found(problem.x, fooled=logits.argmax(1) != labels)
        for target in range(min(self.n_targets, logits.shape[1] - 1)):
            aimed = replace(problem, target_classes=wrong[:, target])
            for restart in range(self.restarts):
                if not self._try_on_the_rest(aimed, kept, seed + (target * self.restarts + restart)):
                    return kept.x_adv
        return kept.x_adv
