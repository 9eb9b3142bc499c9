"""The lean form of a teacher's network: the same logits, and what is folded, padded and cast."""

import pytest
import torch
from torch import nn

from ard_fast.models import Normalised, build_model
from ard_fast.teachers import LeanNetwork, Teacher


def trained(network):
    """Batch norms as after training: neither their weights nor their statistics are those of a fresh network."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    return network.eval()


def images(count, channels=3, size=32):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(2))


NETWORKS = {
    "resnet18-tiny": ({}, 20, 20),
    "mobilenetv2": ({}, 57, 57),
    "wrn-28-10": ({"depth": 10, "widen": 1}, 7, 7),
    "preactresnet18": ({"width": 4}, 17, 17),
    "preactresnet18-fast": ({"width": 4}, 16, 16),
    "dm-wrn-28-10": ({"depth": 10, "widen": 1}, 7, 7),
    "dm-preactresnet18": ({"width": 4}, 17, 17),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_logits(name):
    options, folded, norms = NETWORKS[name]
    network = trained(build_model(name, **options))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    x = images(16)
    lean = LeanNetwork(network, x)
    assert lean.folded == (folded, norms) and lean.num_classes == 10
    with torch.no_grad():
        expected = network(x)
    torch.testing.assert_close(lean(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert f"{folded} of {norms} batch norms folded" in lean.facts
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_a_normaliser_inside_the_network_is_kept():
    network = Normalised(trained(build_model("resnet18-tiny")), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
    x = images(16)
    with torch.no_grad():
        torch.testing.assert_close(LeanNetwork(network, x)(x), network(x), rtol=1e-4, atol=1e-5)


class Branches(nn.Module):
    """Cannot be traced: its path depends on values."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.linear = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        out = self.bn(self.conv(x))
        if out.mean() > 1e9:
            out = -out
        return self.linear(out.mean((2, 3)))


class Detached(Branches):
    """Traces, but to a function with another gradient: a trace does not see where gradients are switched off."""

    def forward(self, x):
        with torch.no_grad():
            gate = self.bn(self.conv(x)).mean((2, 3))
        return self.linear(gate + x.mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Branches, "not folded: it cannot be traced"),
        (Detached, "not folded: its folded form gives another input gradient"),
    ],
)
def test_what_cannot_be_folded_is_left_as_it_is(kind, why):
    network, x = trained(kind()), images(16, 1, 8)
    lean = LeanNetwork(network, x)
    assert lean.folded == (0, 1) and why in lean.facts and lean.differentiable is None
    assert Teacher(network, lean=lean).attacked is network
    with torch.no_grad():
        torch.testing.assert_close(lean(x), network(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_attacks_differentiate_is_the_folded_form(precision):
    network, x = trained(build_model("resnet18-tiny")), images(16)
    teacher = Teacher(network, lean=LeanNetwork(network, x, precision))
    assert Teacher(network).attacked is network
    probe = x.clone().requires_grad_()
    logits, expected = teacher.attacked(probe), network(probe)
    assert logits.dtype == torch.float32 and torch.equal(logits.detach(), teacher(x))
    (grad,) = torch.autograd.grad(logits[:, 0].sum(), probe)
    (direction,) = torch.autograd.grad(expected[:, 0].sum(), probe)
    assert (grad - direction).norm() < (0.01 if precision == "fp32" else 0.3) * direction.norm()


@pytest.mark.parametrize("name", ["digits-teacher", "resnet18-tiny", "resnet18-narrow", "wrn-28-10", "mobilenetv2"])
def test_an_image_does_not_depend_on_its_batch(name):
    """Bit for bit on a CPU, which is what makes the cache exact there; without the padding to sixteens it fails."""
    options = {"depth": 10, "widen": 2} if name == "wrn-28-10" else {}
    network = trained(build_model(name, **options))
    x = images(40, 1, 8) if name == "digits-teacher" else images(40)
    lean = LeanNetwork(network, x[:16])
    whole = lean(x)
    for count in (1, 2, 3, 7, 15, 16, 17, 33, 39):
        chosen = torch.randperm(40, generator=torch.Generator().manual_seed(count))[:count]
        assert torch.equal(lean(x[chosen]), whole[chosen]), count


def test_logits_are_ordinary_constants():
    """They may be saved for a backward pass and changed in place, which tensors of inference mode may not."""
    network, x = trained(build_model("digits-teacher")), images(5, 1, 8)
    logits = Teacher(network, lean=LeanNetwork(network, x))(x)
    assert not logits.requires_grad and not logits.is_inference() and logits.shape == (5, 10)
    student = torch.zeros(5, 10, requires_grad=True)
    (student * logits).sum().backward()
    assert torch.equal(student.grad, logits)
    logits += 1


def test_bfloat16_keeps_float32_logits():
    network, x = trained(build_model("resnet18-tiny")), images(16)
    lean = LeanNetwork(network, x, "bf16")
    with torch.no_grad():
        expected = network(x)
    found = lean(x)
    assert found.dtype == torch.float32 and "bf16" in lean.facts
    assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()
    assert not torch.equal(found, found.bfloat16().float())  # the last layer is not rounded to 8 bits
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="teacher_precision: expected one of fp32, bf16, got 'fp8'"):
        LeanNetwork(build_model("digits-teacher").eval(), images(4, 1, 8), "fp8")
