"""Keeping the best iterate across restarts."""

from __future__ import annotations

import torch
from torch import Tensor

from ard_fast.functional import _ops
from ard_fast.functional._arrays import Array, tensor, written_tensor
from ard_fast.functional._layout import with_layout_of


def select_best_(best: Array, best_loss: Array, candidate: Array, loss: Array, *, lower: bool = False) -> Tensor:
    """Keep, sample by sample, the images with the higher loss: in place over `best`, in one pass.

    Only the pixels of winning candidates are read and written, and nothing is read back to choose them. At equal losses
    `best` stays. A NaN loss never wins, and loses to any number.

    Args:
        best: images `[B, ...]`, float32, dense, batch outermost in memory. Updated in place.
        best_loss: their losses `[B]`, float32. Start with -inf, or +inf for `lower`.
        candidate: images of the same shape, float32.
        loss: the candidates' losses `[B]`, float32.
        lower: the lower loss wins instead.

    Returns:
        The losses of what `best` now holds, a new tensor `[B]`.

    Raises:
        ValueError: `best` requires grad.
        RuntimeError: shapes, dtypes, devices or memory layouts do not fit; the message names the argument.
    """
    best, candidate = written_tensor(best, "best"), tensor(candidate, "candidate")
    best_loss, loss = tensor(best_loss, "best_loss"), tensor(loss, "loss")
    if best.requires_grad and torch.is_grad_enabled():
        raise ValueError("best must not require grad: the selection is not differentiable; pass best.detach()")
    candidate = with_layout_of(candidate.detach(), best)
    best_loss, loss = best_loss.detach().contiguous(), loss.detach().contiguous()
    best_loss_out = torch.empty_like(best_loss)
    _ops.select_best_(best, candidate, best_loss, loss, best_loss_out, lower)
    # The dispatcher does not count the write of an operator like this one (see steps.py).
    torch.autograd.graph.increment_version(best)
    return best_loss_out
