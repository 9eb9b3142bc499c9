"""Logits and the weights of their rows, as the losses take them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ard_fast.functional._arguments import Array, tensor

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
REDUCTIONS = ("none", "sum", "batchmean", "mean")


def check_two_classes(logits: Tensor, name: str) -> None:
    """Shape `[B, C]`; one logit alone has no softmax to speak of: every loss of it is 0."""
    shape = logits.shape
    if len(shape) == 2 and shape[1] > 1:
        return
    one = len(shape) == 2 and shape[1] == 1
    hint = "; for a binary classifier whose one logit is z give torch.cat([torch.zeros_like(z), z], 1)" if one else ""
    raise RuntimeError(f"{name} must be logits of shape [B, C] with C >= 2, got {list(shape)}{hint}")


def common_logits(names: Sequence[str], *logits: Tensor) -> tuple[Tensor, ...]:
    """All logits, with the names of their arguments, in their common dtype, with the classes contiguous."""
    first = logits[0]
    dtype, expected = first.dtype, first.shape
    if len(expected) == 2 and expected[1] > 1 and dtype in _DTYPES:
        for each in logits:
            if each.dtype is not dtype or each.shape != expected or not each.is_contiguous():
                break
        else:
            return logits
    for name, each in zip(names, logits, strict=True):
        if each.dtype not in _DTYPES:
            raise TypeError(f"{name} must be float32, float16 or bfloat16, got {each.dtype}")
        shape = each.shape
        check_two_classes(each, name)
        if shape != expected:
            raise RuntimeError(f"{name} must have the shape of {names[0]} {list(expected)}, got {list(shape)}")
        if each.dtype != dtype:
            dtype = torch.promote_types(dtype, each.dtype)

    def prepared(logits: Tensor) -> Tensor:
        if logits.dtype != dtype:
            logits = logits.to(dtype)
        return logits if logits.stride(1) == 1 else logits.contiguous()

    return tuple([prepared(each) for each in logits])


def check_reduction(reduction: str) -> None:
    """Raise ValueError for a name that is none of `REDUCTIONS`."""
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}")


def divisors(reduction: str, logits: Tensor, name: str) -> tuple[int, int, int | None]:
    """What divides the KL and the cross-entropy of a row: 1, 1, or B, B, or (for "mean") B * C, B.

    In a traced graph B comes last, for the loss as a whole to be divided by, and is None otherwise: the numbers that an
    operator takes are constants of the graph, which would hold for one batch size only.
    """
    if reduction in ("none", "sum"):
        return 1, 1, None
    batch, classes = logits.shape
    if batch == 0:
        raise ValueError(f"{name} must have at least one row for reduction={reduction!r}, got none")
    classes = classes if reduction == "mean" else 1
    if torch.compiler.is_compiling():
        return classes, 1, batch
    return batch * classes, batch, None


def sample_weight(weight: Array | None) -> Tensor | None:
    """The factors of the samples, `[B]` float32 and contiguous. Their shape is checked by the operator."""
    if weight is None:
        return None
    weight = tensor(weight, "weight")
    if weight.requires_grad and torch.is_grad_enabled():
        raise ValueError("weight must not require grad: it is a constant of the loss; pass weight.detach()")
    return weight.to(torch.float32).contiguous()


def float16_lift(classes: int, largest: float) -> float:
    """What the gradients of float16 logits are multiplied by in the kernel, a power of two.

    Float16 holds the gradients of a mean over many classes badly. They leave the kernel free of the mean's divisor and
    with |p - q|, around 1 / C, brought near 1, and get their size where a loss scale, if any, is multiplied in.

    Args:
        classes: C.
        largest: bound on the gradient of a row; the product stays within float16.
    """
    return 2.0 ** min(math.floor(math.log2(classes)), math.floor(math.log2(32768.0 / largest)))
