"""Methods: their losses against the formulas in float64, who sees which image, and no dead forward."""

import copy

import pytest
import torch
import torch.nn.functional as tf

from ard_fast.attacks import PGD
from ard_fast.data import Batch
from ard_fast.losses import ARDLoss
from ard_fast.methods import MethodContext, build_method
from ard_fast.models import build_model
from ard_fast.teachers import Teacher
from ard_fast.training.config import resolve


@pytest.fixture
def student():
    torch.manual_seed(0)
    return build_model("digits-student").train()


@pytest.fixture
def teacher():
    torch.manual_seed(1)
    model = build_model("digits-teacher").eval().requires_grad_(False)
    for parameter in list(model.parameters())[-2:]:
        parameter.mul_(60)  # logits as far apart as a trained teacher's
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(12, 1, 8, 8, generator=generator)
    y = torch.randint(0, 10, (12,), generator=generator)
    return Batch(x, y, torch.arange(12), torch.tensor([5]))


def shifted(model, x, y, *, seed, sample_ids):
    """A stand-in for the attack with a known result."""
    return (x * 0.75 + 0.2).detach()


def make(name, teacher=None, **settings):
    """The method of a resolved configuration."""
    config = resolve({"method": name, "dataset": "digits", **settings})
    teachers = {} if teacher is None else {"teacher": Teacher(teacher)}
    return build_method(name, config, MethodContext(num_classes=10, epochs=4, teachers=teachers))


def with_stand_in(method):
    if hasattr(method, "inner_attack"):
        method.inner_attack = shifted
    return method


def step(method, student, batch):
    return method.loss(student, batch, method.attack(student, batch))


def formula(method, student, teacher, batch, *, alpha, temperature, reduction):
    """The objective in float64, straight from the paper."""
    student, teacher = copy.deepcopy(student).double(), copy.deepcopy(teacher).double()
    x, y = batch.x.double(), batch.y
    adversarial = shifted(None, batch.x, y, seed=None, sample_ids=None).double()
    if method == "at":
        return student, -tf.log_softmax(student(adversarial), 1)[torch.arange(len(y)), y].mean()
    log_t = tf.log_softmax(teacher(x) / temperature, 1)
    log_s = tf.log_softmax(student(x if method == "kd" else adversarial) / temperature, 1)
    divisor = len(y) * (10 if reduction == "mean" else 1)
    distance = (log_t.exp() * (log_t - log_s)).sum() / divisor
    clean = -tf.log_softmax(student(x), 1)[torch.arange(len(y)), y].mean()
    return student, alpha * temperature**2 * distance + (1 - alpha) * clean


@pytest.mark.parametrize("method", ["at", "kd", "ard"])
@pytest.mark.parametrize(
    ("alpha", "temperature", "reduction"), [(1.0, 30.0, "mean"), (0.7, 3.0, "mean"), (0.5, 1.0, "batchmean")]
)
def test_loss_and_gradient_equal_the_formula(method, alpha, temperature, reduction, student, teacher, batch):
    settings = {} if method == "at" else {"alpha": alpha, "temperature": temperature, "reduction": reduction}
    result = step(with_stand_in(make(method, teacher, **settings)), student, batch)
    result.loss.backward()
    exact, expected = formula(
        method, student, teacher, batch, alpha=alpha, temperature=temperature, reduction=reduction
    )
    expected.backward()
    assert result.loss.item() == pytest.approx(expected.item(), rel=2e-5)
    for (name, parameter), wanted in zip(student.named_parameters(), exact.parameters(), strict=True):
        error = (parameter.grad.double() - wanted.grad).norm() / wanted.grad.norm()
        assert error < 1e-4, name


@pytest.mark.parametrize(("alpha", "forwards"), [(1.0, ["x'"]), (0.5, ["x'", "x"])])
def test_ard_runs_no_dead_forward_and_the_teacher_sees_clean_images(alpha, forwards, student, teacher, batch):
    seen, taught = [], []
    attacked = shifted(None, batch.x, batch.y, seed=None, sample_ids=None)
    student.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    teacher.register_forward_pre_hook(lambda module, inputs: taught.append(inputs[0]))
    result = step(with_stand_in(make("ard", teacher, alpha=alpha)), student, batch)
    assert ["x'" if torch.equal(images, attacked) else "x" for images in seen] == forwards
    assert len(taught) == 1 and torch.equal(taught[0], batch.x)
    assert torch.equal(result.logits, student(attacked))


def test_kd_attacks_nothing(student, teacher, batch):
    method = make("kd", teacher)
    seen = []
    student.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    step(method, student, batch)
    assert len(seen) == 1 and torch.equal(seen[0], batch.x)


@pytest.mark.parametrize("method", ["at", "ard"])
def test_the_attack_gets_the_configuration(method, teacher):
    settings = {"eps": 0.2, "step_size": 0.03, "steps": 4, "attack_bn": "train_frozen", "clamp_start": False}
    attack = make(method, teacher, **settings).inner_attack
    assert isinstance(attack, PGD)
    assert (attack.eps, attack.step_size, attack.steps, attack.bn) == (0.2, 0.03, 4, "train_frozen")
    assert not attack.clamp_start


def test_ard_lowers_its_loss_on_a_batch(student, teacher, batch):
    method = make("ard", teacher, eps=0.05, step_size=0.02, steps=2, temperature=3.0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    losses = []
    for _ in range(15):
        loss = step(method, student, batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("method", ["kd", "ard"])
def test_a_missing_teacher_is_refused(method):
    with pytest.raises(ValueError, match=f"teacher: method {method} needs one"):
        make(method)


def test_unknown_method_gets_the_nearest():
    with pytest.raises(ValueError, match="unknown method 'ardd'; did you mean 'ard'"):
        build_method("ardd", resolve({"method": "at"}), MethodContext(num_classes=10, epochs=1))


def test_conventions_name_every_choice():
    text = ARDLoss(alpha=0.9, temperature=30.0, reduction="mean").describe()
    assert text == "0.9 * T^2 * KL(T(x) || S(x')), T=30, KL divided by B*C ('mean') + 0.1 * CE(S(x), y)"
    assert "divided by B ('batchmean')" in ARDLoss(reduction="batchmean").describe()
