"""The PEP 517 backend: setuptools, which builds against the torch that is already installed.

pip builds in an isolated environment that hides what the user has installed. Listing torch as a build requirement
would therefore download another torch, with gigabytes of CUDA libraries, for a compile that needs only its headers.
This backend asks for torch only when the calling environment has none that is new enough, and for a CUDA toolkit,
100 MB, only when there is none for that torch.
"""

import sys
import sysconfig
from pathlib import Path

# Frontends put this folder on sys.path only while they import the backend; setup.py needs its modules later.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import found
import setuptools

# An isolated environment has what pyproject.toml asks for; with --no-build-isolation it is the user's own, unchecked.
if tuple(int(part) for part in setuptools.__version__.split(".")[:2]) < (77, 0):
    raise RuntimeError(
        f"ard-fast needs setuptools>=77.0.3,<82 to build, this is {setuptools.__version__}. "
        "With --no-build-isolation, install it first: pip install 'setuptools>=77.0.3,<82' ninja"
    )

from setuptools.build_meta import (  # noqa: F401
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    """What the isolated environment must hold to compile, beside what pyproject.toml names."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise found.BuildError(
            "ard-fast is one build for every Python, through the stable ABI, which free-threaded CPython does not "
            "have; install it with the ordinary interpreter of the same version"
        )
    torch, looked = found.find_torch()
    if torch is None:
        # torch's CUDA builds ask for packages of one version of the toolkit, which decides that of the compiler.
        more = [found.TORCH_REQUIREMENT, *([found.TOOLKIT] if found.cuda_mode() != "0" else [])]
        why = f"no installed torch to build against ({looked})"
    elif (
        found.cuda_mode() != "0"
        and (package := found.toolkit_requirement(torch))
        and not found.find_toolkit(torch.cuda)[0]
    ):
        more = [package]
        why = f"no CUDA toolkit for torch {torch.version}; ARD_FAST_CUDA=0 builds without"
    else:
        return []
    print(f"ard-fast: the build environment gets {', '.join(more)}: {why}", file=sys.stderr)
    return more


get_requires_for_build_editable = get_requires_for_build_wheel
