"""Free training and Fast-ARD: whole runs of batches against plain loops, what is kept, what a replay costs."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as tf
from distillation_cases import Seen, make_batch, make_method, make_student, make_teacher

from ard_fast.training.config import resolve
from ard_fast.training.optimiser import learning_rate

EPS, M = 0.1, 3


def batches(sizes=(12, 12, 5, 12)):
    """Batches of several sizes; the third is a last, partial one."""
    made = [make_batch(seed=10 + index, count=size) for index, size in enumerate(sizes)]
    for batch in made:
        batch.x.mul_(1.2).clamp_(0, 1)  # pixels at the bound, where the clamp holds the perturbation's gradient back
    return made


def run(method, student, data, lr=0.05):
    """As the trainer does it."""
    optimizer = torch.optim.SGD(student.parameters(), lr=lr, momentum=0.9, weight_decay=2e-4)
    losses = []
    for batch in data:
        for _ in range(method.replays):
            inner = method.attack(student, batch)
            result = method.loss(student, batch, inner)
            optimizer.zero_grad(set_to_none=True)
            result.loss.backward()
            method.after_backward(batch, inner)
            optimizer.step()
            losses.append(result.loss.item())
    return losses


def published_loop(student, data, loss, ascended, lr=0.05):
    """The loop of the free-training code in its own order, without anything of ours.

    Args:
        loss: of (logits, batch), for the weights.
        ascended: of (logits, batch), for the perturbation; None for the same.
    """
    noise = torch.zeros(12, 1, 8, 8)
    optimizer = torch.optim.SGD(student.parameters(), lr=lr, momentum=0.9, weight_decay=2e-4)
    for batch in data:
        count = len(batch.y)
        for _ in range(M):
            delta = noise[:count].clone().requires_grad_()
            images = torch.clamp(batch.x + delta, 0.0, 1.0)
            logits = student(images)
            grad = None
            if ascended is not None:
                grad = torch.autograd.grad(ascended(logits, batch), delta, retain_graph=True)[0]
            optimizer.zero_grad()
            loss(logits, batch).backward()
            grad = delta.grad if grad is None else grad
            noise[:count] += EPS * torch.sign(grad)
            noise.clamp_(-EPS, EPS)
            optimizer.step()
    return noise


def label_loss(logits, batch):
    return tf.cross_entropy(logits, batch.y)


def assert_same_student(student, other):
    for (name, value), wanted in zip(student.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(value.float(), wanted.float(), rtol=1e-4, atol=1e-5), name


def test_free_training_is_the_published_loop():
    student, data = make_student(), batches()
    other = copy.deepcopy(student)
    method = make_method("free", replays=M, eps=EPS)
    run(method, student, data)
    noise = published_loop(other, data, label_loss, None)
    assert_same_student(student, other)
    assert torch.equal(method.state_dict()["delta"], noise)
    assert student.features[1].num_batches_tracked == M * len(data)
    assert noise.abs().max() == pytest.approx(EPS) and (noise[5:] != 0).any()


@pytest.mark.parametrize("gradient", ["ce", "kd"])
def test_fast_ard_is_the_same_loop_with_the_distillation_loss(gradient):
    student, teacher, data, temperature = make_student(), make_teacher(), batches(), 3.0
    other = copy.deepcopy(student)
    method = make_method("fast-ard", teacher, replays=M, eps=EPS, temperature=temperature, delta_gradient=gradient)

    def distillation(logits, batch):
        target = tf.softmax(teacher(batch.x) / temperature, 1)
        distance = tf.kl_div(tf.log_softmax(logits / temperature, 1), target, reduction="sum")
        return temperature**2 * distance / logits.numel()

    seen = Seen(teacher)
    run(method, student, data)
    assert len(seen.images) == len(data)  # once for all replays of a batch
    assert all(torch.equal(images, batch.x) for images, batch in zip(seen.images, data, strict=True))
    noise = published_loop(other, data, distillation, label_loss if gradient == "ce" else None)
    assert_same_student(student, other)
    assert (method.state_dict()["delta"] == noise).float().mean() > 0.99  # a sign may flip where a gradient vanishes


def test_the_two_gradients_of_fast_ard_differ():
    found = []
    for gradient in ("ce", "kd"):
        method = make_method("fast-ard", make_teacher(), replays=1, eps=EPS, delta_gradient=gradient)
        run(method, make_student(), batches((12,)))
        found.append(method.state_dict()["delta"])
    assert (found[0] != found[1]).float().mean() > 0.05


@pytest.mark.parametrize(
    ("name", "settings"), [("free", {}), ("fast-ard", {"alpha": 1.0}), ("fast-ard", {"alpha": 0.5})]
)
def test_a_replay_is_one_forward_of_each_image(name, settings):
    student, data = make_student(), batches((12,))
    seen = Seen(student)
    run(
        make_method(name, make_teacher() if name == "fast-ard" else None, replays=M, eps=EPS, **settings), student, data
    )
    clean = settings.get("alpha", 1.0) != 1.0
    assert len(seen.images) == M * (1 + clean)
    assert torch.equal(seen.images[0], data[0].x)  # the first perturbation is zero


def test_fast_ard_below_alpha_1_adds_the_cross_entropy_of_the_clean_images():
    student, teacher, batch = make_student(), make_teacher(), batches((12,))[0]
    method = make_method("fast-ard", teacher, replays=1, eps=EPS, alpha=0.25, temperature=2.0)
    result = method.loss(student, batch, method.attack(student, batch))
    log_p, log_q = tf.log_softmax(student(batch.x) / 2, 1), tf.log_softmax(teacher(batch.x) / 2, 1)
    distance = tf.kl_div(log_p, log_q, reduction="sum", log_target=True) / log_p.numel()
    expected = 0.25 * 4 * distance + 0.75 * tf.cross_entropy(student(batch.x), batch.y)
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["free", "fast-ard"])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_the_state_goes_on_to_the_same_bits(name, stop):
    teacher, data = make_teacher(), batches()
    settings = {"replays": M, "eps": EPS}

    def method():
        return make_method(name, teacher if name == "fast-ard" else None, **settings)

    whole = make_student()
    run(method(), whole, data)
    parts, first, second = make_student(), method(), method()
    optimizer = torch.optim.SGD(parts.parameters(), lr=0.05, momentum=0.9, weight_decay=2e-4)
    one_student_through(first, parts, optimizer, data[:stop])
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()})
    one_student_through(second, parts, optimizer, data[stop:])
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def one_student_through(method, student, optimizer, data):
    for batch in data:
        for _ in range(method.replays):
            inner = method.attack(student, batch)
            optimizer.zero_grad(set_to_none=True)
            method.loss(student, batch, inner).loss.backward()
            method.after_backward(batch, inner)
            optimizer.step()


def test_a_resumed_run_may_begin_with_the_smaller_last_batch():
    data = batches((5, 12))
    method = make_method("free", replays=1, eps=EPS)
    run(method, make_student(), data[:1])
    kept = method.state_dict()["delta"].clone()
    assert kept.shape[0] == 5
    inner = method.attack(make_student(), data[1])
    assert torch.equal(inner.delta[:5], kept) and not inner.delta[5:].any()


def test_the_perturbation_keeps_the_layout_of_the_images():
    batch = make_batch()
    batch = dataclasses.replace(batch, x=batch.x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last))
    delta = make_method("free", replays=1).attack(make_student(), batch).delta
    assert delta.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["free", "fast-ard"])
def test_training_lowers_the_loss_and_conventions(name):
    method = make_method(name, make_teacher() if name == "fast-ard" else None, replays=4, eps=0.02, temperature=None)
    losses = run(method, make_student(), [make_batch()] * 8)
    assert losses[-1] < 0.7 * losses[0]
    text = " ".join(method.conventions())
    assert "4 updates on each batch" in text and "kept from batch to batch" in text


@pytest.mark.parametrize("schedule", ["cosine", "cyclic"])
def test_epochs_count_replays_and_schedules_end_with_the_last_pass(schedule):
    config = resolve({"method": "free", "replays": 4, "epochs": 15, "schedule": schedule, "lr": 1.0})
    assert config.passes() == 4
    rates = [learning_rate(config, 4 * done) for done in (0, 0.5, 2, 3.9, 4)]
    assert min(rates) >= 0 and rates[-1] == pytest.approx(0, abs=1e-12) and max(rates) <= 1
    assert rates[3] > 0


@pytest.mark.parametrize("name", ["free", "fast-ard"])
def test_a_weight_perturbation_needs_a_pass_of_its_own(name):
    with pytest.raises(ValueError, match=f"awp_gamma: expected 0 for method {name}"):
        resolve({"method": name, "awp_gamma": 0.01})
