"""Keeping the best iterate across restarts, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def select_best(
    best: Tensor, best_loss: Tensor, candidate: Tensor, loss: Tensor, *, lower: bool = False
) -> tuple[Tensor, Tensor]:
    """New (images, losses): the better of the two for each sample."""
    better = loss < best_loss if lower else loss > best_loss
    wins = better | (best_loss.isnan() & ~loss.isnan())
    chosen = wins.reshape(-1, *(1,) * (best.dim() - 1))
    return torch.where(chosen, candidate, best), torch.where(wins, loss, best_loss)
