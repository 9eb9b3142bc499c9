"""IGDM and SAAD: losses against the formulas in float64, the first-order teacher, forwards counted."""

import pytest
import torch
from distillation_cases import (
    EPOCHS,
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
from ard_fast.methods import METHODS
from ard_fast.methods.saad import FirstOrderTeacher

NAMES = ("igdm", "saad")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("epoch", [0, EPOCHS - 1])
@pytest.mark.parametrize(("temperature", "reduction", "matching"), [(1.0, "batchmean", 1.0), (2.0, "mean", 7.0)])
def test_loss_and_gradients_equal_the_formula(name, epoch, temperature, reduction, matching):
    student, teacher, batch = make_student(), make_teacher(), make_batch()
    settings = {"temperature": temperature, "reduction": reduction, "igdm_weight": matching}
    if name == "saad":
        settings["entropy_scale"] = 3.0
    method = with_stand_in(make_method(name, teacher, **settings))
    method.begin_epoch(epoch)
    exact, known = double(student), double(teacher)
    result = step(method, student, batch)
    x, above = batch.x.double(), shifted(batch.x).double()
    below = x - (above - x)
    rows = temperature**2 * kl(exact(above), known(above), temperature, temperature)
    rows = rows + matching * (epoch + 1) / EPOCHS * kl(exact(above) - exact(below), known(above) - known(below))
    if name == "saad":
        p = torch.softmax(known(above), 1)
        entropy = -(p * p.log()).sum(1)
        rows = 3.0 * (entropy - entropy.min()) * rows
    expected = rows.sum() / (12 * (10 if reduction == "mean" else 1))
    assert_same_loss_and_gradients(result, student, expected, exact, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "students", "teachers"),
    [
        ("igdm", {}, ["x'", "-x'"], ["x'", "-x'"]),
        ("saad", {}, ["x'", "-x'"], ["x", "x'", "-x'"]),
        ("saad", {"clean_branch": True}, ["x'", "-x'", "x"], ["x", "x'", "-x'"]),
    ],
)
def test_who_sees_what(name, settings, students, teachers):
    student, teacher, batch = make_student(), make_teacher(), make_batch()
    method = with_stand_in(make_method(name, teacher, **settings))
    by_student, by_teacher = Seen(student), Seen(teacher)
    result = step(method, student, batch)
    assert (by_student.names(batch), by_teacher.names(batch)) == (students, teachers)
    assert torch.equal(result.logits, student(shifted(batch.x)))


@pytest.mark.parametrize(("name", "teacher_passes"), [("igdm", (12, 10)), ("saad", (3, 1))])
def test_passes_of_a_step_with_ten_attack_steps(name, teacher_passes):
    student, teacher = make_student(), make_teacher()
    method = make_method(name, teacher, steps=10)
    by_student, by_teacher = Seen(student), Seen(teacher)
    step(method, student, make_batch())
    assert (by_student.units, by_teacher.units) == ((12, 12), teacher_passes)


def test_the_first_order_teacher():
    teacher, batch = make_teacher(), make_batch()
    nearby = FirstOrderTeacher(teacher, batch.x, batch.y)
    rows = torch.arange(12)
    assert torch.allclose(nearby(batch.x), teacher(batch.x))
    x_adv = (batch.x + 0.3 * torch.randn_like(batch.x)).requires_grad_()
    exact, x = double(teacher), batch.x.double().requires_grad_()
    (gradient,) = torch.autograd.grad(exact(x)[rows, batch.y].sum(), x)
    wanted = exact(x).detach()
    wanted[rows, batch.y] += ((x_adv - batch.x).double() * gradient).flatten(1).sum(1).detach()
    moved = nearby(x_adv)
    assert torch.allclose(moved.double(), wanted, rtol=1e-4, atol=1e-4)
    (back,) = torch.autograd.grad(moved.sum(), x_adv)
    assert torch.allclose(back.double(), gradient, rtol=1e-4, atol=1e-6)
    # close to x it is the teacher's own true-class logit
    near = batch.x + 1e-3 * torch.randn(batch.x.shape, generator=torch.Generator().manual_seed(3))
    change = (teacher(near) - teacher(batch.x))[rows, batch.y]
    guessed = (nearby(near) - nearby(batch.x))[rows, batch.y]
    assert (change - guessed).abs().max() < 0.3 * change.abs().max()


def test_saads_attack_is_pgd_on_both_moving_logits():
    """One step by hand in float64: the gradient of KL(T~ || S) through the student and through T~."""
    student, teacher, batch = make_student().eval(), make_teacher(), make_batch()
    attack = KLPGD(eps=0.2, step_size=0.05, steps=1, random_start=False)
    start = (batch.x + 0.05).clamp(0, 1)
    nearby = FirstOrderTeacher(teacher, batch.x, batch.y)
    got = attack(student, start, nearby)
    exact, known = double(student), double(teacher)
    x = batch.x.double().requires_grad_()
    (gradient,) = torch.autograd.grad(known(x)[torch.arange(12), batch.y].sum(), x)
    x_adv = start.double().requires_grad_()
    change = ((x_adv - x.detach()) * gradient).flatten(1).sum(1)
    target = known(x).detach() + torch.nn.functional.one_hot(batch.y, 10) * change[:, None]
    (direction,) = torch.autograd.grad(kl(exact(x_adv), target).sum(), x_adv)
    clear = direction.abs() > 1e-6
    assert clear.double().mean() > 0.5
    wanted = (start + 0.05 * direction.sign().float()).clamp(0, 1)
    assert torch.allclose(got[clear], wanted[clear], atol=1e-6)


def test_saads_weights_take_the_minimum_over_all_processes():
    batch, sent = make_batch(), []

    def lower(value):
        sent.append(value.clone())
        return value - 0.25

    inner = with_stand_in(make_method("saad", make_teacher())).attack(make_student(), batch)
    method = with_stand_in(make_method("saad", make_teacher(), context={"all_min": lower}))
    shifted_weights = method.attack(make_student(), batch).weight
    assert sent[0].dim() == 0 and inner.weight.min() == 0.0 and (inner.weight >= 0).all()
    assert torch.allclose(shifted_weights, inner.weight + 5.0 * 0.25, rtol=1e-5)
    assert METHODS["saad"].whole_batch


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_loss(name):
    method = make_method(name, make_teacher(), eps=0.05, steps=2)
    method.begin_epoch(0)
    losses = losses_over_steps(method, make_student(), make_batch(), lr=0.02)
    assert losses[-1] < 0.8 * losses[0]
    assert method.state_dict() == {}


def test_quirks_of_the_code():
    for name in NAMES:
        assert not make_method(name, make_teacher(), parity=True).inner_attack.clamp_start
    assert make_method("saad", make_teacher(), parity=True).clean_branch
