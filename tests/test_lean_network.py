"""The folded form of a network: the same function and input gradient, what it keeps, and what it leaves alone."""

import pytest
import torch
from torch import nn

from ard_fast.lean import FoldedNetwork, Unfoldable
from ard_fast.models import Normalised, build_model

NETWORKS = {
    "mobilenetv2": ({}, 57),
    "resnet18-tiny": ({}, 20),
    "wrn-28-10": ({"depth": 10, "widen": 1}, 7),
    "preactresnet18": ({"width": 4}, 17),
    "preactresnet18-fast": ({"width": 4}, 16),
    "dm-wrn-28-10": ({"depth": 10, "widen": 1}, 7),
    "dm-preactresnet18": ({"width": 4}, 17),
    "digits-teacher": ({}, 3),
    "digits-student": ({}, 3),
}


def trained(network, seed=1):
    """Batch norms as in training: neither their weights nor their statistics are those of a fresh network."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.3)
    return network


def images(count, name="", device="cpu", seed=2):
    shape = (1, 8, 8) if "digits" in name else (3, 32, 32)
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed)).to(device)


def build(name, device="cpu"):
    torch.manual_seed(0)
    return trained(build_model(name, **NETWORKS.get(name, ({}, 0))[0])).to(device)


def gradient(model, x):
    """Logits, and the gradient of their sum with fixed weights."""
    probe = x.clone().requires_grad_()
    logits = model(probe)
    directions = torch.linspace(-1, 1, logits.numel(), device=x.device).view_as(logits)
    (grad,) = torch.autograd.grad([logits], [probe], [directions.to(logits.dtype)])
    return logits.detach(), grad


def exact(network, x):
    """Both in float64, in eval mode."""
    import copy

    return gradient(copy.deepcopy(network).double().eval(), x.double())


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradient_are_those_of_float64_to_rounding(name, device):
    network, x = build(name, device), images(8, name, device)
    folded = FoldedNetwork(network.train(), x[:4])
    assert folded.folded == (NETWORKS[name][1],) * 2
    logits, grad = gradient(folded, x)
    expected, direction = exact(network, x)
    assert logits.dtype == grad.dtype == torch.float32
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()
    # a rectifier whose input is 0 to rounding may switch, so not every element is the same to rounding
    assert (grad - direction).norm() < 1e-2 * direction.norm()
    assert ((grad - direction).abs() < 1e-4 * direction.abs().max()).float().mean() > 0.99
    clear = direction.abs() > 1e-2 * direction.abs().max()
    assert clear.float().mean() > 0.3 and (grad.sign() == direction.sign())[clear].float().mean() > 0.999


class Branches(nn.Module):
    """Cannot be traced: its path depends on values."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        out = self.conv(x)
        return self.linear((-out if out.mean() > 1e9 else out).mean((2, 3)))


def test_what_cannot_be_traced_says_so():
    with pytest.raises(Unfoldable, match="cannot be traced"):
        FoldedNetwork(Branches(), images(4, "digits"))


def test_a_normaliser_inside_the_network(device):
    network, x = Normalised(build("resnet18-tiny"), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)).to(device), images(4, "", device)
    logits, _ = gradient(FoldedNetwork(network, x), x)
    expected, _ = exact(network, x)
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()
