"""Adversarial weight perturbation: its size and direction, no trace of the ascent, undone after the update."""

import copy

import pytest
import torch
import torch.nn.functional as tf
from short_runs import AT, metrics, small_and_tidy
from torch import nn

from ard_fast.train import main
from ard_fast.training.awp import AdversarialWeightPerturbation

__all__ = ["small_and_tidy"]  # a fixture

GAMMA = 0.02


class Net(nn.Module):
    """A convolution, batch norm, a linear layer, and a weight that the loss does not depend on."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4 * 9, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(self.norm(self.conv(x)).relu().flatten(1))


@pytest.fixture
def problem():
    torch.manual_seed(0)
    return Net().train(), torch.rand(6, 2, 3, 3), torch.randint(0, 3, (6,))


def snapshot(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def published_move(network, x, y):
    """gamma |w| g / |g| in float64, for the weights with two or more dimensions."""
    exact = copy.deepcopy(network).double()
    tf.cross_entropy(exact(x.double()), y).backward()
    return {
        name: GAMMA * weight.detach().norm() * weight.grad / weight.grad.norm()
        for name, weight in exact.named_parameters()
        if weight.dim() >= 2 and weight.grad is not None
    }


def test_weights_move_up_the_loss_by_gamma_of_their_norm_and_nothing_else_changes(problem):
    network, x, y = problem
    before, moves = snapshot(network), published_move(network, x, y)
    awp = AdversarialWeightPerturbation(network, gamma=GAMMA)
    awp.perturb([lambda: tf.cross_entropy(network(x), y)])
    after = snapshot(network)
    assert set(moves) == {"conv.weight", "linear.weight"}
    for name, value in before.items():
        if name in moves:
            assert torch.allclose(after[name].double(), value.double() + moves[name], atol=1e-6), name
            assert (after[name] - value).norm().item() == pytest.approx(GAMMA * value.norm().item(), rel=1e-4)
        else:  # biases, batch norm with its running statistics, the unused weight
            assert torch.equal(after[name], value), name
    assert network.training and all(module.training for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    network(x)
    assert network.norm.num_batches_tracked == 1  # the statistics move again afterwards


def test_parts_of_a_batch_add_up_and_are_averaged_over_processes(problem):
    network, x, y = problem
    network.norm.eval()  # batch statistics of the parts would differ; what its owner keeps in eval mode stays so
    parts, whole = copy.deepcopy(network), network
    seen = []
    AdversarialWeightPerturbation(whole, gamma=GAMMA).perturb([lambda: tf.cross_entropy(whole(x), y)])
    AdversarialWeightPerturbation(parts, gamma=GAMMA, average=seen.append).perturb(
        [lambda s=s: tf.cross_entropy(parts(x[s]), y[s]) / 3 for s in (slice(0, 2), slice(2, 4), slice(4, 6))]
    )
    assert len(seen) == 1 and len(seen[0]) == 3
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_loss_that_ignores_a_weight_moves_it_nowhere(problem):
    network, x, _ = problem
    AdversarialWeightPerturbation(network, gamma=GAMMA).perturb([lambda: network(x).sum() * 0.0])
    assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_it_begins_with_its_first_epoch(tmp_path, capsys):
    options = ["--awp-gamma", "0.005", "--awp-warmup-share", "0.5"]
    assert main([*AT, "--epochs", "2", *options, "--out", str(tmp_path / "run")]) == 0
    assert "adversarial weight perturbation: gamma 0.005, from epoch 2" in capsys.readouterr().out
    assert main([*AT, "--epochs", "2", "--out", str(tmp_path / "plain")]) == 0
    (first, second), (plain, other) = metrics(tmp_path / "run"), metrics(tmp_path / "plain")
    assert first["train_loss"] == plain["train_loss"] and second["train_loss"] != other["train_loss"]
