"""A short hash of the C++ and CUDA sources that the extension module is compiled from.

The build writes it into `_build_info.py`; in a checkout `ard_fast/functional/_load.py` compares it with the sources.
"""

import hashlib
from pathlib import Path

# The emulator of the tests is not in the extension module, so editing it makes nothing stale.
TEST_FOLDERS = ("emulator",)
SOURCE_SUFFIXES = (".h", ".cuh", ".cpp", ".cu")


def compiled_sources(csrc: Path) -> list[Path]:
    """List every file under `csrc` that goes into the extension module, headers included, in a fixed order."""
    found = (path for path in csrc.rglob("*") if path.suffix in SOURCE_SUFFIXES)
    return sorted(path for path in found if path.relative_to(csrc).parts[0] not in TEST_FOLDERS)


def source_fingerprint(csrc: Path) -> str:
    """Hash names and contents of the compiled sources under `csrc`.

    Args:
        csrc: the folder of the sources.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in compiled_sources(csrc):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(csrc).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
