"""RSLAD and AdaAD: losses against the formulas in float64, who sees which image, no dead forward."""

import pytest
import torch
from distillation_cases import (
    Seen,
    assert_same_loss_and_gradients,
    double,
    kl,
    losses_over_steps,
    make_batch,
    make_method,
    make_student,
    make_teacher,
    shifted,
    step,
    with_stand_in,
)

from ard_fast.attacks import KLPGD

METHODS = ("rslad", "adaad")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("alpha", "temperature", "reduction"), [(5 / 6, 1.0, "mean"), (0.5, 3.0, "batchmean"), (1.0, 2.0, "mean")]
)
def test_loss_and_gradients_equal_the_formula(name, alpha, temperature, reduction):
    student, teacher, batch = make_student(), make_teacher(), make_batch()
    method = make_method(name, teacher, alpha=alpha, temperature=temperature, reduction=reduction)
    exact, known, x = double(student), double(teacher), batch.x.double()
    result = step(with_stand_in(method), student, batch)
    x_adv = shifted(batch.x).double()
    at_adv = known(x) if name == "rslad" else known(x_adv)
    rows = alpha * kl(exact(x_adv), at_adv, temperature, temperature)
    if alpha != 1.0:
        rows = rows + (1 - alpha) * kl(exact(x), known(x), temperature, temperature)
    expected = temperature**2 * rows.sum() / (len(rows) * (10 if reduction == "mean" else 1))
    assert_same_loss_and_gradients(result, student, expected, exact)
    assert not result.logits.isnan().any()


@pytest.mark.parametrize(
    ("name", "settings", "students", "teachers"),
    [
        ("rslad", {}, ["x'", "x"], ["x"]),
        ("rslad", {"alpha": 1.0}, ["x'"], ["x"]),
        ("adaad", {}, ["x'"], ["x'"]),
        ("adaad", {"clean_branch": True}, ["x", "x'"], ["x'"]),
        ("adaad", {"alpha": 0.5}, ["x", "x'"], ["x", "x'"]),
    ],
)
def test_who_sees_what(name, settings, students, teachers):
    student, teacher, batch = make_student(), make_teacher(), make_batch()
    method = with_stand_in(make_method(name, teacher, **settings))
    by_student, by_teacher = Seen(student), Seen(teacher)
    result = step(method, student, batch)
    assert by_student.names(batch) == students and sorted(by_teacher.names(batch)) == teachers
    assert torch.equal(result.logits, student(shifted(batch.x)))


@pytest.mark.parametrize(("name", "passes"), [("rslad", ((10 + 2, 10 + 2), (1, 0))), ("adaad", ((11, 11), (11, 10)))])
def test_passes_of_a_step_with_ten_attack_steps(name, passes):
    # RSLAD: 26 units of the student (2 a step, 3 a training pass), 1 of the teacher; AdaAD: 23 and 21.
    student, teacher = make_student(), make_teacher()
    method = make_method(name, teacher, steps=10)
    by_student, by_teacher = Seen(student), Seen(teacher)
    step(method, student, make_batch())
    assert (by_student.units, by_teacher.units) == passes


def test_the_attacks_targets_are_the_clean_teacher_and_the_teacher_itself():
    student, teacher, batch = make_student(), make_teacher(), make_batch()
    for name in METHODS:
        method = with_stand_in(make_method(name, teacher))
        method.attack(student, batch)
        target = method.inner_attack.y
        assert torch.equal(target, teacher(batch.x)) if name == "rslad" else target is method.teacher.network
        assert method.inner_attack.seed is batch.seed and method.inner_attack.sample_ids is batch.ids


@pytest.mark.parametrize("name", METHODS)
def test_the_real_attack_raises_the_divergence_and_leaves_no_trace(name):
    student, teacher, batch = make_student(), make_teacher(), make_batch()
    method = make_method(name, teacher, eps=0.1)
    assert isinstance(method.inner_attack, KLPGD) and method.inner_attack.bn == "eval"
    before = {key: value.clone() for key, value in student.state_dict().items()}
    inner = method.attack(student, batch)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert student.training and not teacher.training and inner.x_adv.requires_grad is False
    student.eval()
    wanted = kl(student(inner.x_adv), teacher(inner.x_adv) if name == "adaad" else teacher(batch.x))
    clean = kl(student(batch.x), teacher(batch.x))
    assert (wanted > clean).all() and (inner.x_adv - batch.x).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize("name", METHODS)
def test_training_lowers_the_loss(name):
    method = make_method(name, make_teacher(), eps=0.05, steps=2, reduction="batchmean")
    losses = losses_over_steps(method, make_student(), make_batch(), lr=0.1)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", METHODS)
def test_no_state_and_conventions(name):
    method = make_method(name, make_teacher())
    assert method.state_dict() == {} and method.end_epoch() == {}
    text = " ".join(method.conventions())
    assert "KL(T(x" in text and "temperature 1" in text and "teacher" in text


def test_parity_of_the_published_codes():
    assert make_method("adaad", make_teacher(), parity=True).clean_branch
    for name in METHODS:
        method = make_method(name, make_teacher(), parity=True)
        assert not method.inner_attack.clamp_start and method.reduction == "mean"
        assert make_method(name, make_teacher()).inner_attack.clamp_start
