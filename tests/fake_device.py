"""Two CUDA devices on the CPU, for the path on which kernels are started by name.

`csrc/testing/driver` is built into a `libcuda.so.1` that runs kernels on the host emulator. `install()` loads it, makes
a CPU build of torch believe in the devices, and lets `ard_fast` load `_C_rtc`; a tensor "on" such a device is host
memory that torch is told lies there. It changes the process for good, so the tests that use it run in one of their own:
tests/on_fake_device, started by tests/test_fake_device.py with this file as a pytest plugin.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
FLAGS = ["-std=c++17", "-O0", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wno-unknown-pragmas", f"-I{CSRC}"]
# The launchers name the kernels, which the registry makes of them.
LAUNCHER = ["-x", "c++", "-include", "testing/driver/registry.h"]
CAPABILITIES = [(9, 0), (8, 6)]  # as fake_driver.cpp has them


def build() -> Path:
    """The driver, compiled if the sources have changed since the last time."""
    launchers = sorted((CSRC / "cuda").glob("*.cu"))
    sources = [*(CSRC / "testing" / "driver").glob("*.cpp"), CSRC / "testing" / "block_engine.cpp"]
    sources += [CSRC / "testing" / "shared_arrays.cpp", *(CSRC / "driver" / name for name in ("kernel.cpp", "api.cpp"))]
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if not shutil.which(compiler[0]):
        raise RuntimeError(f"the fake driver needs a C++ compiler, {compiler[0]!r} was not found; set CXX")
    digest = hashlib.sha256("\0".join([*compiler, *FLAGS, *LAUNCHER]).encode())
    headers = [path for part in ("core", "cuda", "driver", "testing") for path in (CSRC / part).rglob("*.*h")]
    for path in sorted([*launchers, *sources, *headers]):
        digest.update(path.name.encode() + path.read_bytes())
    folder = ROOT / "build" / "fake_driver"
    library = folder / digest.hexdigest()[:16] / "libcuda.so.1"
    if library.exists():
        return library
    for old in folder.glob("*"):
        if time.time() - old.stat().st_mtime > 24 * 3600:
            shutil.rmtree(old, ignore_errors=True)
    unfinished = library.parent.with_suffix(f".{os.getpid()}")  # another process may be building the same
    unfinished.mkdir(parents=True)

    def compiled(source: Path) -> str:
        target = str(unfinished / f"{source.stem}.o")
        flags = [*FLAGS, *(LAUNCHER if source.suffix == ".cu" else [])]
        subprocess.run([*compiler, *flags, "-c", str(source), "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, [*launchers, *sources]))
    link = ["-shared", "-Wl,-soname,libcuda.so.1", "-ldl", "-o", str(unfinished / library.name)]
    subprocess.run([*compiler, *objects, *link], check=True)
    library.parent.mkdir(exist_ok=True)
    os.replace(unfinished / library.name, library)
    shutil.rmtree(unfinished)
    return library


# ------------------------------------------------------------------------------------------------------------- tensors


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int), ("index", ctypes.c_int))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int),
        ("dtype", _Type),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_CODES = {torch.bool: 6, torch.uint8: 1, torch.int64: 0, torch.bfloat16: 4}
_KEPT: list[Any] = []  # what the devices' tensors point to
_HOST: dict[int, Tensor] = {}  # host tensors by their address


def on_device(host: Tensor, index: int = 0) -> Tensor:
    """A tensor on device `index` over the memory of a CPU tensor, which stays its host view."""
    shape, strides = ((ctypes.c_int64 * host.dim())(*values) for values in (host.shape, host.stride()))
    managed = _Managed()
    managed.tensor = _Tensor(
        host.data_ptr(),
        _Device(2, index),
        host.dim(),
        _Type(_CODES.get(host.dtype, 2), 8 * host.element_size(), 1),
        ctypes.cast(shape, ctypes.c_void_p),
        ctypes.cast(strides, ctypes.c_void_p),
        0,
    )
    _KEPT.append((managed, shape, strides, host))
    _HOST[host.data_ptr()] = host
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return torch._C._from_dlpack(new_capsule(ctypes.addressof(managed), b"dltensor", None))


def on_host(tensor: Tensor) -> Tensor:
    """The CPU tensor with the memory of a device's tensor."""
    if tensor.numel() == 0:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    return _HOST[tensor.data_ptr()].as_strided(tensor.shape, tensor.stride())


def _patch_torch() -> None:
    torch.version.cuda = "13.0"
    torch.cuda._lazy_init = lambda: None
    torch.cuda.device_count = lambda: len(CAPABILITIES)
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_capability = lambda device=0: CAPABILITIES[device]

    def empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
        host = torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format)
        return on_device(host, device.index or 0)

    def empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
        return on_device(torch.empty_strided(size, stride, dtype=dtype), device.index or 0)

    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", empty, "CUDA")
    library.impl("empty_strided", empty_strided, "CUDA")
    _KEPT.append(library)


# -------------------------------------------------------------------------------------------------------------- driver


@dataclass(frozen=True)
class Launch:
    """What the driver was asked to start."""

    kernel: str
    device: int
    stream: int
    blocks: int
    threads: int
    shared: int
    cluster: int


class Driver:
    """The fake driver, steered."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self.library.fake_function.restype = ctypes.c_void_p
        self.library.fake_kernels.restype = ctypes.c_char_p
        self.library.fake_take_log.restype = ctypes.c_char_p

    def kernels(self) -> list[str]:
        """The names of all kernels that it can run."""
        return sorted(self.library.fake_kernels().decode().split("\n")[:-1])

    def function(self, name: str, device: int) -> int:
        """The handle of a kernel on a device."""
        handle = self.library.fake_function(name.encode(), device)
        if not handle:
            raise KeyError(name)
        return handle

    def take_log(self) -> list[Launch]:
        """The launches since the last call."""
        lines = self.library.fake_take_log().decode().splitlines()
        return [Launch(line.split("\t")[0], *map(int, line.split("\t")[1:])) for line in lines]

    def set_stream(self, device: int, stream: int) -> None:
        """torch's current stream there."""
        self.library.fake_set_stream(device, ctypes.c_void_p(stream))

    def set_capturing(self, stream: int, capturing: bool) -> None:
        """Whether the stream is captured into a graph."""
        self.library.fake_set_capturing(ctypes.c_void_p(stream), int(capturing))

    def forget(self) -> None:
        """What kernels have asked for, and `set_code_arch`."""
        self.library.fake_forget()

    def set_code_arch(self, device: int, arch: int) -> None:
        """What the kernels' code on a device was compiled for, such as 80."""
        self.library.fake_set_code_arch(device, arch)

    def fail_next_launch(self, status: int) -> None:
        """The driver's answer to the next launch."""
        self.library.fake_fail_next_launch(status)


class Compiler:
    """A toolchain whose images are the kernels' names."""

    name = "the fake device's compiler"

    def __init__(self, function: Callable[[str, int], int]) -> None:
        self.function = function
        self.compiled: list[tuple[str, str]] = []

    def target(self, capability: tuple[int, int]) -> str:
        return "sm_{}{}".format(*capability)

    def compile(self, text: str, options: Any, kernel: str, target: str, device: int) -> tuple[bytes, str]:
        self.compiled.append((kernel, target))
        return kernel.encode(), "entry"

    def load(self, image: bytes, entry: str, device: int) -> tuple[Any, int]:
        return None, self.function(image.decode(), device)


DRIVER: Driver | None = None
COMPILER: Compiler | None = None


def pytest_configure(config: pytest.Config) -> None:
    """Everything in place before anybody imports `ard_fast`."""
    global DRIVER, COMPILER
    DRIVER = Driver(build())
    _patch_torch()
    os.environ["ARD_FAST_CUDA_KERNELS"] = "nvrtc"
    # Nothing here is compiled by NVRTC, so it need not be installed; loading only asks whether it is.
    stand_in = ModuleType("cupy")
    stand_in.__spec__ = ModuleSpec("cupy", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", stand_in)
        from ard_fast.nvrtc import kernels

    COMPILER = Compiler(DRIVER.function)
    shared = kernels.Kernels(COMPILER)
    kernels.shared = lambda: shared
