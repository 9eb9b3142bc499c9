"""Which teachers' logits at clean images a method asks for."""

import dataclasses

import pytest
import torch
from distillation_cases import make_batch, make_method, make_student, make_teacher

from ard_fast.methods import METHODS
from ard_fast.teachers import Teacher

CASES = [*((name, {}) for name in METHODS), ("adaad", {"alpha": 0.5})]


def make(name, **settings):
    teachers = [make_teacher(), make_teacher(7)][: len(METHODS[name].teachers)]
    if "steps" in METHODS[name].defaults():
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


def test_a_teacher_takes_the_logits_that_a_batch_brings():
    teacher, other, batch = Teacher(make_teacher()), Teacher(make_teacher(7)), make_batch()
    logits = torch.randn(len(batch.y), 10)
    batch = dataclasses.replace(batch, teacher_logits={teacher: logits})
    assert teacher.clean(batch) is logits
    assert torch.equal(other.clean(batch), other(batch.x))
