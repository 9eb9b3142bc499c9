"""Training methods: what a step attacks and which loss it takes; `build_method` makes one by name."""

from ard_fast.methods.base import AttackingMethod, Inner, Method, MethodContext, PGDMethod, StepResult
from ard_fast.methods.registry import METHODS, build_method, find_method
from ard_fast.methods.shared import Quirk

__all__ = [
    "METHODS",
    "AttackingMethod",
    "Inner",
    "Method",
    "MethodContext",
    "PGDMethod",
    "Quirk",
    "StepResult",
    "build_method",
    "find_method",
]
