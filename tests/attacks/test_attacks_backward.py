"""The way back to the images through a first convolution with few channels: torch's gradient, and nothing skipped."""

import pytest
import torch
from torch import nn

from ard_fast.attacks import backward as module
from ard_fast.attacks.backward import backward, has_few_channels, input_gradient


class TwoReaders(nn.Module):
    """The images are read by the convolution and beside it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        return (self.conv(x) * x).flatten(1)


class Normalised(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers((x - 0.3) / 0.5)


class Residual(nn.Module):
    """Two ways lead from the logits to the one convolution that reads the images."""

    def __init__(self):
        super().__init__()
        self.conv, self.more = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.conv(x)
        return (x + self.more(x)).flatten(1)


TAKEN = {
    "first": nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten()),
    "alone": nn.Sequential(nn.Conv2d(2, 5, 3, padding="same"), nn.Flatten()),
    "normalised": Normalised(nn.Conv2d(2, 5, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
    "frozen": nn.Sequential(nn.Conv2d(2, 5, 3).requires_grad_(False), nn.ReLU(), nn.Conv2d(5, 2, 3), nn.Flatten()),
    "residual": Residual(),
}
NOT_TAKEN = {
    "two readers": TwoReaders(),
    "no convolution": nn.Sequential(nn.Flatten(), nn.Linear(128, 3)),
    "dilated": nn.Sequential(nn.Conv2d(2, 5, 3, dilation=2), nn.Flatten()),
    "groups": nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten()),
    "transposed": nn.Sequential(nn.ConvTranspose2d(2, 5, 3), nn.Flatten()),
    "float64": nn.Sequential(nn.Conv2d(2, 5, 3).double(), nn.Flatten()),
    "channels_last": nn.Sequential(nn.Conv2d(2, 5, 3).to(memory_format=torch.channels_last), nn.Flatten()),
}


@pytest.fixture
def taken(monkeypatch):
    """How often the shorter way is taken."""
    calls = []
    module._works()  # once, and not counted
    monkeypatch.setattr(module, "input_gradient", lambda *args: calls.append(args) or input_gradient(*args))
    return calls


def passed(model):
    """A probe, its logits and a gradient at them."""
    torch.manual_seed(0)
    dtype = next(model.parameters()).dtype
    probe = torch.rand(32, 2, 8, 8, dtype=dtype, requires_grad=True)
    logits = model(probe)
    return probe, logits, torch.randn_like(logits)


@pytest.mark.parametrize("name", [*TAKEN, *NOT_TAKEN])
def test_gradient_is_that_of_torch(name, taken):
    model = {**TAKEN, **NOT_TAKEN}[name]
    probe, logits, grad = passed(model)
    found = backward([logits], probe, [grad], retain_graph=True)
    assert len(taken) == (name in TAKEN)
    torch.testing.assert_close(found, torch.autograd.grad(logits, probe, grad)[0], rtol=1e-4, atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [((3, 3), 1, 1), ((5, 2), (2, 1), (0, 1)), ((1, 1), 2, 0)])
def test_every_geometry(channels, kernel, stride, padding):
    conv = nn.Conv2d(channels, 7, kernel, stride, padding)
    x = torch.rand(4, channels, 11, 9, requires_grad=True)
    y = conv(x)
    grad = torch.randn_like(y)
    assert has_few_channels(x, conv.weight, conv.dilation, conv.groups)
    found = input_gradient(grad, x, conv.weight, conv.stride, conv.padding)
    torch.testing.assert_close(found, torch.autograd.grad(y, x, grad)[0], rtol=1e-4, atol=1e-5)


def test_many_channels_keep_torchs_way():
    conv = nn.Conv2d(16, 4, 3)
    assert not has_few_channels(torch.rand(2, 16, 8, 8), conv.weight, conv.dilation, conv.groups)


def test_two_networks_at_once_keep_torchs_way(taken):
    probe, logits, grad = passed(TAKEN["first"])
    both = [logits, TAKEN["normalised"](probe)]
    grads = [grad, torch.ones_like(both[1])]
    found = backward(both, probe, grads, retain_graph=True)
    assert not taken
    assert torch.equal(found, torch.autograd.grad(both, probe, grads)[0])


def test_hooks_on_tensors_and_modules_still_run(taken):
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 5, 3)
            self.conv.register_full_backward_hook(lambda *_: seen.append("module"))

        def forward(self, x):
            x.register_hook(lambda grad: seen.append("image") or grad * 2)
            y = self.conv(x)
            y.register_hook(lambda grad: seen.append("output") or grad * 3)
            return y.flatten(1)

    probe, logits, grad = passed(Watched())
    found = backward([logits], probe, [grad], retain_graph=True)
    assert (len(taken), sorted(seen)) == (1, ["image", "module", "output"])
    torch.testing.assert_close(found, torch.autograd.grad(logits, probe, grad)[0], rtol=1e-4, atol=1e-5)


def test_a_weight_changed_since_the_forward_pass_is_an_error():
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten())
    probe, logits, grad = passed(model)
    with torch.no_grad():
        model[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        backward([logits], probe, [grad])
