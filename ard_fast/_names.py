"""Error text for names that do not exist, and objects by the path of their import."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any


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


def find_object(path: str, argument: str, what: str = "factory") -> Any:
    """What `package.module:name` leads to; its module is imported here, which runs its code.

    Args:
        path: modules are found as by `import`: in the current folder under `python -m`, and where they are installed.
        argument: what errors call it.
        what: the kind of object, in the error for a path that is not of this form.

    Raises:
        ValueError: no such module or name, with the nearest one, or the module fails.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"{argument}: expected package.module:{what}, got {path!r}")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module may fail at import with anything
        raise ValueError(f"{argument}: cannot import {module_name!r} ({type(error).__name__}: {error})") from error
    found = getattr(module, attribute, None)
    if found is None:
        near = nearest(attribute, [name for name, value in vars(module).items() if name[0] != "_" and callable(value)])
        hint = f"; did you mean {module_name}:{near}?" if near else ""
        raise ValueError(f"{argument}: {module_name!r} has no {attribute!r}{hint}")
    return found
