"""Robust soft label adversarial distillation (Zi, Zhao, Ma, Jiang; ICCV 2021, arXiv 2108.07969)."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.attacks.pgd import KLPGD
from ard_fast.data.batches import Batch
from ard_fast.methods.base import Inner, Network, PGDMethod, StepResult
from ard_fast.methods.shared import KL_MEAN, RSLAD_RECIPE, UNCLAMPED_NORMAL, kl_settings, kl_words


@dataclass(eq=False, repr=False, kw_only=True)
class RobustSoftLabelDistillation(PGDMethod):
    """T^2 [alpha KL(T(x) || S(x')) + (1 - alpha) KL(T(x) || S(x))], with x' attacking KL(T(x) || S(x')); no label.

    The teacher sees the clean image, once a step. The paper's equation 3 prints S(x) in the inner problem, which could
    not be attacked; its table 1 and its code have S(x'). The attack is at temperature 1. At alpha = 1 the clean images
    do not go through the student. The code adds 1e-5 inside the logarithm of the target, which has no gradient: left
    out.
    """

    name = "rslad"
    summary = "RSLAD: 5/6 KL(T(x) || S(x')) + 1/6 KL(T(x) || S(x)), x' attacks KL(T(x) || S(x')) (Zi et al., ICCV 2021)"
    teachers = ("teacher",)
    asked_clean = ("teacher",)
    attack_class, init = KLPGD, "normal"
    paper = RSLAD_RECIPE
    quirks = (KL_MEAN, UNCLAMPED_NORMAL)

    alpha: float = 5 / 6
    temperature: float = 1.0
    reduction: str = "mean"

    def attack(self, student: Network, batch: Batch) -> Inner:
        target = self.teacher.clean(batch)
        return Inner(self.perturb(student, batch, target), target)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits, target = student(known(inner.x_adv)), known(inner.target)
        if self.alpha == 1.0:
            return StepResult(F.kl_distill_loss(logits, target, **kl_settings(self)), logits)
        loss = F.rslad_loss(
            logits,
            student_logits=student(batch.x),
            teacher_logits=target,
            adv_weight=self.alpha,
            clean_weight=1.0 - self.alpha,
            **kl_settings(self),
        )
        return StepResult(loss, logits)

    def conventions(self) -> list[str]:
        clean = "" if self.alpha == 1.0 else f" + {1 - self.alpha:.4g} * KL(T(x) || S(x))"
        return [
            f"loss T^2 * [{self.alpha:.4g} * KL(T(x) || S(x')){clean}], {kl_words(self)}",
            "teacher sees x, eval mode; x' attacks KL(T(x) || S(x')) at temperature 1 from noise of 0.001 N(0, 1); "
            f"student forwards: x'{'' if self.alpha == 1.0 else ', x'}",
        ]
