"""Error text for names that do not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when none is near."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return near[0] if near else None


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """A message for an unknown name: the nearest known one where there is one, and all of them.

    Example: `unknown("model", "resnet-18", MODELS)`.
    """
    names = sorted(known)
    near = nearest(name, names)
    hint = f"; did you mean {near!r}?" if near else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}"
