"""IAD-I, IAD-II and AdaIAD: losses against the formulas in float64 before and after the weights begin."""

import pytest
import torch
from distillation_cases import (
    EPOCHS,
    Seen,
    assert_same_loss_and_gradients,
    cross_entropy,
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
from ard_fast.methods.shared import teacher_trust

ONE_TEACHER = ("iad-i", "adaiad")


def formula(name, exact, known, batch, begun, *, alpha, temperature, reduction, power, trust_teacher):
    """IAD-I and AdaIAD in float64."""
    x, x_adv, y = batch.x.double(), shifted(batch.x).double(), batch.y
    w = torch.softmax(known(x_adv), 1)[torch.arange(len(y)), y] ** power if begun else torch.ones(len(y))
    target = known(x) if name == "iad-i" else known(x_adv)
    rows = temperature**2 * kl(exact(x_adv), target, temperature, temperature) * (w if trust_teacher else 1.0)
    if begun:
        rows = rows + (1 - w) * kl(exact(x_adv), exact(x))
    loss = alpha * rows.sum() / (len(y) * (10 if reduction == "mean" else 1))
    return loss if alpha == 1.0 else loss + (1 - alpha) * cross_entropy(exact(x), y).mean()


@pytest.mark.parametrize("name", ONE_TEACHER)
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("alpha", "temperature", "reduction", "power", "trust_teacher"),
    [(1.0, 1.0, "batchmean", 0.1, True), (0.6, 3.0, "mean", 0.5, True), (1.0, 2.0, "batchmean", 0.3, False)],
)
def test_one_teacher_equals_the_formula(name, begun, alpha, temperature, reduction, power, trust_teacher):
    student, teacher, batch = make_student(), make_teacher(), make_batch()
    settings = {"alpha": alpha, "temperature": temperature, "reduction": reduction, "trust_teacher": trust_teacher}
    method = with_stand_in(make_method(name, teacher, trust_power=power, begin_share=0.5, **settings))
    method.begin_epoch(2 if begun else 1)
    exact, known = double(student), double(teacher)
    result = step(method, student, batch)
    expected = formula(name, exact, known, batch, begun, power=power, **settings)
    assert_same_loss_and_gradients(result, student, expected, exact)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("alpha", "alpha2", "temperature", "reduction"),
    [(0.5, 0.25, 1.0, "batchmean"), (0.3, 0.7, 3.0, "mean"), (1.0, 0.0, 2.0, "batchmean"), (0.4, 0.0, 1.0, "mean")],
)
def test_two_teachers_equal_the_formula(begun, alpha, alpha2, temperature, reduction):
    student, teacher, other, batch = make_student(), make_teacher(), make_teacher(7), make_batch()
    settings = {"alpha": alpha, "alpha2": alpha2, "temperature": temperature, "reduction": reduction}
    method = with_stand_in(make_method("iad-ii", teacher, other, begin_share=0.5, trust_power=0.2, **settings))
    method.begin_epoch(2 if begun else 1)
    exact, robust, standard = double(student), double(teacher), double(other)
    result = step(method, student, batch)
    x, x_adv, y = batch.x.double(), shifted(batch.x).double(), batch.y
    w = torch.softmax(robust(x_adv), 1)[torch.arange(len(y)), y] ** 0.2 if begun else torch.ones(len(y))
    rows = alpha * temperature**2 * w * kl(exact(x_adv), robust(x_adv), temperature, temperature)
    if begun:
        rows = rows + alpha * (1 - w) * kl(exact(x_adv), exact(x))
    rows = rows + alpha2 * temperature**2 * kl(exact(x_adv), standard(x_adv), temperature, temperature)
    expected = rows.sum() / (len(y) * (10 if reduction == "mean" else 1))
    expected = expected + (1 - alpha - alpha2) * cross_entropy(exact(x_adv), y).mean()
    assert_same_loss_and_gradients(result, student, expected, exact)


@pytest.mark.parametrize(
    ("name", "settings", "begun", "students", "teachers"),
    [
        ("iad-i", {}, False, ["x'"], ["x"]),
        ("iad-i", {}, True, ["x'", "x"], ["x", "x'"]),
        ("iad-i", {"alpha": 0.5}, False, ["x'", "x"], ["x"]),
        ("iad-i", {"alpha": 0.5}, True, ["x'", "x"], ["x", "x'"]),
        ("iad-i", {"clean_branch": True}, False, ["x'", "x"], ["x"]),
        ("iad-i", {"clean_branch": True}, True, ["x'", "x", "x"], ["x", "x'"]),
        ("adaiad", {}, False, ["x'"], ["x'"]),
        ("adaiad", {}, True, ["x'", "x"], ["x'"]),
        ("adaiad", {"clean_branch": True}, True, ["x", "x'", "x", "x"], ["x'"]),
        ("iad-ii", {}, False, ["x'"], ["x'"]),
        ("iad-ii", {}, True, ["x'", "x"], ["x'"]),
    ],
)
def test_who_sees_what(name, settings, begun, students, teachers):
    student, teacher, other, batch = make_student(), make_teacher(), make_teacher(7), make_batch()
    method = with_stand_in(make_method(name, teacher, other, **settings))
    method.begin_epoch(EPOCHS - 1 if begun else 0)
    seen = [Seen(network) for network in (student, teacher, other)]
    result = step(method, student, batch)
    assert [one.names(batch) for one in seen] == [students, teachers, ["x'"] if name == "iad-ii" else []]
    assert torch.equal(result.logits, student(shifted(batch.x)))


def test_passes_of_a_published_step_of_iad_i():
    # 27 units of the student (10 steps of 2, two training passes of 3, one dead forward) and 2 of the teacher.
    student, teacher = make_student(), make_teacher()
    method = make_method("iad-i", teacher, steps=10, parity=True)
    method.begin_epoch(EPOCHS - 1)
    by_student, by_teacher = Seen(student), Seen(teacher)
    result = step(method, student, make_batch())
    assert result.loss.isfinite()
    assert len(by_student.images) == 10 + 3 and by_student.backwards == 10 + 2
    assert by_teacher.units == (2, 0)


@pytest.mark.parametrize("name", [*ONE_TEACHER, "iad-ii"])
@pytest.mark.parametrize(("share", "first"), [(0.0, 0), (0.3, 1), (0.5, 2), (1.0, 4)])
def test_the_weights_begin_at_their_share_of_the_epochs(name, share, first):
    method = make_method(name, make_teacher(), make_teacher(7), begin_share=share)
    for epoch in range(EPOCHS):
        method.begin_epoch(epoch)
        assert method.begun == (epoch >= first)
    assert f"before epoch {first + 1} " in " ".join(method.conventions()) or first == 0


def test_published_begin_epochs():
    for name, begin in (("iad-i", 60), ("adaiad", 60), ("iad-ii", 40)):
        assert make_method(name, make_teacher(), make_teacher(7), context={"epochs": 200}).begin == begin


def test_trust_is_the_power_of_the_teachers_probability():
    logits, labels = torch.randn(50, 7) * 3, torch.randint(0, 7, (50,))
    weight = teacher_trust(logits.requires_grad_(), labels, 0.1)
    wanted = torch.softmax(logits.double(), 1)[torch.arange(50), labels] ** 0.1
    assert not weight.requires_grad and weight.dtype == torch.float32
    assert torch.allclose(weight.double(), wanted, rtol=1e-5)
    assert torch.equal(teacher_trust(logits, labels, 0.0), torch.ones(50))
    sure = torch.full((1, 3), -1e4).index_fill(1, torch.tensor([1]), 0.0)
    assert teacher_trust(sure, torch.tensor([0]), 0.1) == 0.0 and teacher_trust(sure, torch.tensor([1]), 0.1) == 1.0


@pytest.mark.parametrize("name", [*ONE_TEACHER, "iad-ii"])
def test_training_lowers_the_loss(name):
    method = make_method(name, make_teacher(), make_teacher(7), eps=0.05, steps=2, temperature=2.0)
    method.begin_epoch(EPOCHS - 1)
    losses = losses_over_steps(method, make_student(), make_batch(), lr=0.1)
    assert losses[-1] < 0.7 * losses[0]
    assert method.state_dict() == {}


def test_quirks_of_the_codes():
    for name in ONE_TEACHER:
        method = make_method(name, make_teacher(), parity=True)
        assert not method.trust_teacher and method.clean_branch and not method.inner_attack.clamp_start
        assert make_method(name, make_teacher()).trust_teacher
    assert make_method("iad-i", make_teacher(), parity=True).inner_attack.bn == "train"
    assert isinstance(make_method("adaiad", make_teacher()).inner_attack, KLPGD)


def test_weights_of_iad_ii_that_exceed_one_are_refused():
    with pytest.raises(ValueError, match=r"alpha2: expected at most 1 - alpha = 0.4.*got 0.5"):
        make_method("iad-ii", make_teacher(), make_teacher(7), alpha=0.6, alpha2=0.5)
    with pytest.raises(ValueError, match="clean_teacher: method iad-ii needs one"):
        make_method("iad-ii", make_teacher())
