"""Robust soft label adversarial distillation (Zi, Zhao, Ma, Jiang; ICCV 2021, arXiv 2108.07969)."""

from __future__ import annotations

from typing import Any

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.attacks import KLPGD
from ard_fast.data import Batch
from ard_fast.methods.attack import kl_attack
from ard_fast.methods.base import Inner, Method, MethodContext, Network, StepResult
from ard_fast.methods.quirks import KL_MEAN, UNCLAMPED_NORMAL
from ard_fast.methods.settings import FilledSettings
from ard_fast.methods.spec import MethodSpec
from ard_fast.methods.words import kl_words
from ard_fast.teachers import Teacher


class RobustSoftLabelDistillation(Method):
    """T^2 [alpha KL(T(x) || S(x')) + (1 - alpha) KL(T(x) || S(x))], with x' attacking KL(T(x) || S(x')); no label.

    The teacher sees the clean image, once a step. The paper's equation 3 prints S(x) in the inner problem, which could
    not be attacked; its table 1 and its code have S(x'). The attack is at temperature 1. At alpha = 1 the clean images
    do not go through the student. The code adds 1e-5 inside the logarithm of the target, which has no gradient: left
    out.
    """

    name = "rslad"

    def __init__(
        self, teacher: Teacher, inner_attack: KLPGD, *, alpha: float, temperature: float, reduction: str
    ) -> None:
        self.teacher, self.inner_attack = teacher, inner_attack
        self.alpha, self.temperature, self.reduction = alpha, temperature, reduction

    def clean_teachers(self) -> tuple[Teacher, ...]:
        return (self.teacher,)

    def attack(self, student: Network, batch: Batch) -> Inner:
        target = self.teacher.clean(batch)
        return Inner(self.inner_attack(student, batch.x, target, seed=batch.seed, sample_ids=batch.ids), target)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits = student(known(inner.x_adv))
        how: dict[str, Any] = {"temperature": self.temperature, "reduction": self.reduction}
        if self.alpha == 1.0:
            return StepResult(F.kl_distill_loss(logits, known(inner.target), **how), logits)
        weights = {"adv_weight": self.alpha, "clean_weight": 1.0 - self.alpha}
        target = known(inner.target)
        loss = F.rslad_loss(logits, student_logits=student(batch.x), teacher_logits=target, **weights, **how)
        return StepResult(loss, logits)

    def conventions(self) -> list[str]:
        clean = "" if self.alpha == 1.0 else f" + {1 - self.alpha:.4g} * KL(T(x) || S(x))"
        return [
            f"loss T^2 * [{self.alpha:.4g} * KL(T(x) || S(x')){clean}], {kl_words(self)}",
            "teacher sees x, eval mode; x' attacks KL(T(x) || S(x')) at temperature 1 from noise of 0.001 N(0, 1); "
            f"student forwards: x'{'' if self.alpha == 1.0 else ', x'}",
        ]


def _build(settings: FilledSettings, context: MethodContext) -> RobustSoftLabelDistillation:
    return RobustSoftLabelDistillation(
        context.teachers["teacher"],
        kl_attack(settings),
        alpha=settings.alpha,
        temperature=settings.temperature,
        reduction=settings.reduction,
    )


SPEC = MethodSpec(
    summary="RSLAD: 5/6 KL(T(x) || S(x')) + 1/6 KL(T(x) || S(x)), x' attacks KL(T(x) || S(x')) (Zi et al., ICCV 2021)",
    build=_build,
    defaults={
        "steps": 10,
        "attack_bn": "eval",
        "clamp_start": True,
        "alpha": 5 / 6,
        "temperature": 1.0,
        "reduction": "mean",
    },
    teachers=("teacher",),
    paper={
        "student": "resnet18",
        "epochs": 300,
        "milestones": (215, 260, 285),
        "lr": 0.1,
        "weight_decay": 2e-4,
    },
    quirks=(KL_MEAN, UNCLAMPED_NORMAL),
)
