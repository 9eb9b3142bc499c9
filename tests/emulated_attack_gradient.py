"""The CUDA kernel of `attack_gradient` on the host emulator, called with torch CPU tensors."""

from __future__ import annotations

import torch
from emulator import _bits, _dtype, load

CODES = {"ce": 0, "margin": 1, "dlr": 2, "dlr_targeted": 3}


def attack_gradient(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    loss: str = "ce",
    labels: torch.Tensor | None = None,
    kappa: float = 50.0,
    with_rows: bool = True,
    scale: torch.Tensor | None = None,
    variant: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Gradient, row losses and correctness as ``ard_fast.functional.attack_gradient``, without "kl".

    ``scale``, float32 [B], receives the powers of two that the rows of the gradient are multiplied by if it is given.

    ``variant``: "auto" as the launcher decides, "warp" (a warp a row, up to 1,024 classes), "block" (a block of two
    warps a row, for cross-entropy kept in shared memory) or "block_uncached" (read again from memory for every pass).
    """
    grad = torch.full_like(logits, torch.nan, memory_format=torch.contiguous_format)
    rows = torch.full((logits.shape[0],), torch.nan) if with_rows else None
    correct = torch.zeros(logits.shape[0], dtype=torch.bool) if with_rows else None
    load().attack_gradient(
        logits=_bits(logits),
        labels=(target if labels is None else labels).numpy(),
        target_classes=None if labels is None else target.numpy(),
        dtype=_dtype(logits),
        grad=_bits(grad),
        loss_rows=None if rows is None else rows.numpy(),
        correct=None if correct is None else correct.numpy(),
        grad_scale=None if scale is None else scale.numpy(),
        loss=CODES[loss],
        kappa=kappa,
        variant=variant,
    )
    return grad, rows, correct
