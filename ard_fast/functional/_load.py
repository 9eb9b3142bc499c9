"""Loads the compiled extension module `_C`, whichever way the package was installed.

`_C` holds the operator schemas, the CPU kernels and, where it was built with CUDA, the CUDA kernels. Loading never
builds anything and needs no GPU.

Where it is. An installed package and an editable one have it beside this file. In a clone of the repository after a
plain `pip install .` it is not: started from the clone's root, Python takes the source folder `ard_fast/` for the
package and never looks at the installed one. Then the module of the installed package serves, found along `sys.path`,
and the Python files are the clone's own.

Whether it fits. Beside a source checkout's Python files lies `csrc/`. Its fingerprint must be the one that the module
was built from; the first module that fits is taken. If none does, the first one found is used, with a
`StaleExtensionWarning`.
"""

import functools
import importlib.machinery
import importlib.util
import re
import runpy
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

PACKAGE = Path(__file__).resolve().parents[1]
MINIMUM_TORCH = (2, 11)
CLUSTERS = (9, 0)  # the compute capability that brings them; kClusterCode in csrc/common/sample_group.cuh
WITHOUT_CLUSTERS = "without the thread-block clusters that make L2, MI-FGSM and Auto-PGD steps of large images faster"


class StaleExtensionWarning(UserWarning):
    """The compiled extension was built from other sources than those beside the Python files."""


@dataclass(frozen=True)
class Extension:
    """The loaded extension module."""

    c_path: Path
    has_cuda_kernels: bool
    cuda_reason: str  # why the CUDA kernels are there or not, a sentence without a full stop
    source_checkout: bool  # the Python files lie in a checkout, beside csrc/
    stale: str | None  # what does not fit, or None
    build_info: MappingProxyType[str, Any] = field(repr=False)  # the values of _build_info.py


def extension_file(folder: Path) -> Path | None:
    """The file of `_C` in `folder`, for this Python."""
    paths = (folder / f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _import_extension(path: Path) -> None:
    """Import the extension module at `path` under the name it has inside the package."""
    spec = importlib.util.spec_from_file_location("ard_fast._C", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["ard_fast._C"] = module


def _folders_with_extension(package: Path, search_path: Iterable[str]) -> list[Path]:
    """Folders that hold `_C`: that of the Python files, then every other `ard_fast` folder along the search path."""
    folders = [package, *(Path(entry or ".").resolve() / "ard_fast" for entry in search_path)]
    return [folder for folder in dict.fromkeys(folders) if extension_file(folder) is not None]


def _read_build_info(folder: Path) -> dict[str, Any]:
    """The values of `_build_info.py` in `folder`; empty if it is missing."""
    path = folder / "_build_info.py"
    if not path.is_file():
        return {}
    return {key: value for key, value in runpy.run_path(str(path)).items() if key.isupper()}


def _choose_folder(folders: list[Path], csrc: Path | None) -> tuple[Path, dict[str, Any], str | None]:
    """Choose the module to load.

    Args:
        folders: those that hold `_C`, at least one.
        csrc: the sources beside the Python files, or None.

    Returns:
        The folder, its build info, and what does not fit or None.
    """
    if csrc is None:
        return folders[0], _read_build_info(folders[0]), None
    fingerprint = runpy.run_path(str(csrc.parent / "build_backend" / "fingerprint.py"))
    wanted = fingerprint["source_fingerprint"](csrc)
    infos = [_read_build_info(folder) for folder in folders]
    for folder, info in zip(folders, infos, strict=True):
        if info.get("SOURCE_FINGERPRINT") == wanted:
            return folder, info, None
    built = infos[0].get("SOURCE_FINGERPRINT", "unknown")
    stale = f"the extension in {folders[0]} was built from other sources ({built}) than {csrc} holds now ({wanted})"
    return folders[0], infos[0], stale


def _install_hint(root: Path | None) -> str:
    """What to do to get a fitting extension."""
    if root is None:
        return "Install the package again: pip install --force-reinstall --no-deps ard-fast"
    return f"Build it: run `pip install .` (or `pip install -e .`) in {root}"


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


def _warn_of_other_gpus(archs: Sequence[str]) -> None:
    """Say which visible GPUs have no code here, or older code than they could run."""
    for index in range(torch.cuda.device_count() if archs else 0):
        runs, how = arch_coverage(torch.cuda.get_device_capability(index), archs)
        if not runs or WITHOUT_CLUSTERS in how:
            name = torch.cuda.get_device_name(index)
            warnings.warn(f"ard_fast: cuda:{index} ({name}): {how}", RuntimeWarning, stacklevel=2)


@functools.cache
def load() -> Extension:
    """Load `_C`; once in a process.

    Returns:
        What was loaded and why.

    Raises:
        ImportError: there is no `_C`, or it cannot be loaded; the message says what to do.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MINIMUM_TORCH:
        raise ImportError(f"ard_fast needs torch {'.'.join(map(str, MINIMUM_TORCH))} or newer, got {torch.__version__}")
    csrc = PACKAGE.parent / "csrc"
    csrc = csrc if csrc.is_dir() and (PACKAGE.parent / "setup.py").is_file() else None
    hint = _install_hint(None if csrc is None else PACKAGE.parent)
    folders = _folders_with_extension(PACKAGE, sys.path)
    if not folders:
        looked = ", ".join(entry or "." for entry in sys.path)
        raise ImportError(
            f"ard_fast: the compiled extension (ard_fast/_C) was not found. {hint}\n"
            f"Looked in {PACKAGE}, then for an ard_fast folder in: {looked}"
        )
    folder, info, stale = _choose_folder(folders, csrc)
    c_path = extension_file(folder)
    assert c_path is not None  # that is what the folder was chosen for
    built = f"It was built against torch {info.get('TORCH_VERSION', 'of an unknown version')}; "
    built += f"this is torch {torch.__version__}."
    if info.get("CUDA_BUILT") and torch.version.cuda is None:
        raise ImportError(f"ard_fast: {c_path} holds CUDA kernels and needs a CUDA build of torch. {built} {hint}")
    try:
        _import_extension(c_path)
    except ImportError as error:
        raise ImportError(f"ard_fast: {c_path} could not be loaded: {error}. {built} {hint}") from error
    if stale is not None:
        warnings.warn(
            f"ard_fast: {stale}. Results are those of the old code. {hint}", StaleExtensionWarning, stacklevel=2
        )
    archs = info.get("CUDA_ARCHS", [])
    if has_cuda_kernels := torch._C._dispatch_has_kernel_for_dispatch_key("ard_fast::pgd_linf_step_", "CUDA"):
        cuda_reason = f"compiled for {' '.join(archs) or 'unknown architectures'}"
        # When CUDA is initialized, which loading must not do; at once if it is.
        torch.cuda._lazy_call(functools.partial(_warn_of_other_gpus, archs))
    else:
        cuda_reason = f"the extension was built without CUDA: {info.get('CUDA_REASON', 'no record of why')}"
    return Extension(
        c_path=c_path,
        has_cuda_kernels=has_cuda_kernels,
        cuda_reason=cuda_reason,
        source_checkout=csrc is not None,
        stale=stale,
        build_info=MappingProxyType(info),
    )
