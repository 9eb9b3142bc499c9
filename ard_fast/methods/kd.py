"""Distillation on clean images only (Hinton et al. 2015): the baseline that transfers little robustness."""

from __future__ import annotations

from ard_fast._typing import known
from ard_fast.data import Batch
from ard_fast.losses import ARDLoss
from ard_fast.methods.base import Inner, Method, MethodContext, Network, StepResult
from ard_fast.methods.settings import FilledSettings
from ard_fast.methods.spec import MethodSpec
from ard_fast.teachers import Teacher


class CleanDistillation(Method):
    """alpha T^2 KL(T^T(x) || S^T(x)) + (1 - alpha) CE(S(x), y): no attack, one forward of each network."""

    name = "kd"

    def __init__(self, teacher: Teacher, loss: ARDLoss) -> None:
        self.teacher, self.outer = teacher, loss

    def clean_teachers(self) -> tuple[Teacher, ...]:
        return (self.teacher,)

    def attack(self, student: Network, batch: Batch) -> Inner:
        return Inner(target=self.teacher.clean(batch))

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits = student(batch.x)
        loss = self.outer(logits, teacher_logits=known(inner.target), student_logits=logits, labels=batch.y)
        return StepResult(loss, logits)

    def conventions(self) -> list[str]:
        return [f"loss {self.outer.describe(distilled='S(x)')}", "teacher sees x, eval mode; no attack"]


def _build(settings: FilledSettings, context: MethodContext) -> CleanDistillation:
    loss = ARDLoss(alpha=settings.alpha, temperature=settings.temperature, reduction=settings.reduction)
    return CleanDistillation(context.teachers["teacher"], loss)


SPEC = MethodSpec(
    summary="clean distillation: alpha T^2 KL(T(x) || S(x)) + (1 - alpha) CE(S(x), y) (Hinton et al. 2015)",
    build=_build,
    defaults={"alpha": 1.0, "temperature": 30.0, "reduction": "mean"},
    teachers=("teacher",),
    attacks=False,
    paper={"epochs": 200, "milestones": (100, 150), "lr": 0.1, "weight_decay": 2e-4},
)
