"""The model's mode during an attack, put back afterwards whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ard_fast.attacks.graphs.network import network_modules
from ard_fast.attacks.modules import modules_behind

BN_POLICIES = ("eval", "train", "train_frozen")


def uses_batch_statistics(networks: Sequence[nn.Module]) -> bool:
    """Whether the logits of an image depend on the other images: in train mode, or without running statistics."""
    norms = (module for module in network_modules(*networks) if isinstance(module, _BatchNorm))
    return any(norm.training or norm.running_mean is None for norm in norms)


@contextmanager
def attack_mode(model: Callable[[Tensor], Tensor], bn: str) -> Iterator[list[nn.Module]]:
    """Put `model` in the mode of the policy, and every module's mode back on leaving.

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
    # Leaving may be the work of another thread: a generator's end, a pool of threads. Dynamo knows no identity.
    me = 0 if torch.compiler.is_compiling() else threading.get_ident()
    states = _enter(roots, me, bn)
    try:
        yield roots
    finally:
        _leave(states, me, bn)


class _State(NamedTuple):
    """A module as it was."""

    module: nn.Module
    training: bool
    tracks: Any
    """`track_running_stats` of those that have it."""

    @classmethod
    def of(cls, module: nn.Module) -> _State:
        return cls(module, module.training, vars(module).get("track_running_stats"))

    def put_back(self) -> None:
        if self.module.training != self.training:
            self.module.training = self.training
        if self.tracks is not None and self.module.track_running_stats != self.tracks:
            self.module.track_running_stats = self.tracks


class _Held:
    """A module that attacks hold in a mode: how it was before the first, and who is inside, under which policy."""

    __slots__ = ("before", "inside")

    def __init__(self, before: _State) -> None:
        self.before = before
        self.inside: list[tuple[int, str]] = []


_lock = threading.RLock()  # a model's own `train` may do anything
_held: dict[int, _Held] = {}
"""By the id of the module, which its state keeps alive."""


def _enter(roots: Sequence[nn.Module], me: int, bn: str) -> list[_State]:
    with _lock:
        states = [_State.of(module) for module in network_modules(*roots)]
        for state in states:
            for thread, policy in _held[id(state.module)].inside if id(state.module) in _held else ():
                if thread != me and policy != bn:
                    raise RuntimeError(
                        f"model cannot be attacked with bn={bn!r} now: another thread is attacking it with "
                        f"bn={policy!r}, and a module has one mode; give each thread a copy, or all the same bn"
                    )
        for state in states:
            held = _held.setdefault(id(state.module), _Held(state))
            held.inside.append((me, bn))
        try:
            _set(roots, states, bn)
        except BaseException:
            _leave(states, me, bn)
            raise
    return states


def _set(roots: Sequence[nn.Module], states: Sequence[_State], bn: str) -> None:
    if bn == "eval":
        if any(state.training for state in states):
            for root in roots:
                root.eval()
        return
    in_train_mode = any(
        root.training and any(isinstance(m, _BatchNorm) for m in network_modules(root)) for root in roots
    )
    for root in roots:
        if not (root.training or in_train_mode):
            root.train()
    if bn == "train_frozen":
        for state in states:
            if isinstance(state.module, _BatchNorm) and state.module.training and state.tracks:
                state.module.track_running_stats = False


def _leave(states: Sequence[_State], me: int, bn: str) -> None:
    """Put back what nobody else holds: as it was on entering, or, of the last inside, before anybody entered."""
    with _lock:
        for state in states:
            held = _held[id(state.module)]
            held.inside.remove((me, bn))
            if not held.inside:
                del _held[id(state.module)]
                held.before.put_back()
            elif all(thread == me for thread, _ in held.inside):
                state.put_back()
