"""Names that people type: other words for ours, errors for those that do not exist, objects by their import path."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

ALIASES: dict[str, tuple[str, ...]] = {
    # flags: accepted by the commands, suggested for YAML keys
    "arch": ("student", "model"),
    "attack": ("attacks",),
    "attack-steps": ("steps",),
    "batch": ("batch-size",),
    "bs": ("batch-size",),
    "checkpoint": ("run",),
    "ckpt": ("run",),
    "cuda": ("device",),
    "data": ("data-dir",),
    "data-path": ("data-dir",),
    "data-root": ("data-dir",),
    "epsilon": ("eps",),
    "gpu": ("device",),
    "iters": ("steps",),
    "learning-rate": ("lr",),
    "lr-decay": ("lr-factor",),
    "lr-schedule": ("schedule",),
    "lr-scheduler": ("schedule",),
    "methods": ("compare-methods",),
    "model": ("student",),
    "n": ("n-examples",),
    "n-ex": ("n-examples",),
    "num-epochs": ("epochs",),
    "num-examples": ("n-examples",),
    "num-steps": ("steps",),
    "optimizer": ("optimiser",),
    "output": ("out",),
    "output-dir": ("out",),
    "root": ("data-dir",),
    "save-dir": ("out",),
    "scheduler": ("schedule",),
    "seeds": ("compare-seeds",),
    "student-arch": ("student",),
    "student-model": ("student",),
    "teacher-arch": ("teacher-model",),
    "tau": ("temperature",),
    "wd": ("weight-decay",),
    # values: suggested
    "aa": ("autoattack",),
    "bfloat16": ("bf16",),
    "clean": ("natural",),
    "float16": ("fp16",),
    "float32": ("fp32",),
    "fmnist": ("fashion-mnist",),
    "madry": ("at",),
    "pgd-at": ("at",),
    "standard": ("natural", "autoattack"),
}
"""Our names for a word, as far as one of them is known where it was typed."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` stands for: an alias, the only one that begins with it, or the one most like it.

    None when none is near: a far suggestion is worse than none. Leading dashes, case and underscores do not count.
    """
    ours = {_plain(item): item for item in known}
    wanted = _plain(name)
    longer = [item for item in ours if item.startswith(wanted)] if len(wanted) > 2 else []
    near = difflib.get_close_matches(wanted, list(ours), n=1, cutoff=0.66 if len(wanted) < 4 else 0.72)
    found = [item for item in ALIASES.get(wanted, ()) if item in ours] or (longer if len(longer) == 1 else near)
    return ours[found[0]] if found else None


def _plain(name: str) -> str:
    return name.lstrip("-").lower().replace("_", "-")


def unknown(kind: str, name: str, known: Iterable[str], also: Iterable[str] = ()) -> str:
    """A message for an unknown name: the nearest known one where there is one, and all of them.

    Example: `unknown("model", "resnet-18", MODELS)`. `also`: known names that would only lengthen the list.
    """
    names = sorted(known)
    near = nearest(name, [*names, *also])
    hint = f"; did you mean {near!r}?" if near else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}"


GIVEN = "given"  # in place of a module: an object in memory
_HELD: dict[str, Any] = {}


@contextmanager
def holding(objects: Mapping[str, tuple[str, Any]]) -> Iterator[dict[str, str]]:
    """While inside, `find_object` knows these named objects; gives the path of each, `given:<name>`, by its key."""
    paths: dict[str, str] = {}
    for key, (name, value) in objects.items():
        path = f"{GIVEN}:{name}"
        while path in _HELD:
            path += "2"
        _HELD[path] = value
        paths[key] = path
    try:
        yield paths
    finally:
        for path in paths.values():
            del _HELD[path]


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
    if not module_name or not attribute or module_name.endswith(".py"):
        raise ValueError(f"{argument}: expected package.module:{what} (without .py), got {path!r}")
    if module_name == GIVEN:
        if path not in _HELD:
            raise ValueError(
                f"{argument}: {path} was an object of a Python program; go on there, by ard_fast.train.run(resume=True)"
            )
        return _HELD[path]
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


def named_only(called: Callable[..., Any], **values: Any) -> dict[str, Any]:
    """Those values that a function or class has parameters of the same name for."""
    try:
        parameters = inspect.signature(called).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        return {}
    allowed = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: value for name, value in values.items() if name in parameters and parameters[name].kind in allowed}
