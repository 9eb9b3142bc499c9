"""What a type checker needs to be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from torch.autograd.function import FunctionCtx

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def known(value: T | None) -> T:
    """The value, which our own code has set: not for arguments of users."""
    assert value is not None
    return value


class Context(FunctionCtx):
    """The context of our `torch.autograd.Function`s, for annotations only: torch's own leave out what it holds."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    if TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...
