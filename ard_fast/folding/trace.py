"""The operations of a network in eval mode as a graph, without in-place operations."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as tf
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ard_fast.folding.views import Unfoldable

TENSOR = "shape and dtype"
"""Under this name `note_shapes` leaves both with the nodes of tensors."""

_NOTHING_IN_EVAL_MODE = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout)


def trace(view: nn.Module) -> fx.GraphModule:
    """The graph of a network's eval mode.

    A module that cannot be traced (control flow on values, say) is one node, called as it is.

    Args:
        view: in eval mode; it takes up constants that the graph needs.

    Raises:
        Unfoldable: it cannot be traced at the top.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(view)
    except Exception as error:
        raise Unfoldable(f"it cannot be traced ({type(error).__name__}: {_first_line(error)})") from error
    traced = fx.GraphModule(tracer.root, graph)
    _without_in_place(traced)
    for node in list(traced.graph.nodes):
        if isinstance(module_of(node, traced), _NOTHING_IN_EVAL_MODE) and not has_hooks(module_of(node, traced)):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    return traced


def note_shapes(traced: fx.GraphModule, sample: Tensor) -> None:
    """Run the network on `sample` and leave shape and dtype with each node whose result is a tensor.

    Raises:
        Unfoldable: it fails there.
    """
    try:
        with torch.no_grad():
            _Shapes(traced).run(sample)
    except Exception as error:  # a trace that holds for no input fails in any way
        raise Unfoldable(f"its traced form fails ({type(error).__name__}: {_first_line(error)})") from error


class _Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta[TENSOR] = result.shape, result.dtype
        return result


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        nodes, depth = len(self.graph.nodes), len(self.module_stack)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # somebody else's forward may fail on a proxy in any way
            for node in reversed(list(self.graph.nodes)[nodes:]):
                self.graph.erase_node(node)
            while len(self.module_stack) > depth:
                self.module_stack.popitem()
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def module_of(node: object, traced: fx.GraphModule) -> nn.Module | None:
    """The module that a node calls."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return traced.get_submodule(node.target)
    return None


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module does more than its forward."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)


def _without_in_place(traced: fx.GraphModule) -> None:
    """Give every in-place operation a result of its own, which all later readers of its operand read instead.

    Views of the operand that were taken before do not follow: what is made of the graph has to be checked against the
    network.
    """
    position = {node: index for index, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        if not _make_functional(node, traced):
            continue
        operand = node.args[0] if node.args else node.kwargs.get("input")
        for user in list(operand.users):
            if position[user] > position[node]:
                user.replace_input_with(operand, node)


_FUNCTIONS = {getattr(operator, f"i{name}"): getattr(operator, name) for name in ("add", "sub", "mul", "truediv")}


def _make_functional(node: fx.Node, traced: fx.GraphModule) -> bool:
    """Whether it was in place."""
    module = module_of(node, traced)
    if module is not None:
        if not getattr(module, "inplace", False):
            return False
        module.inplace = False  # of the view
        return True
    if node.op == "call_method":
        if not node.target.endswith("_") or node.target.endswith("__"):
            return False
        node.target = node.target[:-1]
        return True
    if node.op != "call_function":
        return False
    if node.target in _FUNCTIONS:
        node.target = _FUNCTIONS[node.target]
        return True
    name = getattr(node.target, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        pure = getattr(torch, name[:-1], None) or getattr(tf, name[:-1], None)
        if pure is not None:
            node.target = pure
            return True
    return _switch_off_inplace(node)


def _switch_off_inplace(node: fx.Node) -> bool:
    try:
        parameters = list(inspect.signature(node.target).parameters)
    except (TypeError, ValueError):  # functions written in C have no signature, and no such argument
        return False
    if "inplace" not in parameters:
        return False
    index = parameters.index("inplace")
    if node.kwargs.get("inplace"):
        node.kwargs = {**node.kwargs, "inplace": False}
        return True
    if len(node.args) > index and node.args[index]:
        node.args = (*node.args[:index], False, *node.args[index + 1 :])
        return True
    return False


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
