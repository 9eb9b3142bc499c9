"""The losses of distillation and of a network's own clean logits: fused, with their gradients from the same pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ard_fast.functional import _ops
from ard_fast.functional._arguments import Array, flag, fraction, nonnegative, positive, positive_or_per_sample, tensor
from ard_fast.functional._autograd import KdLoss, PairLoss, apply, may_be_transformed
from ard_fast.functional._logits import check_reduction, common_logits, divisors, float16_lift, sample_weight


def kl_distill_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    scale_t2: bool = True,
    weight: Array | None = None,
    teacher_temperature: float | Array | None = None,
) -> Tensor:
    """Distillation loss T^2 * KL(softmax(teacher / T) || softmax(student / T)) (Hinton et al. 2015), fused.

    Loss and gradients come from one pass over the logits, in float32 arithmetic whatever the dtype of the logits, and
    are accurate where `F.kl_div` is not: at high temperature and for a student close to its teacher.
    NaN, infinite and huge logits: see "Special values" in `ard_fast.functional`.

    Args:
        student_logits: `[B, C]`, float32, float16 or bfloat16. The gradient flows here, in the same dtype.
        teacher_logits: `[B, C]`. The teacher is the reference distribution. If they require grad, they get theirs (a
            student that teaches itself, or a teacher trained jointly).
        temperature: T, above 0.
        reduction: "none" `[B]`, "sum", "batchmean" (divided by B: the KL of the mean sample) or "mean" (divided by
            B * C: what `nn.KLDivLoss()` and the ARD code do).
        scale_t2: multiply by T^2, so that the gradient's size does not depend on T.
        weight: `[B]`, a constant factor of each sample; the divisors stay as they are.
        teacher_temperature: the teacher's own, above 0: a number, or `[B]` for each sample; None for T. T^2 is the
            student's. On CUDA a sample's temperature that is not positive makes its row NaN (no wait for the GPU).

    Returns:
        The loss in float32, a scalar or `[B]`.

    Raises:
        ValueError: a temperature or reduction is out of range, the batch is empty and has no mean, or weight requires
            grad.
        TypeError: logits of another dtype, or an argument of another type.
        RuntimeError: shapes or devices do not fit; the message names the argument.
    """
    temperature = positive(temperature, "temperature")
    return _kd_loss(
        student_logits,
        teacher_logits,
        names=("student_logits", ""),
        frozen_teacher=False,
        temperature=temperature,
        kl_weight=temperature * temperature if flag(scale_t2, "scale_t2") else 1.0,
        reduction=reduction,
        weight=weight,
        teacher_temperature=teacher_temperature,
    )


def ard_loss(
    student_adv_logits: Array,
    *,
    teacher_logits: Array,
    student_logits: Array | None = None,
    labels: Array | None = None,
    alpha: float = 1.0,
    temperature: float = 30.0,
    reduction: str = "mean",
    weight: Array | None = None,
) -> Tensor:
    """The ARD loss (Goldblum et al., AAAI 2020, equation of section "Adversarially Robust Distillation"), fused.

    alpha * T^2 * KL(teacher^T(x) || student^T(x')) + (1 - alpha) * CE(student(x), labels), with the cross-entropy at
    temperature 1 as in the authors' code. NaN, infinite and huge logits: see "Special values" in `ard_fast.functional`.

    Args:
        student_adv_logits: `[B, C]`, the student on the adversarial images x'.
        teacher_logits: `[B, C]`, the teacher on the clean images x; must not require grad.
        student_logits: `[B, C]`, the student on the clean images; not needed, and not used, at alpha = 1.
        labels: int64 `[B]` in [0, C); likewise. On CUDA a label out of range makes its row NaN (no wait for the GPU).
        alpha: weight of the distillation term, 0 to 1.
        temperature: T, above 0.
        reduction: "none" `[B]`, "sum", "batchmean" (divided by B) or "mean" (the KL divided by B * C, as the authors'
            `nn.KLDivLoss()` does; the cross-entropy by B).
        weight: `[B]`, a constant factor of both terms of each sample; the divisors stay as they are.

    Returns:
        The loss in float32, a scalar or `[B]`.

    Raises:
        ValueError: a number or a name is out of range, student_logits or labels are missing for alpha < 1, the batch is
            empty and has no mean, or teacher_logits or weight require grad.
        TypeError: logits of another dtype.
        RuntimeError: shapes, dtypes or devices do not fit, or (CPU) a label is out of range.
    """
    temperature = positive(temperature, "temperature")
    alpha = fraction(alpha, "alpha")
    if alpha == 1.0:
        student_logits = labels = None
    elif student_logits is None or labels is None:
        missing = "student_logits" if student_logits is None else "labels"
        raise ValueError(f"{missing} must be given when alpha < 1 (got alpha = {alpha}): the cross-entropy needs it")
    return _kd_loss(
        student_adv_logits,
        teacher_logits,
        student_logits,
        labels,
        temperature=temperature,
        kl_weight=alpha * temperature * temperature,
        clean_weight=1.0 - alpha,
        reduction=reduction,
        weight=weight,
    )


def rslad_loss(
    student_adv_logits: Array,
    *,
    student_logits: Array,
    teacher_logits: Array,
    adv_weight: float = 5 / 6,
    clean_weight: float = 1 / 6,
    temperature: float = 1.0,
    reduction: str = "mean",
    weight: Array | None = None,
    teacher_temperature: float | Array | None = None,
    clean_teacher_temperature: float | Array | None = None,
) -> Tensor:
    """The RSLAD loss (Zi et al., ICCV 2021): soft labels of the teacher on clean images, for both images; fused.

    T^2 * (adv_weight * KL(teacher(x) || student(x')) + clean_weight * KL(teacher(x) || student(x))). The defaults are
    those of the authors' code, and the two teacher temperatures those of ABSLD (Zhao et al. 2024).
    NaN, infinite and huge logits: see "Special values" in `ard_fast.functional`.

    Args:
        student_adv_logits: `[B, C]`, the student on the adversarial images x'; float32, float16 or bfloat16.
        student_logits: `[B, C]`, the student on the clean images x.
        teacher_logits: `[B, C]`, the teacher on the clean images; must not require grad. Read once.
        adv_weight: of the first term, at least 0.
        clean_weight: of the second term, at least 0.
        temperature: T, of the student in both terms, above 0.
        reduction: "none" `[B]`, "sum", "batchmean" (divided by B) or "mean" (by B * C, as the authors' code).
        weight: `[B]`, a constant factor of both terms of each sample; the divisors stay as they are.
        teacher_temperature: the teacher's in the first term, above 0: a number, or `[B]` for each sample; None for T.
            On CUDA a sample's temperature that is not positive makes its row NaN (no wait for the GPU).
        clean_teacher_temperature: the same for the second term; None for that of the first.

    Returns:
        The loss in float32, a scalar or `[B]`.

    Raises:
        ValueError: a number or a name is out of range, the batch is empty and has no mean, or teacher_logits or weight
            require grad.
        TypeError: logits of another dtype, or an argument of another type.
        RuntimeError: shapes or devices do not fit; the message names the argument.
    """
    temperature = positive(temperature, "temperature")
    scale = temperature * temperature
    if clean_teacher_temperature is None:
        clean_teacher_temperature = teacher_temperature
    return _kd_loss(
        student_adv_logits,
        teacher_logits,
        tensor(student_logits, "student_logits"),
        temperature=temperature,
        kl_weight=scale * nonnegative(adv_weight, "adv_weight"),
        clean_weight=scale * nonnegative(clean_weight, "clean_weight"),
        reduction=reduction,
        weight=weight,
        teacher_temperature=teacher_temperature,
        clean_teacher_temperature=clean_teacher_temperature,
    )


def trades_loss(
    adv_logits: Array,
    *,
    clean_logits: Array,
    labels: Array,
    beta: float = 6.0,
    reduction: str = "batchmean",
    weight: Array | None = None,
) -> Tensor:
    """The TRADES loss (Zhang et al., ICML 2019, equation 5), fused; the gradient flows through both logits.

    CE(clean, labels) + beta * KL(softmax(clean) || softmax(adv)). Neither side is detached, as in the authors' code.
    NaN, infinite and huge logits: see "Special values" in `ard_fast.functional`.

    Args:
        adv_logits: `[B, C]`, on the adversarial images; float32, float16 or bfloat16.
        clean_logits: `[B, C]`, on the clean images.
        labels: int64 `[B]` in [0, C). On CUDA a label out of range makes its row NaN (no wait for the GPU).
        beta: weight of the KL, at least 0 (1 / lambda in the paper).
        reduction: "none" `[B]`, "sum", "batchmean" (divided by B) or "mean" (the KL divided by B * C, the
            cross-entropy by B).
        weight: `[B]`, a constant factor of both terms of each sample; the divisors stay as they are.

    Returns:
        The loss in float32, a scalar or `[B]`.

    Raises:
        ValueError: a number or a name is out of range, the batch is empty and has no mean, or weight requires grad.
        TypeError: logits of another dtype, or an argument of another type.
        RuntimeError: shapes, dtypes or devices do not fit, or (CPU) a label is out of range.
    """
    return _pair_loss(adv_logits, clean_logits, labels, beta, reduction, weight, mart=False)


def mart_loss(
    adv_logits: Array,
    *,
    clean_logits: Array,
    labels: Array,
    beta: float = 5.0,
    reduction: str = "batchmean",
    weight: Array | None = None,
) -> Tensor:
    """The MART loss (Wang et al., ICLR 2020), fused; the gradient flows through both logits.

    BCE(adv, y) + beta * KL(q || p) * (1 - q_y), with p and q the softmax of the adversarial and the clean logits, y the
    label and BCE(adv, y) = CE(adv, y) - log(1.0001 - max_{j != y} p_j); among equal p_j the lowest class is meant. The
    authors' 1.0001 is kept: it bounds that term by log(10^4) = 9.2. What their code adds to other terms only to keep a
    logarithm finite is not needed here and left out. Where q_y = 1 there is no KL term, be the KL infinite.
    NaN, infinite and huge logits: see "Special values" in `ard_fast.functional`.

    Args:
        adv_logits: `[B, C]` with C >= 2, on the adversarial images; float32, float16 or bfloat16.
        clean_logits: `[B, C]`, on the clean images.
        labels: int64 `[B]` in [0, C). On CUDA a label out of range makes its row NaN (no wait for the GPU).
        beta: weight of the KL term, at least 0 (lambda in the paper).
        reduction: "none" `[B]`, "sum", "batchmean" (divided by B) or "mean" (the KL term divided by B * C, the BCE by
            B).
        weight: `[B]`, a constant factor of both terms of each sample; the divisors stay as they are.

    Returns:
        The loss in float32, a scalar or `[B]`.

    Raises:
        ValueError: a number or a name is out of range, the batch is empty and has no mean, or weight requires grad.
        TypeError: logits of another dtype, or an argument of another type.
        RuntimeError: shapes, dtypes or devices do not fit, or (CPU) a label is out of range.
    """
    return _pair_loss(adv_logits, clean_logits, labels, beta, reduction, weight, mart=True)


def _kd_loss(
    student: Array,
    teacher: Array,
    clean: Array | None = None,
    labels: Array | None = None,
    *,
    names: tuple[str, str] = ("student_adv_logits", "student_logits"),
    frozen_teacher: bool = True,
    temperature: float,
    kl_weight: float,
    clean_weight: float = 0.0,
    reduction: str,
    weight: Array | None = None,
    teacher_temperature: float | Array | None = None,
    clean_teacher_temperature: float | Array | None = None,
) -> Tensor:
    """kl_weight * KL of `student` + clean_weight * (CE of `clean`, or without labels its KL), under `reduction`.

    `names` are those that `student` and `clean` have in the public function.
    """
    check_reduction(reduction)
    if not (type(student) is type(teacher) is Tensor):
        student, teacher = tensor(student, names[0]), tensor(teacher, "teacher_logits")
    if TYPE_CHECKING:  # a comparison of types tells a checker nothing
        assert isinstance(student, Tensor)
        assert isinstance(teacher, Tensor)
    if clean is not None:
        clean = tensor(clean, names[1])
    if labels is not None:
        labels = tensor(labels, "labels")
    recorded, transformed = torch.is_grad_enabled(), may_be_transformed()
    live = recorded and teacher.requires_grad
    if not frozen_teacher:
        live = live or transformed
    elif live:
        raise ValueError(
            "teacher_logits must not require grad: only the student gets a gradient; "
            "run the teacher under torch.no_grad() or pass teacher_logits.detach()"
        )
    if not live and (transformed or teacher.requires_grad):
        teacher = teacher.detach()
    if clean is None:
        student, teacher = common_logits((names[0], "teacher_logits"), student, teacher)
    else:
        student, teacher, clean = common_logits((names[0], "teacher_logits", names[1]), student, teacher, clean)
    if weight is not None:
        weight = sample_weight(weight)
    adv_temperature, adv_temperatures = temperature, None
    if teacher_temperature is not None:
        adv_temperature, adv_temperatures = positive_or_per_sample(teacher_temperature, "teacher_temperature", student)
    clean_temperature, clean_temperatures = temperature, None
    if clean_teacher_temperature is not None:
        clean_temperature, clean_temperatures = positive_or_per_sample(
            clean_teacher_temperature, "clean_teacher_temperature", student
        )
    tensors = student, teacher, clean, labels, weight, adv_temperatures, clean_temperatures
    kl_divisor, ce_divisor, batch = divisors(reduction, student, names[0])
    kl_weight = kl_weight / kl_divisor
    clean_weight = clean_weight / (ce_divisor if labels is not None else kl_divisor)
    weights = temperature, adv_temperature, clean_temperature, kl_weight, clean_weight
    reduce = reduction != "none"
    with_grad = transformed or (recorded and (student.requires_grad or (clean is not None and clean.requires_grad)))
    if not (with_grad or live):
        loss = _ops.kd_loss(*tensors, *weights, 0.0, 0.0, reduce, False, False)[0]
        return loss if batch is None else loss / batch
    kl_grad, clean_grad, factors = kl_weight, clean_weight, (1.0, 1.0)
    if student.dtype == torch.float16:
        # The gradient for a teacher, unlike p - q, grows with the logits; a weight may be any number.
        lift = float16_lift(student.shape[1], 1.0 if weight is None and not live else 1024.0)
        kl_grad = lift * temperature
        clean_grad = lift if labels is not None else kl_grad
        factors = kl_weight / kl_grad, clean_weight / clean_grad
    numbers = *weights, kl_grad, clean_grad, reduce, with_grad, live
    loss = cast("Tensor", apply(KdLoss, *tensors, numbers, factors)[0])
    return loss if batch is None else loss / batch


def _pair_loss(
    adv: Array, clean: Array, labels: Array, beta: float, reduction: str, weight: Array | None, *, mart: bool
) -> Tensor:
    beta = nonnegative(beta, "beta")
    check_reduction(reduction)
    if not (type(adv) is type(clean) is type(labels) is Tensor):
        adv, clean, labels = tensor(adv, "adv_logits"), tensor(clean, "clean_logits"), tensor(labels, "labels")
    if TYPE_CHECKING:  # a comparison of types tells a checker nothing
        assert isinstance(adv, Tensor)
        assert isinstance(clean, Tensor)
        assert isinstance(labels, Tensor)
    adv, clean = common_logits(("adv_logits", "clean_logits"), adv, clean)
    weight = sample_weight(weight)
    kl_divisor, ce_divisor, batch = divisors(reduction, adv, "adv_logits")
    weights = beta / kl_divisor, 1.0 / ce_divisor
    reduce = reduction != "none"
    tensors = adv, clean, labels, weight
    with_grad = torch.is_grad_enabled() and (adv.requires_grad or clean.requires_grad)
    if not (with_grad or may_be_transformed()):
        loss = _ops.pair_loss(*tensors, mart, *weights, 0.0, 0.0, reduce, False)[0]
        return loss if batch is None else loss / batch
    lift = 1.0
    if adv.dtype == torch.float16:
        lift = ce_divisor * float16_lift(adv.shape[1], 1024.0 * (1.0 + beta))
    numbers = mart, *weights, lift * weights[0], lift * weights[1], reduce, True
    loss = cast("Tensor", apply(PairLoss, *tensors, numbers, 1.0 / lift)[0])
    return loss if batch is None else loss / batch
