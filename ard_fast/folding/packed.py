"""A convolution whose weight lies the way oneDNN computes with it, so that it is not brought there at every call."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

# Elements: below, the calls that bring a weight there cost more than what they save.
_SMALLEST = 1 << 16


class PackedConvolution:
    """The convolution of a float32 weight on a CPU, on a copy in oneDNN's layout that follows the weight.

    oneDNN computes with blocks of channels and brings a plain weight into that order at each call, forwards and
    backwards. That is a read and a write of the weight for B * H * W products with each of its elements: next to
    nothing on large images, a tenth to a quarter of the call at 4x4. The operations are those of torch's inductor.
    The gradient for the input is a convolution of the gradient with the mirrored weight (stride 1 only).

    Args:
        weight: `[O, I, kh, kw]`; may be overwritten between calls, in ways that count in its version.
        geometry: stride, padding, dilation and groups.
    """

    def __init__(self, weight: Tensor, geometry: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]) -> None:
        self.weight, self.geometry = weight, geometry
        stride, padding, dilation, _ = geometry
        sizes = zip(dilation, weight.shape[2:], padding, strict=True)
        self._mirrored_padding = tuple(step * (size - 1) - zeros for step, size, zeros in sizes)
        self.has_gradient = set(stride) == {1} and min(self._mirrored_padding) >= 0
        self._forward: tuple[int, Tensor] | None = None  # with the version of the weight that it is of
        self._backward: tuple[int, Tensor] | None = None

    @staticmethod
    def fits(weight: Tensor, groups: int) -> bool:
        """Whether it can be used, and is worth it."""
        return (
            weight.device.type == "cpu"
            and weight.dtype == torch.float32
            and groups == 1
            and weight.numel() >= _SMALLEST
            and not weight.is_inference()
            and _works()
        )

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`conv(x, weight) + bias`, channels_last."""
        stride, padding, dilation, _ = self.geometry
        if self._forward is None or self._forward[0] != self.weight._version:
            self._forward = self.weight._version, _packed(self.weight, padding, stride, dilation, x.shape)
        return _convolution(x, self._forward[1], bias, padding, stride, dilation)

    def input_gradient(self, grad: Tensor) -> Tensor:
        """The gradient for x, from that for the result; channels_last."""
        padding, ones = self._mirrored_padding, (1, 1)
        if self._backward is None or self._backward[0] != self.weight._version:
            mirrored = self.weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
            self._backward = (
                self.weight._version,
                _packed(mirrored, padding, ones, self.geometry[2], grad.shape),
            )
        return _convolution(grad, self._backward[1], None, padding, ones, self.geometry[2])


@functools.cache
def _works() -> bool:
    """Whether this torch has the operations, as they are called here: they are not part of its documented interface."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight = torch.ones(1, 8, 3, 3), torch.ones(8, 8, 3, 3)
    try:
        found = _convolution(x, _packed(weight, (1, 1), (1, 1), (1, 1), x.shape), None, (1, 1), (1, 1), (1, 1))
    except Exception:  # another signature, or none
        return False
    return torch.equal(found, torch.conv2d(x, weight, None, 1, 1))


def _packed(
    weight: Tensor, padding: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], shape: torch.Size
) -> Tensor:
    return torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, 1, shape)


def _convolution(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    padding: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(x, packed, bias, padding, stride, dilation, 1, "none", [], "")
