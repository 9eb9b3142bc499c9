"""The device that a command runs on."""

from __future__ import annotations

import torch

from ard_fast._precision import AUTO
from ard_fast.functional import _load


def check_device_name(name: str) -> None:
    """Refuse what is no name of a device, whether or not there is such a one.

    Raises:
        ValueError: neither auto, cpu, cuda nor cuda:N.
    """
    kind, _, index = name.partition(":")
    if name not in (AUTO, "cpu", "cuda") and not (kind == "cuda" and index.isdecimal()):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")


def resolve_device(name: str) -> str:
    """What "auto" comes to on this machine: "cuda" where torch sees a GPU and our kernels for it are loaded, else
    "cpu". Another name stays as it is."""
    if name != AUTO:
        return name
    return "cuda" if torch.cuda.is_available() and _load.load().has_cuda_kernels else "cpu"


def device_note(name: str) -> str:
    """What to print behind the name of the device in use: on the CPU, why "auto" leaves alone a GPU that torch sees."""
    if name != "cpu" or not torch.cuda.is_available() or _load.load().has_cuda_kernels:
        return ""
    return f" (torch sees a GPU, but the CUDA kernels are not loaded: {_load.load().cuda_reason})"


def find_device(name: str) -> torch.device:
    """The device called "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        ValueError: another name, or torch sees no such device.
    """
    check_device_name(name)
    device = torch.device(resolve_device(name))
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                f"device: {name} was asked for, and torch sees no CUDA device (torch.cuda.is_available()); "
                "--device cpu works everywhere"
            )
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise ValueError(f"device: {name} does not exist; torch sees {torch.cuda.device_count()}")
    return device
