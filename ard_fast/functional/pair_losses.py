"""The losses that tie a network's adversarial logits to its own clean ones: fused, with the gradients for both."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ard_fast.functional import _ops
from ard_fast.functional._arguments import nonnegative
from ard_fast.functional._arrays import Array, tensor
from ard_fast.functional._autograd import PairLoss, may_be_transformed
from ard_fast.functional._logits import common_logits
from ard_fast.functional._reductions import check_reduction, divisors, float16_lift, sample_weight


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
    adv, clean = common_logits({"adv_logits": adv, "clean_logits": clean})
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
    loss = cast("Tensor", PairLoss.apply(*tensors, numbers, 1.0 / lift)[0])
    return loss if batch is None else loss / batch
