"""What a function does while it is captured: refused where a graph cannot hold it, and noted what it reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_VALUE_ON_THE_HOST = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
# Tagged for what they do with some arguments only.
_WITH_INDICES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


class NotCapturable(RuntimeError):
    """An operation that a graph cannot hold."""


class CaptureWatch(TorchDispatchMode):
    """Stands over a function while it is captured.

    An operation that waits for the device (a number or a shape read from it, a copy to or from another device) is
    refused before it runs: CUDA would refuse it too, but end the capture in a state that torch does not clean up.

    Attributes:
        outside: what was read or written and not made under the watch, one tensor a storage. Whoever keeps the graph
            keeps these, so that it never reads memory that has been given to others.
    """

    def __init__(self) -> None:
        super().__init__()
        self._outside: dict[int, Tensor] = {}
        self._made: set[int] = set()

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Compiled functions stay compiled under the watch."""
        return True

    @property
    def outside(self) -> list[Tensor]:
        """See the class."""
        return list(self._outside.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        parts = self._in_parts(func, args, kwargs)
        if parts is not NotImplemented:
            return parts
        reason = why_not(func, args, kwargs)
        if reason is not None:
            raise NotCapturable(f"{func} {reason}")
        given = {storage_of(tensor) for tensor in tensors((args, kwargs))}
        for tensor in tensors((args, kwargs)):
            self._see(tensor)
        result = func(*args, **kwargs)
        self._made.update(storage_of(tensor) for tensor in tensors(result) if storage_of(tensor) not in given)
        return result

    def _in_parts(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation made of others, done as those: in inference mode they would not pass by here of themselves."""
        if not torch.is_inference_mode_enabled() or not func.has_kernel_for_dispatch_key(_COMPOSITE):
            return NotImplemented
        with self:
            return func.decompose(*args, **kwargs)

    def _see(self, tensor: Tensor) -> None:
        """Note an argument of an operation that is about to run."""
        storage = storage_of(tensor)
        if storage not in self._made and storage not in self._outside:
            self._outside[storage] = tensor.detach()


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors in a pytree."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def storage_of(tensor: Tensor) -> int:
    """What tells a tensor's memory from that of others; empty tensors have none."""
    return tensor.untyped_storage()._cdata


def why_not(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """The reason that a graph cannot hold this call, None if it can."""
    name = func.overloadpacket.__name__
    if name in _WITH_INDICES:
        masks = any(index.dtype in (torch.bool, torch.uint8) for index in tensors(args[1]))
        return "with a mask has a result whose shape depends on values" if masks else None
    if name == "repeat_interleave" and kwargs.get("output_size") is not None:
        return None
    if any(tag in func.tags for tag in _VALUE_ON_THE_HOST):
        return "reads values from the device"
    return _why_not_copied(name, args, kwargs)


def _why_not_copied(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    if name == "copy_":
        there = args[1].device
        return f"copies from {there} to {args[0].device}" if there != args[0].device else None
    if name in ("_to_copy", "to", "to_copy"):
        to = kwargs.get("device")
        if to is not None and torch.device(to) != args[0].device:
            return f"copies from {args[0].device} to {to}"
    return None
