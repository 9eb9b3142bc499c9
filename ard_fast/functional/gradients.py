"""The gradient that an attack follows, at the logits: no loss, no graph, one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, overload

import torch
from torch import Tensor

from ard_fast._typing import known
from ard_fast.functional import _ops
from ard_fast.functional._arguments import Array, confidence, flag, one_of, positive, tensor
from ard_fast.functional._logits import check_two_classes, common_logits

_CODES = {"ce": 0, "margin": 1, "dlr": 2, "dlr_targeted": 3}
_LOSSES = ("ce", "kl", "margin", "dlr", "dlr_targeted")


class AttackGradient(NamedTuple):
    """What `attack_gradient` returns with `with_rows=True`."""

    grad: Tensor
    """`[B, C]`, dtype of the logits."""
    loss: Tensor | None
    """`[B]` float32, the loss of each row. None in an attack that needs none."""
    correct: Tensor | None
    """`[B]` bool: the label is the largest logit (the first of its size), and no logit is NaN. None for "kl"."""


@overload
def attack_gradient(
    logits: Array,
    target: Array,
    *,
    loss: str = ...,
    labels: Array | None = ...,
    temperature: float = ...,
    kappa: float = ...,
    with_target_grad: Literal[False] = ...,
    with_rows: Literal[False] = ...,
    scaled: Literal[False] = ...,
) -> Tensor: ...
@overload
def attack_gradient(
    logits: Array,
    target: Array,
    *,
    loss: str = ...,
    labels: Array | None = ...,
    temperature: float = ...,
    kappa: float = ...,
    with_target_grad: Literal[False] = ...,
    with_rows: bool,
    scaled: Literal[False] = ...,
) -> Tensor | AttackGradient: ...
@overload
def attack_gradient(
    logits: Array,
    target: Array,
    *,
    loss: str = ...,
    labels: Array | None = ...,
    temperature: float = ...,
    kappa: float = ...,
    with_target_grad: Literal[True],
    with_rows: Literal[False] = ...,
    scaled: Literal[False] = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def attack_gradient(
    logits: Array,
    target: Array,
    *,
    loss: str = ...,
    labels: Array | None = ...,
    temperature: float = ...,
    kappa: float = ...,
    with_target_grad: Literal[False] = ...,
    with_rows: Literal[False] = ...,
    scaled: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def attack_gradient(
    logits: Array,
    target: Array,
    *,
    loss: str = ...,
    labels: Array | None = ...,
    temperature: float = ...,
    kappa: float = ...,
    with_target_grad: bool = ...,
    with_rows: bool = ...,
    scaled: bool = ...,
) -> Tensor | AttackGradient | tuple[Tensor | AttackGradient, ...]: ...
def attack_gradient(
    logits: Array,
    target: Array,
    *,
    loss: str = "ce",
    labels: Array | None = None,
    temperature: float = 1.0,
    kappa: float = 50.0,
    with_target_grad: bool = False,
    with_rows: bool = False,
    scaled: bool = False,
) -> Tensor | AttackGradient | tuple[Tensor | AttackGradient, ...]:
    """Return d(loss)/d(logits) for the loss of each row, which an attack ascends.

    This is the gradient of the batch's summed loss. An attack hands it to `torch.autograd.grad(logits, x, grad)`: no
    loss need be computed. y is a row's label and z_(k) its k-th largest logit, ties going to the lowest class.

    - "ce": cross-entropy at y (Madry et al. 2018).
    - "kl": T^2 KL(softmax(target / T) || softmax(logits / T)) (Zhang et al. 2019; Zi et al. 2021).
    - "margin": -max(z_y - max_{j != y} z_j + kappa, 0) (Carlini & Wagner 2017, as PGD uses it). Rows beyond kappa have
      the gradient 0; kappa = inf is never beyond and gives max_{j != y} z_j - z_y.
    - "dlr": -(z_y - max_{j != y} z_j) / (z_(1) - z_(3) + 1e-12) (Croce & Hein 2020, equation 6); C >= 3.
    - "dlr_targeted": -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12) (the same, equation 7); C >= 4.

    Rows whose loss is NaN have NaN throughout their gradient. All other gradients are finite: margin and DLR saturate.
    NaN, infinite and huge logits: see "Special values" in `ard_fast.functional`.

    The gradient of a confidently classified row is small: at a confidence of 0.99999 at most 1e-5, which float16
    rounds to a multiple of 6e-8, or to 0, here or on its way through the layers below. `scaled=True` multiplies each
    row, before it is rounded, by the power of two that brings its largest entry into [1, 2). Steps along the sign or
    the normalised gradient of each image do not change by that; for others divide the gradient of each image, in
    float32, by its factor. Images must not see one another in the network: with the batch statistics of batch norms
    in train mode one factor for all rows is needed, `scale.amin()`.

    Args:
        logits: `[B, C]`, float32, float16 or bfloat16; the arithmetic is in float32.
        target: labels y, int64 `[B]` in [0, C), for "ce", "margin" and "dlr"; logits `[B, C]` for "kl"; target classes
            t, int64 `[B]`, for "dlr_targeted". On CUDA a class out of range makes its row NaN (no wait for the GPU).
        loss: "ce", "kl", "margin", "dlr" or "dlr_targeted".
        labels: y for "dlr_targeted", which needs them.
        temperature: T of "kl", above 0.
        kappa: confidence of "margin", at least 0, may be infinite.
        with_target_grad: also return the gradient for the target logits ("kl" only; Huang et al. 2023 attack a student
            and its teacher together).
        with_rows: also return the loss of each row, and whether it is classified as y.
        scaled: multiply each row of the gradient by a power of two, and return that too.

    Returns:
        The gradient `[B, C]`, contiguous, in the dtype of `logits`; with `with_rows` an `AttackGradient`. With
        `with_target_grad` or `scaled` a tuple of that and, in this order: the gradient for the target in the target's
        dtype, times the same factors if scaled; the factors, float32 `[B]`, powers of two from 2^-126 to 2^126 (which
        is also that of a row of zeros; a NaN loss and an infinite gradient have 1).

    Raises:
        ValueError: `loss` is unknown, a number is out of range, labels are missing or not taken by this loss, or
            with_target_grad is asked of a loss other than "kl".
        TypeError: target logits or logits of another dtype for "kl".
        RuntimeError: shapes, dtypes or devices do not fit, C is too small for the loss, or (CPU) a class is out of
            range; the message names the argument.
    """
    one_of(loss, "loss", _LOSSES)
    with_target_grad, with_rows = flag(with_target_grad, "with_target_grad"), flag(with_rows, "with_rows")
    scaled = flag(scaled, "scaled")
    if with_target_grad and loss != "kl":
        raise ValueError(f"with_target_grad needs loss='kl', got loss={loss!r}: classes have no gradient")
    if (labels is not None) != (loss == "dlr_targeted"):
        raise ValueError(
            "labels must be given for loss='dlr_targeted'"
            if labels is None
            else f"labels must be None for loss={loss!r}: they are given as target"
        )
    if not (type(logits) is type(target) is Tensor):
        logits, target = tensor(logits, "logits"), tensor(target, "target")
    if TYPE_CHECKING:  # a comparison of types tells a checker nothing
        assert isinstance(logits, Tensor)
        assert isinstance(target, Tensor)
    if logits.requires_grad or torch._C._are_functorch_transforms_active():
        logits = logits.detach()
    if labels is not None:
        labels = tensor(labels, "labels")
    if loss == "kl":
        return _kl_gradient(logits, target.detach(), temperature, with_target_grad, with_rows, scaled)
    check_two_classes(logits, "logits")
    kappa = confidence(kappa, "kappa")
    if not logits.is_contiguous() and logits.stride(1) != 1:
        logits = logits.contiguous()
    classes = None
    if loss == "dlr_targeted":
        target, classes = known(labels), target.contiguous()
    # The call that PGD makes in every step has nothing to pass on.
    rest = () if loss == "ce" and not (with_rows or scaled) else (classes, kappa, with_rows, scaled)
    grad, rows, correct, scale = _ops.direct(_ops.attack_gradient)(logits, target.contiguous(), _CODES[loss], *rest)
    found = AttackGradient(grad, rows, correct) if with_rows else grad
    return (found, scale) if scaled else found


def _kl_gradient(
    logits: Tensor, target: Tensor, temperature: float, with_target_grad: bool, with_rows: bool, scaled: bool
) -> Tensor | AttackGradient | tuple[Tensor | AttackGradient, ...]:
    temperature = positive(temperature, "temperature")
    weight = temperature * temperature
    both = common_logits(("logits", "target"), logits, target)
    rows, grad, _, grad_target, scale = _ops.kd_loss(
        *both, *[None] * 5, *[temperature] * 3, weight, 0.0, weight, 0.0, False, True, with_target_grad, scaled
    )
    if grad.dtype != logits.dtype:
        grad = grad.to(logits.dtype)
    found = AttackGradient(grad, rows, None) if with_rows else grad
    if not (with_target_grad or scaled):
        return found
    return (found, *([grad_target.to(target.dtype)] if with_target_grad else []), *([scale] if scaled else []))


def scaled_rows(grad: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What `attack_gradient` returns with `scaled=True`, for a gradient `[B, C]` from elsewhere.

    Args:
        grad: float32, or what it was rounded to.
        dtype: of the result.
    """
    largest = grad.float().abs().amax(1)
    exponent = largest.view(torch.int32) >> 23
    factor = torch.where(exponent == 255, 127, (254 - exponent).clamp(1, 253)) << 23
    scale = factor.to(torch.int32).view(torch.float32)
    return (grad * scale[:, None]).to(dtype), scale


def one_scale(scale: Tensor, *grads: Tensor) -> tuple[Tensor, ...]:
    """Rows `[B, C]` scaled each by its own factor, as if all had been scaled by the least of these; and that, `[B]`.

    For networks in which the images of a batch see one another: there a gradient is the sum of terms of several rows.
    """
    least = scale.amin()
    down = (least / scale)[:, None]
    return *((grad * down).to(grad.dtype) for grad in grads), least.expand(scale.shape)
