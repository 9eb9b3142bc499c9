"""The losses by the textbook."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def kl_distill_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    scale_t2: bool = True,
) -> Tensor:
    """T^2 * KL(teacher || student) by the textbook."""
    log_p = F.log_softmax(student_logits / temperature, dim=1)
    log_q = F.log_softmax(teacher_logits / temperature, dim=1)
    rows = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim=1)
    rows = rows * (temperature**2 if scale_t2 else 1.0)
    return _reduce(rows / student_logits.shape[1] if reduction == "mean" else rows, reduction)


def ard_loss(
    student_adv_logits: Tensor,
    teacher_logits: Tensor,
    student_logits: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    alpha: float = 1.0,
    temperature: float = 30.0,
    reduction: str = "mean",
) -> Tensor:
    """alpha * T^2 * KL(teacher || student_adv) + (1 - alpha) * CE(student, labels)."""
    loss = alpha * kl_distill_loss(student_adv_logits, teacher_logits, temperature=temperature, reduction=reduction)
    if alpha == 1.0:
        return loss
    cross_entropy = F.cross_entropy(student_logits, labels, reduction="none")
    return loss + (1.0 - alpha) * _reduce(cross_entropy, reduction)


def _reduce(rows: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.mean()
