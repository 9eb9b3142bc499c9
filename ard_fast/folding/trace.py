"""What of a network's eval mode can be folded: a view of its modules, their graph, and the chains of layers in it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, MutableMapping
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as tf
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ard_fast.folding.layers import zero_padding


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

    def source(self, view: nn.Module | None) -> Any:
        """The module of the network that a view is of; None for None."""
        return None if view is None else self._sources[id(view)]

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


_TENSOR = "shape and dtype"  # under this name they are noted with the nodes of tensors
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
            n.meta[_TENSOR] = result.shape, result.dtype
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
    name = getattr(node.target, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        pure = getattr(torch, name[:-1], None) or getattr(tf, name[:-1], None)
        if pure is not None:
            node.target = pure
            return True
    if not node.kwargs.get("inplace"):
        return False
    node.kwargs = {**node.kwargs, "inplace": False}
    return True


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_ADDITIONS = (operator.add, torch.add, "add")
_RELUS = (torch.relu, tf.relu, "relu")


@dataclass(eq=False)
class Chain:
    """Nodes that one layer takes the place of: convolution, batch norm, addition and ReLU, in this order.

    Attributes:
        nodes: those that are there, at least one.
        conv: the convolution, as the traced network holds it.
        norm: the batch norm, likewise.
        addition: the node that adds.
        relu: whether the last one is the ReLU.
    """

    nodes: list[fx.Node]
    conv: nn.Conv2d | None = None
    norm: nn.modules.batchnorm._BatchNorm | None = None
    addition: fx.Node | None = None
    relu: bool = False

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        """What the first node reads and, if there is an addition, what is added."""
        if self.addition is None:
            return (self.nodes[0].args[0],)
        before = self.nodes[self.nodes.index(self.addition) - 1]
        return self.nodes[0].args[0], *(term for term in self.addition.args if term is not before)


def find_chains(traced: fx.GraphModule) -> list[Chain]:
    """The chains of a network without in-place operations whose shapes are noted, in its order.

    No node is in two of them, and nothing but the next node of the chain reads the result of one in the middle.
    """
    chains, taken = [], set()
    for begins in (_is_conv, _is_norm, _is_relu):
        for node in reversed(traced.graph.nodes):  # so that of two convolutions that are added the later one does it
            if node not in taken and begins(node, traced):
                chains.append(_chain_from(node, traced, taken))
                taken.update(chains[-1].nodes)
    order = {node: place for place, node in enumerate(traced.graph.nodes)}
    return sorted(chains, key=lambda chain: order[chain.nodes[0]])


def _chain_from(node: fx.Node, traced: fx.GraphModule, taken: Collection[fx.Node]) -> Chain:
    chain = Chain([node])
    if _is_relu(node, traced):
        chain.relu = True
        return chain
    if _is_norm(node, traced):
        chain.norm = module_of(node, traced)
    else:
        chain.conv = module_of(node, traced)
        after = _only_reader(node, taken)
        if after is not None and _is_norm(after, traced):
            chain.nodes.append(after)
            chain.norm = module_of(after, traced)
    after = _only_reader(chain.nodes[-1], taken)
    if after is not None and _adds_alike(chain.nodes[-1], after):
        chain.nodes.append(after)
        chain.addition = after
        after = _only_reader(after, taken)
    if after is not None and _is_relu(after, traced):
        chain.nodes.append(after)
        chain.relu = True
    return chain


def _only_reader(node: fx.Node, taken: Collection[fx.Node]) -> fx.Node | None:
    reader = next(iter(node.users)) if len(node.users) == 1 else None
    return None if reader in taken else reader


def _is_conv(node: fx.Node, traced: fx.GraphModule) -> bool:
    module = module_of(node, traced)
    return type(module) is nn.Conv2d and zero_padding(module) is not None and _plain_call(node, module)


def _is_norm(node: fx.Node, traced: fx.GraphModule) -> bool:
    module = module_of(node, traced)
    if not (type(module) in _NORMS and _plain_call(node, module)):
        return False
    return module.running_mean is not None and _rank(node) == 4


def _is_relu(node: fx.Node, traced: fx.GraphModule) -> bool:
    module = module_of(node, traced)
    if module is not None:
        return type(module) is nn.ReLU and _plain_call(node, module)
    return node.target in _RELUS and isinstance(node.args[0] if node.args else None, fx.Node) and _rank(node) >= 2


def _plain_call(node: fx.Node, module: nn.Module) -> bool:
    return len(node.args) == 1 and not node.kwargs and _rank(node) >= 2 and not has_hooks(module)


def _rank(node: fx.Node) -> int:
    return len(node.meta[_TENSOR][0]) if _TENSOR in node.meta else -1


def _adds_alike(node: fx.Node, addition: fx.Node) -> bool:
    """Whether a node adds another tensor of the same shape and dtype to `node`, and nothing else."""
    if addition.op == "call_module" or addition.target not in _ADDITIONS or addition.kwargs or len(addition.args) != 2:
        return False
    others = [term for term in addition.args if term is not node]
    if len(others) != 1 or not isinstance(others[0], fx.Node):
        return False
    return _TENSOR in node.meta and node.meta[_TENSOR] == others[0].meta.get(_TENSOR)
