"""The folded form of a network: the same function and input gradient, what it keeps, and what it leaves alone."""

import copy

import pytest
import torch
from folded_cases import NETWORKS, Branches, assert_same_function, build, exact, gradient, images, trained
from torch import nn

from ard_fast.folding import FoldedNetwork, Unfoldable
from ard_fast.models import Normalised


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradient_are_those_of_float64_to_rounding(name, device):
    network, x = build(name, device), images(8, name, device)
    folded = FoldedNetwork(network.train(), x[:4])
    assert folded.folded == (NETWORKS[name][1],) * 2
    assert_same_function(folded, network, x)
    (_, grad), (_, direction) = gradient(folded, x), exact(network, x)
    clear = direction.abs() > 1e-2 * direction.abs().max()
    assert clear.float().mean() > 0.3 and (grad.sign() == direction.sign())[clear].float().mean() > 0.999


def test_a_normaliser_and_synchronised_norms(device):
    network = Normalised(build("resnet18-tiny"), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)).to(device)
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    x = images(4, "", device)
    folded = FoldedNetwork(network, x)
    assert folded.folded == (20, 20)
    assert_same_function(folded, network, x)


@pytest.mark.parametrize("name", ["mobilenetv2", "digits-teacher"])
def test_a_refresh_takes_up_what_was_learnt(name):
    network, x = build(name).train(), images(8, name)
    folded = FoldedNetwork(network, x)
    before, addresses = folded(x), [tensor.data_ptr() for tensor in folded.fixed_tensors()]
    optimiser = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    for _ in range(2):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), torch.arange(8)).backward()
        optimiser.step()
    folded.refresh()
    assert not torch.allclose(folded(x), before, rtol=1e-2)
    assert_same_function(folded, network, x)
    with torch.no_grad():  # statistics alone
        network(3 * x)
    folded.refresh()
    assert_same_function(folded, network, x)
    assert addresses == [tensor.data_ptr() for tensor in folded.fixed_tensors()]


def test_tensors_that_were_replaced_are_found_again():
    network, x = Normalised(build("dm-preactresnet18"), (0.1,) * 3, (0.7,) * 3), images(4)
    folded = FoldedNetwork(network, x)
    for owner, name in ((network.network.logits, "weight"), (network.network.conv_2d, "weight")):
        setattr(owner, name, nn.Parameter(2 * getattr(owner, name).detach()))
    network.mean = network.mean + 0.2
    network.network.std = network.network.std * 2
    network.network.batchnorm.running_mean = network.network.batchnorm.running_mean + 1
    network.network.logits.bias.data = network.network.logits.bias.data + 1
    folded.refresh()
    assert_same_function(folded, network, x)


def test_the_network_is_left_alone():
    network = build("mobilenetv2").train()
    network.layers[3].eval()
    network.bn1.weight.requires_grad_(False)
    network.linear.weight.grad = torch.ones_like(network.linear.weight)
    x = images(4)

    def state():
        return (
            [(name, module.training) for name, module in network.named_modules()],
            [(name, p.requires_grad, p.data_ptr(), p._version) for name, p in network.named_parameters()],
            [(name, b.data_ptr(), b._version) for name, b in network.named_buffers()],
            [name for name, p in network.named_parameters() if p.grad is not None],
            [sorted(vars(module)) for module in network.modules()],
        )

    before, given = state(), x.clone()
    folded = FoldedNetwork(network, x)
    folded(x)
    probe = x.clone().requires_grad_()
    folded(probe).sum().backward()  # not torch.autograd.grad: this one would reach parameters
    folded.refresh()
    assert state() == before and probe.grad.abs().sum() > 0 and torch.equal(x, given)
    assert (network.linear.weight.grad == 1).all()


def test_it_follows_neither_modes_nor_autocast_around_it():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Tanh())
    network = trained(nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 4)))
    x = images(4)
    folded = FoldedNetwork(network.train(), x)
    expected = folded(x)
    for mode in (False, True):
        network.train(mode)
        assert torch.equal(folded(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(folded(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), expected)


@pytest.mark.parametrize("name", ["resnet18-tiny", "preactresnet18", "digits-student"])
def test_any_layout_and_any_batch(name, device):
    network, x = build(name, device), images(5, name, device)
    folded = FoldedNetwork(network, x)
    logits, grad = gradient(folded, x)
    again, same = gradient(folded, x.contiguous(memory_format=torch.channels_last))
    assert torch.equal(logits, again) and torch.equal(grad, same)
    for count in (1, 3):
        assert_same_function(folded, network, x[:count])
    strided = torch.cat([x, x], 3)[..., : x.shape[3]]
    assert torch.equal(folded(strided), logits)
    with torch.no_grad():
        assert torch.equal(folded(x), logits) and not folded(x).requires_grad
    with torch.inference_mode():
        assert torch.equal(folded(x), logits)


@pytest.mark.parametrize("name", ["mobilenetv2", "resnet18-narrow", "dm-preactresnet18", "digits-student"])
def test_bfloat16(name, device):
    network, x = build(name, device), images(8, name, device)
    folded = FoldedNetwork(network, x, dtype=torch.bfloat16)
    assert "bfloat16" in folded.facts
    (logits, grad), (expected, direction) = gradient(folded, x), exact(network, x)
    assert logits.dtype == grad.dtype == torch.float32
    assert 0 < (logits - expected).abs().max() < 0.05 * expected.abs().max()
    assert not torch.equal(logits, logits.bfloat16().float())  # the last layer is not rounded to 8 bits
    assert torch.cosine_similarity(grad.double().flatten(), direction.flatten(), 0) > 0.9
    with torch.autocast(x.device.type, torch.bfloat16):
        assert torch.equal(folded(x), logits)
    with pytest.raises(ValueError, match=r"dtype: expected one of torch.float32, torch.bfloat16, got torch.float16"):
        FoldedNetwork(network, x, dtype=torch.float16)


def saved_bytes(model, x, known):
    """What autograd keeps, without what is in `known` storages."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model(x.clone().requires_grad_())
    del logits
    return sum(size for place, size in kept.items() if place not in known)


@pytest.mark.parametrize("name", ["mobilenetv2", "preactresnet18"])
def test_only_bits_are_kept_for_the_backward_pass(name):
    network, x = build(name).eval(), images(4)
    folded = FoldedNetwork(network, x)
    rectified = []
    original = torch.relu
    try:
        torch.relu = lambda out: rectified.append(out.numel()) or original(out)
        network(x)
    finally:
        torch.relu = original
    weights = {tensor.untyped_storage().data_ptr() for tensor in folded.fixed_tensors()}
    assert sum(rectified) / 8 <= saved_bytes(folded, x, weights) <= sum(-(-count // 8) for count in rectified)
    parameters = {p.untyped_storage().data_ptr() for p in [*network.parameters(), *network.buffers()]}
    assert saved_bytes(network, x, parameters) > 60 * sum(rectified) / 8


def test_one_backward_pass_to_each_forward_pass():
    network, x = build("resnet18-tiny"), images(2)
    folded, probe = FoldedNetwork(network, x), images(2).requires_grad_()
    loss = folded(probe).square().sum()
    torch.autograd.grad(loss, probe)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, probe)
    (grad,) = torch.autograd.grad(folded(probe).square().sum(), probe, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    loss = folded(probe).sum()
    folded.refresh()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, probe)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["mobilenetv2", "resnet18-narrow"])
def test_a_cuda_graph_holds_refresh_forward_and_backward(name, dtype):
    network, x = build(name, "cuda").train(), images(8, name, "cuda")
    folded = FoldedNetwork(network, x, dtype=dtype)

    def iteration():
        folded.refresh()
        return gradient(folded, x)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            iteration()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits, grad = iteration()
    for _ in range(2):
        network(x)  # moves the statistics
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.1)
        graph.replay()
        found = logits.clone(), grad.clone()
        for one, other in zip(found, iteration(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


class Hidden(Branches):
    """Calls a module that it has not registered."""

    def __init__(self):
        super().__init__()
        self.others = [nn.BatchNorm2d(3)]

    def forward(self, x):
        return self.linear(self.bn(self.conv(self.others[0](x))).mean((2, 3)))


class Detached(Branches):
    """What is not differentiated is not seen by the trace."""

    def forward(self, x):
        with torch.no_grad():
            gate = self.bn(self.conv(x)).mean((2, 3))
        return self.linear(gate + x.mean((1, 2, 3))[:, None])


class Random(Branches):
    """What is drawn without a look at the images is a constant of the trace."""

    def forward(self, x):
        return self.linear(self.bn(self.conv(x + torch.rand(1))).mean((2, 3)))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Branches, "it cannot be traced .TraceError: symbolically traced variables cannot be used as inputs"),
        (Hidden, "Hidden.others leads to a module that is not registered as one"),
        (Detached, "its folded form gives another input gradient"),
        (Random, "its folded form gives other logits"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 3)), "it has no convolution and no batch norm"),
        (lambda: torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())), "is a TorchScript module"),
        (lambda: build("resnet18-tiny").half(), "weight type .torch.HalfTensor. should be the same"),
    ],
)
def test_why_a_network_has_no_folded_form(make, why):
    network, x = make(), images(4)
    state = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    with pytest.raises(Unfoldable, match=why):
        FoldedNetwork(network, x)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert modes == [module.training for module in network.modules()]


class Opaque(nn.Module):
    """A user's module that cannot be traced, with layers whose mode matters."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, x):
        out = self.drop(self.bn(self.conv(x)))
        return out if float(out.detach().sum()) < 1e9 else -out


def test_a_module_that_cannot_be_traced_stays_as_it_is():
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Opaque())
    network, x = trained(nn.Sequential(first, nn.Flatten(), nn.Linear(3600, 5))).train(), images(4)
    folded = FoldedNetwork(network, x)
    assert folded.folded == (1, 2)
    assert_same_function(folded, network, x)
    with torch.no_grad():
        first[3].conv.weight.mul_(-2)
        first[3].bn.running_mean.add_(0.5)
        first[0].weight.mul_(2)
    folded.refresh()
    assert_same_function(folded, network, x)
    state = copy.deepcopy(network.state_dict())
    gradient(folded, x)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert first[3].bn.training and first[3].drop.training
