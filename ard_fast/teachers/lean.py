"""A teacher's network in its fastest form for logits alone: batch norm folded, channels_last, bfloat16 if asked for."""

from __future__ import annotations

import copy
from collections import Counter

import torch
import torch.nn.functional as tf
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

PRECISIONS = ("fp32", "bf16")
# Of the largest logit: what folding may change. Rounding alone is four orders below, a wrongly folded layer far above.
_TOLERANCE = 1e-3
# In whole sixteens an image's logits did not depend on the rest of its batch for any network tried on a CPU; for other
# counts oneDNN and MKL take other kernels for the rest, and the last bits change.
_MULTIPLE = 16


class LeanNetwork:
    """A frozen copy of a network that only computes logits.

    Convolutions take up the batch norm that follows them where the traced graph proves that nothing else reads their
    output. The copy is compared with the network on `sample`; a network that cannot be traced, or whose folded copy
    gives other logits, is copied as it is. Under "bf16" the convolutions and hidden linear layers compute in bfloat16;
    batch-norm statistics and the last linear layer stay in float32, since a bfloat16 logit keeps 8 bits.

    Args:
        network: in eval mode, on its device; left as it is.
        sample: float32 `[B, C, H, W]` images in [0, 1], on the same device.
        precision: "fp32" or "bf16".

    Attributes:
        folded: batch-norm layers folded, of how many.
        num_classes: C of its logits.
        precision: as given.
        facts: how it computes, in words.

    Raises:
        ValueError: an unknown precision.
    """

    def __init__(self, network: nn.Module, sample: Tensor, precision: str = "fp32") -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"teacher_precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.precision = "fp32"  # until the folding has been checked
        self._module = copy.deepcopy(network).eval().requires_grad_(False).to(memory_format=torch.channels_last)
        norms = _count_norms(network)
        with torch.inference_mode():
            expected = network(sample).float()
        folded, why = _fold(self._module), "it cannot be traced"
        if folded is not None:
            self._module, plain = folded, self._module
            if not self._agrees(sample, expected, _TOLERANCE):
                self._module, folded, why = plain, None, "the folded copy gives other logits"
        self.folded = (norms - _count_norms(self._module), norms) if folded is not None else (0, norms)
        self.num_classes = expected.shape[1]
        if precision == "bf16":
            self.precision = precision
            _to_bfloat16(self._module, self.num_classes)
        difference = (self(sample) - expected).abs().max().item()
        fold = f"{self.folded[0]} of {norms} batch norms folded" if folded is not None else f"not folded: {why}"
        self.facts = (
            f"{fold}, channels_last, {precision}; logits within {difference:.1e} of the plain network's "
            f"(largest {expected.abs().max().item():.3g}) on {len(sample)} images"
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Logits, float32 `[B, num_classes]`, of images `[B, C, H, W]`; an ordinary tensor without a graph."""
        count = len(x)
        with torch.inference_mode():
            x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
            if count % _MULTIPLE:  # repeats the last image: its logits are thrown away
                x = torch.cat([x, x[-1:].expand(-count % _MULTIPLE, *x.shape[1:])])
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                logits = self._module(x)
        # a copy made outside inference mode may be saved for a backward pass
        return logits[:count].to(torch.float32, copy=True)

    def _agrees(self, sample: Tensor, expected: Tensor, tolerance: float) -> bool:
        try:
            found = self(sample)
        except Exception:  # a trace that holds for no input fails in any way
            return False
        return found.shape == expected.shape and bool(
            ((found - expected).abs() <= tolerance * expected.abs().max()).all()
        )


def _count_norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def _fold(network: nn.Module) -> nn.Module | None:
    """The traced network with its convolutions' batch norms folded; None where tracing fails. `network` is used up."""
    try:
        traced = fx.symbolic_trace(network)
    except Exception:  # control flow on values, and whatever else somebody's forward does, cannot be traced
        return None
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.args else None
        if not (_is_call(node, traced, nn.BatchNorm2d) and _is_call(before, traced, nn.Conv2d)):
            continue
        norm = traced.get_submodule(node.target)
        # a module that is called twice, or whose output is read elsewhere too, must stay what it is
        if len(before.users) > 1 or calls[before.target] > 1 or calls[node.target] > 1 or norm.running_mean is None:
            continue
        traced.set_submodule(before.target, fuse_conv_bn_eval(traced.get_submodule(before.target), norm))
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _is_call(node: object, traced: fx.GraphModule, kind: type[nn.Module]) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_module" and type(traced.get_submodule(node.target)) is kind


class _Float32Linear(nn.Module):
    """A linear layer outside autocast."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return tf.linear(x.float(), self.weight, self.bias)


def _to_bfloat16(network: nn.Module, num_classes: int) -> None:
    """Weights of convolutions and linear layers in bfloat16, so that autocast need not cast them at every call."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if linear and network.get_submodule(linear[-1]).out_features == num_classes:
        last = network.get_submodule(linear[-1])
        network.set_submodule(linear[-1], _Float32Linear(last))
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.to(torch.bfloat16)
