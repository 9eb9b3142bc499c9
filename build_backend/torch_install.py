"""Finds the torch to build against, without importing it."""

import importlib.util
import os
import re
import runpy
import site
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MINIMUM = (2, 11)
REQUIREMENT = "torch>=2.11"


@dataclass(frozen=True)
class TorchInstall:
    """An installed torch: all that compiling and linking against its stable ABI needs."""

    root: Path  # the folder `torch`, with include/ and lib/ inside
    version: str  # such as "2.13.0+cpu"
    cuda: str | None  # the CUDA version it was built with, such as "13.0"; None for a CPU or ROCm build

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version."""
        return parse_release(self.version)

    def expose(self) -> None:
        """Make `import torch` work, for what only a running torch can tell.

        The folder is appended, never put in front: the isolated environment's own setuptools and ninja stay first.
        """
        folder = str(self.root.parent)
        if folder not in sys.path:
            sys.path.append(folder)


def parse_release(version: str) -> tuple[int, int]:
    """`"2.13.0+cpu"` -> `(2, 13)`."""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        raise ValueError(f"torch version: expected something like '2.13.0', got {version!r}")
    return int(match[1]), int(match[2])


def read_install(root: Path) -> TorchInstall:
    """Read version and CUDA version from `torch/version.py`, which is plain assignments."""
    values = runpy.run_path(str(root / "version.py"))
    return TorchInstall(root=root, version=str(values["__version__"]), cuda=values.get("cuda"))


def candidate_folders(env: Mapping[str, str]) -> list[Path]:
    """The site-packages folders of the environment that called pip.

    pip runs the build with the interpreter of the calling environment and only masks its site-packages, so
    sysconfig still names them. `python -m build` makes a virtual environment of its own; the calling one is then
    known by VIRTUAL_ENV.
    """
    folders = [env["ARD_FAST_TORCH_SITE"]] if env.get("ARD_FAST_TORCH_SITE") else []
    folders += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    if env.get("VIRTUAL_ENV"):
        python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        folders.append(os.path.join(env["VIRTUAL_ENV"], "lib", python, "site-packages"))
    return [Path(folder) for folder in dict.fromkeys(folders)]


def find_torch(env: Mapping[str, str] | None = None) -> tuple[TorchInstall | None, list[str]]:
    """Find an installed torch that is new enough.

    Args:
        env: the environment variables to go by; `os.environ` by default. ARD_FAST_TORCH_SITE names a site-packages
            folder to look in first; ARD_FAST_ISOLATED=1 keeps to what the running interpreter can import.

    Returns:
        The install or None, and one line for each place looked at that had none.
    """
    env = os.environ if env is None else env
    looked = []
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        roots = [Path(spec.origin).parent]
    else:
        looked.append("the modules this Python can import")
        isolated = env.get("ARD_FAST_ISOLATED", "0") not in ("", "0")
        roots = [] if isolated else [folder / "torch" for folder in candidate_folders(env)]
        if isolated:
            looked.append("nowhere else, because ARD_FAST_ISOLATED is set")
    for root in roots:
        if not (root / "version.py").is_file():
            looked.append(str(root.parent))
            continue
        install = read_install(root)
        if install.release >= MINIMUM:
            return install, looked
        looked.append(f"{root.parent}: torch {install.version} is too old")
    return None, looked
