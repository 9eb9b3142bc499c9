"""A network in its fastest form for logits alone: batch norms folded, bfloat16 if asked for."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from ard_fast.folding.layers import Float32Linear
from ard_fast.folding.network import FoldedNetwork
from ard_fast.folding.trace import Unfoldable
from ard_fast.models.trial import differs, frozen, layout_name, untouched

PRECISIONS = ("fp32", "bf16")
# In whole sixteens an image's logits did not depend on the rest of its batch for any network tried on a CPU; for other
# counts oneDNN and MKL take other kernels for the rest, and the last bits change.
_MULTIPLE = 16


class InferenceNetwork:
    """A frozen network that only computes logits.

    It is the network's folded form, made once; a network that has none is copied as it is. Under "bf16" convolutions
    and hidden linear layers compute in bfloat16; scales and shifts of batch norm and the last linear layer stay in
    float32, since a bfloat16 logit keeps 8 bits.

    Args:
        network: in eval mode, on its device, and not changed from now on; left as it is.
        sample: float32 `[B, C, H, W]` images in [0, 1], on the same device.
        precision: "fp32" or "bf16", under which the network runs.
        layout: of images and activations, in which it runs.

    Attributes:
        folded: batch-norm layers folded, of how many.
        differentiable: the folded form, for gradients of the input; None where there is none.
        num_classes: C of its logits.
        by_image: whether an image's logits do not depend on the rest of its batch, nor on chance.
        precision: as given.
        facts: how it computes, in words.

    Raises:
        ValueError: an unknown precision.
    """

    def __init__(
        self,
        network: nn.Module,
        sample: Tensor,
        precision: str = "fp32",
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"teacher_precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.precision, self._layout = precision, layout
        sample = sample.contiguous(memory_format=layout)
        some = max(len(sample) // 2, 1)
        with torch.no_grad(), untouched(network):
            expected, part = network(sample).float(), network(sample[:some]).float()
        self.num_classes = expected.shape[1]
        self.by_image = differs((part, None), (expected[:some], None)) is None
        self.differentiable: FoldedNetwork | None = None
        try:
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            self.differentiable = FoldedNetwork(network, sample, dtype=dtype, layout=layout)
            self._network, self.folded = self.differentiable, self.differentiable.folded
            fold = f"{self.folded[0]} of {self.folded[1]} batch norms folded"
        except Unfoldable as error:
            norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
            self._network, self.folded = _unfolded(network, sample, precision, layout), (0, norms)
            fold = f"not folded: {error}"
        difference = (self(sample) - expected).abs().max().item()
        self.facts = (
            f"{fold}, {layout_name(layout)}, {precision}; logits within {difference:.1e} of the plain network's "
            f"(largest {expected.abs().max().item():.3g}) on {len(sample)} images"
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Logits, float32 `[B, num_classes]`, of images `[B, C, H, W]`; an ordinary tensor without a graph."""
        count = len(x)
        with torch.no_grad():  # not inference mode, which not every network takes
            x = x.contiguous(memory_format=self._layout) if x.dim() == 4 else x
            if count % _MULTIPLE and self.by_image:  # repeats the last image: its logits are thrown away
                x = torch.cat([x, x[-1:].expand(-count % _MULTIPLE, *x.shape[1:])])
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                logits = self._network(x)
        return logits[:count].to(torch.float32, copy=True)


def _unfolded(network: nn.Module, sample: Tensor, precision: str, layout: torch.memory_format) -> nn.Module:
    """A copy of the network, its weights in bfloat16 where that works; the network itself where it has no copy."""
    try:
        copied = frozen(copy.deepcopy(network))
        copied.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        if precision == "fp32":
            return copied
        cast_network = copy.deepcopy(copied)
    except Exception:  # locks, hooks, TorchScript: somebody else's module may fail in any way
        return network
    try:
        with torch.no_grad(), torch.autocast(sample.device.type, torch.bfloat16):
            _to_bfloat16(cast_network, copied(sample).shape[1])
            usable = bool(cast_network(sample).isfinite().all())
    except Exception:  # weights that are used outside their layers, say
        usable = False
    return cast_network if usable else copied


def _to_bfloat16(network: nn.Module, num_classes: int) -> None:
    """Weights of convolutions and linear layers in bfloat16, so that autocast need not cast them at every call. The
    last linear layer, which gives the logits, stays in float32."""
    layers = {name: module for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    linear = [name for name, module in layers.items() if isinstance(module, nn.Linear)]
    if linear and layers[linear[-1]].out_features == num_classes:
        network.set_submodule(linear[-1], Float32Linear(cast("nn.Linear", layers.pop(linear[-1]))))
    for module in layers.values():
        module.to(torch.bfloat16)
