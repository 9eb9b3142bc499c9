"""What NVRTC is given for a kernel: program text and options.

The results must have the bits of the compiled module's, so the options that decide about arithmetic are nvcc's
defaults, as in setup.py: contraction to fused multiply-add, correctly rounded division and square root, and subnormals
kept. Of these only the last needs care: CuPy's own compilation (`cupy.RawModule(code=...)`) always ends the options
with -ftz=true, which flushes subnormals to zero, and NVRTC takes the last one.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from ard_fast._fingerprint import source_fingerprint

PACKAGE = Path(__file__).resolve().parent.parent
# -default-device: host functions that headers share with the launchers need no annotation.
OPTIONS = ("-std=c++17", "-DNDEBUG", "-default-device")

_TEXT = """// ard_fast sources {fingerprint}
#if defined(__CUDA_FTZ) && __CUDA_FTZ
#error "ard_fast: compiled with -ftz=true; the kernels need subnormal numbers"
#endif
#include "{header}"
"""


@functools.cache
def include_folder() -> Path:
    """The folder with `core/` and `cuda/`: the checkout's, or what the package brings along.

    Raises:
        FileNotFoundError: it is not there.
    """
    places = (PACKAGE.parent / "csrc", PACKAGE / "csrc")
    for folder in places:
        if (folder / "cuda").is_dir() and (folder / "core").is_dir():
            return folder
    raise FileNotFoundError(f"the CUDA sources are missing: looked in {' and '.join(map(str, places))}")


@functools.cache
def _fingerprint(folder: Path) -> str:
    return source_fingerprint(folder)


def text(header: str, folder: Path | None = None) -> str:
    """The program that holds the kernels of `header`.

    The sources' fingerprint is in it, because a cache that is keyed by the text does not see included files.

    Args:
        header: relative to the include folder, such as "cuda/pgd_kernels.cuh".
        folder: the include folder; default: `include_folder()`.
    """
    folder = include_folder() if folder is None else folder
    return _TEXT.format(fingerprint=_fingerprint(folder), header=header)


def options(folder: Path | None = None) -> tuple[str, ...]:
    """NVRTC's options, but for the architecture."""
    return (*OPTIONS, f"-I{include_folder() if folder is None else folder}")


def key(header: str, name: str, target: str, compiler: str) -> str:
    """What tells one compiled kernel from another: 32 hexadecimal digits.

    Args:
        header: as for `text`.
        name: the kernel's name expression.
        target: the architecture, such as "sm_90".
        compiler: the compiler and its version.
    """
    parts = (text(header), name, target, compiler, *OPTIONS)
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
