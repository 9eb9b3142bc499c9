"""A network with the normalisation of its input inside, so that eps stays in [0, 1] pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalised(nn.Module):
    """`network((x - mean) / std)` for pixels x in [0, 1].

    Its state dict holds `mean`, `std` and the network's keys behind `network.`; `ard_fast.training.checkpoint` reads it
    back into this wrapper, and reads the network's bare keys into `network`.

    Args:
        network: what takes normalised images `[B, C, H, W]`.
        mean: in pixels of [0, 1], one number for each channel or one for all.
        std: likewise, above 0.

    Raises:
        ValueError: not finite, not above 0, or different counts.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float] | float, std: Sequence[float] | float) -> None:
        super().__init__()
        means, stds = _numbers(mean, "mean"), _numbers(std, "std")
        if len(means) != len(stds):
            raise ValueError(f"std: expected as many numbers as mean has ({len(means)}), got {len(stds)}")
        if min(stds) <= 0.0:
            raise ValueError(f"std: expected numbers above 0, got {stds}")
        self.network = network
        self.register_buffer("mean", torch.tensor(means, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(stds, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pixels in [0, 1]."""
        return self.network((x - self.mean) / self.std)

    def extra_repr(self) -> str:
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


def _numbers(values: Sequence[float] | float, name: str) -> list[float]:
    try:
        numbers = [float(value) for value in (values if isinstance(values, Sequence) else [values])]
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected a number for each channel, got {values!r}") from None
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{name}: expected a finite number for each channel, got {values!r}")
    return numbers
