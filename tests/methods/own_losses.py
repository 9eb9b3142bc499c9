"""Losses and methods as a user writes them, for `--method own_losses:NAME`."""

from dataclasses import dataclass

import torch.nn.functional as tf

from ard_fast.methods import Method, PGDMethod, StepResult


def plain(student, x_adv, y):
    return tf.cross_entropy(student(x_adv), y)


def distil(student, teacher, x, x_adv, y):
    """KL from the teacher at both images.

    And cross-entropy.
    """
    logits = student(x_adv)
    kl = sum(tf.kl_div(logits.log_softmax(1), teacher(at).softmax(1), reduction="batchmean") for at in (x, x_adv))
    return kl + tf.cross_entropy(student(x), y)


@dataclass  # which makes it unhashable
class Weighted:
    weight: float = 0.5

    def __call__(self, student, x_adv, y):
        return self.weight * tf.cross_entropy(student(x_adv), y)


weighted = Weighted()


@dataclass
class Penalised(PGDMethod):
    """Cross-entropy and a penalty."""

    beta: float = 2.0  # a setting
    power: float = 3.0  # none

    def loss(self, student, batch, inner):
        logits = student(inner.x_adv)
        return StepResult(tf.cross_entropy(logits, batch.y) + self.beta * logits.abs().pow(self.power).mean(), logits)


class Bare(PGDMethod):
    def loss(self, student, batch, inner):
        return tf.cross_entropy(student(inner.x_adv), batch.y)


@dataclass(kw_only=True)
class Incomplete(Penalised):
    missing: int


class Abstract(Method):
    def loss(self, student, batch, inner): ...


class Stranger: ...


def other_names(model, x_adv, y): ...


def one_by_one(student, x_adv, y):
    return tf.cross_entropy(student(x_adv), y, reduction="none")


def a_number(student, x_adv, y):
    return 1.0


def infinite(student, x_adv, y):
    return student(x_adv).sum() / 0


def without_student(student, x_adv, y):
    return x_adv.mean()


def detached(student, x_adv, y):
    return student(x_adv).detach().mean()


def in_halves(student, x_adv, y):
    return tf.cross_entropy(student(x_adv[:2]), y[:2])


def broken(student, x_adv, y):
    return tf.nll_loss(student(x_adv), x_adv)


LABEL = "not a function"
