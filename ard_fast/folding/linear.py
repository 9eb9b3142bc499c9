"""The last layer under bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Float32Linear(nn.Module):
    """A linear layer in float32 whatever autocast says: a bfloat16 logit would keep 8 bits."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.linear(x.float())
