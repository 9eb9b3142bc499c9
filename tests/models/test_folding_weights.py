"""Folded weights against the modules themselves, in float64."""

import copy

import pytest
import torch
from torch import nn

from ard_fast.folding import FoldedWeights, FoldLayer


def scrambled(norm):
    """The norm with parameters and statistics that are neither 0 nor 1."""
    for tensor in (norm.running_mean, norm.weight, norm.bias):
        if tensor is not None:
            nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.1, 3.0)
    return norm.eval()


class OtherNorm(nn.modules.batchnorm._BatchNorm):
    """Somebody's own batch norm."""

    def _check_input_dim(self, input):
        pass


LAYERS = {
    "3x3": (nn.Conv2d(5, 7, 3, bias=False), nn.BatchNorm2d(7)),
    "1x1 with bias": (nn.Conv2d(6, 3, 1), nn.BatchNorm2d(3, eps=0.1)),
    "depthwise": (nn.Conv2d(9, 9, 3, groups=9, bias=False), nn.BatchNorm2d(9)),
    "grouped, not square": (nn.Conv2d(6, 4, (3, 5), groups=2), nn.BatchNorm2d(4)),
    "without affine": (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)),
    "convolution alone": (nn.Conv2d(3, 8, 3), None),
    "norm alone": (None, nn.BatchNorm2d(5)),
    "another norm": (nn.Conv2d(4, 6, 1), OtherNorm(6)),
}


def network(device, channels_last=False):
    torch.manual_seed(0)
    layers = [FoldLayer(*(copy.deepcopy(module) for module in pair)) for pair in LAYERS.values()]
    for conv, norm in layers:
        if norm is not None:
            scrambled(norm).to(device)
        if conv is not None:
            conv.to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return layers


@pytest.mark.parametrize("channels_last", [False, True])
def test_folded_layer_computes_what_the_modules_compute(channels_last, device):
    layers = network(device, channels_last)
    folded = FoldedWeights(layers)
    for i, (conv, norm) in enumerate(layers):
        channels = norm.num_features if conv is None else conv.in_channels
        x = torch.randn(2, channels, 8, 9, dtype=torch.float64, device=device)
        expected = x
        for module in (conv, norm):
            expected = expected if module is None else copy.deepcopy(module).double()(expected)
        if conv is None:
            found = x * folded.scale(i).double().view(-1, 1, 1)
        else:
            weight = folded.weight(i).double()
            found = nn.functional.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        found = found + folded.shift(i).double().view(-1, 1, 1)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * expected.abs().max().item())


def test_refresh_reads_what_changed_and_writes_in_place(device):
    layers = network(device)
    folded = FoldedWeights(layers)
    before = [t.data_ptr() for t in folded.outputs]
    weight, versions = folded.weight(0), [t._version for t in folded.outputs]
    layers[0].conv.weight.data.mul_(2.0)  # in place
    layers[1].conv.weight = nn.Parameter(layers[1].conv.weight.detach() * 3.0)  # replaced
    layers[6].norm.running_var.fill_(1.0)
    old = [folded.weight(i).clone() for i in (0, 1)]
    folded.refresh()
    assert weight.equal(2.0 * old[0])
    torch.testing.assert_close(folded.weight(1), 3.0 * old[1])
    norm = layers[6].norm
    torch.testing.assert_close(folded.scale(6), norm.weight.detach() / (1.0 + norm.eps) ** 0.5)
    assert [t.data_ptr() for t in folded.outputs] == before
    assert all(t._version > version for t, version in zip(folded.outputs, versions, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_and_where_they_lie(dtype, device):
    """Weights channels_last and on boundaries that any library is content with."""
    layers = network(device)
    full, half = FoldedWeights(layers), FoldedWeights(layers, dtype)
    for i, (conv, _) in enumerate(layers):
        tensors = [half.shift(i), half.scale(i) if conv is None else half.weight(i)]
        assert all(t.data_ptr() % 64 == 0 and t.device.type == device.type for t in tensors)
        assert half.shift(i).equal(full.shift(i))
        if conv is None:
            assert half.scale(i).equal(full.scale(i))
        else:
            assert half.weight(i).equal(full.weight(i).to(dtype)) and half.weight(i).dtype == dtype
            assert half.weight(i).is_contiguous(memory_format=torch.channels_last)
            assert half.weight(i).shape == conv.weight.shape


def test_made_and_refreshed_in_inference_mode(device):
    """What is written there can still be kept for a backward pass."""
    layers = network(device)
    with torch.inference_mode():
        folded = FoldedWeights(layers)
    x = torch.rand(2, 5, 8, 9, device=device, requires_grad=True)
    out = nn.functional.conv2d(x, folded.weight(0))
    with torch.inference_mode():
        folded.refresh()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_weight_that_is_no_parameter_cannot_be_folded():
    layer = FoldLayer(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="layer 0: the convolution's weight is no parameter"):
        FoldedWeights([layer])
