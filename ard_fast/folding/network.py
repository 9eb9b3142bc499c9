"""A network for attacks in eval mode: batch norms folded, fused passes, and one bit kept where others keep a tensor."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from ard_fast.attacks.model_mode import attack_mode
from ard_fast.folding.layers import Affine, Convolution, Float32Linear
from ard_fast.folding.trace import Alias, Chain, EvalViews, Unfoldable, find_chains, module_of, note_shapes, trace
from ard_fast.folding.weights import FoldedWeights, FoldLayer
from ard_fast.models.trial import differs, layout_name, logits_and_gradient, reason, untouched

DTYPES = (torch.float32, torch.bfloat16)


class FoldedNetwork:
    """The eval mode of a network, with gradients for its input only, on weights folded when it is told to.

    The forward is traced. Each batch norm goes into the convolution before it; bias, addition and ReLU are one
    pass in place behind the convolution; a batch norm that stands alone is one pass with the ReLU behind it. For
    the backward pass such layers keep one bit for each element that went through a ReLU. Whatever else there is
    runs as it is, in eval mode. Forward and backward wait for nothing and read the same memory each time, so that a
    CUDA graph can hold them.

    The network is left alone: modes, statistics, gradients, `requires_grad`. It may be in train mode and be trained;
    what it has learnt since is there after `refresh()`.

    At construction the folded form is held against the network on `sample`, logits and input gradients.

    Args:
        network: on its device.
        sample: float32 `[B, C, H, W]` images in [0, 1], on the same device; any other B may follow.
        dtype: torch.float32, or torch.bfloat16 for weights and activations; logits are float32, and in bfloat16 the
            last linear layer too.
        layout: of images, activations and folded weights, one that the network itself runs in.

    Attributes:
        folded: batch norms that are folded or fused, of how many.
        facts: how it computes, in words.

    Raises:
        Unfoldable: the network cannot be traced, has nothing to fold, its folded form is not the same function, or
            anything else fails on the way.
        ValueError: another dtype.
    """

    def __init__(
        self,
        network: nn.Module,
        sample: Tensor,
        *,
        dtype: torch.dtype = torch.float32,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(map(str, DTYPES))}, got {dtype}")
        self.dtype, self.layout = torch.float32, layout  # the dtype until the folding has been checked
        sample = sample.contiguous(memory_format=layout)
        try:
            self._build(network, sample)
            difference, largest = self._check(network, sample)
            if dtype != self.dtype:
                self.dtype = dtype
                self._build(network, sample)
                logits_and_gradient(self, sample)
        except Unfoldable:
            raise
        except Exception as error:  # somebody else's network may fail anywhere, and runs unfolded
            in_bfloat16 = "" if self.dtype == torch.float32 else f" in {dtype}"
            raise Unfoldable(f"its folded form fails{in_bfloat16} ({reason(error)})") from error
        how = f"{layout_name(layout)}, {'float32' if dtype == torch.float32 else 'bfloat16'}"
        self.facts = (
            f"{self.folded[0]} of {self.folded[1]} batch norms folded, {how}; in float32 logits within "
            f"{difference:.1e} of the plain network's (largest {largest:.3g}) on {len(sample)} images"
        )

    def refresh(self) -> None:
        """Take up the network's parameters and running statistics as they are now."""
        self._weights.refresh()
        if self._sums:
            torch._foreach_copy_([one.both for one in self._sums], [one.first for one in self._sums])
            torch._foreach_add_([one.both for one in self._sums], [one.second for one in self._sums])
        for alias in self._aliases:
            alias.renew()

    def fixed_tensors(self) -> list[Tensor]:
        """The tensors that a call reads, for a CUDA graph that holds their addresses.

        They stay where they are unless the network's own tensors move, which the folded ones do not follow: what of
        them is read directly has moved after the next `refresh()`.
        """
        kept = [alias.kept_in[alias.kept_as] for alias in self._aliases]
        kept += [one.both for one in self._sums]
        return [*self._weights.outputs, *self._weights.contiguous, *(tensor for tensor in kept if tensor is not None)]

    def __call__(self, x: Tensor) -> Tensor:
        """Logits, float32 `[B, K]`, of images `[B, C, H, W]`, float32 in [0, 1]; differentiable once, in `x`."""
        if x.dim() == 4:
            x = x.contiguous(memory_format=self.layout)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return self._traced(x).float()

    def _build(self, network: nn.Module, sample: Tensor) -> None:
        views = EvalViews(network)
        self._traced = traced = trace(views.root)
        note_shapes(traced, sample)
        chains = find_chains(traced)
        folding = [chain for chain in chains if chain.conv is not None or chain.norm is not None]
        if not folding:
            raise Unfoldable("it has no convolution and no batch norm that can be folded")
        norms = {id(module) for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
        found = {id(views.source(chain.norm)) for chain in folding if chain.norm is not None}
        self.folded = len(found), len(norms)
        # the network's own modules, whose tensors live
        pairs = [(views.source(chain.conv), views.source(chain.norm)) for chain in folding]
        self._weights = FoldedWeights([FoldLayer(*pair) for pair in pairs], self.dtype, self.layout)
        self._sums = []
        for index, layer in enumerate(self._layers(chains, folding)):
            _replace(traced, chains[index], f"folded_{index}", layer)
        if self.dtype != torch.float32:
            _keep_last_linear(traced)
        traced.delete_all_unused_submodules()
        self._aliases = _follow(traced, views)
        traced.graph.lint()
        traced.recompile()
        self.refresh()

    def _layers(self, chains: list[Chain], folding: list[Chain]) -> list[nn.Module]:
        """What takes the place of each chain; notes in `_sums` which shifts belong together."""
        numbers = {chain: number for number, chain in enumerate(folding)}
        shifts = {
            chain: None if chain.norm is None and chain.conv.bias is None else self._weights.shift(number)
            for chain, number in numbers.items()
        }
        ends = {chain.nodes[-1]: chain for chain in folding}
        for chain in folding:
            added = None if chain.addition is None else ends.get(chain.inputs[1])
            # the shift of a convolution that is only added elsewhere can be added there, in the same pass
            if added is None or added.conv is None or len(added.nodes[-1].users) > 1:
                continue
            if added.relu or added.addition is not None or shifts[added] is None:
                continue
            first, second = shifts[added], shifts[chain]
            shifts[added], shifts[chain] = None, first
            if second is not None:
                shifts[chain] = torch.empty_like(first)
                self._sums.append(_Sum(shifts[chain], first, second))
        layers = []
        for chain in chains:
            number = numbers.get(chain)
            if number is None:
                layers.append(Affine(None, None, relu=True))
            elif chain.conv is None:
                layers.append(Affine(self._weights.scale(number), shifts[chain], chain.relu))
            else:
                weight, shift = self._weights.weight(number), shifts[chain]
                layers.append(Convolution(chain.conv, weight, shift, chain.relu, self.layout))
        return layers

    def _check(self, network: nn.Module, sample: Tensor) -> tuple[float, float]:
        """The largest difference of the logits, and the largest of the network's.

        Raises:
            Unfoldable: logits or input gradient differ by more than rounding explains.
        """
        with untouched(network), attack_mode(network, "eval"):
            expected = logits_and_gradient(network, sample)
        found = logits_and_gradient(self, sample)
        if difference := differs(found, expected):
            raise Unfoldable(f"its folded form {difference}")
        return (found[0] - expected[0]).abs().max().item(), expected[0].abs().max().item()


class _Sum(NamedTuple):
    """Two shifts that are added in one pass."""

    both: Tensor
    first: Tensor
    second: Tensor


def _replace(traced: fx.GraphModule, chain: Chain, name: str, layer: nn.Module) -> None:
    last = chain.nodes[-1]
    traced.add_submodule(name, layer)
    with traced.graph.inserting_before(last):
        node = traced.graph.call_module(name, chain.inputs)
    last.replace_all_uses_with(node)
    for replaced in reversed(chain.nodes):
        traced.graph.erase_node(replaced)


def _keep_last_linear(traced: fx.GraphModule) -> None:
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    last = module_of(output.args[0], traced)
    if type(last) is nn.Linear:
        traced.set_submodule(output.args[0].target, Float32Linear(last))


def _follow(traced: fx.GraphModule, views: EvalViews) -> list[Alias]:
    """What the graph still reads of the network itself."""
    aliases = views.aliases(traced.children())
    for node in traced.graph.nodes:
        if node.op != "get_attr":
            continue
        path, _, name = node.target.rpartition(".")
        holder = traced.get_submodule(path)._buffers  # where a graph module keeps all tensors but parameters
        owner = views.owner(holder[name]) if name in holder else None
        if owner is not None:
            aliases.append(Alias(*owner, holder, name))
    return aliases
