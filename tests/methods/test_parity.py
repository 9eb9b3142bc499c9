"""Whole iterations with `parity` against the published codes' formulas in plain torch: attack, loss, batch norm, SGD.

The transcriptions below are in our words and know nothing of the package but the random start's noise, which has to be
the same. Both sides compute in float32, the same operations in another order where ours are fused; the sign of a
gradient that vanishes may then differ, so the two attacks are compared first and the rest goes on from ours.
"""

import copy

import pytest
import torch
import torch.nn.functional as tf
from distillation_cases import make_batch, make_student, make_teacher

from ard_fast import functional as F
from ard_fast.methods import MethodContext, build_method
from ard_fast.teachers import Teacher
from ard_fast.training.config import resolve

EPS, STEP, STEPS, LR, MOMENTUM, DECAY = 0.03, 0.0075, 10, 0.1, 0.9, 2e-4


def start(batch, init):
    """The start that seed and ids give, not clamped."""
    return F.random_start(batch.x, eps=EPS, init=init, std=0.001, clamp=False, seed=batch.seed, sample_ids=batch.ids)


def ascend(loss_of, first, x):
    """Signed steps on a loss, projected onto the ball and clamped; the start is taken as it is."""
    x_adv = first
    for _ in range(STEPS):
        x_adv = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss_of(x_adv), x_adv)
        x_adv = x_adv.detach() + STEP * torch.sign(grad)
        x_adv = torch.clamp(torch.min(torch.max(x_adv, x - EPS), x + EPS), 0.0, 1.0)
    return x_adv.detach()


def assert_same_attack(found, x_adv):
    assert (found - x_adv).abs().le(1e-6).float().mean() > 0.95


def published_ard(student, teacher, batch, config, found):
    """The student stays in train mode throughout, and runs on the clean images for a term of weight 0."""
    x, y = batch.x, batch.y
    x_adv = ascend(lambda images: tf.cross_entropy(student(images), y, reduction="sum"), start(batch, "uniform"), x)
    assert_same_attack(found, x_adv)
    adv, clean = student(found), student(x)
    t, alpha = config.temperature, config.alpha
    target = tf.softmax(teacher(x) / t, 1)
    distance = tf.kl_div(tf.log_softmax(adv / t, 1), target, reduction="none").mean()
    return alpha * t * t * distance + (1.0 - alpha) * tf.cross_entropy(clean, y), 0.0


def published_trades(student, teacher, batch, config, found):
    """The attack in eval mode against the clean softmax; then clean, adversarial and clean forward in train mode."""
    x, y = batch.x, batch.y

    def divergence(x_adv):
        log_p = tf.log_softmax(student(x_adv), 1)
        return tf.kl_div(log_p, tf.softmax(student(x), 1), reduction="sum")

    student.eval()
    x_adv = ascend(divergence, start(batch, "normal"), x)
    student.train()
    assert_same_attack(found, x_adv)
    natural = tf.cross_entropy(student(x), y)
    return natural + config.beta / len(y) * divergence(found), 0.0


def published_rslad(student, teacher, batch, config, found):
    """The KL by hand, with 1e-5 inside the target's logarithm: a constant, which is returned too."""
    x = batch.x
    soft = tf.softmax(teacher(x), 1)

    def by_hand(logits):
        return (soft * torch.log(soft + 1e-5) - soft * tf.log_softmax(logits, 1)).mean()

    student.eval()
    x_adv = ascend(
        lambda images: tf.kl_div(tf.log_softmax(student(images), 1), soft, reduction="sum"),
        start(batch, "normal"),
        x,
    )
    student.train()
    assert_same_attack(found, x_adv)
    adv = by_hand(student(found))
    loss = 5 / 6.0 * adv + 1 / 6.0 * by_hand(student(x))
    return loss, (soft * (torch.log(soft + 1e-5) - torch.log(soft))).mean().item()


PUBLISHED = {"ard": published_ard, "trades": published_trades, "rslad": published_rslad}
UPDATES = {"ard": STEPS + 2, "trades": 3, "rslad": 2}


def sgd(student):
    return torch.optim.SGD(student.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_iteration_equals_the_published_one(name):
    settings = {"eps": EPS, "step_size": STEP, "steps": STEPS, "parity": True, "momentum": MOMENTUM}
    if name == "rslad":
        settings["temperature"] = 1.0  # as published; the digits' own is another
    config = resolve({"method": name, "dataset": "digits", "lr": LR, "weight_decay": DECAY, **settings})
    student, teacher = make_student(), make_teacher()
    with torch.no_grad():
        student.classifier.weight.mul_(3)  # logits apart: TRADES' first gradients are else lost in rounding
    other = copy.deepcopy(student)
    context = MethodContext(num_classes=10, epochs=4, teachers={"teacher": Teacher(teacher)})
    method = build_method(name, config, context)
    ours, theirs = sgd(student), sgd(other)
    for seed in (2, 3):  # the second iteration has momentum and moved statistics
        batch = make_batch(seed=seed)
        inner = method.attack(student, batch)
        result = method.loss(student, batch, inner)
        ours.zero_grad()
        result.loss.backward()
        method.after_backward(batch, inner)

        loss, constant = PUBLISHED[name](other, teacher, batch, config, inner.x_adv)
        theirs.zero_grad()
        loss.backward()

        assert result.loss.item() == pytest.approx(loss.item() - constant, rel=2e-5, abs=1e-7)
        for (key, parameter), wanted in zip(student.named_parameters(), other.parameters(), strict=True):
            assert (parameter.grad - wanted.grad).norm() <= 1e-4 * wanted.grad.norm(), key
        ours.step()
        theirs.step()
        updates = UPDATES[name] * (seed - 1)
        for (key, value), wanted in zip(student.state_dict().items(), other.state_dict().values(), strict=True):
            if key.endswith("num_batches_tracked"):
                assert value == wanted == updates, key
            else:
                assert torch.allclose(value, wanted, rtol=1e-4, atol=1e-5), key
        # Attacks in train mode multiply the last digits of the weights: the next iteration begins with the same.
        other.load_state_dict(student.state_dict())
