"""What methods say about their teachers' logits at clean images: who is asked, and whether the attack needs them."""

import dataclasses

import pytest
import torch
from distillation_cases import make_batch, make_method, make_student, make_teacher

from ard_fast.methods import METHODS
from ard_fast.teachers import Teacher

CASES = [*((name, {}) for name in METHODS), ("adaad", {"alpha": 0.5})]


def make(name, **settings):
    teachers = [make_teacher(), make_teacher(7)][: len(METHODS[name].teachers)]
    if "steps" in METHODS[name].defaults:
        settings["steps"] = 2
    return make_method(name, *teachers, **settings)


def step(method, student, batch):
    inner = method.attack(student, batch)
    result = method.loss(student, batch, inner)
    result.loss.backward()
    method.after_backward(batch, inner)
    return inner, result


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_method_names_the_teachers_that_it_asks(monkeypatch, name, settings):
    asked, real = [], Teacher.clean

    def clean(self, batch):
        asked.append(self)
        return real(self, batch)

    monkeypatch.setattr(Teacher, "clean", clean)
    method = make(name, **settings)
    step(method, make_student(), make_batch())
    assert tuple(asked) == method.clean_teachers()


ASKING = [(name, settings) for name, settings in CASES if make(name, **settings).clean_teachers()]


@pytest.mark.parametrize(("name", "settings"), ASKING)
def test_logits_that_come_later_do_not_change_the_attack_where_the_method_says_so(name, settings):
    outcomes = []
    for known in (False, True):
        method, student, batch = make(name, **settings), make_student(), make_batch()
        taught = {teacher: torch.full((len(batch.y), 10), torch.nan) for teacher in method.clean_teachers()}
        batch, plain = dataclasses.replace(batch, taught=taught), batch
        if known:
            for teacher, logits in taught.items():
                logits.copy_(teacher.clean(plain))
        inner = method.attack(student, batch)
        for teacher, logits in taught.items():  # they arrive
            logits.copy_(teacher.clean(plain))
        result = method.loss(student, batch, inner)
        outcomes.append((inner.x_adv, result.loss))
    (late, loss), (early, wanted) = outcomes
    same = late is None or torch.equal(late, early)
    assert (same and torch.equal(loss, wanted)) == method.teacher_alongside


def test_a_teacher_takes_the_logits_that_a_batch_brings():
    teacher, other, batch = Teacher(make_teacher()), Teacher(make_teacher(7)), make_batch()
    logits = torch.randn(len(batch.y), 10)
    batch = dataclasses.replace(batch, taught={teacher: logits})
    assert teacher.clean(batch) is logits
    assert torch.equal(other.clean(batch), other(batch.x))
