"""Training methods: what a step attacks and which loss it takes; `build_method` makes one by name."""

from ard_fast.methods.base import Inner, Method, MethodContext, Quirk, StepResult
from ard_fast.methods.registry import METHODS, build_method, find_method
from ard_fast.methods.spec import MethodSpec

__all__ = [
    "METHODS",
    "Inner",
    "Method",
    "MethodContext",
    "MethodSpec",
    "Quirk",
    "StepResult",
    "build_method",
    "find_method",
]
