"""Losses as modules: thin wrappers of `ard_fast.functional`."""

from __future__ import annotations

from torch import Tensor, nn

from ard_fast.functional._arguments import fraction, positive
from ard_fast.functional._logits import check_reduction
from ard_fast.functional.losses import ard_loss


class ARDLoss(nn.Module):
    """alpha T^2 KL(teacher^T || student_adv^T) + (1 - alpha) CE(student, labels).

    Args:
        alpha: weight of the distillation term, 0 to 1.
        temperature: T, of teacher and student in the distillation term; the CE term is at temperature 1.
        reduction: of the KL; "mean" divides by B * C (`nn.KLDivLoss()`, the ARD code), "batchmean" by B. The CE term is
            averaged over B.
    """

    def __init__(self, alpha: float = 1.0, temperature: float = 30.0, reduction: str = "mean") -> None:
        super().__init__()
        self.alpha, self.temperature = fraction(alpha, "alpha"), positive(temperature, "temperature")
        check_reduction(reduction)
        self.reduction = reduction

    def forward(
        self,
        student_adv_logits: Tensor,
        *,
        teacher_logits: Tensor,
        student_logits: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """The scalar loss; all logits `[B, C]`, labels `[B]`. At alpha = 1 the last two are not needed."""
        return ard_loss(
            student_adv_logits,
            teacher_logits=teacher_logits,
            student_logits=student_logits,
            labels=labels,
            alpha=self.alpha,
            temperature=self.temperature,
            reduction=self.reduction,
        )

    def describe(self, distilled: str = "S(x')") -> str:
        """The loss in words, with every convention named."""
        divisor = divisor_words(self.reduction)
        text = f"{self.alpha:g} * T^2 * KL(T(x) || {distilled}), T={self.temperature:g}, KL divided by {divisor}"
        return text if self.alpha == 1.0 else f"{text} + {1 - self.alpha:g} * CE(S(x), y)"


def divisor_words(reduction: str) -> str:
    """What a reduction divides the KL by, in words."""
    return "B*C ('mean')" if reduction == "mean" else f"B ('{reduction}')"
