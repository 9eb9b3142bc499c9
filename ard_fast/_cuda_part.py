"""Which CUDA kernels serve: those that nvcc compiled (`_C_cuda`), or the same sources through NVRTC (`_C_rtc`).

The environment variable ARD_FAST_CUDA_KERNELS decides:
    auto      (default) the compiled ones if they are there and can be loaded, else NVRTC if it is there
    compiled  only the compiled ones
    nvrtc     only NVRTC
    none      no CUDA kernels

Asked for by name and not there is an error; under a torch without CUDA there are none, whatever is asked for.
"""

import functools
import importlib.machinery
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

VARIABLE = "ARD_FAST_CUDA_KERNELS"
MODES = ("auto", "compiled", "nvrtc", "none")
CLUSTERS = (9, 0)  # the compute capability that brings them; kClusterCode in csrc/cuda/geometry.h
WITHOUT_CLUSTERS = "without the thread-block clusters that make L2, MI-FGSM and Auto-PGD steps of large images faster"


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


def arch_coverage(capability: tuple[int, int], archs: Sequence[str]) -> tuple[bool, str]:
    """Whether code for `archs` runs on a GPU, and how.

    Args:
        capability: the GPU's compute capability, such as (9, 0).
        archs: what was compiled, such as ["sm_80", "compute_80"].

    Returns:
        Whether it runs, and a phrase that says how or what to do.
    """
    major, minor = capability
    # Machine code runs on its own major version from its own minor version on; "a" and "f" variants have rules of their
    # own and count only for exactly their GPU.
    binaries: list[tuple[int, str]] = []
    ptx: list[tuple[int, int]] = []
    for name in archs:
        if match := re.fullmatch(r"sm_(\d+)(\d)([af]?)", name):
            if int(match[1]) == major and (int(match[2]) == minor or (not match[3] and int(match[2]) < minor)):
                binaries.append((int(match[2]), name))
        elif match := re.fullmatch(r"compute_(\d+)(\d)", name):
            ptx.append((int(match[1]), int(match[2])))
    if binaries:
        return True, f"runs its {max(binaries)[1]} code"
    rebuild = f"build again with TORCH_CUDA_ARCH_LIST={major}.{minor}"
    usable = max((version for version in ptx if version <= capability), default=None)
    if usable is None:
        return False, f"not covered: {rebuild}"
    how = "the driver compiles the kernels from compute_{}{} at first use".format(*usable)
    return True, f"{how}, {WITHOUT_CLUSTERS}: {rebuild}" if usable < CLUSTERS <= capability else how


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
    archs = info.get("CUDA_ARCHS", [])
    # When CUDA is initialized, which loading must not do; at once if it is.
    torch.cuda._lazy_call(functools.partial(_warn_of_other_gpus, archs))
    return path, f"compiled for {' '.join(archs) or 'unknown architectures'}"


def _warn_of_other_gpus(archs: Sequence[str]) -> None:
    """Say which visible GPUs have no code here, or older code than they could run."""
    for index in range(torch.cuda.device_count() if archs else 0):
        runs, how = arch_coverage(torch.cuda.get_device_capability(index), archs)
        if not runs or WITHOUT_CLUSTERS in how:
            name = torch.cuda.get_device_name(index)
            warnings.warn(f"ard_fast: cuda:{index} ({name}): {how}", RuntimeWarning, stacklevel=2)


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
