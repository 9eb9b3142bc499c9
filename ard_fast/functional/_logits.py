"""Checks of logits that several functions share."""

from __future__ import annotations

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_two_classes(logits: Tensor, name: str) -> None:
    """Shape `[B, C]`; one logit alone has no softmax to speak of: every loss of it is 0."""
    shape = logits.shape
    if len(shape) == 2 and shape[1] > 1:
        return
    one = len(shape) == 2 and shape[1] == 1
    hint = "; for a binary classifier whose one logit is z give torch.cat([torch.zeros_like(z), z], 1)" if one else ""
    raise RuntimeError(f"{name} must be logits of shape [B, C] with C >= 2, got {list(shape)}{hint}")


def common_logits(named: dict[str, Tensor]) -> list[Tensor]:
    """All logits, given by the names of their arguments, in their common dtype, with the classes contiguous."""
    first_name, first = next(iter(named.items()))
    dtype, expected = first.dtype, first.shape
    for name, logits in named.items():
        if logits.dtype not in _DTYPES:
            raise TypeError(f"{name} must be float32, float16 or bfloat16, got {logits.dtype}")
        shape = logits.shape
        check_two_classes(logits, name)
        if shape != expected:
            raise RuntimeError(f"{name} must have the shape of {first_name} {list(expected)}, got {list(shape)}")
        if logits.dtype != dtype:
            dtype = torch.promote_types(dtype, logits.dtype)

    def prepared(logits: Tensor) -> Tensor:
        if logits.dtype != dtype:
            logits = logits.to(dtype)
        return logits if logits.stride(1) == 1 else logits.contiguous()

    return [prepared(logits) for logits in named.values()]
