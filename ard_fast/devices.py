"""The device that a command runs on."""

from __future__ import annotations

import torch


def find_device(name: str) -> torch.device:
    """The device called "cpu", "cuda" or "cuda:N".

    Raises:
        ValueError: another name, or torch sees no such device.
    """
    kind, _, index = name.partition(":")
    if not (name == "cpu" or (kind == "cuda" and (index.isdecimal() or name == "cuda"))):
        raise ValueError(f"device: expected cpu, cuda or cuda:N, got {name!r}")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                f"device: {name} was asked for, and torch sees no CUDA device (torch.cuda.is_available()); "
                "--device cpu works everywhere"
            )
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise ValueError(f"device: {name} does not exist; torch sees {torch.cuda.device_count()}")
    return device
