"""Training methods: what a step attacks and which loss it takes; `build_method` makes one by name."""

from ard_fast.methods.base import Method, StepResult
from ard_fast.methods.registry import build_method

__all__ = ["Method", "StepResult", "build_method"]
