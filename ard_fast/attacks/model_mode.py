"""The mode of the modules behind a model during an attack, put back afterwards whatever happens.

A model may be a lambda around a network, a bound method, a `functools.partial`, a list of networks in a class of one's
own. The modules are found where Python keeps them: in closures, defaults, named globals, arguments of partials and
attributes. Nothing is called and no property is read.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import BuiltinMethodType, CodeType, FunctionType, MemberDescriptorType, MethodType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BN_POLICIES = ("eval", "train", "train_frozen")


@contextmanager
def attack_mode(model: Callable[[Tensor], Tensor], bn: str) -> Iterator[list[nn.Module]]:
    """Context manager: put `model` in the mode of the policy, and restore every module's mode on exit.

    Several threads may be inside for the same module under one policy; the last to leave puts its mode back.

    Args:
        model: a module, or a callable around some: a lambda, a bound method, a partial, an object that holds them.
            All modules that are found behind it are treated alike.
        bn: "eval": all modules in eval mode, running statistics used and unchanged. "train": the model in train mode,
            batch statistics used, running statistics updated by every forward pass (what the published ARD code does).
            "train_frozen": the same without the update. Under the last two a model that is in train mode already is
            left as it is, so that modules its owner keeps in eval mode stay so: also the others in a callable around a
            network with batch norms in train mode, such as the teacher beside a student.

    Yields:
        The outermost modules that were found.

    Raises:
        ValueError: no such policy.
        RuntimeError: another thread is inside for one of the modules under another policy.
    """
    if not isinstance(bn, str) or bn not in BN_POLICIES:
        raise ValueError(f"bn must be one of {', '.join(map(repr, BN_POLICIES))}, got {bn!r}")
    roots = modules_behind(model)
    # Another thread may do the leaving: a generator's end, a thread pool. Dynamo cannot trace get_ident.
    thread = 0 if torch.compiler.is_compiling() else threading.get_ident()
    states = _enter(roots, thread, bn)
    try:
        yield roots
    finally:
        _leave(states, thread, bn)


class _State(NamedTuple):
    """A module as it was."""

    module: nn.Module
    training: bool
    tracks: Any
    """`track_running_stats` of those that have it."""

    def put_back(self) -> None:
        if self.module.training != self.training:
            self.module.training = self.training
        if self.tracks is not None and self.module.track_running_stats != self.tracks:
            self.module.track_running_stats = self.tracks


class _Held(NamedTuple):
    """A module that attacks hold in a mode: how it was before the first, and which threads are inside, and how."""

    before: _State
    inside: list[tuple[int, str]]


_lock = threading.RLock()  # a model's own `train` may do anything
_held: dict[int, _Held] = {}
"""By the id of the module, which its state keeps alive."""


def _enter(roots: Sequence[nn.Module], thread: int, bn: str) -> list[_State]:
    with _lock:
        states = [
            _State(module, module.training, vars(module).get("track_running_stats"))
            for module in network_modules(*roots)
        ]
        for other, policy in (each for s in states if id(s.module) in _held for each in _held[id(s.module)].inside):
            if other != thread and policy != bn:
                raise RuntimeError(
                    f"model cannot be attacked with bn={bn!r} now: another thread is attacking it with bn={policy!r}, "
                    "and a module has one mode; give each thread a copy, or all the same bn"
                )
        for state in states:
            _held.setdefault(id(state.module), _Held(state, [])).inside.append((thread, bn))
        try:
            _set(roots, states, bn)
        except BaseException:
            _leave(states, thread, bn)
            raise
    return states


def _set(roots: Sequence[nn.Module], states: Sequence[_State], bn: str) -> None:
    if bn == "eval":
        if any(state.training for state in states):
            for root in roots:
                root.eval()
        return
    # With one network of several in train mode, the others are in eval mode on purpose.
    if not any(root.training and any(isinstance(m, _BatchNorm) for m in network_modules(root)) for root in roots):
        for root in roots:
            if not root.training:
                root.train()
    if bn == "train_frozen":
        for module, _, tracks in states:
            if isinstance(module, _BatchNorm) and module.training and tracks:
                module.track_running_stats = False


def _leave(states: Sequence[_State], thread: int, bn: str) -> None:
    """Put back what nobody else holds: as it was on entering, or, for the last inside, before anybody entered."""
    with _lock:
        for state in states:
            held = _held[id(state.module)]
            held.inside.remove((thread, bn))
            if not held.inside:
                del _held[id(state.module)]
                held.before.put_back()
            elif all(other == thread for other, _ in held.inside):
                state.put_back()


def uses_batch_statistics(networks: Sequence[nn.Module]) -> bool:
    """Whether the logits of an image depend on the other images: in train mode, or without running statistics."""
    norms = (module for module in network_modules(*networks) if isinstance(module, _BatchNorm))
    return any(norm.training or norm.running_mean is None for norm in norms)


def network_tensors(*networks: nn.Module) -> list[Tensor]:
    """Parameters and buffers of all modules; one that is shared may come twice.

    For `fixed` of a `GraphedFunction`, at every call: `Module.parameters()` and `buffers()` take six times as long.
    """
    found: list[Tensor | None] = []
    for module in network_modules(*networks):
        found += module._parameters.values()
        found += module._buffers.values()
    return [tensor for tensor in found if tensor is not None]


def network_modules(*networks: nn.Module) -> list[nn.Module]:
    """All modules, each once."""
    left: list[nn.Module | None] = list(networks)
    found: dict[int, nn.Module] = {}
    while left:
        module = left.pop()
        if module is not None and id(module) not in found:
            found[id(module)] = module
            left += module._modules.values()
    return list(found.values())


def is_fixed(model: Any) -> bool:
    """Whether a callable, no module, says by a method `fixed_tensors` all that it reads, as `FoldedNetwork` does.

    Asked of its class: an object's own `__getattr__` may raise anything, or have an answer for every name.
    """
    return not isinstance(model, nn.Module) and hasattr(type(model), "fixed_tensors")


def without_gradient_sync(model: Any) -> Any:
    """The network inside `DistributedDataParallel`; anything else itself.

    The wrapper's forward pass sends buffers to the other processes and prepares for averaging gradients. An attack has
    no use for either, and processes whose attacks take other numbers of passes would wait for one another without end.
    FSDP's wrappers stay: without them the parameters are not there.
    """
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


# --- the modules behind a callable -----------------------------------------------------------------------------------

_DEPTH = 6  # objects: a lambda in a partial in an attribute of a list in an attribute is five
_LONGEST = 256  # longer lists and dicts hold data, not networks
_MOST = 2000  # objects looked at
_CONTAINERS = (list, tuple, set, frozenset, dict)
_NEVER = (Tensor, type, str, bytes, int, float, complex, type(None), type(sys))
# Packages whose objects, other than modules and those handled by name, hold no network of the user's.
_NO_MODELS = frozenset(sys.stdlib_module_names) | {"numpy", "torch"}


def modules_behind(model: Callable[..., Any]) -> list[nn.Module]:
    """The outermost modules of a model: itself, or those that it reaches, nearest first; none where none is found.

    Those that a module keeps where `Module.modules()` does not see them, in a plain list or behind a function, are
    found too. A callable that `is_fixed` has none.
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


_KEEPERS = {*_CONTAINERS, FunctionType, functools.partial}
_REGISTRIES = frozenset(vars(nn.Module()))  # of `Module` itself: parameters, submodules, hooks


def _unregistered(root: nn.Module) -> Iterator[Any]:
    """What modules keep beside their registered submodules that may be or lead to a network."""
    for module in network_modules(root):
        if type(module).__module__.startswith("torch."):
            continue
        for name, value in vars(module).items():
            if type(value) in _KEEPERS or isinstance(value, nn.Module):
                if name not in _REGISTRIES:
                    yield value
            elif type(value) is MethodType and isinstance(value.__self__, nn.Module):
                yield value.__self__


def _reached_by(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not assigned yet
            yield cell.cell_contents
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
