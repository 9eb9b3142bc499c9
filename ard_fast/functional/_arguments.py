"""Checks of arguments, shared by the functions and the attacks: numbers, names, arrays, and images in their bounds.

What depends on tensors (shapes, dtypes, devices, layouts) is checked once, in csrc/common/checks.h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Protocol

import numpy
import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Bounds = tuple[float, float]
_LARGEST = torch.finfo(torch.float32).max  # the kernels' arithmetic


# --- numbers, names and seeds


def number_or_per_sample(value: float | Array, name: str, x: Tensor) -> tuple[float, Tensor | None]:
    """A number and None, or 0 and a float32 tensor `[B]`."""
    if type(value) is float and 0.0 <= value <= _LARGEST:
        return value, None
    if not is_array(value):
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
    number = value if type(value) is float else _number(value, name)
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
    if value is True or value is False:
        return value
    if isinstance(value, numpy.bool_):
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
    if lower == 0.0 and upper == 1.0:
        return lower, upper
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


# --- arrays of other libraries (NumPy, CuPy, ...): tensors over their own memory, by DLPack
#
# https://dmlc.github.io/dlpack/latest/python_spec.html. A tensor goes through untouched; what it costs to ask is paid
# by every call of every function, so it is asked with one comparison of types where it can be.


class SupportsDLPack(Protocol):
    """An array that hands its memory over by DLPack, as those of NumPy and CuPy do."""

    def __dlpack__(self, *, stream: Any = ...) -> Any: ...

    def __dlpack_device__(self) -> Any: ...


# What the functional API takes where it speaks of tensors.
Array = Tensor | SupportsDLPack


def is_array(value: object) -> TypeIs[Array]:
    """Whether `value` is a tensor, or an array of another library that can become one."""
    return isinstance(value, Tensor) or hasattr(type(value), "__dlpack__")


def tensor(value: Array, name: str) -> Tensor:
    """`value` itself, or a tensor over the memory of an array, for reading.

    Raises:
        TypeError: `value` is neither.
        RuntimeError: the array cannot be handed over: a dtype, a stride or a device that torch does not have.
    """
    if isinstance(value, Tensor):
        return value
    if not is_array(value):
        raise TypeError(f"{name} must be a torch tensor or an array (NumPy, CuPy, ...), got {type(value).__name__}")
    return _handed_over(value, name)


def optional_tensor(value: Array | None, name: str) -> Tensor | None:
    """As `tensor`; None for None."""
    return None if value is None else tensor(value, name)


def written_tensor(value: Array, name: str) -> Tensor:
    """As `tensor`, for an argument that is written to: what is written appears in the array.

    Raises:
        ValueError: the array is read-only, or says so of itself.
    """
    if not isinstance(value, Tensor) and _is_read_only(value):
        raise ValueError(f"{name} is written in place and must be writable, got a read-only {_kind(value)} array")
    return tensor(value, name)


def _is_read_only(array: object) -> bool:
    """Read off the array interface, of the CPU or of CUDA, which has a flag for it; not every array has one."""
    for protocol in ("__array_interface__", "__cuda_array_interface__"):
        data = (getattr(array, protocol, None) or {}).get("data")
        if data is not None:
            return bool(data[1])
    return False


def _kind(array: object) -> str:
    return type(array).__module__.partition(".")[0]


def _handed_over(array: SupportsDLPack, name: str) -> Tensor:
    refused = f"{name} must be an array that DLPack can hand over to torch, got a {_kind(array)} array"
    shape, strides = getattr(array, "shape", ()), getattr(array, "strides", None) or ()
    if any(size > 1 and stride < 0 for size, stride in zip(shape, strides, strict=False)):
        # torch ends the process on these.
        raise RuntimeError(f"{refused} with negative strides {tuple(strides)}; pass a copy of it")
    try:
        # With torch's current stream for an array on a GPU: its library lets that stream wait for work on the array.
        taken = torch.from_dlpack(array)
    except Exception as error:  # whatever the other library and torch raise
        raise RuntimeError(f"{refused} of dtype {getattr(array, 'dtype', 'unknown')}: {error}") from error
    if taken.data_ptr() % taken.element_size():
        raise RuntimeError(f"{refused} whose elements are not aligned in memory; pass a copy of it")
    return taken


# --- memory layouts


def is_plain(x: Tensor) -> bool:
    """Contiguous, or channels_last in two or three dimensions."""
    if x.is_contiguous():
        return True
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.dim() in formats and x.is_contiguous(memory_format=formats[x.dim()])


def with_layout_of(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` in the memory layout of `like`: itself, or a copy. Other shapes are left for the operator to refuse."""
    if tensor.shape != like.shape or tensor.stride() == like.stride():
        return tensor
    strides = zip(tensor.shape, tensor.stride(), like.stride(), strict=True)
    if all(size == 1 or a == b for size, a, b in strides):
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


# --- what everything that clamps to `bounds` takes for granted: the images are inside them, and the ball fits


def check_precondition(x: Tensor, eps: float | Tensor, bounds: Bounds, norm: str | None) -> None:
    """Images `[B, ...]` inside `bounds` and a ball no wider than they are. Waits for the device of `x`.

    Nothing is looked at while something traces, batches or fakes the call: there are no values then.

    Args:
        norm: of the ball; None where eps plays no part.

    Raises:
        ValueError: names `bounds` and what was found, and says what to do.
    """
    if not can_be_read(x) or not x.numel():
        return
    if norm is not None:
        check_radius(eps, bounds, norm, x.shape[1:].numel())
    check_inside(x, bounds)


def can_be_read(x: Tensor) -> bool:
    """Whether `x` is of a kind that is taken at all, and has values to look at."""
    return (
        not torch.compiler.is_compiling()
        and x.dtype == torch.float32
        and x.layout == torch.strided
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and not hasattr(x, "fake_mode")
        and x.device.type in ("cpu", "cuda")
    )


def check_inside(x: Tensor, bounds: Bounds) -> None:
    """Every value of `x` but NaN is inside `bounds`, in one pass."""
    lower, upper = bounds
    lowest, highest = _range(x)
    # Pixels that come back from a normalised form, (x - mean) / std * std + mean, are off by up to four roundings, two
    # units in the last place of the largest; twice that is no perturbation to anybody.
    largest = max((abs(bound) for bound in bounds if math.isfinite(bound)), default=0.0)
    slack = 4 * torch.finfo(torch.float32).eps * largest
    if lowest >= lower - slack and highest <= upper + slack:
        return
    raise ValueError(
        f"x must be inside bounds={bounds}, got values from {lowest:.4g} to {highest:.4g}; the clamp to bounds would "
        f"move them by more than eps. {_what_to_do(lowest, highest, bounds)}"
    )


def check_radius(eps: float | Tensor, bounds: Bounds, norm: str, numel: int = 1) -> None:
    """eps is at most the width of `bounds`, in the L2 norm their diagonal for `numel` pixels."""
    width = bounds[1] - bounds[0]
    if norm == "l2":
        width *= math.sqrt(numel)
    if isinstance(eps, Tensor):
        if not can_be_read(eps) or not eps.numel():
            return  # the operator refuses it
        eps = float(eps.max())
    if not eps > width * (1.0 + torch.finfo(torch.float32).eps):
        return
    limit = "the width" if norm == "linf" else f"the diagonal for {numel} pixels"
    levels = bounds == (0.0, 1.0) and eps <= 255.0
    hint = f": eps is in the units of the pixels, {eps:g}/255, not {eps:g}" if levels else ""
    raise ValueError(f"eps must be at most {width:.4g}, {limit} of bounds={bounds}, got {eps:g}{hint}")


def _range(x: Tensor) -> tuple[float, float]:
    """The lowest and the highest value, without NaN."""
    x = x.detach()
    lowest, highest = (float(value) for value in x.aminmax())
    if math.isnan(lowest):  # a single one makes both NaN
        lowest = float(x.nan_to_num(math.inf, math.inf, -math.inf).min())
        highest = float(x.nan_to_num(-math.inf, math.inf, -math.inf).max())
    return lowest, highest


def _what_to_do(lowest: float, highest: float, bounds: Bounds) -> str:
    lower, upper = bounds
    if lowest >= 0.0 and 16.0 < highest <= 255.0 and bounds == (0.0, 1.0):
        return "Divide them by 255, or pass bounds=(0, 255) with eps and step_size in the same units"
    normaliser = (
        "Give the pixels as they are before normalisation, and put that into the model: "
        "ard_fast.models.Normalised(model, mean, std)"
    )
    margin = 0.25 * (upper - lower)
    if lower - margin <= lowest and highest <= upper + margin:
        return f"{normaliser}. Where an interpolation overshoots, clamp: x.clamp({lower:g}, {upper:g})"
    return normaliser
