"""From gradients at the logits back to the images, through the first convolution by a shorter way where there is one.

oneDNN computes the gradient for a convolution's input 16 channels at a time. Of images with 1 or 3 channels that is 16
or 5 times the work, and in a small network for MNIST half of an attack's time. There the pass ends at the output of the
first convolution, and one matrix product an image does the rest. It is the same sum in another order: gradients differ
in their last digits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

_MOST_CHANNELS = 4
_FEWEST_PIXELS = 4096
"""Of a whole batch: below, the search for the convolution takes longer than it saves."""


def backward(
    outputs: Sequence[Tensor],
    probe: Tensor,
    gradients: Sequence[Tensor] | None = None,
    *,
    retain_graph: bool = False,
) -> Tensor:
    """`torch.autograd.grad` at one tensor, in the dtypes of the forward pass, also where autocast is on."""
    device = probe.device.type
    # Autocast keeps the cast weights.
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
        first = _first_convolution(outputs, probe)
        if first is None:
            return torch.autograd.grad(outputs, [probe], gradients, retain_graph=retain_graph)[0]
        x, weight, stride, padding = first._saved_input, first._saved_weight, first._saved_stride, first._saved_padding
        (grad,) = torch.autograd.grad(outputs, [GradientEdge(first, 0)], gradients, retain_graph=retain_graph)
        with torch.no_grad():
            grad = input_gradient(grad, x, weight, stride, padding)
        below, output_nr = first.next_functions[0]
        if below.name() == "torch::autograd::AccumulateGrad" and not probe._backward_hooks:
            return grad
        return torch.autograd.grad([GradientEdge(below, output_nr)], [probe], [grad], retain_graph=retain_graph)[0]


def input_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The gradient for a convolution's input from that for its output, where `has_few_channels`.

    Args:
        grad: `[B, O, H', W']`.
        x: the input `[B, C, H, W]`, of which only shape and layout are seen.
        weight: `[O, C, kh, kw]`.
        stride: of the convolution, by image axis.
        padding: likewise.
    """
    only_input = (True, False, False)
    return torch.ops.aten._slow_conv2d_backward.output_mask(
        grad, x, weight, weight.shape[2:], stride, padding, only_input
    )[0]


def has_few_channels(x: Tensor, weight: Tensor, dilation: Sequence[int], groups: int) -> bool:
    """Whether `input_gradient` can be used for a convolution, and is faster.

    In channels_last it is not, unless there is one channel, which has no layout.
    """
    return (
        x.device.type == "cpu"
        and x.dim() == 4
        and x.shape[1] <= _MOST_CHANNELS
        and x.dtype == weight.dtype == torch.float32
        and x.layout == weight.layout == torch.strided
        and x.is_contiguous()
        and weight.is_contiguous()
        and groups == 1
        and set(dilation) == {1}
        and _works()
    )


def _first_convolution(outputs: Sequence[Tensor], probe: Tensor) -> Any:
    """The node of a convolution with few channels that all of the gradient passes on its only way to the probe.

    Between them may stand functions that nothing else reads, such as a normalisation of the pixels.
    """
    if probe.device.type != "cpu" or probe.dim() != 4 or torch.compiler.is_compiling():
        return None
    if probe.shape[1] > _MOST_CHANNELS or probe.numel() < _FEWEST_PIXELS:
        return None
    images = get_gradient_edge(probe).node
    left: list[Any] = [output.grad_fn for output in outputs]
    if None in left:
        return None
    reader: dict[Any, Any] = dict.fromkeys(left)  # of each function; None where there are several, or `outputs`
    while left:
        node = left.pop()
        for below, _ in node.next_functions:
            if below in reader:
                reader[below] = None
            elif below is not None:
                reader[below] = node
                if type(below) is not type(images):  # those of leaves read nothing
                    left.append(below)
    node = reader.get(images)
    while node is not None and node.name() != "ConvolutionBackward0":
        node = reader[node]
    if node is None or node._saved_transposed:
        return None
    x, weight, dilation, groups = node._saved_input, node._saved_weight, node._saved_dilation, node._saved_groups
    return node if has_few_channels(x, weight, dilation, groups) else None


@functools.cache
def _works() -> bool:
    """Whether this torch has the operation, as it is called here: it is not part of its documented interface."""
    x, weight, grad = torch.ones(1, 1, 3, 3), torch.ones(2, 1, 2, 2), torch.ones(1, 2, 2, 2)
    try:
        found = input_gradient(grad, x, weight, (1, 1), (0, 0))
    except Exception:  # another signature, or none
        return False
    return torch.equal(found, torch.conv_transpose2d(grad, weight))
