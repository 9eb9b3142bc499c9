"""ard-fast: kernels, attacks and a trainer for adversarially robust distillation.

`ard_fast.functional` holds the operators, `ard_fast.attacks` the attacks, `python -m ard_fast.train` trains. Either of
the two loads torch and the compiled operators when it is first used; nothing is ever built then, and no GPU is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ard_fast._version import __version__

if TYPE_CHECKING:
    from ard_fast import attacks, functional

__all__ = ["__version__", "attacks", "functional"]


def __getattr__(name: str) -> Any:
    # Not imported above: torch alone takes a second, which `ard-fast --help` does not need.
    if name in __all__:
        return importlib.import_module(f"ard_fast.{name}")
    raise AttributeError(f"module 'ard_fast' has no attribute {name!r}")
