"""Loads the compiled extension modules, whichever way the package was installed.

`_C` holds the operator schemas and the CPU kernels, `_C_cuda` the CUDA kernels (`_cuda_part.py`). Loading never builds
anything and needs no GPU.

Where the modules are. An installed package and an editable one have them beside this file. In a clone of the
repository after a plain `pip install .` they are not: started from the clone's root, Python takes the source folder
`ard_fast/` for the package and never looks at the installed one. Then the modules of the installed package serve,
found along `sys.path`, and the Python files are the clone's own.

Whether they fit. Beside a source checkout's Python files lies `csrc/`. Its fingerprint must be the one that the
modules were built from; the first modules that fit are taken. If none do, the first ones found are used, with a
`StaleExtensionWarning`.
"""

import functools
import runpy
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from ard_fast._cuda_part import import_file, load_cuda_part, module_file
from ard_fast._fingerprint import source_fingerprint

PACKAGE = Path(__file__).resolve().parent
MINIMUM_TORCH = (2, 11)


class StaleExtensionWarning(UserWarning):
    """The compiled extension was built from other sources than those beside the Python files."""


@dataclass(frozen=True)
class Extension:
    """The loaded extension modules."""

    c_path: Path
    cuda_path: Path | None  # of `_C_cuda`, None when it is not loaded
    cuda_reason: str  # why the CUDA kernels are there or not, a sentence without a full stop
    source_checkout: bool  # the Python files lie in a checkout, beside csrc/
    stale: str | None  # what does not fit, or None
    build_info: MappingProxyType[str, Any] = field(repr=False)  # the values of _build_info.py

    @property
    def has_cuda_kernels(self) -> bool:
        """Whether `_C_cuda` is loaded."""
        return self.cuda_path is not None


def _folders_with_extension(package: Path, search_path: Iterable[str]) -> list[Path]:
    """Folders that hold `_C`: that of the Python files, then every other `ard_fast` folder along the search path."""
    folders = [package, *(Path(entry or ".").resolve() / "ard_fast" for entry in search_path)]
    return [folder for folder in dict.fromkeys(folders) if module_file(folder, "_C") is not None]


def _read_build_info(folder: Path) -> dict[str, Any]:
    """The values of `_build_info.py` in `folder`; empty if it is missing."""
    path = folder / "_build_info.py"
    if not path.is_file():
        return {}
    return {key: value for key, value in runpy.run_path(str(path)).items() if key.isupper()}


def _choose_folder(folders: list[Path], csrc: Path | None) -> tuple[Path, dict[str, Any], str | None]:
    """Choose the modules to load.

    Args:
        folders: those that hold `_C`, at least one.
        csrc: the sources beside the Python files, or None.

    Returns:
        The folder, its build info, and what does not fit or None.
    """
    if csrc is None:
        return folders[0], _read_build_info(folders[0]), None
    wanted = source_fingerprint(csrc)
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


@functools.cache
def load() -> Extension:
    """Load `_C`, and the CUDA kernels if torch is a CUDA build; once in a process.

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
    c_path = module_file(folder, "_C")
    assert c_path is not None  # that is what the folder was chosen for
    try:
        import_file("ard_fast._C", c_path)
    except ImportError as error:
        built = info.get("TORCH_VERSION", "an unknown version")
        raise ImportError(
            f"ard_fast: {c_path} could not be loaded: {error}. "
            f"It was built against torch {built}; this is torch {torch.__version__}. {hint}"
        ) from error
    if stale is not None:
        warnings.warn(
            f"ard_fast: {stale}. Results are those of the old code. {hint}", StaleExtensionWarning, stacklevel=2
        )
    cuda = load_cuda_part(folder, info)
    return Extension(
        c_path=c_path,
        cuda_path=cuda.path,
        cuda_reason=cuda.reason,
        source_checkout=csrc is not None,
        stale=stale,
        build_info=MappingProxyType(info),
    )


def __getattr__(name: str) -> Any:
    """`HAS_CUDA_KERNELS: bool` and `cuda_reason: str`, of the loaded extension."""
    if name == "HAS_CUDA_KERNELS":
        return load().has_cuda_kernels
    if name == "cuda_reason":
        return load().cuda_reason
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
