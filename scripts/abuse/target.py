"""A public function with arguments it accepts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """Something that is called with keyword arguments.

    Attributes:
        name: as printed.
        call: the function.
        arguments: new valid arguments by name; two calls with the same random state give the same.
        aliases: by argument, what its complaints may call it instead.
        refuses: the exception types that it may answer with.
        counts: arguments that say how often something is done: large ones are legal, and take for ever.
    """

    name: str
    call: Callable[..., Any]
    arguments: Callable[[random.Random], Arguments]
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    refuses: tuple[type[Exception], ...] = (TypeError, ValueError, RuntimeError)
    counts: frozenset[str] = frozenset()
