"""Checks of arguments that are numbers, shared by the functions and the attacks.

What depends on tensors (shapes, dtypes, devices, layouts) is checked once, in csrc/common/checks.h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import shorten

import numpy
import torch
from torch import Tensor

from ard_fast.functional._arrays import Array, is_array, tensor

_LARGEST = torch.finfo(torch.float32).max  # the kernels' arithmetic


def number_or_per_sample(value: float | Array, name: str, x: Tensor) -> tuple[float, Tensor | None]:
    """A number and None, or 0 and a float32 tensor `[B]`."""
    if type(value) is float or not is_array(value):
        return nonnegative(value, name), None
    value = tensor(value, name).detach().to(torch.float32)
    if value.dim() == 0 and x.dim() > 0:
        value = value.expand(x.shape[0])
    return 0.0, value.contiguous()


def positive_or_per_sample(value: float | Array, name: str, x: Tensor) -> tuple[float, Tensor | None]:
    """A number above 0 and None, or 1 and a float32 tensor `[B]`."""
    if type(value) is float or not is_array(value):
        return positive(value, name), None
    return 1.0, number_or_per_sample(value, name, x)[1]


def nonnegative(value: float, name: str) -> float:
    """`value` as a float of at least 0."""
    number = value if type(value) is float else _number(value, name)
    if not 0.0 <= number <= _LARGEST:
        raise ValueError(f"{name} must be finite and at least 0, got {number}")
    return number


def positive(value: float, name: str) -> float:
    """`value` as a float above 0."""
    number = value if type(value) is float else _number(value, name)
    if not 0.0 < number <= _LARGEST:
        raise ValueError(f"{name} must be finite and above 0, got {number}")
    return number


def fraction(value: float, name: str) -> float:
    """`value` as a float from 0 to 1."""
    number = value if type(value) is float else _number(value, name)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{name} must be in [0, 1], got {number}")
    return number


def confidence(value: float, name: str) -> float:
    """`value` as a float of at least 0; may be infinite."""
    number = _number(value, name)
    if not number >= 0.0:
        raise ValueError(f"{name} must be at least 0, got {number}")
    return number


def positive_int(value: int, name: str) -> int:
    """`value`, an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
    return value


def int_between(value: int, name: str, lowest: int, highest: int) -> int:
    """`value`, an int from `lowest` to `highest`."""
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise ValueError(f"{name} must be an int from {lowest} to {highest}, got {value!r}")
    return value


def one_of(value: str, name: str, choices: Sequence[str]) -> str:
    """`value`, which must be among the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def flag(value: bool, name: str) -> bool:
    """`value`, True or False (NumPy's too): a text such as "no" would count as true."""
    if isinstance(value, (bool, numpy.bool_)):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {shorten(repr(value), 80)}")


def _number(value: float, name: str) -> float:
    if not isinstance(value, str):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
        except (TypeError, ValueError, RuntimeError):
            pass
    raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def bounds_pair(bounds: tuple[float, float]) -> tuple[float, float]:
    """(lowest, highest) as floats."""
    try:
        lower, upper = bounds
        lower, upper = float(lower), float(upper)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        got = shorten(repr(bounds), 80)
        raise ValueError(f"bounds must be a pair (lowest, highest) of numbers, got {got}") from None
    if any(_LARGEST < abs(bound) < math.inf for bound in (lower, upper)):
        raise ValueError(f"bounds must be float32 numbers, got {bounds!r}")
    if not lower < upper:
        raise ValueError(f"bounds must be (lowest, highest) with lowest < highest, got {bounds!r}")
    return lower, upper


def seed_tensor(seed: int | Array | None, device: torch.device) -> Tensor:
    """The seed as an int64 tensor `[1]` on the device."""
    if type(seed) is not int and is_array(seed):
        return tensor(seed, "seed")
    if seed is None:
        return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=device)
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must be an int of 64 bits, an int64 tensor with one element or None, got {seed!r}")
    return torch.full((1,), seed, dtype=torch.int64, device=device)
