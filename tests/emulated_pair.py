"""The CUDA kernels of TRADES and MART on the host emulator, called with torch CPU tensors."""

from __future__ import annotations

import torch
from emulator import _bits, _dtype, load


def pair_loss(
    adv: torch.Tensor,
    clean: torch.Tensor,
    labels: torch.Tensor,
    *,
    mart: bool,
    kl_weight: float = 1.0,
    ce_weight: float = 1.0,
    weight: torch.Tensor | None = None,
    with_grad: bool = True,
    variant: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Row losses [B] and the gradients [B, C] of their sum for both logits.

    ``variant``: "auto" as the launcher decides, "warp" (a warp a row, up to 1,024 classes), "block" (a block of two
    warps a row, kept in shared memory) or "block_uncached" (read again from memory for every pass).
    """
    grads = [torch.full_like(t, torch.nan, memory_format=torch.contiguous_format) for t in (adv, clean)]
    loss = torch.full((adv.shape[0],), torch.nan)
    load().pair_loss(
        adv=_bits(adv),
        clean=_bits(clean),
        labels=labels.numpy(),
        weight=None if weight is None else weight.numpy(),
        dtype=_dtype(adv),
        mart=mart,
        loss_rows=loss.numpy(),
        grad_adv=_bits(grads[0]) if with_grad else None,
        grad_clean=_bits(grads[1]) if with_grad else None,
        kl_weight=kl_weight,
        ce_weight=ce_weight,
        kl_grad_weight=kl_weight,
        ce_grad_weight=ce_weight,
        variant=variant,
    )
    return loss, grads[0] if with_grad else None, grads[1] if with_grad else None
