"""Loads the compiled CUDA kernels, `_C_cuda`, and says on which GPUs their code runs."""

import functools
import importlib.machinery
import importlib.util
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

CLUSTERS = (9, 0)  # the compute capability that brings them; kClusterCode in csrc/cuda/geometry.h
WITHOUT_CLUSTERS = "without the thread-block clusters that make L2, MI-FGSM and Auto-PGD steps of large images faster"


@dataclass(frozen=True)
class CudaPart:
    """What was loaded."""

    path: Path | None  # of `_C_cuda`
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
    """Load the CUDA kernels if they were built and this torch can use them.

    Args:
        folder: where the extension modules are.
        info: the values of _build_info.py there.
    """
    if torch.version.cuda is None:
        return CudaPart(None, f"torch {torch.__version__} is not a CUDA build")
    path = module_file(folder, "_C_cuda")
    if path is None:
        return CudaPart(None, f"the extension was built without CUDA: {info.get('CUDA_REASON', 'no record of why')}")
    try:
        import_file("ard_fast._C_cuda", path)
    except ImportError as error:
        # Built, wanted and not usable: nobody should have to guess about the GPU.
        reason = f"{path} could not be loaded: {error}"
        warnings.warn(f"ard_fast: the compiled CUDA kernels are off: {reason}", RuntimeWarning, stacklevel=2)
        return CudaPart(None, reason)
    archs = info.get("CUDA_ARCHS", [])
    # When CUDA is initialized, which loading must not do; at once if it is.
    torch.cuda._lazy_call(functools.partial(_warn_of_other_gpus, archs))
    return CudaPart(path, f"compiled for {' '.join(archs) or 'unknown architectures'}")


def _warn_of_other_gpus(archs: Sequence[str]) -> None:
    """Say which visible GPUs have no code here, or older code than they could run."""
    for index in range(torch.cuda.device_count() if archs else 0):
        runs, how = arch_coverage(torch.cuda.get_device_capability(index), archs)
        if not runs or WITHOUT_CLUSTERS in how:
            name = torch.cuda.get_device_name(index)
            warnings.warn(f"ard_fast: cuda:{index} ({name}): {how}", RuntimeWarning, stacklevel=2)
