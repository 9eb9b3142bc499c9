"""The distillation losses: fused, with their gradients from the same pass over the logits."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as tf
from torch import Tensor

from ard_fast import _ops
from ard_fast._arguments import positive
from ard_fast._autograd import KdLoss
from ard_fast.functional._logits import common_logits
from ard_fast.functional.pair_losses import _kl, _reduced

_REDUCTIONS = ("none", "sum", "batchmean", "mean")


def kl_distill_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    scale_t2: bool = True,
    weight: Tensor | None = None,
    teacher_temperature: float | Tensor | None = None,
) -> Tensor:
    """Distillation loss T^2 * KL(softmax(teacher / T) || softmax(student / T)) (Hinton et al. 2015), fused.

    Loss and gradient come from one pass over the logits, in float32 arithmetic whatever the dtype of the logits, and
    are accurate where `F.kl_div` is not: at high temperature and for a student close to its teacher.

    Args:
        student_logits: `[B, C]`, float32, float16 or bfloat16. The gradient flows here, in the same dtype.
        teacher_logits: `[B, C]`, the reference distribution; where it requires grad its gradient flows too.
        temperature: T, above 0.
        reduction: "none" `[B]`, "sum", "batchmean" (divided by B: the KL of the mean sample) or "mean" (divided by
            B * C: what `nn.KLDivLoss()` and the ARD code do).
        scale_t2: multiply by T^2, so that the gradient's size does not depend on T.
        weight: float32 `[B]`, factor of each sample's loss; without a gradient.
        teacher_temperature: of the teacher, a number or float32 `[B]`; None takes `temperature`.

    Returns:
        The loss in float32, a scalar or `[B]`.

    Raises:
        ValueError: temperature or reduction is out of range, or the batch is empty and has no mean.
        TypeError: logits of another dtype.
        RuntimeError: shapes or devices do not fit; the message names the argument.
    """
    temperature = positive(temperature, "temperature")
    factor = temperature * temperature if scale_t2 else 1.0
    live = teacher_logits.requires_grad and torch.is_grad_enabled()
    if live or weight is not None or teacher_temperature is not None:
        rows = factor * _kl(student_logits, teacher_logits, temperature, teacher_temperature)
        return _reduced(torch.zeros_like(rows), rows, weight, reduction, student_logits.shape[1])
    return _kd_loss(student_logits, teacher_logits, None, None, temperature, factor, 0.0, reduction)


def ard_loss(
    student_adv_logits: Tensor,
    teacher_logits: Tensor,
    student_logits: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    alpha: float = 1.0,
    temperature: float = 30.0,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """The ARD loss (Goldblum et al., AAAI 2020, equation of section "Adversarially Robust Distillation"), fused.

    alpha * T^2 * KL(teacher^T(x) || student^T(x')) + (1 - alpha) * CE(student(x), labels), with the cross-entropy at
    temperature 1 as in the authors' code.

    Args:
        student_adv_logits: `[B, C]`, the student on the adversarial images x'.
        teacher_logits: `[B, C]`, the teacher on the clean images x; must not require grad.
        student_logits: `[B, C]`, the student on the clean images; not needed, and not used, at alpha = 1.
        labels: int64 `[B]` in [0, C); likewise. On CUDA a label out of range makes its row NaN (no wait for the GPU).
        alpha: weight of the distillation term, 0 to 1.
        temperature: T, above 0.
        reduction: "none" `[B]`, "sum", "batchmean" (divided by B) or "mean" (the KL divided by B * C, as the authors'
            `nn.KLDivLoss()` does; the cross-entropy by B).
        weight: float32 `[B]`, factor of each sample's loss; without a gradient.

    Returns:
        The loss in float32, a scalar or `[B]`.

    Raises:
        ValueError: a number or a name is out of range, student_logits or labels are missing for alpha < 1, the batch is
            empty and has no mean, or `teacher_logits` requires grad.
        TypeError: logits of another dtype.
        RuntimeError: shapes, dtypes or devices do not fit, or (CPU) a label is out of range.
    """
    temperature = positive(temperature, "temperature")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    if alpha == 1.0:
        student_logits = labels = None
    elif student_logits is None or labels is None:
        missing = "student_logits" if student_logits is None else "labels"
        raise ValueError(f"{missing} must be given when alpha < 1 (got alpha = {alpha}): the cross-entropy needs it")
    if weight is not None:
        rows = ard_loss(
            student_adv_logits, teacher_logits, student_logits, labels, alpha=alpha, temperature=temperature,
            reduction="none",
        )  # fmt: skip
        classes = student_adv_logits.shape[1]
        if reduction == "mean" and alpha != 1.0:
            label_rows = (1.0 - alpha) * tf.cross_entropy(student_logits.float(), labels, reduction="none")
            return _reduced(label_rows, rows - label_rows, weight, reduction, classes)
        return _reduced(torch.zeros_like(rows), rows, weight, reduction, classes)
    factor = alpha * temperature * temperature
    return _kd_loss(
        student_adv_logits, teacher_logits, student_logits, labels, temperature, factor, 1.0 - alpha, reduction
    )


def _kd_loss(
    student: Tensor,
    teacher: Tensor,
    clean: Tensor | None,
    labels: Tensor | None,
    temperature: float,
    kl_weight: float,
    ce_weight: float,
    reduction: str,
) -> Tensor:
    """Sum of kl_weight * KL and ce_weight * CE under `reduction`."""
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, _REDUCTIONS))}, got {reduction!r}")
    if teacher.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "teacher_logits must not require grad: only the student gets a gradient; "
            "run the teacher under torch.no_grad() or pass teacher_logits.detach()"
        )
    named = {"student_logits": student, "teacher_logits": teacher.detach(), "student_logits (clean)": clean}
    student, teacher, clean = common_logits(named)
    if reduction in ("batchmean", "mean"):
        batch = student.shape[0]
        if batch == 0:
            raise ValueError(f"student_logits must have at least one row for reduction={reduction!r}, got none")
        kl_weight = kl_weight / (batch * student.shape[1] if reduction == "mean" else batch)
        ce_weight = ce_weight / batch
    reduce = reduction != "none"
    needs_grad = torch.is_grad_enabled() and (student.requires_grad or (clean is not None and clean.requires_grad))
    if not needs_grad:
        return _ops.kd_loss(
            student, teacher, clean, labels, temperature, kl_weight, ce_weight, 0.0, 0.0, reduce, False, False
        )[0]
    # float16 holds the gradients of a mean over many classes badly: they leave the kernel as (p - q) * 2^k, with
    # |p - q| around 1 / C brought near 1, and get their size where a loss scale, if any, is multiplied in.
    lift = 2.0 ** min(15, int(math.log2(student.shape[1]))) if student.dtype == torch.float16 else None
    kl_grad = kl_weight if lift is None else lift * temperature
    ce_grad = ce_weight if lift is None else lift
    kl_factor = 1.0 if lift is None else kl_weight / kl_grad
    ce_factor = 1.0 if lift is None else ce_weight / ce_grad
    settings = (temperature, kl_weight, ce_weight, kl_grad, ce_grad, reduce, kl_factor, ce_factor)
    return KdLoss.apply(student, teacher, clean, labels, settings)[0]
