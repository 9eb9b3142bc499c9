"""The plain values of an object, which a captured step has baked in."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_OPAQUE = (Tensor, nn.Module, type)


def host_values(owner: Any, opaque: tuple[type, ...] = ()) -> tuple[tuple[str, Hashable], ...]:
    """Numbers, strings and None in the attributes of an object and of the objects in them, in tuples and lists too.

    Args:
        owner: whose `vars` are read; tensors and modules are no plain values and are not looked into.
        opaque: further types of attributes that are not.

    Returns:
        Pairs of a dotted name and a value that tells its type apart too (1, 1.0 and True are different work).
    """
    found: list[tuple[str, Hashable]] = []
    for name, value in vars(owner).items():
        if not _add(found, name, value) and not isinstance(value, (*_OPAQUE, *opaque)):
            for inner, part in getattr(value, "__dict__", {}).items():
                _add(found, f"{name}.{inner}", part)
    return tuple(found)


def _add(found: list[tuple[str, Hashable]], name: str, value: Any) -> bool:
    plain = _plain(value)
    if plain is not None:
        found.append((name, plain))
    return plain is not None


def _plain(value: Any) -> Hashable | None:
    """The value as part of a key; None where it is something else."""
    if isinstance(value, float):
        return float, repr(value)  # a NaN is equal to itself here
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, (tuple, list)):
        parts = tuple(_plain(part) for part in value)
        return None if None in parts else (type(value), parts)
    return None


def changed(before: tuple[tuple[str, Hashable], ...], after: tuple[tuple[str, Hashable], ...]) -> list[str]:
    """The names whose values differ, or that only one of them has."""
    return sorted({name for name, _ in set(before) ^ set(after)})
