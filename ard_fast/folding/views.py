"""A network in eval mode beside the network itself: the same tensors, other modes, nothing of the network changed."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


class Unfoldable(ValueError):
    """Why a network has no folded form."""


@dataclass
class Alias:
    """A tensor that is read outside its network: where it lives, and where its alias is kept."""

    source: MutableMapping[str, Tensor | None]
    name: str
    kept_in: MutableMapping[str, Tensor | None]
    kept_as: str

    def renew(self) -> None:
        """Follow the network where it has replaced the tensor; one that was changed in place is followed anyway."""
        live, alias = self.source[self.name], self.kept_in[self.kept_as]
        if live is None or alias is None or live.data_ptr() != alias.data_ptr():
            self.kept_in[self.kept_as] = None if live is None else live.detach()


class EvalViews:
    """Modules in eval mode that share every tensor with those of `network`, detached: nothing requires a gradient.

    Args:
        network: left as it is, in whatever mode it is.

    Attributes:
        root: the view of `network`.

    Raises:
        Unfoldable: a module holds another one where `nn.Module` does not know of it, so that a view would call the
            original, in the original's mode; or it is not a plain Python module.
    """

    def __init__(self, network: nn.Module) -> None:
        self._sources: dict[int, nn.Module] = {}  # by the id of a view
        self._views: dict[int, nn.Module] = {}  # by the id of what it is of
        self.root = self._view(network)

    def aliases(self, views: Iterable[nn.Module]) -> list[Alias]:
        """The parameters and buffers of some views, and of the views below them."""
        found = []
        for view in (below for top in views for below in top.modules() if id(below) in self._sources):
            source = self._sources[id(view)]
            found += [Alias(source._parameters, name, view._parameters, name) for name in view._parameters]
            found += [Alias(source._buffers, name, view._buffers, name) for name in view._buffers]
        return found

    def owner(self, tensor: Tensor) -> tuple[MutableMapping[str, Tensor | None], str] | None:
        """Where the network keeps a tensor of a view; None for any other tensor."""
        for view in self._views.values():
            for name, kept in (*view._parameters.items(), *view._buffers.items()):
                if kept is tensor:
                    source = self._sources[id(view)]
                    return (source._parameters if name in source._parameters else source._buffers), name
        return None

    def source(self, view: nn.Module) -> nn.Module:
        """The module of the network that a view is of."""
        return self._sources[id(view)]

    def _view(self, module: nn.Module) -> nn.Module:
        if id(module) in self._views:
            return self._views[id(module)]
        if isinstance(module, torch.jit.ScriptModule):
            raise Unfoldable(f"{type(module).__name__} is a TorchScript module")
        for name, value in vars(module).items():
            if name != "_modules" and _leads_to_a_module(value):
                raise Unfoldable(f"{type(module).__name__}.{name} leads to a module that is not registered as one")
        view = module.__class__.__new__(module.__class__)
        self._views[id(module)], self._sources[id(view)] = view, module
        vars(view).update(vars(module))
        vars(view).update(
            training=False,
            _parameters={name: None if p is None else p.detach() for name, p in module._parameters.items()},
            _buffers={name: None if b is None else b.detach() for name, b in module._buffers.items()},
            _modules={name: None if child is None else self._view(child) for name, child in module._modules.items()},
        )
        return view


def _leads_to_a_module(value: Any) -> bool:
    if isinstance(value, MethodType):
        value = value.__self__
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple, set)):
        return any(isinstance(item, nn.Module) for item in value)
    return isinstance(value, nn.Module)
