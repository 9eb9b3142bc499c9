"""Which CUDA kernels serve: those that nvcc compiled (`_C_cuda`), or the same sources through NVRTC (`_C_rtc`).

The environment variable ARD_FAST_CUDA_KERNELS decides:
    auto      (default) the compiled ones if they are there and can be loaded, else NVRTC if it is there
    compiled  only the compiled ones
    nvrtc     only NVRTC
    none      no CUDA kernels

Asked for by name and not there is an error; under a torch without CUDA there are none, whatever is asked for.
"""

import importlib.machinery
import importlib.util
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

VARIABLE = "ARD_FAST_CUDA_KERNELS"
MODES = ("auto", "compiled", "nvrtc", "none")


@dataclass(frozen=True)
class CudaPart:
    """What was loaded."""

    path: Path | None  # of `_C_cuda` or `_C_rtc`; None: neither
    backend: str | None  # "compiled" or "nvrtc"
    reason: str  # a sentence without a full stop


def module_file(folder: Path, name: str) -> Path | None:
    """The file of extension module `name` in `folder`, for this Python."""
    paths = (folder / f"{name}{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def import_file(name: str, path: Path) -> ModuleType:
    """Import the extension module at `path` under the name it has inside the package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module


def mode(environment: Mapping[str, str] = os.environ) -> str:
    """What ARD_FAST_CUDA_KERNELS asks for.

    Raises:
        ImportError: its value is none of `MODES`.
    """
    given = environment.get(VARIABLE, "").strip() or "auto"
    if given not in MODES:
        raise ImportError(f"{VARIABLE} must be one of {', '.join(MODES)}, got {given!r}")
    return given


def load_cuda_part(folder: Path, info: Mapping[str, Any]) -> CudaPart:
    """Load the CUDA kernels that this torch can use.

    Args:
        folder: where the extension modules are.
        info: the values of _build_info.py there.

    Raises:
        ImportError: ARD_FAST_CUDA_KERNELS has no such value, or asks for kernels that cannot be had.
    """
    wanted = mode()
    if torch.version.cuda is None:
        return CudaPart(None, None, f"torch {torch.__version__} is not a CUDA build")
    if wanted == "none":
        return CudaPart(None, None, f"{VARIABLE}=none")
    missing = []
    for backend, load in (("compiled", _load_compiled), ("nvrtc", _load_nvrtc)):
        if wanted not in ("auto", backend):
            continue
        path, reason = load(folder, info)
        if path is not None:
            return CudaPart(path, backend, f"{reason}; {missing[0]}" if missing else reason)
        missing.append(reason)
    if wanted != "auto":
        raise ImportError(f"ard_fast: {VARIABLE}={wanted} cannot be had: {'; '.join(missing)}")
    return CudaPart(None, None, "; ".join(missing))


def _load_compiled(folder: Path, info: Mapping[str, Any]) -> tuple[Path | None, str]:
    path = module_file(folder, "_C_cuda")
    if path is None:
        return None, f"the extension was built without CUDA: {info.get('CUDA_REASON', 'no record of why')}"
    try:
        import_file("ard_fast._C_cuda", path)
    except ImportError as error:
        # Built, wanted and not usable: nobody should have to guess about the GPU.
        reason = f"{path} could not be loaded: {error}"
        warnings.warn(f"ard_fast: the compiled CUDA kernels are off: {reason}", RuntimeWarning, stacklevel=2)
        return None, reason
    return path, f"compiled for {' '.join(info.get('CUDA_ARCHS', ['unknown architectures']))}"


def _load_nvrtc(folder: Path, _info: Mapping[str, Any]) -> tuple[Path | None, str]:
    """`_C_rtc`, with what compiles its kernels. That is not imported before the first kernel is needed."""
    from ard_fast.nvrtc import toolchain

    path = module_file(folder, "_C_rtc")
    if path is None:
        return None, f"no NVRTC path: {folder} holds no _C_rtc"
    if not toolchain.installed():
        return None, "no NVRTC: neither cuda-bindings nor CuPy is installed"
    try:
        module = import_file("ard_fast._C_rtc", path)
    except ImportError as error:
        return None, f"no NVRTC path: {path} could not be loaded: {error}"
    module.set_resolver(_resolve)
    return path, "compiled by NVRTC at first use"


def _resolve(device: int, header: str, name: str) -> int:
    from ard_fast.nvrtc import kernels

    return kernels.resolve(device, header, name)
