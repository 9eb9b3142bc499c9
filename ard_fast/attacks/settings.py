"""What an attack is configured with, readable, and copies with some of it changed."""

from __future__ import annotations

import inspect
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeVar

from torch import Tensor

from ard_fast.attacks.model_mode import BN_POLICIES
from ard_fast.functional._arguments import (
    bounds_pair,
    check_radius,
    confidence,
    flag,
    nonnegative,
    one_of,
    positive,
    positive_int,
)
from ard_fast.functional._levels import level_count, whole_radius, whole_step

LOSSES = ("ce", "kl", "margin", "dlr", "dlr_targeted")
NORMS = ("linf", "l2")
INITS = ("uniform", "normal", "surface")

Self = TypeVar("Self", bound="Configured")


class Configured:
    """An object that is fully described by its constructor's arguments, each kept in an attribute of its name.

    Two attacks with the same text attack alike.
    """

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, by name."""
        return {name: getattr(self, name) for name in list(inspect.signature(type(self).__init__).parameters)[1:]}

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

    def for_samples(self: Self, index: Tensor) -> Self:
        """The same attack on some samples of a batch: arguments with one value a sample are cut to those at `index`."""
        settings = self.settings().items()
        cut = {name: value[index] for name, value in settings if isinstance(value, Tensor) and value.dim() == 1}
        return self.replace(**cut) if cut else self

    def __repr__(self) -> str:
        arguments = (f"{name}={_text(name, value)}" for name, value in self.settings().items())
        return f"{type(self).__name__}({', '.join(arguments)})"


@dataclass(eq=False, repr=False)
class Settings(Configured):
    """The settings of all attacks, explained at `PGD`; a class that has no choice in one declares it `init=False`."""

    eps: float | Tensor = 8 / 255
    step_size: float | Tensor | None = 2 / 255
    steps: int = 10
    norm: str = "linf"
    loss: str = "ce"
    random_start: bool = True
    restarts: int = 1
    targeted: bool = False
    bn: str = "eval"
    bounds: tuple[float, float] = (0.0, 1.0)
    _: KW_ONLY
    clamp_start: bool = True
    init: str = "uniform"
    std: float = 0.001
    eot: int = 1
    kappa: float = 50.0
    temperature: float = 1.0
    levels: int | None = None

    def __post_init__(self) -> None:
        self.norm = one_of(self.norm, "norm", NORMS)
        self.loss = one_of(self.loss, "loss", LOSSES)
        self.bn = one_of(self.bn, "bn", BN_POLICIES)
        self.init = one_of(self.init, "init", INITS)
        for name in ("steps", "restarts", "eot"):
            positive_int(getattr(self, name), name)
        for name in ("random_start", "clamp_start", "targeted"):
            setattr(self, name, flag(getattr(self, name), name))
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts must be 1 without random_start: every restart would be the same")
        if self.targeted and self.loss == "dlr_targeted":
            raise ValueError(
                "targeted must be False for loss='dlr_targeted': that loss moves to its target classes itself"
            )
        if not isinstance(self.eps, Tensor):
            self.eps = nonnegative(self.eps, "eps")
        if self.step_size is not None and not isinstance(self.step_size, Tensor):
            self.step_size = nonnegative(self.step_size, "step_size")
        self.std = nonnegative(self.std, "std")
        self.kappa = confidence(self.kappa, "kappa")
        self.temperature = positive(self.temperature, "temperature")
        self.bounds = bounds_pair(self.bounds)
        if self.norm == "linf" and not isinstance(self.eps, Tensor):
            check_radius(self.eps, self.bounds, self.norm)
        if self.levels is not None:
            level_count(self.levels, self.norm, self.bounds)
            if self.random_start and not self.clamp_start:
                raise ValueError("clamp_start must be True with levels: beyond the bounds there are none")
            sizes: Any = self.eps, self.step_size
            self.eps = whole_radius(sizes[0], self.levels)
            self.step_size = None if sizes[1] is None else whole_step(sizes[1], self.levels)

    def at_eps(self: SomeSettings, eps: float | Tensor, **changes: Any) -> SomeSettings:
        """The same attack at another radius, its step size (where it is an argument) scaled in proportion.

        Args:
            eps: the radius.
            changes: other arguments to change with it, as for `replace`.

        Raises:
            ValueError: the present radius is 0, which leaves no proportion.
        """
        eps = eps if isinstance(eps, Tensor) else nonnegative(eps, "eps")
        step = self.settings().get("step_size")
        if step is None:
            return self.replace(eps=eps, **changes)
        if not isinstance(self.eps, Tensor) and self.eps == 0:
            raise ValueError("eps is 0, so step_size has no ratio to it to keep: use replace(eps=..., step_size=...)")
        return self.replace(**{"eps": eps, "step_size": eps * (step / self.eps), **changes})


SomeSettings = TypeVar("SomeSettings", bound=Settings)


def _text(name: str, value: Any) -> str:
    """An argument, pixel units as fractions of 255 where they are such."""
    if isinstance(value, Tensor):
        return repr(value.tolist())
    if name in ("eps", "step_size") and isinstance(value, float) and 0 < value < 1:
        levels = round(value * 255, 2)
        text = f"{levels:g}/255"
        if math.isclose(levels / 255, value, rel_tol=1e-15) and len(text) < len(repr(value)):
            return text
    return repr(value)
