"""Convolutions, batch norms, additions and rectifiers of a traced network that one layer can take the place of."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as tf
from torch import fx, nn

from ard_fast.folding.conv import zero_padding
from ard_fast.folding.trace import TENSOR, has_hooks, module_of

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_ADDITIONS = (operator.add, torch.add, "add")
_RECTIFIERS = (torch.relu, tf.relu, "relu")


@dataclass
class Chain:
    """Nodes that one layer takes the place of: convolution, batch norm, addition and rectifier, in this order.

    Attributes:
        nodes: those that are there, at least one.
        conv: the convolution, as the traced network holds it.
        norm: the batch norm, likewise.
        addition: the node that adds.
        relu: whether the last one is the rectifier.
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
    """The chains of a network without in-place operations whose nodes are marked with `TENSOR`, in its order.

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
    return node.target in _RECTIFIERS and isinstance(node.args[0] if node.args else None, fx.Node) and _rank(node) >= 2


def _plain_call(node: fx.Node, module: nn.Module) -> bool:
    return len(node.args) == 1 and not node.kwargs and _rank(node) >= 2 and not has_hooks(module)


def _rank(node: fx.Node) -> int:
    return len(node.meta[TENSOR][0]) if TENSOR in node.meta else -1


def _adds_alike(node: fx.Node, addition: fx.Node) -> bool:
    """Whether a node adds another tensor of the same shape and dtype to `node`, and nothing else."""
    if addition.op == "call_module" or addition.target not in _ADDITIONS or addition.kwargs or len(addition.args) != 2:
        return False
    others = [term for term in addition.args if term is not node]
    if len(others) != 1 or not isinstance(others[0], fx.Node):
        return False
    return TENSOR in node.meta and node.meta[TENSOR] == others[0].meta.get(TENSOR)
