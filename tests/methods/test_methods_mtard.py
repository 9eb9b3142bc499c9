"""MTARD: both terms against the formula in float64, and the balance of their weights step by step."""

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

from ard_fast.attacks import PGD


def make(**settings):
    return make_method("mtard", make_teacher(), make_teacher(7), **settings)


@pytest.mark.parametrize(("temperature", "reduction"), [(1.0, "mean"), (3.0, "batchmean")])
def test_losses_gradients_and_weights_follow_the_formula_over_steps(temperature, reduction):
    student, batches = make_student(), [make_batch(seed) for seed in range(10, 16)]
    rate = {0: 1.0, 1: 0.1}
    method = with_stand_in(
        make(temperature=temperature, reduction=reduction, balance_rate=0.3, context={"relative_rate": rate.get})
    )
    robust, standard = double(make_teacher()), double(make_teacher(7))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    weight, first = 0.5, None
    for index, batch in enumerate(batches):
        method.begin_epoch(index // 3)
        exact = double(student)
        result = step(method, student, batch)
        x, x_adv = batch.x.double(), shifted(batch.x).double()
        divisor = 12 * (10 if reduction == "mean" else 1)
        losses = [
            temperature**2 * kl(exact(images), known(images), temperature, temperature).sum() / divisor
            for images, known in ((x_adv, robust), (x, standard))
        ]
        first = first or [loss.item() for loss in losses]
        adversarial, natural = (loss.item() / start for loss, start in zip(losses, first, strict=True))
        weight -= 0.3 * rate[index // 3] * (weight - natural / (natural + adversarial))
        assert method.balance[0].item() == pytest.approx(weight, rel=1e-5)
        assert_same_loss_and_gradients(result, student, (1 - weight) * losses[0] + weight * losses[1], exact)
        optimizer.step()
    assert weight != pytest.approx(0.5, abs=1e-4)
    assert method.end_epoch() == {"clean_weight": pytest.approx(weight, rel=1e-5)}


def test_each_teacher_sees_its_own_images():
    student, teacher, other, batch = make_student(), make_teacher(), make_teacher(7), make_batch()
    method = with_stand_in(make_method("mtard", teacher, other))
    seen = [Seen(network) for network in (student, teacher, other)]
    step(method, student, batch)
    assert [one.names(batch) for one in seen] == [["x'", "x"], ["x'"], ["x"]]


def test_passes_of_a_step_with_ten_attack_steps():
    # 26 units of the student, 1 of each teacher.
    student, teacher, other = make_student(), make_teacher(), make_teacher(7)
    method = make_method("mtard", teacher, other, steps=10)
    seen = [Seen(network) for network in (student, teacher, other)]
    step(method, student, make_batch())
    assert [one.units for one in seen] == [(12, 12), (1, 0), (1, 0)]


def test_a_loss_taken_twice_counts_once():
    """As for a weight perturbation, which takes the loss for its gradient first."""
    student, batch = make_student().eval(), make_batch()
    once, twice = with_stand_in(make(balance_rate=0.3)), with_stand_in(make(balance_rate=0.3))
    for _ in range(2):
        step(once, student, batch)
        inner = twice.attack(student, batch)
        for _ in range(2):
            twice.loss(student, batch, inner).loss.backward()
        twice.after_backward(batch, inner)
    assert torch.equal(once.balance, twice.balance)


def test_state_goes_on_bit_for_bit():
    batches = [make_batch(seed) for seed in range(4)]
    students, methods = [make_student(), make_student()], [with_stand_in(make(balance_rate=0.3)) for _ in range(2)]
    for batch in batches[:2]:
        step(methods[0], students[0], batch)
    state = {key: value.clone() for key, value in methods[0].state_dict().items()}
    methods[1].load_state_dict(state)
    students[1].load_state_dict(students[0].state_dict())
    for batch in batches[2:]:
        losses = [step(method, student, batch).loss for method, student in zip(methods, students, strict=True)]
        assert torch.equal(*losses)
    assert torch.equal(methods[0].balance, methods[1].balance)
    assert not torch.equal(state["balance"], methods[0].balance)


def test_losses_are_means_over_all_processes():
    """Two processes with 4 and 8 images balance as one with all 12."""
    student, batch, sent = make_student().eval(), make_batch(), []

    def record(value):
        sent.append(value.clone())
        return value

    whole = with_stand_in(make(balance_rate=0.3))
    halves = [with_stand_in(make(balance_rate=0.3, context={"all_reduce": record})) for _ in range(2)]
    step(whole, student, batch)
    for method, part in zip(halves, (slice(0, 4), slice(4, 12)), strict=True):
        step(method, student, type(batch)(batch.x[part], batch.y[part], batch.ids[part], batch.seed))
    total = sum(sent)
    both = with_stand_in(make(balance_rate=0.3, context={"all_reduce": lambda value: total.clone()}))
    step(both, student, type(batch)(batch.x[:4], batch.y[:4], batch.ids[:4], batch.seed))
    assert torch.allclose(both.balance, whole.balance, rtol=1e-5)


def test_training_lowers_the_loss_and_settings():
    method = make(eps=0.05, steps=2, reduction="batchmean")
    attack = method.inner_attack
    assert isinstance(attack, PGD) and (attack.init, attack.std, attack.bn) == ("normal", 0.001, "eval")
    losses = losses_over_steps(method, make_student(), make_batch(), lr=0.1)
    assert losses[-1] < 0.7 * losses[0]
    assert not make(parity=True).inner_attack.clamp_start and attack.clamp_start
    with pytest.raises(ValueError, match="clean_teacher: method mtard needs one"):
        make_method("mtard", make_teacher())
