"""What methods carry from step to step and epoch to epoch: balances, temperatures, class weights, perturbations."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as tf
from distillation_cases import (
    Seen,
    cross_entropy,
    double,
    few_steps,
    kl,
    make_batch,
    make_method,
    make_student,
    make_teacher,
    shifted,
    step,
    train_epochs,
    with_stand_in,
)

from ard_fast import functional as F
from ard_fast.attacks import PGD
from ard_fast.data import Batch
from ard_fast.methods import METHODS
from ard_fast.methods.shared import sums_by_class

STATEFUL = ("adr", "ikl", "ikl-rslad", "free", "fast-ard", "mtard", "absld", "fair-ard", "peeraid")
BY_CLASS = {"absld": "class_temperatures", "fair-ard": "class_weights"}
EPS, M = 0.1, 3

# ---- the state as such ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STATEFUL)
def test_state_goes_on_to_the_same_bits(name):
    batches = [make_batch(seed, count=40) for seed in range(4)]
    whole, stopped, resumed = (make_method(name, eps=EPS, **few_steps(name)) for _ in range(3))
    students = [make_student(), make_student()]
    figures = train_epochs(whole, students[0], batches[:2], 2, lr=0.1)
    assert figures == train_epochs(stopped, students[1], batches[:2], 2, lr=0.1)
    for method, student in ((whole, students[0]), (stopped, students[1])):
        method.begin_epoch(2)
        step(method, student, batches[2])
    resumed.load_state_dict({key: value.clone() for key, value in stopped.state_dict().items()})
    resumed.begin_epoch(2)
    for method, student in ((whole, students[0]), (resumed, students[1])):
        step(method, student, batches[3])
    assert whole.end_epoch() == resumed.end_epoch()
    assert whole.state_dict().keys() == resumed.state_dict().keys()
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    losses = [step(whole, students[0], batches[0]).loss, step(resumed, students[1], batches[0]).loss]
    assert torch.equal(*losses)


def test_the_other_methods_keep_no_state():
    for name in METHODS:
        method = make_method(name)
        if name not in STATEFUL:
            assert method.state_dict() == {} and method.end_epoch() == {}
            with pytest.raises(ValueError, match=f"method {name} keeps no state"):
                method.load_state_dict({"balance": torch.zeros(3)})


def step_by_processes(name, student, batch, cut, **settings):
    """Whole and of one of two processes, whose sums are those of both."""
    parts = [
        Batch(batch.x[part], batch.y[part], batch.ids[part], batch.seed) for part in (slice(cut), slice(cut, None))
    ]
    whole = with_stand_in(make_method(name, **settings))
    counts = torch.arange(len(batch.y)) % 4.0
    whole.inner_attack.steps_correct = counts
    step(whole, student, batch)
    sent = []

    def record(value):
        sent.append(value.clone())
        return value

    for part, correct in zip(parts, (counts[:cut], counts[cut:]), strict=True):
        one = with_stand_in(make_method(name, context={"all_reduce": record}, **settings))
        one.inner_attack.steps_correct = correct
        step(one, student, part)
    assert len(sent) == 2
    one = with_stand_in(make_method(name, context={"all_reduce": lambda value: sum(sent)}, **settings))
    one.inner_attack.steps_correct = counts[:cut]
    step(one, student, parts[0])
    return whole, one


@pytest.mark.parametrize("name", ["mtard", "absld", "fair-ard", "ikl", "ikl-rslad"])
def test_sums_go_over_all_processes(name):
    """Two processes with 15 and 25 images each come to the state of one with all 40."""
    settings = {"balance_rate": 0.3} if name == "mtard" else {}
    whole, one = step_by_processes(name, make_student().eval(), make_batch(count=40), 15, **settings)
    assert whole.end_epoch() == pytest.approx(one.end_epoch(), rel=1e-5)
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(value, one.state_dict()[key], rtol=1e-5, atol=1e-6)


def test_saads_weights_take_the_minimum_over_all_processes():
    batch = make_batch()
    inner = with_stand_in(make_method("saad")).attack(make_student(), batch)
    lower = {"all_min": lambda value: value - 0.25}
    moved = with_stand_in(make_method("saad", context=lower)).attack(make_student(), batch).weight
    assert inner.weight.min() == 0.0 and (inner.weight >= 0).all()
    assert torch.allclose(moved, inner.weight + 5.0 * 0.25, rtol=1e-5)


def test_sums_by_class_are_exact():
    labels = torch.tensor([0, 2, 2, 0, 2])
    rows = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0], [1.0, 1.0, 1.0, 1.0, 3.0]])
    wanted = torch.tensor([[9.0, 0.0, 22.0, 0.0], [2.0, 0.0, 5.0, 0.0], [2.0, 0.0, 3.0, 0.0]], dtype=torch.float64)
    assert torch.equal(sums_by_class(rows, labels, 4), wanted)


@pytest.mark.parametrize("name", BY_CLASS)
def test_a_class_that_an_epoch_never_had_changes_nothing_else(name):
    student, batches = make_student(), [make_batch(seed, count=40, classes=7) for seed in range(2)]
    method = make_method(name, steps=2, eps=0.05)
    train_epochs(method, student, batches, 2)
    values = torch.atleast_2d(getattr(method, BY_CLASS[name]))
    assert values.isfinite().all() and (values[:, 7:] == 1.0).all() and (values[:, :7] != 1.0).any()
    empty = make_method(name)
    empty.begin_epoch(0)
    empty.end_epoch()  # no image at all
    assert (getattr(empty, BY_CLASS[name]) == 1.0).all()


# ---- IKL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ikl", "ikl-rslad"])
def test_ikls_weights_are_the_class_means_of_the_epoch_before(name):
    student, teacher = make_student(), make_teacher()
    batches = [make_batch(seed, count=40, classes=7 if seed else 10) for seed in range(3)]
    method = with_stand_in(make_method(name, teacher, class_mean_temperature=2.0))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.02)
    wanted = torch.full((10, 10), 0.1, dtype=torch.float64)
    for epoch in range(3):
        rows, labels = [], []
        for batch in batches[epoch > 0 :]:  # after the first epoch three classes have no image
            exact = double(student)
            step(method, student, batch)
            assert torch.allclose(method.class_means.double(), wanted, rtol=1e-4)
            optimizer.step()
            with torch.no_grad():
                logits = exact(batch.x.double()) if name == "ikl" else teacher(batch.x).double()
            rows.append(torch.softmax(logits / 2.0, 1))
            labels.append(batch.y)
        for label in range(10):
            of_class = torch.cat(rows)[torch.cat(labels) == label]
            if len(of_class):
                wanted[label] = of_class.mean(0)
        assert method.end_epoch() == {}
    assert torch.allclose(method.class_means.double(), wanted, rtol=1e-4)
    assert not torch.allclose(wanted[8], wanted[2], rtol=1e-3)


# ---- ADR -------------------------------------------------------------------------------------------------------------


def test_adrs_average_follows_every_update():
    student, batches = make_student(), [make_batch(seed) for seed in range(3)]
    method = make_method("adr", mean_teacher_decay=0.9, **few_steps("adr"))
    expected = {key: value.double() for key, value in method.average.state_dict().items()}
    optimizer = torch.optim.SGD(student.parameters(), lr=0.3)
    for batch in batches:
        step(method, student, batch)
        optimizer.step()
        method.after_update(student)
        now = student.state_dict()
        expected = {key: 0.9 * value + 0.1 * now[key].double() for key, value in expected.items()}
    for key, value in method.average.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sharpness", [1.0, 400.0])
def test_adrs_attack_has_the_gradient_of_the_cross_entropy_at_its_labels(sharpness):
    """Also where the average is so sure that labels are whole."""
    method, student, batch = make_method("adr"), make_student(), make_batch()
    with torch.no_grad():
        method.average.classifier.weight.mul_(sharpness)
    labels = method.soft_labels(batch)
    assert (labels == 1.0).any() == (sharpness > 1.0)
    logits = student(batch.x).detach().requires_grad_()
    (expected,) = torch.autograd.grad(tf.cross_entropy(logits, labels, reduction="sum"), logits)
    found = F.attack_gradient(logits.detach(), labels.log(), loss="kl")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


# ---- MTARD, ABSLD, Fair-ARD -----------------------------------------------------------------------------------------


def test_mtards_weights_follow_the_formula_over_steps():
    student, batches = make_student(), [make_batch(seed) for seed in range(10, 16)]
    rate = {0: 1.0, 1: 0.1}
    method = with_stand_in(make_method("mtard", balance_rate=0.3, context={"relative_rate": rate.get}))
    robust, standard = double(make_teacher()), double(make_teacher(7))
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    weight, first = 0.5, None
    for index, batch in enumerate(batches):
        method.begin_epoch(index // 3)
        exact = double(student)
        result = step(method, student, batch)
        pairs = ((shifted(batch.x).double(), robust), (batch.x.double(), standard))
        with torch.no_grad():
            losses = [kl(exact(images), known(images)).mean().item() / 10 for images, known in pairs]
        first = first or losses
        adversarial, natural = (loss / start for loss, start in zip(losses, first, strict=True))
        weight -= 0.3 * rate[index // 3] * (weight - natural / (natural + adversarial))
        assert method.balance[0].item() == pytest.approx(weight, rel=1e-5)
        assert result.loss.item() == pytest.approx((1 - weight) * losses[0] + weight * losses[1], rel=1e-4)
        optimizer.step()
    assert weight != pytest.approx(0.5, abs=1e-4)
    assert method.end_epoch() == {"clean_weight": pytest.approx(weight, rel=1e-5)}


def test_a_loss_taken_twice_counts_once():
    """As for a weight perturbation, which takes the loss for its gradient first."""
    student, batch = make_student().eval(), make_batch()
    once, twice = (with_stand_in(make_method("mtard", balance_rate=0.3)) for _ in range(2))
    for _ in range(2):
        step(once, student, batch)
        inner = twice.attack(student, batch)
        for _ in range(2):
            twice.loss(student, batch, inner).loss.backward()
        twice.after_backward(batch, inner)
    assert torch.equal(once.balance, twice.balance)


def test_abslds_temperatures_follow_the_formula_over_epochs():
    student, batches = make_student(), [make_batch(seed, count=40) for seed in range(3)]
    rates = {epoch: 1.0 if epoch < 2 else 0.1 for epoch in range(5)}
    method = with_stand_in(make_method("absld", balance_rate=0.4, context={"relative_rate": rates.get}))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    wanted = torch.ones(2, 10, dtype=torch.float64)
    for epoch in range(4):
        method.begin_epoch(epoch)
        sums, counts = torch.zeros(2, 10, dtype=torch.float64), torch.zeros(10)
        for batch in batches:
            exact = double(student)
            with torch.no_grad():
                for row, images in zip(sums, (shifted(batch.x), batch.x), strict=True):
                    row.index_add_(0, batch.y, cross_entropy(exact(images.double()), batch.y))
            counts += torch.bincount(batch.y, minlength=10)
            step(method, student, batch)
            optimizer.step()
        means = sums / counts
        gaps = means - means.mean(1, keepdim=True)
        # the code's drop of the learning rate at the second epoch's end acts on that end already
        wanted = (wanted - 0.4 * rates[epoch + 1] * gaps / gaps.abs().amax(1, keepdim=True)).clamp(0.5, 5.0)
        figures = method.end_epoch()
        assert torch.allclose(method.class_temperatures.double(), wanted, rtol=1e-4)
        assert figures["adv_temperature_min"] == pytest.approx(wanted[0].min().item(), rel=1e-4)
        assert figures["clean_temperature_max"] == pytest.approx(wanted[1].max().item(), rel=1e-4)
    assert (wanted == 0.5).any() or wanted.max() > 1.2


def test_absld_attacks_the_logits_divided_by_the_first_temperature():
    teacher, batch = make_teacher(), make_batch()
    method = with_stand_in(make_method("absld", teacher))
    method.class_temperatures = torch.stack((torch.linspace(0.5, 3.0, 10), torch.linspace(4.0, 0.6, 10)))
    method.attack(make_student(), batch)
    assert torch.equal(method.inner_attack.y, teacher(batch.x) / method.class_temperatures[0][batch.y][:, None])


def test_fair_ards_weights_follow_the_formula():
    method = with_stand_in(make_method("fair-ard", fairness_power=2.0))
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


def test_kappa_counts_the_steps_that_are_still_right_without_another_forward():
    student, batch = make_student(), make_batch(count=30)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(30):  # so that it is right on some images and withstands some steps
        optimizer.zero_grad()
        tf.cross_entropy(student(batch.x), batch.y).backward()
        optimizer.step()
    attack = make_method("fair-ard", steps=6, eps=0.2).inner_attack
    seen = Seen(student)
    x_adv = attack(student, batch.x, batch.y, seed=batch.seed, sample_ids=batch.ids)
    assert len(seen.images) == 6
    student.eval()
    by_hand = sum((student(images).argmax(1) == batch.y).float() for images in list(seen.images))
    assert torch.equal(attack.steps_correct, by_hand)
    assert 0 < by_hand.mean() < 6 and len(by_hand.unique()) > 2
    plain = PGD(**attack.settings())
    assert torch.equal(plain(student, batch.x, batch.y, seed=batch.seed, sample_ids=batch.ids), x_adv)


# ---- free training and Fast-ARD -------------------------------------------------------------------------------------


def batches(sizes=(12, 12, 5, 12)):
    """Batches of several sizes; the third is a last, partial one."""
    made = [make_batch(seed=10 + index, count=size) for index, size in enumerate(sizes)]
    for batch in made:
        batch.x.mul_(1.4).sub_(0.2).clamp_(0, 1)  # many pixels at the bounds, where the two clamps differ
    return made


def published_loop(student, data, loss, ascended, clamp_delta, lr=0.05):
    """The loop of the free-training code in its own order, without anything of ours.

    Args:
        clamp_delta: clamp the perturbation before each update, not only its sum with the image.
        loss: of (logits, batch), for the weights.
        ascended: of (logits, batch), for the perturbation; None for the same.
    """
    noise = torch.zeros(12, 1, 8, 8)
    optimizer = torch.optim.SGD(student.parameters(), lr=lr, momentum=0.9, weight_decay=2e-4)
    for batch in data:
        count = len(batch.y)
        for _ in range(M):
            if clamp_delta:
                noise[:count] = torch.minimum(torch.maximum(noise[:count], -batch.x), 1 - batch.x)
            delta = noise[:count].clone().requires_grad_()
            logits = student(torch.clamp(batch.x + delta, 0.0, 1.0))
            grad = None
            if ascended is not None:
                grad = torch.autograd.grad(ascended(logits, batch), delta, retain_graph=True)[0]
            optimizer.zero_grad()
            loss(logits, batch).backward()
            noise[:count] += EPS * torch.sign(delta.grad if grad is None else grad)
            noise.clamp_(-EPS, EPS)
            optimizer.step()
    return noise


@pytest.mark.parametrize(
    ("name", "gradient", "clamp_delta"),
    [("free", None, True), ("free", None, False), ("fast-ard", "ce", True), ("fast-ard", "kd", False)],
)
def test_free_training_is_the_published_loop(name, gradient, clamp_delta):
    student, teacher, data = make_student(), make_teacher(), batches()
    other = copy.deepcopy(student)
    settings = {} if gradient is None else {"temperature": 3.0, "delta_gradient": gradient}
    method = make_method(name, teacher, replays=M, eps=EPS, clamp_delta=clamp_delta, **settings)
    seen = Seen(teacher)
    train_epochs(method, student, data, 1)
    assert len(seen.images) == (0 if name == "free" else len(data))  # once for all updates on a batch
    assert all(torch.equal(images, batch.x) for images, batch in zip(seen.images, data, strict=False))

    def labels(logits, batch):
        return tf.cross_entropy(logits, batch.y)

    def distillation(logits, batch):
        target = tf.softmax(teacher(batch.x) / 3.0, 1)
        return 9.0 * tf.kl_div(tf.log_softmax(logits / 3.0, 1), target, reduction="sum") / logits.numel()

    noise = published_loop(
        other,
        data,
        labels if name == "free" else distillation,
        labels if gradient == "ce" else None,
        clamp_delta,
    )
    for (key, value), wanted in zip(student.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(value.float(), wanted.float(), rtol=1e-4, atol=1e-5), key
    assert student.features[1].num_batches_tracked == M * len(data)
    assert noise.abs().max() == pytest.approx(EPS) and (noise[5:] != 0).any()
    # a sign may flip where a gradient vanishes
    assert (method.state_dict()["delta"] == noise).float().mean() > (0.99 if gradient else 0.9999)


def test_a_resumed_run_may_begin_with_the_smaller_last_batch():
    small, whole = batches((5, 12))
    method = make_method("free", replays=1, eps=EPS)
    train_epochs(method, make_student(), [small], 1)
    kept = method.state_dict()["delta"].clone()
    assert kept.shape[0] == 5
    inner = method.attack(make_student(), whole)
    assert (
        torch.equal(inner.delta[:5], torch.minimum(torch.maximum(kept, -whole.x[:5]), 1 - whole.x[:5]))
        and not inner.delta[5:].any()
    )


def test_every_process_keeps_the_places_of_all():
    """The second of two processes moves its own places and takes up those of the first."""
    batch = dataclasses.replace(make_batch(count=4), offset=8, global_size=12)
    first = torch.full((12, 1, 8, 8), 0.5)

    def add(value):
        assert not value[:8].any()
        return value + torch.cat((first[:8], torch.zeros(4, 1, 8, 8)))

    method = make_method("free", eps=EPS, context={"processes": 2, "all_reduce": add})
    step(method, make_student(), batch)
    kept = method.state_dict()["delta"]
    assert kept.shape[0] == 12 and (kept[:8] == 0.5).all() and kept[8:].abs().max() == pytest.approx(EPS)


def test_the_perturbation_keeps_the_layout_of_the_images():
    batch = make_batch()
    batch = dataclasses.replace(batch, x=batch.x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last))
    delta = make_method("free", replays=1).attack(make_student(), batch).delta
    assert delta.is_contiguous(memory_format=torch.channels_last)


# ---- teachers' logits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in METHODS), ("adaad", {"alpha": 0.5})])
def test_a_method_names_the_teachers_that_it_asks(name, settings):
    """A batch that brings the logits of exactly these needs no pass of the teachers at the clean images."""
    networks, batch = [make_teacher(), make_teacher(7)], make_batch()
    method = with_stand_in(make_method(name, *networks, **settings))
    brought = {teacher: teacher(batch.x) for teacher in method.clean_teachers()}
    seen = [Seen(network) for network in networks]
    with_logits = step(method, make_student(), dataclasses.replace(batch, teacher_logits=brought)).loss
    at_x = [name for one in seen for name in one.names(batch) if name == "x"]
    assert at_x == (["x"] if name == "saad" else [])  # whose gradient at x is not in the logits
    fresh = with_stand_in(make_method(name, *networks, **settings))
    torch.testing.assert_close(with_logits, step(fresh, make_student(), batch).loss)
