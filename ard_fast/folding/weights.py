"""The weights of convolutions with the batch norm behind them folded in, refreshed in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ard_fast._typing import known
from ard_fast.functional import _ops

# Elements: every folded tensor begins on a 256-byte line, whatever its dtype.
_ALIGNMENT = 128


class FoldLayer(NamedTuple):
    """A convolution with the batch norm that reads its output, either of them alone at most.

    A convolution alone is only copied: its weight in the dtype and layout of the others, its bias as the shift.
    """

    conv: nn.Conv2d | None
    norm: _BatchNorm | None


class FoldedWeights:
    """Batch norms in eval mode folded into their convolutions: `w' = s w`, `b' = beta + s (b - mean)`.

    With `s = gamma / sqrt(var + eps)`. The parameters and running statistics are read alive by every `refresh()`, which
    overwrites the folded tensors where they lie: their addresses never change, so a captured CUDA graph may hold them.
    The first refresh is made at construction.

    Args:
        layers: what to fold, at least one; parameters and running statistics float32, all on one device, weights
            contiguous or channels_last.
        dtype: of the folded weights, float32, float16 or bfloat16; scales and shifts are float32 always.
        layout: in which `weight` gives them: channels_last, as they are folded, or contiguous, a copy of that.

    Attributes:
        contiguous: those copies, where there are any.

    Raises:
        ValueError: a weight is no parameter (a parametrised one).
        RuntimeError: dtypes, devices or layouts do not fit; the message names the tensor.
    """

    def __init__(
        self,
        layers: Sequence[FoldLayer],
        dtype: torch.dtype = torch.float32,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self._layers = tuple(layers)
        for i, (conv, _) in enumerate(self._layers):
            if conv is not None and conv._parameters.get("weight") is None:
                raise ValueError(f"layer {i}: the convolution's weight is no parameter, so it cannot be folded")
        self._slots = [slot for layer in self._layers for slot in _slots(layer)]
        self._eps = [0.0 if layer.norm is None else layer.norm.eps for layer in self._layers]
        self._where: list[int] = []  # for each layer where weight, scale and shift begin, -1 where there is none
        weights = affine = 0
        for conv, norm in self._layers:
            channels = _aligned(norm.num_features if conv is None else conv.out_channels)
            if conv is None:
                self._where += [-1, affine, affine + channels]
            else:
                self._where += [weights, -1, affine]
                weights += _aligned(conv.weight.numel())
            affine = self._where[-1] + channels
        device = self.sources()[0].device
        with torch.inference_mode(False):  # tensors that a backward pass may keep, with versions
            self._weights = torch.zeros(weights, dtype=dtype, device=device)
            self._affine = torch.zeros(affine, device=device)
            self._folded = {i: self._weight_view(i) for i, layer in enumerate(self._layers) if layer.conv is not None}
            self._copies = {}
            if layout != torch.channels_last:
                self._copies = {i: torch.empty(w.shape, dtype=dtype, device=device) for i, w in self._folded.items()}
        self.contiguous = list(self._copies.values())
        self.refresh()

    def weight(self, i: int) -> Tensor:
        """The folded weight `[O, I / groups, kh, kw]` of layer `i`, in the layout."""
        return self._copies.get(i, self._folded[i])

    def scale(self, i: int) -> Tensor:
        """float32 `[O]`: the factor of layer `i`, a norm without convolution."""
        return self._channels(i, self._where[3 * i + 1])

    def shift(self, i: int) -> Tensor:
        """float32 `[O]`: what is added behind layer `i`."""
        return self._channels(i, self._where[3 * i + 2])

    @property
    def outputs(self) -> tuple[Tensor, Tensor]:
        """The memory of all weights as folded, and that of all scales and shifts; the other tensors are views of it."""
        return self._weights, self._affine

    def sources(self) -> list[Tensor]:
        """The tensors that `refresh` reads, as they are now."""
        tensors = (owner.get(name) for owner, name in self._slots)
        return [tensor for tensor in tensors if tensor is not None]

    @torch.no_grad()
    def refresh(self) -> None:
        """Fold again from the tensors as they are now, in few launches and without waiting for the device."""
        tensors = [owner.get(name) for owner, name in self._slots]
        _ops.fold_batch_norm_(*self.outputs, tensors, self._eps, self._where)
        torch.autograd.graph.increment_version(self.outputs)
        if self.contiguous:
            torch._foreach_copy_(self.contiguous, list(self._folded.values()))

    def _weight_view(self, i: int) -> Tensor:
        """The part of the memory that is the weight of layer `i`, channels_last."""
        shape = known(self._layers[i].conv).weight.shape
        _, channels, height, width = shape
        strides = (channels * height * width, 1, width * channels, channels)
        return self._weights.as_strided(shape, strides, self._where[3 * i])

    def _channels(self, i: int, begin: int) -> Tensor:
        conv, norm = self._layers[i]
        return self._affine[begin : begin + (known(norm).num_features if conv is None else conv.out_channels)]


def _slots(layer: FoldLayer) -> list[tuple[dict[str, Tensor | None], str]]:
    """Where weight, bias, gamma, beta, mean and variance are found, whatever replaces them."""
    none: dict[str, Tensor | None] = {}
    of_conv = none if layer.conv is None else layer.conv._parameters
    of_norm, buffers = (none, none) if layer.norm is None else (layer.norm._parameters, layer.norm._buffers)
    owners = [of_conv, of_conv, of_norm, of_norm, buffers, buffers]
    return list(zip(owners, ["weight", "bias", "weight", "bias", "running_mean", "running_var"], strict=True))


def _aligned(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT
