"""Adversarially Robust Distillation (Goldblum, Fowl, Feizi, Goldstein; AAAI 2020, arXiv 1905.09747)."""

from __future__ import annotations

from ard_fast._typing import known
from ard_fast.attacks import PGD
from ard_fast.data import Batch
from ard_fast.losses import ARDLoss
from ard_fast.methods.attack import ce_attack
from ard_fast.methods.base import Inner, Method, MethodContext, Network, Quirk, StepResult
from ard_fast.methods.quirks import KL_MEAN, RATE_STUCK, UNCLAMPED_UNIFORM
from ard_fast.methods.settings import FilledSettings
from ard_fast.methods.spec import MethodSpec
from ard_fast.teachers import Teacher


class AdversariallyRobustDistillation(Method):
    """alpha T^2 KL(T^T(x) || S^T(x')) + (1 - alpha) CE(S(x), y), with x' attacking CE(S(x'), y).

    The teacher sees the clean image; only the student is attacked, at the hard label. At alpha = 1 the clean images
    never go through the student: the official code runs that forward and backward and multiplies them by zero, which
    is dead work, except that in train mode the forward also moves the running batch-norm statistics towards those of
    the clean images once a step. `clean_branch` keeps that forward.
    """

    name = "ard"

    def __init__(self, teacher: Teacher, inner_attack: PGD, loss: ARDLoss, clean_branch: bool = False) -> None:
        self.teacher, self.inner_attack, self.outer, self.clean_branch = teacher, inner_attack, loss, clean_branch

    def clean_teachers(self) -> tuple[Teacher, ...]:
        return (self.teacher,)

    def attack(self, student: Network, batch: Batch) -> Inner:
        target = self.teacher.clean(batch)
        return Inner(self.inner_attack(student, batch.x, batch.y, seed=batch.seed, sample_ids=batch.ids), target)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits = student(known(inner.x_adv))
        clean = student(batch.x) if self.clean_branch or self.outer.alpha != 1.0 else None
        loss = self.outer(logits, teacher_logits=known(inner.target), student_logits=clean, labels=batch.y)
        return StepResult(loss, logits)

    def conventions(self) -> list[str]:
        clean = "clean forward for the CE term"
        if self.outer.alpha == 1.0:
            clean = "clean forward, weight 0 (as published)" if self.clean_branch else "no clean forward (alpha = 1)"
        attacked = "x' attacks CE(S(x'), y)"
        return [f"loss {self.outer.describe()}", f"teacher sees x, eval mode; {attacked}; {clean}"]


def _build(settings: FilledSettings, context: MethodContext) -> AdversariallyRobustDistillation:
    loss = ARDLoss(alpha=settings.alpha, temperature=settings.temperature, reduction=settings.reduction)
    return AdversariallyRobustDistillation(
        context.teachers["teacher"], ce_attack(settings), loss, settings.clean_branch
    )


ARD_CODE_QUIRKS = (
    KL_MEAN,
    RATE_STUCK,
    Quirk(
        "batch norm in train mode inside the attack: with 10 steps 12 updates of the running statistics an iteration",
        {"attack_bn": "train"},
    ),
    Quirk("clean forward although its loss has weight 0: the 12th update", {"clean_branch": True}),
    UNCLAMPED_UNIFORM,
)

SPEC = MethodSpec(
    summary="ARD: alpha T^2 KL(T(x) || S(x')) + (1 - alpha) CE(S(x), y) (Goldblum et al., AAAI 2020)",
    build=_build,
    defaults={
        "steps": 10,
        "attack_bn": "eval",
        "clamp_start": True,
        "alpha": 1.0,
        "temperature": 30.0,
        "reduction": "mean",
        "clean_branch": False,
    },
    teachers=("teacher",),
    paper={"epochs": 200, "milestones": (100, 150), "lr": 0.1, "weight_decay": 2e-4},
    quirks=ARD_CODE_QUIRKS,
)
