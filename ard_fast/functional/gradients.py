"""The gradient that an attack follows, at the logits: no loss, no graph, one pass."""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

from torch import Tensor

from ard_fast import _ops
from ard_fast._arguments import confidence, flag, one_of, positive
from ard_fast._arrays import Array, tensor
from ard_fast._typing import known
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
) -> Tensor | AttackGradient | tuple[Tensor | AttackGradient, Tensor]: ...
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
) -> Tensor | AttackGradient | tuple[Tensor | AttackGradient, Tensor]:
    """Return d(loss)/d(logits) for the loss of each row, which an attack ascends.

    This is the gradient of the batch's summed loss. An attack hands it to `torch.autograd.grad(logits, x, grad)`: no
    loss need be computed. y is a row's label and z_(k) its k-th largest logit, ties going to the lowest class.

    - "ce": cross-entropy at y (Madry et al. 2018).
    - "kl": T^2 KL(softmax(target / T) || softmax(logits / T)) (Zhang et al. 2019; Zi et al. 2021).
    - "margin": -max(z_y - max_{j != y} z_j + kappa, 0) (Carlini & Wagner 2017, as PGD uses it). Rows beyond kappa have
      the gradient 0; kappa = inf is never beyond and gives max_{j != y} z_j - z_y.
    - "dlr": -(z_y - max_{j != y} z_j) / (z_(1) - z_(3) + 1e-12) (Croce & Hein 2020, equation 6); C >= 3.
    - "dlr_targeted": -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12) (the same, equation 7); C >= 4.

    Rows whose margin or DLR is NaN have NaN throughout their gradient. Float16 and bfloat16 results are finite where
    the loss is: they saturate.

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

    Returns:
        The gradient `[B, C]`, contiguous, in the dtype of `logits`; with `with_rows` an `AttackGradient`. With
        `with_target_grad` a pair: that, and the gradient for the target in the target's dtype.

    Raises:
        ValueError: `loss` is unknown, a number is out of range, labels are missing or not taken by this loss, or
            with_target_grad is asked of a loss other than "kl".
        TypeError: target logits or logits of another dtype for "kl".
        RuntimeError: shapes, dtypes or devices do not fit, C is too small for the loss, or (CPU) a class is out of
            range; the message names the argument.
    """
    one_of(loss, "loss", _LOSSES)
    with_target_grad, with_rows = flag(with_target_grad, "with_target_grad"), flag(with_rows, "with_rows")
    if with_target_grad and loss != "kl":
        raise ValueError(f"with_target_grad needs loss='kl', got loss={loss!r}: classes have no gradient")
    if (labels is not None) != (loss == "dlr_targeted"):
        raise ValueError(
            "labels must be given for loss='dlr_targeted'"
            if labels is None
            else f"labels must be None for loss={loss!r}: they are given as target"
        )
    logits, target = tensor(logits, "logits").detach(), tensor(target, "target")
    if labels is not None:
        labels = tensor(labels, "labels")
    if loss == "kl":
        return _kl_gradient(logits, target.detach(), temperature, with_target_grad, with_rows)
    check_two_classes(logits, "logits")
    kappa = confidence(kappa, "kappa")
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    classes = None
    if loss == "dlr_targeted":
        target, classes = known(labels), target.contiguous()
    grad, rows, correct = _ops.attack_gradient(logits, target.contiguous(), classes, _CODES[loss], kappa, with_rows)
    return AttackGradient(grad, rows, correct) if with_rows else grad


def _kl_gradient(
    logits: Tensor, target: Tensor, temperature: float, with_target_grad: bool, with_rows: bool
) -> Tensor | AttackGradient | tuple[Tensor | AttackGradient, Tensor]:
    temperature = positive(temperature, "temperature")
    weight = temperature * temperature
    both = common_logits({"logits": logits, "target": target})
    rows, grad, _, grad_target = _ops.kd_loss(
        *both, *[None] * 5, *[temperature] * 3, weight, 0.0, weight, 0.0, False, True, with_target_grad
    )
    if grad.dtype != logits.dtype:
        grad = grad.to(logits.dtype)
    found = AttackGradient(grad, rows, None) if with_rows else grad
    return (found, grad_target.to(target.dtype)) if with_target_grad else found
