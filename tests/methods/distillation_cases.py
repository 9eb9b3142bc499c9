"""What the tests of the methods share: small networks, a stand-in for the attack, counts of forward passes."""

import copy
from functools import partial

import torch
import torch.nn.functional as tf

from ard_fast.data import Batch
from ard_fast.methods import METHODS, MethodContext, build_method, find_method
from ard_fast.models import build_model
from ard_fast.teachers import Teacher
from ard_fast.training.config import resolve

EPOCHS = 4


def make_student(seed=0):
    torch.manual_seed(seed)
    return build_model("digits-student").train()


COPIES = {"copy_student": partial(make_student, 9)}  # for methods that keep a network of their own


def make_teacher(seed=1):
    """A frozen network whose logits are as far apart as a trained teacher's."""
    torch.manual_seed(seed)
    model = build_model("digits-teacher").eval().requires_grad_(False)
    for parameter in list(model.parameters())[-2:]:
        parameter.mul_(60)
    return model


def make_batch(seed=2, count=12, classes=10):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 8, 8, generator=generator)
    y = torch.randint(0, classes, (count,), generator=generator)
    return Batch(x, y, torch.arange(count), torch.tensor([5]))


def make_method(name, teacher=None, clean_teacher=None, *, context=None, **settings):
    """The method of a resolved configuration, with new teachers unless some are given."""
    config = resolve({"method": name, "dataset": "digits", **settings})
    networks = {"teacher": teacher or make_teacher(), "clean_teacher": clean_teacher or make_teacher(7)}
    teachers = {role: Teacher(networks[role]) for role in find_method(name).teachers}
    beside = {role: make_student(11) for role in find_method(name).networks}
    context = {
        "num_classes": 10,
        "epochs": EPOCHS,
        "teachers": teachers,
        "networks": beside,
        **COPIES,
        **(context or {}),
    }
    return build_method(name, config, MethodContext(**context))


def few_steps(name, steps=2):
    """Settings that make the attack cheap, of methods that have steps."""
    return {"steps": steps} if "steps" in METHODS[name].defaults() else {}


def shifted(x):
    """Where the stand-in attack moves the images."""
    return (x * 0.75 + 0.2).detach()


class StandIn:
    """An attack with a known result, which keeps what it was called with."""

    steps_correct = torch.zeros(12)

    def __call__(self, model, x, y, *, seed, sample_ids):
        self.y, self.seed, self.sample_ids = y, seed, sample_ids
        return shifted(x)


def with_stand_in(method):
    if hasattr(method, "inner_attack"):
        method.inner_attack = StandIn()
    return method


def step(method, student, batch):
    """One step without the student's update: the result, differentiated."""
    inner = method.attack(student, batch)
    result = method.loss(student, batch, inner)
    student.zero_grad()
    result.loss.backward()
    method.after_backward(batch, inner)
    return result


def train_epochs(method, student, batches, epochs, *, first=0, lr=0.05):
    """Whole epochs as the trainer runs them; what `end_epoch` said."""
    optimizer = torch.optim.SGD(student.parameters(), lr=lr, momentum=0.9, weight_decay=2e-4)
    figures = []
    for epoch in range(first, first + epochs):
        method.begin_epoch(epoch)
        for batch in batches:
            for _ in range(method.replays):
                step(method, student, batch)
                optimizer.step()
                method.after_update(student)
        figures.append(method.end_epoch())
    return figures


def double(network):
    return copy.deepcopy(network).double()


def kl(student, teacher, student_t=1.0, teacher_t=1.0):
    """KL(softmax(teacher / t) || softmax(student / t)) of each row, as written in a textbook."""
    p, q = torch.softmax(teacher / teacher_t, 1), torch.softmax(student / student_t, 1)
    return (p * (p.log() - q.log())).sum(1)


def cross_entropy(logits, y):
    return -tf.log_softmax(logits, 1)[torch.arange(len(y)), y]


def assert_same_loss_and_gradients(result, student, expected, exact, rel=1e-4):
    """The step's loss and gradients against a float64 loss of the copy `exact`."""
    exact.zero_grad()
    expected.backward()
    assert abs(result.loss.item() - expected.item()) <= rel * abs(expected.item())
    for (name, parameter), wanted in zip(student.named_parameters(), exact.parameters(), strict=True):
        error = (parameter.grad.double() - wanted.grad).norm() / wanted.grad.norm()
        assert error < 2e-4, (name, error)


class Seen:
    """The images a network's forward passes got, and how many of its passes were differentiated."""

    def __init__(self, network):
        self.images, self.backwards = [], 0
        network.register_forward_hook(self._forward)

    def _forward(self, module, inputs, output):
        self.images.append(inputs[0].detach().clone())
        if output.requires_grad:
            output.register_hook(self._backward)

    def _backward(self, grad):
        self.backwards += 1

    @property
    def passes(self):
        """Forward and backward passes."""
        return len(self.images), self.backwards

    def names(self, batch):
        """Which images they were: x, x' (the stand-in's) or -x' (its mirror image)."""
        known = {"x": batch.x, "x'": shifted(batch.x), "-x'": 2 * batch.x - shifted(batch.x)}
        return [
            next((name for name, images in known.items() if torch.allclose(seen, images)), "?") for seen in self.images
        ]
