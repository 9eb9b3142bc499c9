"""All kernels compiled beforehand."""

from __future__ import annotations

import sys

import torch

from ard_fast._load import load


def compile_kernels(device: torch.device | str | int | None = None) -> int:
    """Make every CUDA kernel ready to start on a device.

    Needed only where kernels come from NVRTC (`python -m ard_fast.info` says so) and only before something that must
    not wait for a compiler, such as a CUDA graph captured without a call before it, or a timing. Otherwise each kernel
    is compiled when it is first started. Compiled kernels are kept on disk, so that the next process only loads them.
    With the kernels that nvcc compiled there is nothing to do.

    Args:
        device: a CUDA device; default: the current one.

    Returns:
        How many kernels were made ready: 0 where they do not come from NVRTC.

    Raises:
        ValueError: `device` is no CUDA device, or there is none of this number.
        ImportError: NVRTC cannot be used.
        RuntimeError: a kernel cannot be compiled.
    """
    if load().cuda_backend != "nvrtc":
        return 0
    if isinstance(device, int):
        chosen = torch.device("cuda", device)
    else:
        chosen = torch.device("cuda" if device is None else device)
    if chosen.type != "cuda":
        raise ValueError(f"device must be a CUDA device, got {str(chosen)!r}")
    count = torch.cuda.device_count()
    index = torch.cuda.current_device() if chosen.index is None and count else chosen.index or 0
    if index >= count:
        raise ValueError(f"device must be one of the {count} CUDA devices there are, got {str(chosen)!r}")
    from ard_fast.nvrtc import kernels

    return kernels.compile_all(sys.modules["ard_fast._C_rtc"], index)
