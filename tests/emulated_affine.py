"""The CUDA kernels of affine_relu on the host emulator, called with torch CPU tensors."""

from __future__ import annotations

import torch
from emulator import _dtype, _flat, load


def _order(x: torch.Tensor) -> dict[str, int]:
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    assert last or x.is_contiguous()
    return {"channels": x.shape[1], "inner": 1 if last else x[0, 0].numel() if x.dim() > 2 and x.numel() else 1}


def affine_relu(
    x: torch.Tensor,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    relu: bool = True,
    mask: torch.Tensor | bool = False,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``ard_fast.functional.affine_relu``; ``out`` and ``mask`` may be tensors to write to."""
    if out is None:
        out = torch.full_like(x, 7.0)
    if not isinstance(mask, torch.Tensor):
        mask = torch.full(((x.numel() + 7) // 8 if mask else 0,), 7, dtype=torch.uint8)
    load().affine_relu(
        x=_flat(x),
        y=_flat(out),
        dtype=_dtype(x),
        scale=None if scale is None else scale.numpy(),
        shift=None if shift is None else shift.numpy(),
        residual=None if residual is None else _flat(residual),
        mask=mask.numpy() if len(mask) else None,
        relu=relu,
        **_order(x),
    )
    return out, mask


def affine_relu_backward(
    grad: torch.Tensor,
    mask: torch.Tensor | None,
    scale: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As ``ard_fast.functional.affine_relu_backward``, without a mask for ``relu=False``."""
    if out is None:
        out = torch.full_like(grad, 7.0)
    load().affine_relu_backward(
        grad=_flat(grad),
        out=_flat(out),
        dtype=_dtype(grad),
        mask=None if mask is None else mask.numpy(),
        scale=None if scale is None else scale.numpy(),
        **_order(grad),
    )
    return out
