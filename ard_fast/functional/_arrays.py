"""Arrays of other libraries (NumPy, CuPy, ...) taken as torch tensors over their own memory, by DLPack.

https://dmlc.github.io/dlpack/latest/python_spec.html. A tensor goes through untouched; what it costs to ask is paid by
every call of every function, so it is asked with one comparison of types where it can be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import TypeIs


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
