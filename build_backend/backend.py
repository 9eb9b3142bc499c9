"""The PEP 517 backend: setuptools, which builds against the torch that is already installed.

pip builds in an isolated environment that hides what the user has installed. Listing torch as a build requirement
would therefore download another torch, with gigabytes of CUDA libraries, for a compile that needs only its headers.
This backend asks for torch only when the calling environment has none that is new enough. Looking outside the
isolated environment is against the spirit of PEP 517: ARD_FAST_ISOLATED=1 turns it off, and `torch_install.py` says
where it looks.
"""

import sys
import sysconfig
from pathlib import Path

# Frontends put this folder on sys.path only while they import the backend; setup.py needs its modules later.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import plan
import setuptools
import torch_install

# An isolated environment has what pyproject.toml asks for; with --no-build-isolation it is the user's own, unchecked.
if tuple(int(part) for part in setuptools.__version__.split(".")[:2]) < (77, 0):
    raise RuntimeError(
        f"ard-fast needs setuptools>=77.0.3,<82 to build, this is {setuptools.__version__}. "
        "With --no-build-isolation, install it first: pip install 'setuptools>=77.0.3,<82' ninja"
    )

from setuptools import build_meta as _setuptools
from setuptools.build_meta import (  # noqa: F401
    build_editable,
    build_sdist,
    build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    """What the isolated environment must hold to compile: torch only if no installed one can be used."""
    plan.check_python(sysconfig.get_config_vars())
    requires = _setuptools.get_requires_for_build_wheel(config_settings)
    install, looked = torch_install.find_torch()
    if install is not None:
        return requires
    print(
        "ard-fast: no installed torch to build against, so the build environment gets its own "
        f"({torch_install.REQUIREMENT}).\n  looked in: " + "\n             ".join(looked),
        file=sys.stderr,
    )
    return [*requires, torch_install.REQUIREMENT]


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    """The same as for a wheel."""
    return get_requires_for_build_wheel(config_settings)


def get_requires_for_build_sdist(config_settings: dict | None = None) -> list[str]:
    """A source archive needs no torch."""
    return []
