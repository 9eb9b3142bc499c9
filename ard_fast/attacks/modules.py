"""The modules behind a callable: what an attack on it has to put in eval mode.

A model may be a lambda around a network, a bound method, a `functools.partial`, a list of networks in a class of one's
own. They are found where Python keeps them: in closures, defaults, named globals, arguments of partials and attributes.
Nothing is called and no property is read.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import BuiltinMethodType, CodeType, FunctionType, MemberDescriptorType, MethodType, SimpleNamespace
from typing import Any

from torch import Tensor, nn

from ard_fast.attacks.graphs.network import network_modules

_DEPTH = 6
"""How many objects deep: a lambda in a partial in an attribute of a list in an attribute is five."""
_LONGEST = 256
"""Longer lists and dicts hold data, not networks."""
_MOST = 2000
"""Objects looked at, at most."""
_CONTAINERS = (list, tuple, set, frozenset, dict)
_NO_MODELS = frozenset(sys.stdlib_module_names) | {"numpy", "torch"}
"""Packages whose objects, other than modules and those handled by name, hold no network of the user's."""


def modules_behind(model: Callable[..., Any]) -> list[nn.Module]:
    """The outermost modules of a model: itself, or those that it reaches, nearest first; none where none is found.

    A callable of a class with a method `fixed_tensors`, such as `FoldedNetwork`, is what it says, and has none. Modules
    that a module keeps where `Module.modules()` does not see them, in a plain list or behind a function, are found too.
    """
    if is_fixed(model):
        return []
    found: list[nn.Module] = []
    known = {id(model)}
    left: deque[tuple[Any, int]] = deque([(model, 0)])
    while left and len(known) < _MOST:
        value, depth = left.popleft()  # the nearest first: what is far away is the data of a trainer
        if isinstance(value, nn.Module):
            found.append(value)
        if depth < _DEPTH:
            for part in _parts(value):
                if id(part) not in known and not isinstance(part, _NEVER):
                    known.add(id(part))
                    left.append((part, depth + 1))
    if len(found) > 1:
        below = {id(root): {id(module) for module in network_modules(root)} - {id(root)} for root in found}
        found = [root for root in found if id(model) not in below[id(root)]]  # a module's owners are no part of it
        inner = set[int]().union(*(below[id(root)] for root in found))
        found = [root for root in found if id(root) not in inner]
    return found


def is_fixed(model: Any) -> bool:
    """Whether a callable, no module, says by a method `fixed_tensors` all that it reads. Asked of its class.

    An object's own `__getattr__` may raise anything, or have an answer for every name.
    """
    return not isinstance(model, nn.Module) and hasattr(type(model), "fixed_tensors")


_NEVER = (Tensor, type, str, bytes, int, float, complex, type(None), type(sys))


def _parts(value: Any) -> Iterable[Any]:
    """What is directly behind an object."""
    if isinstance(value, nn.Module):
        return _unregistered(value)
    if isinstance(value, functools.partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, BuiltinMethodType):
        return (value.__self__,)
    if isinstance(value, FunctionType):
        return _reached_by(value)
    if isinstance(value, _CONTAINERS):
        if len(value) > _LONGEST:
            return ()
        return value.values() if isinstance(value, dict) else value
    kind = type(value)
    if kind.__module__.partition(".")[0] in _NO_MODELS and kind is not SimpleNamespace:
        return ()
    parts = list(getattr(value, "__dict__", {}).values())
    for name, member in (pair for base in kind.__mro__ for pair in vars(base).items()):
        if name == "__call__":
            parts.append(member)
        elif isinstance(member, MemberDescriptorType):  # of __slots__
            with contextlib.suppress(AttributeError):  # not assigned yet
                parts.append(member.__get__(value))
    return parts


def without_gradient_sync(model: Any) -> Any:
    """The network inside `DistributedDataParallel`; anything else itself.

    The wrapper's forward pass sends buffers to the other processes and prepares for averaging gradients. An attack has
    no use for either, and processes whose attacks take other numbers of passes would wait for one another without end.
    FSDP's wrappers stay: without them the parameters are not there.
    """
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _unregistered(root: nn.Module) -> Iterator[Any]:
    """What modules keep beside their registered submodules that may be or lead to a network."""
    for module in network_modules(root):
        if type(module).__module__.startswith("torch."):
            continue
        for name, value in vars(module).items():
            kind = type(value)
            if kind in _KEEPERS or isinstance(value, nn.Module):
                if name not in _REGISTRIES:
                    yield value
            elif kind is MethodType and isinstance(value.__self__, nn.Module):
                yield value.__self__


_KEEPERS = {*_CONTAINERS, FunctionType, functools.partial}
_REGISTRIES = frozenset(vars(nn.Module()))
"""Of `Module` itself: parameters, submodules, hooks."""


def _reached_by(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()  # `__wrapped__` of a decorated one, among others
    if function.__globals__.get("__name__", "").partition(".")[0] not in _NO_MODELS:
        for name in _globals_read(function.__code__):
            if name in function.__globals__:
                yield function.__globals__[name]


@functools.lru_cache(maxsize=1024)
def _globals_read(code: CodeType) -> tuple[str, ...]:
    """Names that the code, and functions defined inside it, look up in the module."""
    names = [i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names += _globals_read(constant)
    return tuple(dict.fromkeys(names))
