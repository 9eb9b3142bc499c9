"""ABSLD and Fair-ARD: losses in float64, the classes' temperatures and weights epoch by epoch, unseen classes."""

import pytest
import torch
from distillation_cases import (
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
    train_epochs,
    with_stand_in,
)

from ard_fast.attacks import PGD
from ard_fast.data import Batch
from ard_fast.methods.shared import sums_by_class

NAMES = ("absld", "fair-ard")


def spread(low, high):
    """A different value for each class."""
    return torch.linspace(low, high, 10)


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize(("temperature", "reduction"), [(1.0, "mean"), (2.0, "batchmean")])
def test_absld_equals_the_formula(product, temperature, reduction):
    student, teacher, batch = make_student(), make_teacher(), make_batch()
    settings = {"temperature": temperature, "reduction": reduction, "temperature_product": product}
    method = with_stand_in(make_method("absld", teacher, alpha=0.7, **settings))
    method.class_temperatures = torch.stack((spread(0.5, 3.0), spread(4.0, 0.6)))
    exact, known = double(student), double(teacher)
    result = step(method, student, batch)
    adversarial, natural = (values[batch.y].double()[:, None] for values in method.class_temperatures)
    if product:
        adversarial = natural = adversarial * natural
    x, x_adv = batch.x.double(), shifted(batch.x).double()
    rows = 0.7 * kl(exact(x_adv), known(x), temperature, temperature * adversarial)
    rows = rows + 0.3 * kl(exact(x), known(x), temperature, temperature * natural)
    expected = temperature**2 * rows.sum() / (12 * (10 if reduction == "mean" else 1))
    assert_same_loss_and_gradients(result, student, expected, exact)
    assert torch.allclose(method.inner_attack.y.double(), known(x) / adversarial, rtol=1e-4)


def test_absld_temperatures_follow_the_formula_over_epochs():
    student, batches = make_student(), [make_batch(seed, count=40) for seed in range(3)]
    rates = {epoch: 1.0 if epoch < 2 else 0.1 for epoch in range(5)}
    method = with_stand_in(make_method("absld", make_teacher(), balance_rate=0.4, context={"relative_rate": rates.get}))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    wanted = torch.ones(2, 10, dtype=torch.float64)
    for epoch in range(4):
        method.begin_epoch(epoch)
        sums, counts = torch.zeros(2, 10, dtype=torch.float64), torch.zeros(10)
        for batch in batches:
            exact = double(student)
            with torch.no_grad():
                both = (cross_entropy(exact(images.double()), batch.y) for images in (shifted(batch.x), batch.x))
                for row, values in zip(sums, both, strict=True):
                    row.index_add_(0, batch.y, values)
                counts += torch.bincount(batch.y, minlength=10)
            step(method, student, batch)
            optimizer.step()
        means = sums / counts
        gaps = means - means.mean(1, keepdim=True)
        # the code's drop of the rate at the second epoch's end acts on that end already
        wanted = wanted - 0.4 * rates[epoch + 1] * gaps / gaps.abs().amax(1, keepdim=True)
        wanted = wanted.clamp(0.5, 5.0)
        figures = method.end_epoch()
        assert torch.allclose(method.class_temperatures.double(), wanted, rtol=1e-4)
        assert figures["adv_temperature_min"] == pytest.approx(wanted[0].min().item(), rel=1e-4)
        assert figures["clean_temperature_max"] == pytest.approx(wanted[1].max().item(), rel=1e-4)
    assert (wanted == 0.5).any() or wanted.max() > 1.2


@pytest.mark.parametrize(
    ("alpha", "temperature", "reduction"), [(1.0, 30.0, "mean"), (0.6, 3.0, "mean"), (0.3, 2.0, "batchmean")]
)
def test_fair_ard_equals_the_formula(alpha, temperature, reduction):
    student, teacher, batch = make_student(), make_teacher(), make_batch()
    method = make_method("fair-ard", teacher, alpha=alpha, temperature=temperature, reduction=reduction)
    with_stand_in(method).inner_attack.steps_correct = torch.zeros(12)
    method.class_weights = spread(0.9, 2.4)
    exact, known = double(student), double(teacher)
    result = step(method, student, batch)
    x, x_adv, weight = batch.x.double(), shifted(batch.x).double(), method.class_weights[batch.y].double()
    rows = alpha * temperature**2 * kl(exact(x_adv), known(x), temperature, temperature)
    rows = rows / (10 if reduction == "mean" else 1)
    if alpha != 1.0:
        rows = rows + (1 - alpha) * cross_entropy(exact(x), batch.y)
    assert_same_loss_and_gradients(result, student, (weight * rows).mean(), exact)


def test_kappa_counts_the_steps_that_are_still_right_without_another_forward():
    student, batch = make_student(), make_batch(count=30)
    for _ in range(30):  # so that it is right on some images and withstands some steps
        loss = torch.nn.functional.cross_entropy(student(batch.x), batch.y)
        student.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter -= 0.1 * parameter.grad
    attack = make_method("fair-ard", make_teacher(), steps=6, eps=0.2, attack_bn="eval").inner_attack
    seen = Seen(student)
    x_adv = attack(student, batch.x, batch.y, seed=batch.seed, sample_ids=batch.ids)
    assert len(seen.images) == 6
    student.eval()
    by_hand = sum((student(images).argmax(1) == batch.y).float() for images in list(seen.images))
    assert torch.equal(attack.steps_correct, by_hand)
    assert 0 < by_hand.mean() < 6 and len(by_hand.unique()) > 2
    plain = PGD(**attack.settings())
    assert torch.equal(plain(student, batch.x, batch.y, seed=batch.seed, sample_ids=batch.ids), x_adv)


def test_fair_ard_weights_follow_the_formula():
    method = with_stand_in(make_method("fair-ard", make_teacher(), fairness_power=2.0))
    student, batches = make_student(), [make_batch(seed, count=40) for seed in range(3)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        total, counts = torch.zeros(10), torch.zeros(10)
        for batch in batches:
            kappa = (torch.rand(40, generator=generator) * 3 + batch.y / 2).floor()
            method.inner_attack.steps_correct = kappa
            total.index_add_(0, batch.y, kappa)
            counts += torch.bincount(batch.y, minlength=10)
            step(method, student, batch)
        figures = method.end_epoch()
        raw = (1 / (total / counts + 1e-5)) ** 2
        wanted = (raw * 10 / raw.sum()).clamp(5 / 6, 5 / 2)
        assert torch.allclose(method.class_weights, wanted, rtol=1e-4)
        assert figures["kappa_min"] == pytest.approx((total / counts).min().item(), rel=1e-4)
        assert figures["class_weight_max"] == pytest.approx(2.5)


@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_an_epoch_never_had_changes_nothing_else(name):
    student, batches = make_student(), [make_batch(seed, count=40, classes=7) for seed in range(2)]
    method = make_method(name, make_teacher(), steps=2, eps=0.05)
    train_epochs(method, student, batches, 2)
    values = method.class_temperatures if name == "absld" else method.class_weights[None]
    assert values.isfinite().all() and (values[:, 7:] == 1.0).all() and (values[:, :7] != 1.0).any()
    assert step(method, student, make_batch()).loss.isfinite()
    method = make_method(name, make_teacher())
    method.begin_epoch(0)
    method.end_epoch()  # no image at all
    values = method.class_temperatures if name == "absld" else method.class_weights
    assert (values == 1.0).all()


@pytest.mark.parametrize("name", NAMES)
def test_state_inside_an_epoch_goes_on_bit_for_bit(name):
    batches = [make_batch(seed, count=40) for seed in range(4)]
    whole, stopped, resumed = (make_method(name, make_teacher(), steps=2, eps=0.1) for _ in range(3))
    students = [make_student(), make_student()]
    optimizers = [torch.optim.SGD(student.parameters(), lr=0.1) for student in students]
    for method in (whole, stopped):
        method.begin_epoch(0)
    for index, batch in enumerate(batches):
        second = resumed if index >= 2 else stopped
        if index == 2:
            resumed.load_state_dict({key: value.clone() for key, value in stopped.state_dict().items()})
            resumed.begin_epoch(0)
        for method, student, optimizer in zip((whole, second), students, optimizers, strict=True):
            step(method, student, batch)
            optimizer.step()
    assert whole.end_epoch() == resumed.end_epoch()
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key])
    assert torch.equal(step(whole, students[0], batches[0]).loss, step(resumed, students[1], batches[0]).loss)


@pytest.mark.parametrize("name", NAMES)
def test_sums_go_over_all_processes_in_each_step(name):
    """Two processes with 15 and 25 images each come to the state of one with all 40."""
    batch, student = make_batch(count=40), make_student().eval()
    parts = [Batch(batch.x[part], batch.y[part], batch.ids[part], batch.seed) for part in (slice(0, 15), slice(15, 40))]
    settings = {"steps": 2, "attack_bn": "eval"}
    whole = make_method(name, make_teacher(), **settings)
    step(whole, student, batch)
    sent = []

    def record(value):
        sent.append(value.clone())
        return value

    for part in parts:
        step(make_method(name, make_teacher(), context={"all_reduce": record}, **settings), student, part)
    total = sum(sent)
    assert len(sent) == 2 and torch.allclose(total, whole.sums, rtol=1e-5)
    context = {"all_reduce": lambda value: total.clone()}
    one = make_method(name, make_teacher(), context=context, **settings)
    step(one, student, parts[0])
    assert one.end_epoch() == pytest.approx(whole.end_epoch(), rel=1e-5)


def test_sums_by_class_are_exact():
    labels = torch.tensor([0, 2, 2, 0, 2])
    rows = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0], [1.0, 1.0, 1.0, 1.0, 3.0]])
    wanted = torch.tensor([[9.0, 0.0, 22.0, 0.0], [2.0, 0.0, 5.0, 0.0], [2.0, 0.0, 3.0, 0.0]], dtype=torch.float64)
    assert torch.equal(sums_by_class(rows, labels, 4), wanted)


@pytest.mark.parametrize(
    ("name", "settings", "students"),
    [
        ("absld", {}, ["x'", "x"]),
        ("fair-ard", {}, ["x'"]),
        ("fair-ard", {"clean_branch": True}, ["x'", "x"]),
        ("fair-ard", {"alpha": 0.5}, ["x'", "x"]),
    ],
)
def test_who_sees_what(name, settings, students):
    student, teacher, batch = make_student(), make_teacher(), make_batch()
    method = with_stand_in(make_method(name, teacher, **settings))
    method.inner_attack.steps_correct = torch.zeros(12)
    by_student, by_teacher = Seen(student), Seen(teacher)
    step(method, student, batch)
    assert (by_student.names(batch), by_teacher.names(batch)) == (students, ["x"])


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_loss_and_quirks(name):
    method = make_method(name, make_teacher(), eps=0.05, steps=2, reduction="batchmean", temperature=2.0)
    losses = losses_over_steps(method, make_student(), make_batch(), lr=0.1)
    assert losses[-1] < 0.7 * losses[0]
    published = make_method(name, make_teacher(), parity=True)
    assert not published.inner_attack.clamp_start
    if name == "absld":
        assert published.temperature_product and not method.temperature_product
    else:
        assert published.clean_branch and published.inner_attack.bn == "train"
