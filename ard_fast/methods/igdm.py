"""Indirect gradient distillation matching, IGDM (Lee, Cho, Kim; ICLR 2025, arXiv 2312.03286)."""

from __future__ import annotations

import torch
from torch import Tensor

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.attacks import KLPGD
from ard_fast.data import Batch
from ard_fast.methods.attack import kl_attack
from ard_fast.methods.base import Inner, Method, MethodContext, Network, StepResult
from ard_fast.methods.quirks import UNCLAMPED_NORMAL
from ard_fast.methods.settings import FilledSettings
from ard_fast.methods.spec import MethodSpec
from ard_fast.methods.words import kl_words
from ard_fast.teachers import Teacher


class GradientMatching(Method):
    """T^2 KL(T(x+d) || S(x+d)) + igdm_weight (e / E) KL(T(x+d) - T(x-d) || S(x+d) - S(x-d)), d = x' - x.

    x' is AdaAD's: it attacks KL(T(x') || S(x')) through both networks. The differences of logits across the image are
    to first order 2 d times the gradient in the image, so that the second KL, at temperature 1, matches the networks'
    gradients without differentiating twice. Epoch e counts from 1; x - d is not clamped to the pixel range, as in the
    code. After the attack: two forwards of the student, both in train mode and differentiated, two of the teacher.
    """

    name = "igdm"

    def __init__(self, teacher: Teacher, inner_attack: KLPGD, settings: FilledSettings, context: MethodContext) -> None:
        self.teacher, self.inner_attack, self.epochs = teacher, inner_attack, context.epochs
        self.temperature, self.reduction = settings.temperature, settings.reduction
        self.last_weight = settings.igdm_weight
        self.matching_weight = torch.zeros((), device=context.device)
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        self.matching_weight.fill_(self.last_weight * (epoch + 1) / self.epochs)

    def attack(self, student: Network, batch: Batch) -> Inner:
        x_adv = self.inner_attack(student, batch.x, self.teacher.attacked, seed=batch.seed, sample_ids=batch.ids)
        return Inner(x_adv, self.teacher(x_adv), self.teacher(opposite(batch, x_adv)))

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits, mirrored = student(known(inner.x_adv)), student(opposite(batch, known(inner.x_adv)))
        loss = F.kl_distill_loss(
            logits, known(inner.target), temperature=self.temperature, reduction=self.reduction, weight=inner.weight
        )
        matching = F.kl_distill_loss(
            logits - mirrored,
            known(inner.target) - known(inner.clean_target),
            reduction=self.reduction,
            weight=inner.weight,
        )
        return StepResult(loss + self.matching_weight * matching, logits)

    def conventions(self) -> list[str]:
        return [
            f"loss {self._weighing()}[T^2 * KL(T(x+d) || S(x+d)) + {self.last_weight:g} * e/E * KL(T(x+d) - T(x-d) || "
            f"S(x+d) - S(x-d)) at T=1], {kl_words(self)}",
            f"{self._attack_words()}, from noise of 0.001 N(0, 1); then 2 forwards of the student and 2 of the "
            "teacher, at x+d and x-d",
        ]

    def _weighing(self) -> str:
        return ""

    def _attack_words(self) -> str:
        return "x+d attacks KL(T(x+d) || S(x+d)) at temperature 1, gradient through both networks, teacher in eval mode"


def opposite(batch: Batch, x_adv: Tensor) -> Tensor:
    """x - d: the images as far on the other side."""
    return batch.x - (x_adv - batch.x)


def _build(settings: FilledSettings, context: MethodContext) -> GradientMatching:
    return GradientMatching(context.teachers["teacher"], kl_attack(settings), settings, context)


SPEC = MethodSpec(
    summary="IGDM: AdaAD and a KL of logit differences across the image, growing by epoch (Lee et al., ICLR 2025)",
    build=_build,
    defaults={
        "steps": 10,
        "attack_bn": "eval",
        "clamp_start": True,
        "temperature": 1.0,
        "reduction": "batchmean",
        "igdm_weight": 1.0,
    },
    teachers=("teacher",),
    paper={"student": "resnet18", "epochs": 200, "milestones": (100, 150), "lr": 0.1, "weight_decay": 2e-4},
    quirks=(UNCLAMPED_NORMAL,),
)
