"""Compiled kernels on disk, a file each, so that the next process need not compile them.

A file is named `<entry>-<key>.cubin`: the kernel's symbol and the key of `program.key`. Files are written whole or not
at all; processes may share the folder.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from pathlib import Path

VARIABLE = "ARD_FAST_KERNEL_CACHE"


def folder() -> Path:
    """Where the files are: $ARD_FAST_KERNEL_CACHE, else `ard_fast/kernels` in the user's cache folder."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path("~/.cache").expanduser()) / "ard_fast" / "kernels"


def find(key: str) -> tuple[Path, str] | None:
    """The file of `key` and the symbol in it, or None."""
    for path in folder().glob(f"*-{key}.cubin"):
        return path, path.name.removesuffix(f"-{key}.cubin")
    return None


def put(key: str, entry: str, image: bytes) -> None:
    """Keep a compiled kernel. A folder that cannot be written is a warning: the kernel is compiled again next time."""
    where = folder()
    try:
        where.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=where, prefix=".", suffix=".new", delete=False) as file:
            try:
                file.write(image)
                file.flush()
                os.replace(file.name, where / f"{entry}-{key}.cubin")
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(file.name)
                raise
    except OSError as error:
        warnings.warn(
            f"ard_fast: compiled kernels are not kept: {error}. Set {VARIABLE} to a folder that can be written",
            RuntimeWarning,
            stacklevel=2,
        )
