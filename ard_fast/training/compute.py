"""How a run computes on the device it has got: what "auto" comes to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ard_fast._precision import AUTO, resolve_precision
from ard_fast.models.trial import layout_name
from ard_fast.training.config import TrainConfig


@dataclass(frozen=True)
class Machine:
    """The choices of `ComputeSettings`, made.

    Attributes:
        device: of networks and batches.
        precision: of the training step, "fp32", "tf32" or "bf16".
        teacher_precision: of teachers, "fp32" or "bf16".
        channels_last: whether images and weights are in that layout.
        fold: whether an attack in eval mode is made on folded weights.
        compile: whether the student's forward is compiled.
    """

    device: torch.device
    precision: str
    teacher_precision: str
    channels_last: bool
    fold: bool
    compile: bool

    @property
    def layout(self) -> torch.memory_format:
        """Of images and weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def describe(self) -> str:
        """How it computes, in words."""
        arithmetic = {
            "fp32": "float32, TF32 off",
            "tf32": "float32 with TF32",
            "bf16": "bfloat16 autocast (iterates, logits, losses and weights float32)",
        }
        compiled = ", forward compiled" if self.compile else ""
        how = f"{arithmetic[self.precision]}, {layout_name(self.layout)}{compiled}"
        return f"training step on {self.device} in {how}; evaluation in float32"


def resolve_machine(config: TrainConfig, device: torch.device) -> Machine:
    """What a configuration comes to on a device; under parity "auto" is what the published codes do.

    Raises:
        ValueError: the device cannot do what was asked for.
    """
    precision = resolve_precision(config.precision, device, plain=config.parity)
    as_student = "bf16" if precision == "bf16" else "fp32"
    return Machine(
        device,
        precision,
        as_student if config.teacher_precision == AUTO else config.teacher_precision,
        resolve_switch(config.channels_last, plain=config.parity),
        resolve_switch(config.fold, plain=config.parity),
        config.compile,
    )


def resolve_switch(name: str, *, plain: bool = False) -> bool:
    """Whether "auto", "true" or "false" stands for yes; "auto" does unless `plain`."""
    return not plain if name == AUTO else name == "true"
