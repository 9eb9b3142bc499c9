"""Losses of adversarially trained and distilled students that read several rows of logits per sample."""

from __future__ import annotations

import torch
import torch.nn.functional as tf
from torch import Tensor

from ard_fast._arguments import nonnegative, one_of, positive

_REDUCTIONS = ("none", "sum", "batchmean", "mean")
_CERTAIN = 1.0001  # MART's bound: the margin term stays below log(1e4)


def trades_loss(
    adv_logits: Tensor,
    clean_logits: Tensor,
    labels: Tensor,
    *,
    beta: float = 6.0,
    reduction: str = "batchmean",
    weight: Tensor | None = None,
) -> Tensor:
    """CE(clean, y) + beta KL(clean || adv) (Zhang et al., ICML 2019, equation 5), gradients through both.

    Args:
        adv_logits: `[B, C]`, float32, float16 or bfloat16, of the adversarial images.
        clean_logits: `[B, C]`, of the clean images; the KL's reference distribution, not detached.
        labels: int64 `[B]`.
        beta: weight of the KL, at least 0.
        reduction: "none" `[B]`, "sum", "batchmean" (divided by B, as published) or "mean" (the KL divided by B * C).
        weight: float32 `[B]`, factor of each sample's loss; without a gradient.

    Returns:
        The loss in float32, a scalar or `[B]`.

    Raises:
        ValueError: beta or reduction is out of range.
    """
    beta = nonnegative(beta, "beta")
    cross_entropy = tf.cross_entropy(clean_logits.float(), labels, reduction="none")
    return _reduced(cross_entropy, beta * _kl(adv_logits, clean_logits), weight, reduction, adv_logits.shape[1])


def mart_loss(
    adv_logits: Tensor,
    clean_logits: Tensor,
    labels: Tensor,
    *,
    beta: float = 5.0,
    reduction: str = "batchmean",
    weight: Tensor | None = None,
) -> Tensor:
    """BCE(adv, y) + beta KL(clean || adv) (1 - p_y(clean)) (Wang et al., ICLR 2020, equation 10).

    BCE = CE(adv, y) - log(1.0001 - max_{j != y} p_j(adv)), the constant as in the authors' code. Gradients flow
    through both rows of logits, the factor 1 - p_y included.

    Args:
        adv_logits: `[B, C]`, float32, float16 or bfloat16, of the adversarial images.
        clean_logits: `[B, C]`, of the clean images.
        labels: int64 `[B]`.
        beta: weight of the KL, at least 0.
        reduction: as for `trades_loss`.
        weight: float32 `[B]`, factor of each sample's loss; without a gradient.

    Returns:
        The loss in float32, a scalar or `[B]`.

    Raises:
        ValueError: beta or reduction is out of range.
    """
    beta = nonnegative(beta, "beta")
    adv, column = adv_logits.float(), labels[:, None]
    others = torch.softmax(adv, 1).scatter(1, column, -1.0).amax(1)
    boosted = tf.cross_entropy(adv, labels, reduction="none") - torch.log(_CERTAIN - others)
    doubt = 1.0 - torch.softmax(clean_logits.float(), 1).gather(1, column)[:, 0]
    return _reduced(boosted, beta * _kl(adv_logits, clean_logits) * doubt, weight, reduction, adv_logits.shape[1])


def rslad_loss(
    student_adv_logits: Tensor,
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    adv_weight: float = 5 / 6,
    clean_weight: float = 1 / 6,
    temperature: float = 1.0,
    reduction: str = "mean",
    weight: Tensor | None = None,
    teacher_temperature: float | Tensor | None = None,
    clean_teacher_temperature: float | Tensor | None = None,
) -> Tensor:
    """T^2 (adv_weight KL(teacher || student_adv) + clean_weight KL(teacher || student)) (Zi et al., ICCV 2021).

    Args:
        student_adv_logits: `[B, C]`, float32, float16 or bfloat16, of the adversarial images.
        student_logits: `[B, C]`, of the clean images.
        teacher_logits: `[B, C]`, of the clean images.
        adv_weight: weight of the first term.
        clean_weight: weight of the second term.
        temperature: T, of the student, and of the teacher unless it has its own.
        reduction: "none" `[B]`, "sum", "batchmean" (divided by B) or "mean" (divided by B * C, as published).
        weight: float32 `[B]`, factor of each sample's loss; without a gradient.
        teacher_temperature: of the teacher in the first term: a number or float32 `[B]` (ABSLD).
        clean_teacher_temperature: of the teacher in the second term; None takes `teacher_temperature`.

    Returns:
        The loss in float32, a scalar or `[B]`.

    Raises:
        ValueError: a temperature or the reduction is out of range.
    """
    temperature = positive(temperature, "temperature")
    if clean_teacher_temperature is None:
        clean_teacher_temperature = teacher_temperature
    adv = _kl(student_adv_logits, teacher_logits, temperature, teacher_temperature)
    clean = _kl(student_logits, teacher_logits, temperature, clean_teacher_temperature)
    both = temperature**2 * (adv_weight * adv + clean_weight * clean)
    return _reduced(torch.zeros_like(both), both, weight, reduction, student_logits.shape[1])


def _kl(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, teacher_temperature: float | Tensor | None = None
) -> Tensor:
    if teacher_temperature is None:
        teacher_temperature = temperature
    if isinstance(teacher_temperature, Tensor):
        teacher_temperature = teacher_temperature[:, None]
    log_p = tf.log_softmax(student.float() / temperature, 1)
    log_q = tf.log_softmax(teacher.float() / teacher_temperature, 1)
    return tf.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1)


def _reduced(label_rows: Tensor, kl_rows: Tensor, weight: Tensor | None, reduction: str, classes: int) -> Tensor:
    """The rows' sum or mean; under "mean" the KL is divided by the classes too."""
    one_of(reduction, "reduction", _REDUCTIONS)
    rows = label_rows + (kl_rows / classes if reduction == "mean" else kl_rows)
    if weight is not None:
        rows = rows * weight
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.mean()
