"""From a kernel's name to a function that the driver can start, for the module `_C_rtc`."""

from __future__ import annotations

import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from ard_fast.nvrtc import program, store
from ard_fast.nvrtc.toolchain import Toolchain, choose


class Kernels:
    """The kernels that this process has loaded; each is compiled once, on whichever thread asks first."""

    def __init__(self, toolchain: Toolchain) -> None:
        self.toolchain = toolchain
        self._loaded: dict[tuple[int, str, str], tuple[Any, int]] = {}
        self._locks: dict[tuple[int, str, str], threading.Lock] = {}

    def handle(self, device: int, header: str, name: str) -> int:
        """The CUfunction of a kernel on CUDA device `device`, compiled if need be.

        Raises:
            CompileError: NVRTC refused the sources.
        """
        which = (device, header, name)
        with self._locks.setdefault(which, threading.Lock()):
            if which not in self._loaded:
                self._loaded[which] = self._make(*which)
            return self._loaded[which][1]

    def _make(self, device: int, header: str, name: str) -> tuple[Any, int]:
        target = self.toolchain.target(torch.cuda.get_device_capability(device))
        key = program.key(header, name, target, self.toolchain.name)
        kept = store.find(key)
        if kept is not None:
            path, entry = kept
            try:
                return self.toolchain.load(path.read_bytes(), entry, device)
            except Exception:  # a damaged file: made anew
                path.unlink(missing_ok=True)
        image, entry = self.toolchain.compile(program.text(header), program.options(), name, target, device)
        store.put(key, entry, image)
        return self.toolchain.load(image, entry, device)


@functools.cache
def shared() -> Kernels:
    """The kernels of this process.

    Raises:
        ImportError: NVRTC cannot be used.
    """
    return Kernels(choose())


def resolve(device: int, header: str, name: str) -> int:
    """What `_C_rtc` calls for a kernel that it starts for the first time."""
    return shared().handle(device, header, name)


def compile_all(module: Any, device: int) -> int:
    """Make every kernel of `_C_rtc` ready on a device; returns how many."""
    kernels = module.kernels()

    def ready(kernel: tuple[str, str]) -> None:
        module.store(device, *kernel, resolve(device, *kernel))

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(ready, kernels))
    return len(kernels)
