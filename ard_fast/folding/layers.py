"""The layers of a folded network: no gradient reaches their weights, and the backward pass needs a bit an element."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ard_fast import functional as F
from ard_fast._typing import Context, known
from ard_fast.attacks.backward import has_few_channels, input_gradient


class Geometry(NamedTuple):
    """Of a convolution, by image axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1


class Convolution(nn.Module):
    """`relu(conv(x, weight) + shift + residual)`, what is not there left out.

    The gradient reaches `x` and `residual` only, and is differentiable once. Nothing but one bit for each element of
    the result is kept for it: not the input, and without ReLU nothing at all.

    Args:
        like: the convolution whose geometry it has.
        weight: `[O, I / groups, kh, kw]`, float32, float16 or bfloat16; may be overwritten between passes.
        shift: float32 `[O]`, or None; likewise.
        relu: apply ReLU.
        layout: of x, weight and result.
    """

    def __init__(
        self,
        like: nn.Conv2d,
        weight: Tensor,
        shift: Tensor | None,
        relu: bool,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        super().__init__()
        self.weight, self.shift, self.relu, self.layout = weight, shift, relu, layout
        self.geometry = Geometry(like.stride, known(zero_padding(like)), like.dilation, like.groups)
        self.packed: PackedConvolution | None = None
        if layout == torch.channels_last and PackedConvolution.fits(weight, like.groups):
            self.packed = PackedConvolution(weight, self.geometry)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = x.to(self.weight.dtype)
        residual = None if residual is None else residual.to(x.dtype)
        if _recorded(x, residual):
            return _Convolution.apply(x, residual, self)
        return self.compute(x, residual, mask=False)[0]

    def compute(self, x: Tensor, residual: Tensor | None, mask: bool) -> tuple[Tensor, Tensor | None]:
        """The result and, with ReLU, where that passes a gradient, if asked for."""
        stride, padding, dilation, groups = self.geometry
        # oneDNN adds a float32 bias at no cost; with cuDNN it is a pass over the result, like the one below.
        alone = not self.relu and residual is None
        bias = self.shift if alone and x.device.type == "cpu" and x.dtype == torch.float32 else None
        if self.packed is None:
            y = torch.conv2d(x, self.weight, bias, stride, padding, dilation, groups)
        else:
            y = self.packed(x, bias)
        if alone and bias is self.shift:
            return y, None
        return y, F.affine_relu_(y, None, self.shift, residual, relu=self.relu, mask=mask and self.relu)

    def input_gradient(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """The gradient for an input of a shape, from that of the convolution's result."""
        if self.packed is not None and self.packed.has_gradient:
            return self.packed.input_gradient(grad)
        stride, padding, dilation, groups = self.geometry
        x = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=self.layout)  # never read
        if has_few_channels(x, self.weight, dilation, groups):
            return input_gradient(grad, x, self.weight, stride, padding)
        return torch.ops.aten.convolution_backward(
            grad, x, self.weight, None, stride, padding, dilation, False, (0, 0), groups, (True, False, False)
        )[0]


class Affine(nn.Module):
    """`relu(x * scale[c] + shift[c] + residual)`, what is not there left out; keeps one bit an element, as above.

    Args:
        scale: float32 `[C]`, or None; may be overwritten between passes.
        shift: likewise.
        relu: apply ReLU.
    """

    def __init__(self, scale: Tensor | None, shift: Tensor | None, relu: bool) -> None:
        super().__init__()
        self.scale, self.shift, self.relu = scale, shift, relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if _recorded(x, residual):
            return _Affine.apply(x, residual, self)
        return self.compute(x, residual, mask=False)[0]

    def compute(self, x: Tensor, residual: Tensor | None, mask: bool) -> tuple[Tensor, Tensor]:
        """The result, a new tensor, and with ReLU where that passes a gradient, if asked for."""
        x = x.contiguous(memory_format=_layout(x))
        return F.affine_relu(x, self.scale, self.shift, residual, relu=self.relu, mask=mask and self.relu)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, residual: Tensor | None, layer: Convolution) -> Tensor:
        y, bits = layer.compute(x, residual, mask=True)
        # Saved, so that a refresh between forward and backward is an error, and a second backward one as well.
        ctx.save_for_backward(layer.weight, bits)
        ctx.layer, ctx.shape, ctx.layout = layer, x.shape, _layout(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch says how many there are
        ctx: Context, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        _, bits = ctx.saved_tensors
        grad = grad.contiguous(memory_format=ctx.layout)
        if ctx.layer.relu:
            grad = F.affine_relu_backward(grad, bits)
        for_x = ctx.layer.input_gradient(grad, ctx.shape) if ctx.needs_input_grad[0] else None
        return for_x, grad if ctx.needs_input_grad[1] else None, None


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, residual: Tensor | None, layer: Affine) -> Tensor:
        y, bits = layer.compute(x, residual, mask=True)
        ctx.save_for_backward(layer.scale, bits)
        ctx.layer, ctx.layout = layer, _layout(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch says how many there are
        ctx: Context, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        scale, bits = ctx.saved_tensors
        grad, relu = grad.contiguous(memory_format=ctx.layout), ctx.layer.relu
        wanted_x, wanted_residual, _ = ctx.needs_input_grad
        if scale is None:
            grad = F.affine_relu_backward(grad, bits, relu=relu) if relu else grad
            return grad if wanted_x else None, grad if wanted_residual else None, None
        for_x = F.affine_relu_backward(grad, bits, scale, relu=relu) if wanted_x else None
        return for_x, F.affine_relu_backward(grad, bits, relu=relu) if wanted_residual else None, None


def zero_padding(conv: nn.Conv2d) -> tuple[int, ...] | None:
    """The rows and columns of zeros on each side; None where the sides differ or something else is padded."""
    if conv.padding_mode != "zeros":
        return None
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding != "same":
        return conv.padding
    both = [step * (size - 1) for step, size in zip(conv.dilation, conv.kernel_size, strict=True)]
    return None if any(total % 2 for total in both) else tuple(total // 2 for total in both)


def _recorded(x: Tensor, residual: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or (residual is not None and residual.requires_grad))


def _layout(x: Tensor) -> torch.memory_format:
    """That of the tensor, or the nearest to it."""
    if x.dim() == 4 and not x.is_contiguous() and x.stride(1) == 1:
        return torch.channels_last
    return torch.contiguous_format


class Float32Linear(nn.Module):
    """A linear layer in float32 whatever autocast says: a bfloat16 logit would keep 8 bits."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.linear(x.float())


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
        geometry: of the convolution, of one group.
    """

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        self.weight, self.geometry = weight, geometry
        sizes = zip(geometry.dilation, weight.shape[2:], geometry.padding, strict=True)
        padding = tuple(step * (size - 1) - zeros for step, size, zeros in sizes)
        self._mirrored = Geometry((1, 1), padding, geometry.dilation)
        self.has_gradient = set(geometry.stride) == {1} and min(padding) >= 0
        self._packed: dict[bool, tuple[int, Tensor]] = {}  # mirrored or not, with the version of the weight

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
        return _convolution(x, self._weight_for(x, mirrored=False), bias, self.geometry)

    def input_gradient(self, grad: Tensor) -> Tensor:
        """The gradient for x, from that for the result; channels_last."""
        return _convolution(grad, self._weight_for(grad, mirrored=True), None, self._mirrored)

    def _weight_for(self, x: Tensor, mirrored: bool) -> Tensor:
        version, packed = self._packed.get(mirrored, (None, self.weight))
        if version != self.weight._version:
            plain, geometry = self.weight, self.geometry
            if mirrored:
                plain = plain.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
                geometry = self._mirrored
            packed = _reorder(plain, geometry, x.shape)
            self._packed[mirrored] = self.weight._version, packed
        return packed


@functools.cache
def _works() -> bool:
    """Whether this torch has the operations, as they are called here: they are not part of its documented interface."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight, geometry = torch.ones(1, 8, 3, 3), torch.ones(8, 8, 3, 3), Geometry((1, 1), (1, 1), (1, 1))
    try:
        found = _convolution(x, _reorder(weight, geometry, x.shape), None, geometry)
    except Exception:  # another signature, or none
        return False
    return torch.equal(found, torch.conv2d(x, weight, None, 1, 1))


def _reorder(weight: Tensor, geometry: Geometry, shape: torch.Size) -> Tensor:
    stride, padding, dilation, groups = geometry
    return torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, shape)


def _convolution(x: Tensor, packed: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    stride, padding, dilation, groups = geometry
    return torch.ops.mkldnn._convolution_pointwise(x, packed, bias, padding, stride, dilation, groups, "none", [], "")
