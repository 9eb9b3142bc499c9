"""A teacher: a frozen network in eval mode, and its logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ard_fast.data import Batch


class Teacher:
    """Soft labels of a trained network.

    Args:
        network: put in eval mode and frozen here. Methods that differentiate through a teacher use `.network`.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits, float32 `[B, num_classes]`, of any images; without a graph."""
        with torch.no_grad():
            return self.network(x).float()

    def clean(self, batch: Batch) -> Tensor:
        """Logits, float32 `[B, num_classes]`, of the batch's own images."""
        return self(batch.x)
