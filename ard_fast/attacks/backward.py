"""From gradients at the logits back to the images, through the first convolution by a shorter way where there is one.

oneDNN computes the gradient for a convolution's input 16 channels at a time. Of images with 1 or 3 channels that is 16
or 5 times the work, and in a small network for MNIST half of an attack's time. There the pass ends at the output of the
first convolution, and one matrix product an image does the rest. It is the same sum in another order: gradients differ
in their last digits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

_MOST_CHANNELS = 4


def backward(
    outputs: Sequence[Tensor],
    probe: Tensor,
    gradients: Sequence[Tensor] | None = None,
    *,
    retain_graph: bool = False,
) -> Tensor:
    """`torch.autograd.grad` at one tensor, in the dtypes of the forward pass, also where autocast is on."""
    with ExitStack() as stack:
        if torch.is_autocast_enabled(probe.device.type):
            stack.enter_context(torch.autocast(probe.device.type, enabled=False))  # keeps the cast weights
        first = _first_convolution(outputs, probe)
        if first is None:
            return torch.autograd.grad(outputs, [probe], gradients, retain_graph=retain_graph)[0]
        x, weight, stride, padding = first._saved_input, first._saved_weight, first._saved_stride, first._saved_padding
        (grad,) = torch.autograd.grad(outputs, [GradientEdge(first, 0)], gradients, retain_graph=retain_graph)
        with torch.no_grad():
            grad = input_gradient(grad, x, weight, stride, padding)
        below = GradientEdge(*first.next_functions[0])
        return torch.autograd.grad([below], [probe], [grad], retain_graph=retain_graph)[0]


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
    left = [output.grad_fn for output in outputs]
    readers: dict[Node, list[Node | None]] = {node: [None] for node in left if node is not None}
    while left:
        node = left.pop()
        for below, _ in () if node is None else node.next_functions:
            if below is not None:
                if below not in readers:
                    readers[below] = []
                    left.append(below)
                readers[below].append(node)
    node: Any = get_gradient_edge(probe).node
    while len(above := readers.get(node, ())) == 1 and above[0] is not None:
        node = above[0]
        if node.name() == "ConvolutionBackward0":
            fits = not node._saved_transposed and has_few_channels(
                node._saved_input, node._saved_weight, node._saved_dilation, node._saved_groups
            )
            return node if fits else None
    return None


@functools.cache
def _works() -> bool:
    """Whether this torch has the operation, as it is called here: it is not part of its documented interface."""
    x, weight, grad = torch.ones(1, 1, 3, 3), torch.ones(2, 1, 2, 2), torch.ones(1, 2, 2, 2)
    try:
        found = input_gradient(grad, x, weight, (1, 1), (0, 0))
    except Exception:  # another signature, or none
        return False
    return torch.equal(found, torch.conv_transpose2d(grad, weight))
