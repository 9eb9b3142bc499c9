"""How far a teacher is to be trusted on each image: its probability of the true class (Zhu et al., ICLR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor


def teacher_trust(logits: Tensor, labels: Tensor, power: float) -> Tensor:
    """w = p^power, float32 `[B]` without a gradient: the weight of the teacher's term; 1 - w is the student's own.

    Args:
        logits: `[B, C]` of the teacher at the attacked images.
        labels: int64 `[B]`; p is the teacher's probability of the label.
        power: exponent, beta in the paper; 0 trusts the teacher throughout.
    """
    with torch.no_grad():
        return (power * torch.log_softmax(logits.float(), 1).gather(1, labels[:, None])[:, 0]).exp()


def trust_words(begin: int, power: float) -> str:
    """When the weights begin, in words."""
    before = f"before epoch {begin + 1} w = 1; then w = " if begin else "w = "
    return f"{before}p^{power:g}, p the teacher's probability of y at x'"
