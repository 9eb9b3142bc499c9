"""Fair adversarially robust distillation, Fair-ARD (Yue, Mou, Wang, Zhao; NeurIPS 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ard_fast._typing import known
from ard_fast.attacks.base import Problem
from ard_fast.attacks.pgd import PGD
from ard_fast.data.batches import Batch
from ard_fast.functional import AttackGradient
from ard_fast.methods.ard import AdversariallyRobustDistillation
from ard_fast.methods.base import Inner, Network
from ard_fast.methods.shared import kl_words, recipe, sums_by_class

LOWEST, HIGHEST = 5 / 6, 5 / 2  # of the classes' weights
_NEVER = 1e-5  # added to kappa, which is 0 for a class that no step finds correct


class CountingPGD(PGD):
    """PGD that counts, for each sample, at how many of its K iterates the model was right (before each step; the start
    is the first of them). The forward passes of the attack say it: none is added.

    Attributes:
        steps_correct: float32 `[B]`, of the last call.
    """

    needs_rows = True
    scale_free = True

    @property
    def why_eager(self) -> str | None:
        """A replay would leave no new tensor there."""
        return "it leaves steps_correct on itself"

    def begin(self, problem: Problem, x_adv: Tensor) -> Any:
        self.steps_correct = torch.zeros(len(x_adv), device=x_adv.device)

    def step(self, x_adv: Tensor, outcome: AttackGradient, problem: Problem, state: Any) -> Tensor:
        self.steps_correct += known(outcome.correct)
        return super().step(x_adv, outcome, problem, state)


@dataclass(eq=False, repr=False, kw_only=True)
class FairDistillation(AdversariallyRobustDistillation):
    """ARD's loss, each sample's weighted by its class: v_y [alpha T^2 KL(T(x) || S(x')) + (1 - alpha) CE(S(x), y)].

    kappa_c is the mean over the epoch's images of class c of the number of steps of the attack at which the student was
    still right: small for a class that is easily attacked. After each epoch v_c = (kappa_c + 1e-5)^-fairness_power,
    scaled to a mean of 1 over the classes and then held within [5/6, 5/2]; v = 1 in the first epoch. A class that no
    image of the epoch had gets 1 and is left out of the mean.

    State: v and the running epoch's sums, on the device, the same in every process.
    """

    name = "fair-ard"
    summary = "Fair-ARD: ARD with class weights from how long a class withstands the attack (Yue et al., NeurIPS 2023)"
    state = ("class_weights", "sums")
    attack_class = CountingPGD
    paper = recipe(student="resnet18", nesterov=True)

    fairness_power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        classes, device = self.context.num_classes, self.context.device
        self.class_weights = torch.ones(classes, device=device)
        self.sums = torch.zeros(2, classes, dtype=torch.float64, device=device)

    def attack(self, student: Network, batch: Batch) -> Inner:
        inner = super().attack(student, batch)
        inner.weight, inner.record = self.class_weights[batch.y], cast("CountingPGD", self.inner_attack).steps_correct
        return inner

    def after_backward(self, batch: Batch, inner: Inner) -> None:
        sums = sums_by_class(known(inner.record)[None], batch.y, self.context.num_classes)
        self.sums += self.context.all_reduce(sums)

    def end_epoch(self) -> dict[str, float]:
        total, count = self.sums
        seen = count > 0
        kappa = total / count.clamp_min(1.0)
        exponents = torch.where(seen, -self.fairness_power * (kappa + _NEVER).log(), -torch.inf)
        scaled = torch.softmax(exponents, 0) * seen.sum()
        self.class_weights.copy_(torch.where(seen, scaled.clamp(LOWEST, HIGHEST), 1.0))
        seen_kappa = kappa[seen]
        self.sums.zero_()
        return {
            "kappa_min": seen_kappa.min().item() if len(seen_kappa) else float("nan"),
            "kappa_max": seen_kappa.max().item() if len(seen_kappa) else float("nan"),
            "class_weight_min": self.class_weights.min().item(),
            "class_weight_max": self.class_weights.max().item(),
        }

    def conventions(self) -> list[str]:
        clean = "" if self.alpha == 1.0 else f" + {1 - self.alpha:.4g} * CE(S(x), y)"
        dead = "; clean forward, weight 0 (as published)" if self.clean_branch and self.alpha == 1.0 else ""
        return [
            f"loss v_y * [{self.alpha:.4g} * T^2 * KL(T(x) || S(x')){clean}], {kl_words(self)}",
            f"v_c of each epoch: (1 / kappa_c)^{self.fairness_power:g}, mean 1, within [5/6, 5/2]; kappa_c: attack "
            "steps at which class c was still right, mean of the epoch before",
            f"teacher sees x, eval mode; x' attacks CE(S(x'), y){dead}",
        ]
