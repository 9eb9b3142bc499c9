"""SGD whose checkpoints hold plain numbers, whatever it computes with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ard_fast._typing import known
from ard_fast.training.config import TrainConfig


class SGD(torch.optim.SGD):
    """`torch.optim.SGD` with a rate that is set before every step: a number, or a scalar tensor on the device.

    Args:
        parameters: of the student.
        config: `momentum`, `weight_decay` and `nesterov` are read.
        fused: one launch for all parameters, which reads a rate that is a tensor when it runs.
    """

    def __init__(self, parameters: Iterable[Tensor], config: TrainConfig, *, fused: bool) -> None:
        super().__init__(
            parameters,
            lr=known(config.lr),
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
            fused=fused or None,  # None leaves the choice between its other forms to torch
        )

    def set_rate(self, rate: float | Tensor) -> None:
        """Take the next step at this rate."""
        for group in self.param_groups:
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the rate as a number: waits for the device."""
        state = super().state_dict()
        for group in state["param_groups"]:
            group["lr"] = float(group["lr"])
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put a state back that was perhaps saved on another device: this optimiser's form stays as it is."""
        form = [{name: group[name] for name in ("fused", "foreach")} for group in self.param_groups]
        super().load_state_dict(dict(state_dict))
        for group, own in zip(self.param_groups, form, strict=True):
            group.update(own)
