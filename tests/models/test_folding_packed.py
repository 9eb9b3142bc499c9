"""Convolutions on weights in oneDNN's order: the same results, of the weight as it is now."""

import pytest
import torch

from ard_fast.folding import layers
from ard_fast.folding.layers import PackedConvolution

GEOMETRIES = [  # kernel, stride, padding, dilation, whether the gradient is a convolution
    ((3, 3), (1, 1), (1, 1), (1, 1), True),
    ((1, 1), (1, 1), (0, 0), (1, 1), True),
    ((3, 5), (1, 1), (0, 2), (2, 1), True),
    ((3, 3), (2, 2), (1, 1), (1, 1), False),
    ((1, 1), (1, 1), (1, 0), (1, 1), False),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "has_gradient"), GEOMETRIES)
def test_convolution_and_gradient(kernel, stride, padding, dilation, has_gradient):
    torch.manual_seed(0)
    weight, bias = torch.randn(24, 20, *kernel), torch.randn(24)
    convolution = PackedConvolution(weight, layers.Geometry(stride, padding, dilation))
    assert convolution.has_gradient == has_gradient
    for count, layout in ((2, torch.channels_last), (5, torch.contiguous_format)):
        for _ in range(2):  # on a kept copy, and after a change
            x = torch.randn(count, 20, 9, 8).contiguous(memory_format=layout).requires_grad_()
            expected = torch.conv2d(x, weight, bias, stride, padding, dilation)
            found = convolution(x.detach(), bias)
            torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-4)
            assert found.is_contiguous(memory_format=torch.channels_last)
            if has_gradient:
                grad = torch.randn_like(expected)
                (wanted,) = torch.autograd.grad(expected, x, grad)
                torch.testing.assert_close(convolution.input_gradient(grad), wanted, rtol=1e-4, atol=1e-4)
            weight.mul_(-1.5).add_(0.1)


def test_where_it_is_used(monkeypatch):
    large = torch.zeros(64, 128, 3, 3)
    assert PackedConvolution.fits(large, 1)
    assert not PackedConvolution.fits(large, 2)
    assert not PackedConvolution.fits(large.bfloat16(), 1)
    assert not PackedConvolution.fits(torch.zeros(64, 64, 3, 3), 1)
    assert not PackedConvolution.fits(large.to("meta"), 1)

    def fails(*_):
        raise RuntimeError("another signature")

    layers._works.cache_clear()
    monkeypatch.setattr(layers, "_convolution", fails)
    try:
        assert not PackedConvolution.fits(large, 1)
    finally:
        layers._works.cache_clear()
