"""Adversarially Robust Distillation (Goldblum, Fowl, Feizi, Goldstein; AAAI 2020, arXiv 1905.09747)."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.data.batches import Batch
from ard_fast.methods.base import AttackingMethod, Inner, Network, PGDMethod, StepResult
from ard_fast.methods.shared import ARD_CODE_QUIRKS, ard_words, kl_settings, recipe, smoothed


@dataclass(eq=False, repr=False, kw_only=True)
class ARDMethod(AttackingMethod):
    """ARD's objective with any attack on the label: alpha T^2 KL(T^T(x) || S^T(x')) + (1 - alpha) CE(S(x), y).

    The teacher sees the clean image; only the student is attacked. At alpha = 1 the clean images never go through the
    student: the official code runs that forward and backward and multiplies them by zero, which is dead work, except
    that in train mode the forward also moves the running batch-norm statistics towards those of the clean images once a
    step. `clean_branch` keeps that forward.
    """

    teachers = ("teacher",)
    asked_clean = ("teacher",)
    paper = recipe()

    alpha: float = 1.0
    temperature: float = 30.0
    reduction: str = "mean"
    clean_branch: bool = False
    label_smoothing: float = 0.0

    def attack(self, student: Network, batch: Batch) -> Inner:
        target = self.teacher.clean(batch)
        return Inner(self.perturb(student, batch, batch.y), target)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits = student(known(inner.x_adv))
        clean = student(batch.x) if self.clean_branch or self.alpha != 1.0 else None
        loss = F.ard_loss(
            logits,
            teacher_logits=known(inner.target),
            student_logits=clean,
            labels=batch.y,
            alpha=self.alpha,
            weight=inner.weight,
            **kl_settings(self),
        )
        return StepResult(smoothed(loss, self, clean, batch.y, 1.0 - self.alpha, inner.weight), logits)

    def conventions(self) -> list[str]:
        clean = "clean forward for the CE term"
        if self.alpha == 1.0:
            clean = "clean forward, weight 0 (as published)" if self.clean_branch else "no clean forward (alpha = 1)"
        return [ard_words(self), f"teacher sees x, eval mode; x' attacks CE(S(x'), y); {clean}"]


@dataclass(eq=False, repr=False, kw_only=True)
class AdversariallyRobustDistillation(ARDMethod, PGDMethod):
    """ARD as published: its objective, x' by PGD."""

    name = "ard"
    summary = "ARD: alpha T^2 KL(T(x) || S(x')) + (1 - alpha) CE(S(x), y) (Goldblum et al., AAAI 2020)"
    quirks = ARD_CODE_QUIRKS
