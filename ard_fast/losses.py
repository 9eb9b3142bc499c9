"""The ARD loss as a module, and the improved KL: on top of `ard_fast.functional`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ard_fast.functional._arguments import fraction, positive
from ard_fast.functional._logits import check_reduction
from ard_fast.functional.losses import ard_loss, kl_distill_loss


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


def ikl_loss(
    logits: Tensor,
    *,
    reference_logits: Tensor,
    class_weights: Tensor,
    mse_weight: float = 20.0,
    kl_weight: float = 4.0,
) -> Tensor:
    """mse_weight M + kl_weight KL(reference || logits), in place of a KL (IKL; Cui et al., NeurIPS 2024).

    M = 1/4 sum_jk w_j w_k ((z_j - z_k) - (r_j - r_k))^2 of logits z and reference r has gradients for both, the KL for
    the logits alone. With w = softmax(r), without a gradient, both weights 1 and M's gradient for the reference alone
    this is the decoupled KL, whose gradients are those of KL(reference || logits) (their theorem 1).

    The paper has a cross-entropy where this has the KL: it is larger by the entropy of the reference, which has no
    gradient there.

    Args:
        logits: z, float32 or half `[B, C]`: TRADES's student at the attacked images.
        reference_logits: r, likewise: the student at the clean images, or a teacher.
        class_weights: w, `[B, C]`, a constant; the paper takes class means, see `ard_fast.methods.ikl`.
        mse_weight: the default is the authors' for adversarial training on CIFAR-10.
        kl_weight: likewise.

    Returns:
        Scalar, the mean over the batch.

    Raises:
        RuntimeError: shapes that are not one `[B, C]`.
    """
    for name, tensor in (("reference_logits", reference_logits), ("class_weights", class_weights)):
        if tensor.shape != logits.shape:
            raise RuntimeError(f"{name} must have the shape of logits {list(logits.shape)}, got {list(tensor.shape)}")
    mse = weighted_mse(logits, reference_logits, class_weights.detach()).mean()
    kl = kl_distill_loss(logits, reference_logits.detach(), temperature=1.0, reduction="batchmean")
    return mse_weight * mse + kl_weight * kl


def weighted_mse(logits: Tensor, reference_logits: Tensor, weights: Tensor) -> Tensor:
    """M of `ikl_loss` for each row, `[B]`, with gradients for both logits.

    As the weighted variance of d = z - r, times (sum w)^2 / 2: the sum over pairs of classes needs no `[B, C, C]`.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits, reference_logits = logits.float(), reference_logits.float()
    change, total = logits - reference_logits, weights.sum(1, keepdim=True)
    centred = change - (weights * change).sum(1, keepdim=True) / total
    return 0.5 * total[:, 0] * (weights * centred.square()).sum(1)


def divisor_words(reduction: str) -> str:
    """What a reduction divides the KL by, in words."""
    return "B*C ('mean')" if reduction == "mean" else f"B ('{reduction}')"
