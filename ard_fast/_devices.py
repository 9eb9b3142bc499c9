"""The device that a command runs on, the arithmetic of networks there (float32, TF32, bfloat16), and CPU threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from ard_fast.functional import _load

AUTO = "auto"
PRECISIONS = (AUTO, "fp32", "tf32", "bf16")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


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


def resolve_precision(name: str, device: torch.device, *, plain: bool = False) -> str:
    """The precision that `name` stands for on a device.

    Args:
        name: of `PRECISIONS`. "auto" is bf16 on a GPU that has bfloat16 units (compute capability 8.0 and above), else
            fp32.
        device: of the networks.
        plain: "auto" is fp32 everywhere.

    Returns:
        "fp32", "tf32" or "bf16".

    Raises:
        ValueError: TF32 on a device that has none.
    """
    if name == "tf32" and device.type != "cuda":
        raise ValueError(f"precision: tf32 is an arithmetic of CUDA devices, got device {device}")
    if name != AUTO:
        return name
    if plain or device.type != "cuda":
        return "fp32"
    with torch.cuda.device(device):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Within, convolutions and matrix products are in bfloat16 under "bf16", and as their inputs are otherwise.

    Weights are cast once for the whole of it; those that do not require grad at every use.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Within, float32 products and convolutions on CUDA devices use TF32 or not; put back as it was on leaving.

    torch has two ways to say so, and does not answer by the older one where only the newer was used. Both are set here,
    so that whatever asks within gets an answer; where the caller has mixed them only the newer one is.
    """
    # torch's annotations do not know the newer switches
    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    operations = (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul)
    before = [operation.fp32_precision for operation in operations]
    try:
        older = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:
        older = None

    def put(matmul: str, convolution: bool) -> None:
        if older is not None:
            torch.set_float32_matmul_precision(matmul)
            cudnn.allow_tf32 = convolution

    try:
        put("high" if allowed else "highest", allowed)
        for operation in operations:
            operation.fp32_precision = "tf32" if allowed else "ieee"
        yield
    finally:
        if older is not None:
            put(*older)
        for operation, value in zip(operations, before, strict=True):
            operation.fp32_precision = value


def arithmetic(precision: str, device: torch.device) -> str:
    """What a network said to compute in "fp32" or "bf16" computes in now: TF32 is a switch of the process."""
    cudnn: Any = torch.backends.cudnn
    uses_tf32 = device.type == "cuda" and cudnn.conv.fp32_precision == "tf32"
    return "tf32" if precision == "fp32" and uses_tf32 else precision


@contextmanager
def full_precision() -> Iterator[None]:
    """Within, networks compute in float32, neither TF32 nor autocast: for what is evaluated or compared."""
    with tf32(False), ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def training_arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """The switches of a whole run; on CUDA cuDNN also tries its algorithms and keeps the fastest for each shape.

    A CUDA graph keeps what was set at its capture.

    Args:
        precision: "fp32", "tf32" or "bf16"; under bf16 what is left in float32 may use TF32 no more than under fp32.
        device: of the networks.
    """
    cudnn = torch.backends.cudnn
    tried = cudnn.benchmark
    with tf32(precision == "tf32"):
        try:
            cudnn.benchmark = tried or device.type == "cuda"
            yield
        finally:
            cudnn.benchmark = tried


def set_threads(count: int) -> None:
    """Let torch's operators use `count` threads; 0: one for each physical core that this process may use.

    Under 0 an OMP_NUM_THREADS or MKL_NUM_THREADS of the environment is left to hold, as torchrun sets it. The cores are
    those of the machine, cut to the process's affinity and to the CPU quota of its container, beyond which threads
    only wait for each other.
    """
    if count == 0:
        if any(os.environ.get(name) for name in _THREAD_VARIABLES):
            return
        import joblib  # asks the machine for a hundredth of a second: not at import

        count = joblib.cpu_count(only_physical_cores=True)
    torch.set_num_threads(count)
