"""Fair adversarially robust distillation, Fair-ARD (Yue, Mou, Wang, Zhao; NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.attacks import PGD
from ard_fast.attacks.base import Problem
from ard_fast.data import Batch
from ard_fast.functional import AttackGradient
from ard_fast.methods.ard import ARD_CODE_QUIRKS
from ard_fast.methods.attack import ce_attack
from ard_fast.methods.base import Inner, Method, MethodContext, Network, StepResult
from ard_fast.methods.by_class import sums_by_class
from ard_fast.methods.settings import FilledSettings
from ard_fast.methods.spec import MethodSpec
from ard_fast.methods.words import kl_words
from ard_fast.teachers import Teacher

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


class FairDistillation(Method):
    """ARD's loss, each sample's weighted by its class: v_y [alpha T^2 KL(T(x) || S(x')) + (1 - alpha) CE(S(x), y)].

    kappa_c is the mean over the epoch's images of class c of the number of steps of the attack at which the student was
    still right: small for a class that is easily attacked. After each epoch v_c = (kappa_c + 1e-5)^-fairness_power,
    scaled to a mean of 1 over the classes and then held within [5/6, 5/2]; v = 1 in the first epoch. A class that no
    image of the epoch had gets 1 and is left out of the mean.

    As ARD, x' attacks CE(S(x'), y), the teacher sees x, and at alpha = 1 the clean images go through the student only
    for batch norm, if `clean_branch` says so.

    State: v and the running epoch's sums, on the device, the same in every process.
    """

    name = "fair-ard"

    def __init__(self, inner_attack: CountingPGD, settings: FilledSettings, context: MethodContext) -> None:
        self.teacher, self.inner_attack, self.context = context.teachers["teacher"], inner_attack, context
        self.alpha, self.temperature, self.reduction = settings.alpha, settings.temperature, settings.reduction
        self.power, self.clean_branch = settings.fairness_power, settings.clean_branch
        self.class_weights = torch.ones(context.num_classes, device=context.device)
        self.sums = torch.zeros(2, context.num_classes, dtype=torch.float64, device=context.device)

    def clean_teachers(self) -> tuple[Teacher, ...]:
        return (self.teacher,)

    def attack(self, student: Network, batch: Batch) -> Inner:
        target = self.teacher.clean(batch)
        x_adv = self.inner_attack(student, batch.x, batch.y, seed=batch.seed, sample_ids=batch.ids)
        weight = self.class_weights[batch.y]
        return Inner(x_adv, target, weight=weight, record=self.inner_attack.steps_correct)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits = student(known(inner.x_adv))
        clean = student(batch.x) if self.clean_branch or self.alpha != 1.0 else None
        loss = F.ard_loss(
            logits,
            teacher_logits=known(inner.target),
            student_logits=clean,
            labels=batch.y,
            alpha=self.alpha,
            temperature=self.temperature,
            reduction=self.reduction,
            weight=inner.weight,
        )
        return StepResult(loss, logits)

    def after_backward(self, batch: Batch, inner: Inner) -> None:
        sums = sums_by_class(known(inner.record)[None], batch.y, self.context.num_classes)
        self.sums += self.context.all_reduce(sums)

    def end_epoch(self) -> dict[str, float]:
        total, count = self.sums
        seen = count > 0
        kappa = total / count.clamp_min(1.0)
        exponents = torch.where(seen, -self.power * (kappa + _NEVER).log(), -torch.inf)
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

    def state_dict(self) -> dict[str, Tensor]:
        return {"class_weights": self.class_weights, "sums": self.sums}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.class_weights.copy_(state["class_weights"])
        self.sums.copy_(state["sums"])

    def conventions(self) -> list[str]:
        clean = "" if self.alpha == 1.0 else f" + {1 - self.alpha:.4g} * CE(S(x), y)"
        dead = "; clean forward, weight 0 (as published)" if self.clean_branch and self.alpha == 1.0 else ""
        return [
            f"loss v_y * [{self.alpha:.4g} * T^2 * KL(T(x) || S(x')){clean}], {kl_words(self)}",
            f"v_c of each epoch: (1 / kappa_c)^{self.power:g}, mean 1, within [5/6, 5/2]; kappa_c: attack steps at "
            "which class c was still right, mean of the epoch before",
            f"teacher sees x, eval mode; x' attacks CE(S(x'), y){dead}",
        ]


def _build(settings: FilledSettings, context: MethodContext) -> FairDistillation:
    return FairDistillation(CountingPGD(**ce_attack(settings).settings()), settings, context)


SPEC = MethodSpec(
    summary="Fair-ARD: ARD with class weights from how long a class withstands the attack (Yue et al., NeurIPS 2023)",
    build=_build,
    defaults={
        "steps": 10,
        "attack_bn": "eval",
        "clamp_start": True,
        "alpha": 1.0,
        "temperature": 30.0,
        "reduction": "mean",
        "fairness_power": 2.0,
        "clean_branch": False,
    },
    teachers=("teacher",),
    paper={
        "student": "resnet18",
        "epochs": 200,
        "milestones": (100, 150),
        "lr": 0.1,
        "weight_decay": 2e-4,
        "nesterov": True,
    },
    quirks=ARD_CODE_QUIRKS,
)
