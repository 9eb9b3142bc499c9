"""Numbers that the host chooses for every step and the device works with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Scalars:
    """A row of numbers; on the device, at a fixed address, where a recorded step has to find their present values.

    Args:
        count: of numbers.
        device: float32 tensors there; None for plain Python numbers.
    """

    def __init__(self, count: int, device: torch.device | None) -> None:
        self._values: list[float] = [0.0] * count
        self._tensor = None if device is None else torch.zeros(count, device=device)

    def write(self, values: Sequence[float]) -> None:
        """Set all of them, without waiting for the device."""
        for index, value in enumerate(values):
            if self._tensor is not None and value != self._values[index]:
                self._tensor[index].fill_(value)  # a launch that carries the number: no copy from the host
            self._values[index] = value

    def __getitem__(self, index: int) -> float | Tensor:
        """One of them: a number, or a scalar tensor that follows later writes."""
        return self._values[index] if self._tensor is None else self._tensor[index]
