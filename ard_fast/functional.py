"""The operators: fused attack steps and distillation losses on CPU and CUDA tensors.

Conventions, everywhere: B batch, C classes. Pixel tensors are `[B, ...]`, float32, in units where the full range is
`bounds` (0 to 1 by default); eps and step sizes are in the same units. No function waits for the GPU or allocates
behind torch's back, so all of them can be captured in a CUDA graph.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ard_fast import _ops
from ard_fast._arguments import bounds_pair, nonnegative, number_or_per_sample, positive, seed_tensor
from ard_fast._autograd import KdLoss

__all__ = ["ard_loss", "kl_distill_loss", "pgd_linf_step_", "random_start"]

_LOGIT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_REDUCTIONS = ("none", "sum", "batchmean", "mean")


def pgd_linf_step_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    step_size: float | Tensor,
    eps: float | Tensor,
    targeted: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Take one L-infinity PGD step in place: signed step, projection onto the eps-ball, clamp, in one pass.

    Bit for bit `clamp(min(max(x_adv + step_size * sign(grad), x - eps), x + eps), *bounds)` in float32, the order of
    operations of the published ARD code (Madry et al. 2018, section 2.1, is the method). `sign` is torch's: 0 for NaN
    and both zeros. A NaN pixel stays NaN.

    Args:
        x_adv: iterate `[B, ...]`, float32, dense in memory (contiguous, channels_last, ...). Updated in place.
        grad: gradient of the loss at `x_adv`, same shape, float32, float16 or bfloat16.
        x: clean images, same shape, float32.
        step_size: a number or a tensor `[B]` with one for each sample, at least 0.
        eps: radius of the ball, likewise. Tensors are not checked for their values: that would wait for the GPU.
        targeted: descend the loss instead of ascending it.
        bounds: lowest and highest pixel value.

    Returns:
        `x_adv`.

    Raises:
        ValueError: a number is negative or not finite, bounds are not increasing, or `x_adv` requires grad.
        RuntimeError: shapes, dtypes, devices or memory layouts do not fit; the message names the argument.
    """
    if x_adv.requires_grad and torch.is_grad_enabled():
        raise ValueError("x_adv must not require grad: the step is not differentiable; pass x_adv.detach()")
    step_scalar, step_tensor = number_or_per_sample(step_size, "step_size", x_adv)
    eps_scalar, eps_tensor = number_or_per_sample(eps, "eps", x_adv)
    lower, upper = bounds_pair(bounds)
    stride = x_adv.stride()
    if grad.requires_grad or grad.stride() != stride:
        grad = _with_layout_of(grad.detach(), x_adv)
    if x.requires_grad or x.stride() != stride:
        x = _with_layout_of(x.detach(), x_adv)
    _ops.pgd_linf_step_(x_adv, grad, x, step_tensor, eps_tensor, step_scalar, eps_scalar, targeted, lower, upper)
    # The dispatcher does not count the write of an operator like this one; without the count autograd would not
    # notice that a tensor it saved has changed.
    torch.autograd.graph.increment_version(x_adv)
    return x_adv


def random_start(
    x: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    init: str = "uniform",
    std: float = 0.001,
    clamp: bool = True,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int | Tensor | None = None,
    sample_ids: Tensor | None = None,
) -> Tensor:
    """Return a random point near each image, where an attack starts.

    The noise comes from Philox4x32-10 keyed by (seed, sample id, element): the same bits on CPU and CUDA, whatever
    the memory layout, and for a given sample id whatever batch the sample is in.

    Args:
        x: images `[B, ...]`, float32.
        eps: radius of the uniform noise, a number or a tensor `[B]`; at least 0. Not used by `init="normal"`.
        norm: "linf".
        init: "uniform" on (-eps, eps) (Madry et al. 2018), or "normal", `std` * N(0, 1) (the TRADES code).
        std: standard deviation of the normal noise, in pixel units.
        clamp: clamp to `bounds`. The published ARD, TRADES and RSLAD codes do not.
        bounds: lowest and highest pixel value.
        seed: an int, an int64 tensor with one element on the device of `x` (read when the kernel runs), or None to draw
            one from torch's generator of that device.
        sample_ids: int64 `[B]`, what identifies each sample; None takes 0, 1, ..., B - 1.

    Returns:
        `[B, ...]`, float32, in the memory layout of `x` where that is contiguous or channels_last, else contiguous.

    Raises:
        ValueError: a number or a name is out of range.
        RuntimeError: shapes, dtypes or devices do not fit; the message names the argument.
    """
    if norm != "linf":
        raise ValueError(f"norm must be 'linf', got {norm!r}")
    if init not in ("uniform", "normal"):
        raise ValueError(f"init must be 'uniform' or 'normal', got {init!r}")
    std = nonnegative(std, "std")
    lower, upper = bounds_pair(bounds)
    x = x.detach()
    if not _is_plain(x):
        x = x.contiguous()
    eps_scalar, eps_tensor = number_or_per_sample(eps, "eps", x)
    return _ops.random_start(
        x, eps_tensor, eps_scalar, seed_tensor(seed, x.device), sample_ids, init == "normal", std, clamp, lower, upper
    )


def kl_distill_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    scale_t2: bool = True,
) -> Tensor:
    """Distillation loss T^2 * KL(softmax(teacher / T) || softmax(student / T)) (Hinton et al. 2015), fused.

    Loss and gradient come from one pass over the logits, in float32 arithmetic whatever the dtype of the logits, and
    are accurate where `F.kl_div` is not: at high temperature and for a student close to its teacher.

    Args:
        student_logits: `[B, C]`, float32, float16 or bfloat16. The gradient flows here, in the same dtype.
        teacher_logits: `[B, C]`; must not require grad. The teacher is the reference distribution.
        temperature: T, above 0.
        reduction: "none" `[B]`, "sum", "batchmean" (divided by B: the KL of the mean sample) or "mean" (divided by
            B * C: what `nn.KLDivLoss()` and the ARD code do).
        scale_t2: multiply by T^2, so that the gradient's size does not depend on T.

    Returns:
        The loss in float32, a scalar or `[B]`.

    Raises:
        ValueError: temperature or reduction is out of range, the batch is empty and has no mean, or `teacher_logits`
            requires grad.
        TypeError: logits of another dtype.
        RuntimeError: shapes or devices do not fit; the message names the argument.
    """
    temperature = positive(temperature, "temperature")
    weight = temperature * temperature if scale_t2 else 1.0
    return _kd_loss(student_logits, teacher_logits, None, None, temperature, weight, 0.0, reduction)


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
    weight = alpha * temperature * temperature
    return _kd_loss(
        student_adv_logits, teacher_logits, student_logits, labels, temperature, weight, 1.0 - alpha, reduction
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
    student, teacher, clean = _logits(student, teacher, clean)
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
            student, teacher, clean, labels, temperature, kl_weight, ce_weight, 0.0, 0.0, reduce, False
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


def _logits(student: Tensor, teacher: Tensor, clean: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """All logits in their common dtype, with the classes contiguous."""
    named = {"student_logits": student, "teacher_logits": teacher, "student_logits (clean)": clean}
    dtype = student.dtype
    for name, logits in named.items():
        if logits is None:
            continue
        if logits.dtype not in _LOGIT_DTYPES:
            raise TypeError(f"{name} must be float32, float16 or bfloat16, got {logits.dtype}")
        if logits.dim() != 2 or logits.shape[1] == 0:
            raise RuntimeError(f"{name} must be logits of shape [B, C] with C >= 1, got {list(logits.shape)}")
        dtype = torch.promote_types(dtype, logits.dtype)

    def prepared(logits: Tensor) -> Tensor:
        logits = logits.to(dtype)
        return logits if logits.stride(1) == 1 else logits.contiguous()

    return prepared(student), prepared(teacher.detach()), None if clean is None else prepared(clean)


def _is_plain(x: Tensor) -> bool:
    """Contiguous, or channels_last in two or three dimensions."""
    if x.is_contiguous():
        return True
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.dim() in formats and x.is_contiguous(memory_format=formats[x.dim()])


def _with_layout_of(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` in the memory layout of `like`: itself, or a copy. Other shapes are left for the operator to refuse."""
    if tensor.shape != like.shape:
        return tensor
    strides = zip(tensor.shape, tensor.stride(), like.stride(), strict=True)
    if all(size == 1 or a == b for size, a, b in strides):
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
