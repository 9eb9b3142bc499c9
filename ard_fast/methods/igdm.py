"""Indirect gradient distillation matching, IGDM (Lee, Cho, Kim; ICLR 2025, arXiv 2312.03286)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.attacks.pgd import KLPGD
from ard_fast.data.batches import Batch
from ard_fast.methods.base import Inner, Network, PGDMethod, StepResult
from ard_fast.methods.shared import UNCLAMPED_NORMAL, kl_settings, kl_words, recipe


@dataclass(eq=False, repr=False, kw_only=True)
class GradientMatching(PGDMethod):
    """T^2 KL(T(x+d) || S(x+d)) + igdm_weight (e / E) KL(T(x+d) - T(x-d) || S(x+d) - S(x-d)), d = x' - x.

    x' is AdaAD's: it attacks KL(T(x') || S(x')) through both networks. The differences of logits across the image are
    to first order 2 d times the gradient in the image, so that the second KL, at temperature 1, matches the networks'
    gradients without differentiating twice. Epoch e counts from 1; x - d is not clamped to the pixel range, as in the
    code. After the attack: two forwards of the student, both in train mode and differentiated, two of the teacher.
    """

    name = "igdm"
    summary = "IGDM: AdaAD and a KL of logit differences across the image, growing by epoch (Lee et al., ICLR 2025)"
    teachers = ("teacher",)
    attack_class, init = KLPGD, "normal"
    paper = recipe(student="resnet18")
    quirks = (UNCLAMPED_NORMAL,)

    temperature: float = 1.0
    reduction: str = "batchmean"
    igdm_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.matching_weight = torch.zeros((), device=self.context.device)
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        self.matching_weight.fill_(self.igdm_weight * (epoch + 1) / self.context.epochs)

    def attack(self, student: Network, batch: Batch) -> Inner:
        x_adv = self.perturb(student, batch, self.teacher.attacked)
        return Inner(x_adv, self.teacher(x_adv), self.teacher(opposite(batch, x_adv)))

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits, mirrored = student(known(inner.x_adv)), student(opposite(batch, known(inner.x_adv)))
        loss = F.kl_distill_loss(logits, known(inner.target), weight=inner.weight, **kl_settings(self))
        matching = F.kl_distill_loss(
            logits - mirrored,
            known(inner.target) - known(inner.clean_target),
            reduction=self.reduction,
            weight=inner.weight,
        )
        return StepResult(loss + self.matching_weight * matching, logits)

    def conventions(self) -> list[str]:
        return self._conventions(
            "",
            "x+d attacks KL(T(x+d) || S(x+d)) at temperature 1, gradient through both networks, teacher in eval mode",
        )

    def _conventions(self, weighing: str, attack: str) -> list[str]:
        return [
            f"loss {weighing}[T^2 * KL(T(x+d) || S(x+d)) + {self.igdm_weight:g} * e/E * KL(T(x+d) - T(x-d) || "
            f"S(x+d) - S(x-d)) at T=1], {kl_words(self)}",
            f"{attack}, from noise of 0.001 N(0, 1); then 2 forwards of the student and 2 of the teacher, at x+d and "
            "x-d",
        ]


def opposite(batch: Batch, x_adv: Tensor) -> Tensor:
    """x - d: the images as far on the other side."""
    return batch.x - (x_adv - batch.x)
