"""Distillation on clean images only (Hinton et al. 2015): the baseline that transfers little robustness."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.data.batches import Batch
from ard_fast.methods.base import Inner, Method, Network, StepResult
from ard_fast.methods.shared import ard_words, kl_settings, recipe, smoothed


@dataclass(eq=False, repr=False, kw_only=True)
class CleanDistillation(Method):
    """alpha T^2 KL(T^T(x) || S^T(x)) + (1 - alpha) CE(S(x), y): no attack, one forward of each network."""

    name = "kd"
    summary = "clean distillation: alpha T^2 KL(T(x) || S(x)) + (1 - alpha) CE(S(x), y) (Hinton et al. 2015)"
    teachers = ("teacher",)
    asked_clean = ("teacher",)
    paper = recipe()

    alpha: float = 1.0
    temperature: float = 30.0
    reduction: str = "mean"
    label_smoothing: float = 0.0

    def attack(self, student: Network, batch: Batch) -> Inner:
        return Inner(target=self.teacher.clean(batch))

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits, target = student(batch.x), known(inner.target)
        how = kl_settings(self)
        loss = F.ard_loss(logits, teacher_logits=target, student_logits=logits, labels=batch.y, alpha=self.alpha, **how)
        return StepResult(smoothed(loss, self, logits, batch.y, 1.0 - self.alpha), logits)

    def conventions(self) -> list[str]:
        return [ard_words(self, "S(x)"), "teacher sees x, eval mode; no attack"]
