"""PeerAiD: the two networks of an update against plain torch, and the network beside the student."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as tf
from distillation_cases import make_batch, make_method, make_student, make_teacher
from torch import nn

from ard_fast.data import load_dataset
from ard_fast.models import build_model
from ard_fast.training.compute import resolve_compute
from ard_fast.training.config import resolve
from ard_fast.training.distributed import World
from ard_fast.training.fitting import fit_beside, fit_student
from ard_fast.training.step import Update

CPU = torch.device("cpu")
SGD = {"momentum": 0.8, "weight_decay": 0.05, "nesterov": True}
WEIGHTS = {"label_weight": 0.3, "peer_weight": 2.0, "self_weight": 0.5, "feedback_weight": 1.5}
KL = {"temperature": 3.0, "reduction": "mean"}


def make_update(peer=None, **settings):
    """Of a small student, and its configuration."""
    settings = {"steps": 2, **settings}
    config = resolve({"method": "peeraid", "dataset": "digits", "fold": "false", **settings})
    method = make_method("peeraid", context={"networks": {"peer": peer or make_student(11)}}, **settings)
    return Update(config, make_student(), method, World(), resolve_compute(config, CPU), None), config


def divergence(logits, target, t=1.0):
    """Divided by batch and classes, as the code's."""
    return t * t * tf.kl_div(tf.log_softmax(logits / t, 1), tf.softmax(target / t, 1), reduction="sum") / logits.numel()


def published_losses(student, peer, batch, x_adv, c):
    """The losses of both networks in the order of the code's forward passes; without its slip the formulas'."""
    guided = peer(x_adv)
    first = student(x_adv) if c.joint_loss else None
    peer_loss = tf.cross_entropy(guided, batch.y)
    logits = student(x_adv) if first is None or c.joint_loss else first
    peer_loss = peer_loss + c.feedback_weight * divergence(guided, logits.detach() if first is None else first)
    clean = student(batch.x)
    student_loss = c.label_weight * tf.cross_entropy(logits, batch.y)
    student_loss = student_loss + c.peer_weight * divergence(logits, guided.detach(), c.temperature)
    return student_loss + c.self_weight * divergence(logits, clean, c.temperature), peer_loss, logits


@pytest.mark.parametrize(("cuts", "joint"), [([24], False), ([16, 8], False), ([24], True)])
def test_an_update_of_both_networks_is_the_published_one(cuts, joint):
    update, config = make_update(make_teacher().train().requires_grad_(), joint_loss=joint, **WEIGHTS, **KL, **SGD)
    student, peer = copy.deepcopy(update.student), copy.deepcopy(update.method.peer)
    optimisers = [torch.optim.SGD(network.parameters(), lr=1.0, **SGD) for network in (student, peer)]
    for seed, rate in enumerate((0.1, 0.02)):
        batches = [make_batch(seed=10 * seed + part, count=count) for part, count in enumerate(cuts)]
        parts = [dataclasses.replace(batch, global_size=24, offset=24 - len(batch.y)) for batch in batches]
        attacked = [update.method.attack(update.student, batch).x_adv for batch in batches]
        sums = update(parts, epoch=0, rates=[rate])
        total, right = 0.0, 0
        for optimiser in optimisers:
            optimiser.zero_grad()
            optimiser.param_groups[0]["lr"] = rate
        for batch, x_adv in zip(batches, attacked, strict=True):
            student_loss, peer_loss, logits = published_losses(student, peer, batch, x_adv, config)
            loss = (student_loss + peer_loss) * len(batch.y) / 24
            loss.backward()
            total, right = total + loss.item(), right + int((logits.argmax(1) == batch.y).sum())
        for optimiser in optimisers:
            optimiser.step()
        assert sums.tolist() == pytest.approx([24 * total, right], rel=1e-4)
        for ours, plain in ((update.student, student), (update.method.peer, peer)):
            for (name, parameter), wanted in zip(ours.named_parameters(), plain.parameters(), strict=True):
                assert (parameter.grad - wanted.grad).norm() <= 1e-4 * wanted.grad.norm(), (seed, name)
    for ours, plain in ((update.student, student), (update.method.peer, peer)):
        for name, value in ours.state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_weight_perturbation_moves_the_student_only_and_leaves_the_peers_statistics():
    updates = [make_update(awp_gamma=gamma, awp_warmup_share=0.0, feedback_weight=0.0)[0] for gamma in (0.0, 0.05)]
    for update in updates:
        update([make_batch(count=24)], epoch=0, rates=[0.1])
    plain, perturbed = (update.method.peer.state_dict() for update in updates)
    assert all(torch.equal(plain[name], perturbed[name]) for name in plain)  # without feedback no loss of it changed
    assert any(not torch.equal(*pair) for pair in zip(*(one.student.parameters() for one in updates), strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_networks_compute_in_the_runs_precision(precision):
    update, _ = make_update(precision=precision)
    seen = []
    for network in update.networks.values():
        network.features[0].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    update([make_batch(count=24)], epoch=0, rates=[0.1])
    assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert len(seen) == 1 + 2 + 1 + 2  # P(x), two steps, P(x'), S(x'), S(x)
    assert all(weight.grad.dtype == torch.float32 for weight in update.method.peer.parameters())


# ---- the network beside the student ---------------------------------------------------------------------------------


class FlatOnly(nn.Module):
    """Takes contiguous images only."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, 10)

    def forward(self, x):
        return self.layer(x.view(len(x), -1))


READY = build_model("digits-student")


def beside(channels=1, **settings):
    config = resolve({"method": "peeraid", "dataset": "digits", **settings})
    dataset = load_dataset("digits")
    images = dataset.train.images.expand(-1, channels, -1, -1).contiguous()
    dataset = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, images=images))
    student, compute, _ = fit_student(config, dataset, CPU)
    return student, fit_beside(config, dataset, student, compute)["peer"]


def test_the_peer_is_like_the_student_with_weights_of_its_own_from_the_seed():
    (student, peer), (_, again), (_, other) = (beside(peer=None, seed=seed) for seed in (0, 0, 1))
    assert peer.state_dict().keys() == student.state_dict().keys() and peer.training
    weights = [network.classifier.weight for network in (student, peer, again, other)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[3])
    assert type(beside(peer="resnet18-tiny")[1]).__name__ == "ResNet18"


@pytest.mark.parametrize(
    ("channels", "settings", "message"),
    [
        (3, {"student": "resnet18-tiny", "peer": f"{__name__}:FlatOnly"}, "peer: cannot run with channels_last true"),
        (1, {"student": f"{__name__}:READY", "peer": None}, "peer: starts with the student's own weights; .* --peer"),
    ],
)
def test_a_peer_that_cannot_be_used_is_refused(channels, settings, message):
    with pytest.raises(ValueError, match=message):
        beside(channels=channels, **settings)
