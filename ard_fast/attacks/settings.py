"""What all attacks share as objects: their constructor arguments, readable, and copies with some of them changed."""

from __future__ import annotations

import inspect
import math
from typing import Any, TypeVar

from torch import Tensor

from ard_fast.functional._arguments import nonnegative

Self = TypeVar("Self", bound="Configured")

_PIXEL_UNITS = ("eps", "step_size")


class Configured:
    """An object that is fully described by its constructor's arguments.

    Each argument is kept in an attribute of its own name, or of that name with `_name` behind it where a method has
    taken it (`loss`). Two attacks with the same text attack alike.
    """

    eps: float | Tensor
    """The radius, which every attack has."""

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, by name."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {name: getattr(self, f"{name}_name" if f"{name}_name" in vars(self) else name) for name in names}

    def replace(self: Self, **changes: Any) -> Self:
        """The same attack with some constructor arguments changed.

        Raises:
            TypeError: no such argument.
            ValueError: as by the constructor.
        """
        settings = self.settings()
        for name in changes:
            if name not in settings:
                raise TypeError(f"{type(self).__name__} has no argument {name!r}; it has {', '.join(settings)}")
        return type(self)(**{**settings, **changes})

    def at_eps(self: Self, eps: float | Tensor, **changes: Any) -> Self:
        """The same attack at another radius, its step size (where it is an argument) scaled in proportion.

        Args:
            eps: the radius.
            changes: other arguments to change with it, as for `replace`.

        Raises:
            ValueError: the present radius is 0, which leaves no proportion.
        """
        eps = eps if isinstance(eps, Tensor) else nonnegative(eps, "eps")
        settings = self.settings()
        step = settings.get("step_size")
        if step is None:
            return self.replace(eps=eps, **changes)
        if not isinstance(self.eps, Tensor) and self.eps == 0:
            raise ValueError("eps is 0, so step_size has no ratio to it to keep: use replace(eps=..., step_size=...)")
        return self.replace(**{"eps": eps, "step_size": eps * (step / self.eps), **changes})

    def for_samples(self: Self, index: Tensor) -> Self:
        """The same attack on some samples of a batch: arguments with one value a sample are cut to those at `index`."""
        cut = {name: value[index] for name, value in self.settings().items() if _per_sample(value)}
        return self.replace(**cut) if cut else self

    def __repr__(self) -> str:
        arguments = (f"{name}={_text(name, value)}" for name, value in self.settings().items())
        return f"{type(self).__name__}({', '.join(arguments)})"


def _per_sample(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 1


def _text(name: str, value: Any) -> str:
    if isinstance(value, Tensor):
        return repr(value.tolist())
    if name in _PIXEL_UNITS and isinstance(value, float) and 0 < value < 1:
        levels = round(value * 255, 2)
        text = f"{levels:g}/255"
        if math.isclose(levels / 255, value, rel_tol=1e-15) and len(text) < len(repr(value)):
            return text
    return repr(value)
