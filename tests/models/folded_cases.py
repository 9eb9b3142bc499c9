"""Networks and input gradients for the tests of folded networks."""

import copy

import torch
from torch import nn

from ard_fast.models import build_model

# Name: what makes it small, and how many batch norms it has.
NETWORKS = {
    "mobilenetv2": ({}, 57),
    "resnet18-tiny": ({}, 20),
    "resnet18-narrow": ({}, 20),  # weights that are worth bringing into oneDNN's order
    "wrn-28-10": ({"depth": 10, "widen": 1}, 7),
    "preactresnet18": ({"width": 4}, 17),
    "preactresnet18-fast": ({"width": 4}, 16),
    "dm-wrn-28-10": ({"depth": 10, "widen": 1}, 7),
    "dm-preactresnet18": ({"width": 4}, 17),
    "digits-teacher": ({}, 3),
    "digits-student": ({}, 3),
    "mnist-student": ({}, 2),
}


def trained(network, seed=1):
    """Batch norms as in training: neither their weights nor their statistics are those of a fresh network."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.3)
    return network


class Branches(nn.Module):
    """Cannot be traced: its path depends on values."""

    def __init__(self, channels=3):
        super().__init__()
        self.conv, self.bn, self.linear = nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        out = self.bn(self.conv(x))
        return self.linear((-out if out.mean() > 1e9 else out).mean((2, 3)))


def build(name, device="cpu"):
    torch.manual_seed(0)
    return trained(build_model(name, **NETWORKS[name][0])).to(device)


def images(count, name="", device="cpu", channels=3, size=32):
    if "digits" in name or "mnist" in name:
        channels, size = 1, 28 if "mnist" in name else 8
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(2)).to(device)


def gradient(model, x):
    """Logits, and the gradient of a sum of them with fixed weights."""
    probe = x.detach().clone().requires_grad_()
    logits = model(probe)
    directions = torch.linspace(-1, 1, logits.numel(), device=x.device).view_as(logits)
    (grad,) = torch.autograd.grad([logits], [probe], [directions.to(logits.dtype)])
    return logits.detach(), grad


def exact(network, x):
    """Both in float64 and in eval mode."""
    return gradient(copy.deepcopy(network).double().eval(), x.double())


def assert_same_function(model, network, x, logits=1e-5, grad=1e-2):
    """As the network in float64 and in eval mode, to rounding.

    A ReLU whose input is 0 to rounding may switch, so that the gradient is held to its length, not to each
    element.
    """
    (found, gradient_found), (expected, direction) = gradient(model, x), exact(network, x)
    assert found.dtype == gradient_found.dtype == torch.float32
    assert (found - expected).abs().max() <= logits * expected.abs().max()
    assert (gradient_found - direction).norm() <= grad * direction.norm()
