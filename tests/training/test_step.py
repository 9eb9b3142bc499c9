"""One training step: the plain one written out, autocast around the right parts, folded attacks, compiled forwards."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as tf
from distillation_cases import COPIES, make_batch, make_student, make_teacher
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ard_fast.attacks import attack_mode
from ard_fast.folding import FoldedNetwork, Unfoldable
from ard_fast.methods import METHODS, MethodContext, build_method
from ard_fast.teachers import Teacher
from ard_fast.training import compute as forms
from ard_fast.training import step as updates
from ard_fast.training.averaging import WeightAverage
from ard_fast.training.compute import ComputeConfig, resolve_compute
from ard_fast.training.config import resolve
from ard_fast.training.distributed import World
from ard_fast.training.step import Update

CPU = torch.device("cpu")


def make_update(name="at", student=None, average=None, **settings):
    """One method's update of a small student."""
    config = resolve({"method": name, "dataset": "digits", "device": "cpu", **settings})
    teachers = {role: Teacher(make_teacher(seed)) for seed, role in enumerate(METHODS[name].teachers, start=1)}
    beside = {role: make_student(11) for role in METHODS[name].networks}
    context = MethodContext(num_classes=10, epochs=4, teachers=teachers, networks=beside, **COPIES)
    method = build_method(name, config, context)
    student = student or make_student()
    sample = make_batch(seed=7).x
    return Update(config, student, method, World(), resolve_compute(config, CPU), average, sample=sample)


def steps(update, count=1, rate=0.01):
    """The sums of each of a few updates."""
    rates = [rate] * update.method.replays
    return [update([make_batch(seed=seed, count=24)], epoch=0, rates=rates) for seed in range(count)]


# ---- the whole of it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cuts", "gamma"), [([24], 0.0), ([16, 8], 0.0), ([16, 8], 0.05)])
def test_a_step_is_the_plain_one_written_out(cuts, gamma):
    """Attacks first, then the gradient of the mean loss over all micro-batches, at weights that are moved up that loss
    where gamma is not 0; SGD with momentum (there Nesterov's) and weight decay on every parameter at the rates given,
    the move undone, and the average of the weights after it."""
    student = make_student()
    average = WeightAverage(student, kind="ema", decay=0.5)
    settings = {"momentum": 0.8, "weight_decay": 0.05, "nesterov": gamma > 0.0}
    how = {"awp_gamma": gamma, "awp_warmup_share": 0.0, "fold": "false", "attack_bn": "eval"}
    update = make_update("at", student, average, **how, **settings)
    plain = copy.deepcopy(student)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0, **settings)
    weights = [parameter for parameter in plain.parameters() if parameter.dim() > 1]
    means = None
    for seed, rate in enumerate((0.1, 0.02, 0.3)):
        batches = [make_batch(seed=10 * seed + part, count=count) for part, count in enumerate(cuts)]
        parts = [dataclasses.replace(batch, global_size=24, offset=24 - len(batch.y)) for batch in batches]
        sums = update(parts, epoch=0, rates=[rate])
        adversarial = [update.method.attack(plain, batch).x_adv for batch in batches]

        def losses(network, batches=batches, adversarial=adversarial):
            logits = [network(x) for x in adversarial]
            means = [tf.cross_entropy(out, batch.y) for out, batch in zip(logits, batches, strict=True)]
            right = sum(int((out.argmax(1) == batch.y).sum()) for out, batch in zip(logits, batches, strict=True))
            return sum(mean * len(batch.y) / 24 for mean, batch in zip(means, batches, strict=True)), right

        moves = [torch.zeros_like(weight) for weight in weights]
        if gamma:
            grads = torch.autograd.grad(losses(copy_with(plain, weights))[0], weights)
            moves = [gamma * w.detach().norm() * g / g.norm() for w, g in zip(weights, grads, strict=True)]
        add(weights, moves)
        optimizer.zero_grad()
        loss, right = losses(plain)
        loss.backward()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        add(weights, [-move for move in moves])
        now = {name: value.clone() for name, value in plain.state_dict().items()}
        decay = min(0.5, (1 + seed) / (10 + seed))
        means = now if means is None else {k: decay * means[k] + (1 - decay) * now[k] for k in now}
        assert sums.tolist() == pytest.approx([24 * loss.item(), right], rel=1e-4)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, now[name], rtol=1e-4, atol=1e-5)
        if value.is_floating_point():
            torch.testing.assert_close(average.network.state_dict()[name], means[name], rtol=1e-4, atol=1e-5)
    assert student.training and not any(p.grad is None for p in student.parameters())


def copy_with(network, weights):
    """A copy of a network that computes with these weights; its running statistics are its own."""
    places = {id(parameter): name for name, parameter in network.named_parameters()}
    named = {places[id(weight)]: weight for weight in weights}
    copied = copy.deepcopy(network)
    return lambda x: torch.func.functional_call(copied, named, (x,))


def add(weights, moves):
    with torch.no_grad():
        for weight, move in zip(weights, moves, strict=True):
            weight += move


class Scalings(TorchDispatchMode):
    """Counts the calls that scale a loss's gradients."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.ard_fast.scale_rows_.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ard", {}),
        ("ard", {"alpha": 0.5, "label_smoothing": 0.1}),
        ("rslad", {}),
        ("trades", {}),
        ("mart", {}),
    ],
)
def test_a_loss_of_the_whole_batch_has_its_gradients_scaled_by_no_kernel(name, settings):
    update = make_update(name, **settings)
    with Scalings() as seen:
        steps(update, count=2)
    assert seen.count == 0
    parts = [
        dataclasses.replace(make_batch(seed=part, count=count), global_size=24) for part, count in ((0, 16), (1, 8))
    ]
    with Scalings() as seen:
        update(parts, epoch=0, rates=[0.01])
    assert seen.count > 0


# ---- precision ----------------------------------------------------------------------------------------------------


class Seen(nn.Module):
    """Logits of a network; keeps the dtypes that pass by and whether autocast was on in each backward pass."""

    def __init__(self):
        super().__init__()
        self.network = make_student()
        self.images, self.activations, self.backwards = [], [], []
        self.network.features[0].register_forward_hook(lambda module, args, out: self.activations.append(out.dtype))

    def forward(self, x):
        self.images.append(x.dtype)
        logits = self.network(x)
        if logits.requires_grad:
            logits.register_hook(lambda grad: self.backwards.append(torch.is_autocast_enabled("cpu")))
        return logits


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("bn", ["eval", "train"])
def test_networks_compute_in_the_precision_and_all_else_in_float32(precision, dtype, bn, monkeypatch):
    student = Seen()
    update = make_update("at", student, precision=precision, fold="false", attack_bn=bn, steps=3)
    found = {}
    attack, loss = update.method.attack, update.method.loss

    def seen_attack(network, batch):
        inner = attack(network, batch)
        found["iterate"], found["in the attack"] = inner.x_adv.dtype, list(student.activations)
        return inner

    def seen_loss(network, batch, inner):
        result = loss(network, batch, inner)
        found["loss"], found["logits"] = result.loss.dtype, result.logits.dtype
        return result

    monkeypatch.setattr(update.method, "attack", seen_attack)
    monkeypatch.setattr(update.method, "loss", seen_loss)
    steps(update)
    assert found.pop("in the attack") == [dtype] * 3
    assert student.activations == [dtype] * 4
    assert set(found.values()) == set(student.images) == {torch.float32}
    assert student.backwards == [False] * 4  # three of the attack, one of the loss
    for name, parameter in student.named_parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().sum() > 0, name
    assert all(buffer.dtype != torch.bfloat16 for buffer in student.buffers())
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("name", ["free", "mtard", "iad-ii", "saad"])
def test_no_backward_pass_is_under_autocast(name, monkeypatch):
    """It would compute some products in another dtype than the forward pass had."""
    update, within = make_update(name, precision="bf16", fold="false"), []

    def watched(function):
        def call(*args, **settings):
            within.append(torch.is_autocast_enabled("cpu"))
            return function(*args, **settings)

        return call

    monkeypatch.setattr(torch.autograd, "grad", watched(torch.autograd.grad))
    monkeypatch.setattr(torch.Tensor, "backward", watched(torch.Tensor.backward))
    steps(update)
    assert len(within) >= update.method.replays and not any(within)


def test_bfloat16_follows_float32():
    """To the rounding of the networks: the sums of the losses, and where the weights go."""
    moved, losses = [], []
    for precision in ("fp32", "bf16"):
        update = make_update("ard", precision=precision, fold="false")
        before = [parameter.detach().clone() for parameter in update.student.parameters()]
        losses.append(torch.stack(steps(update, 3))[:, 0])
        moves = [after.detach() - old for after, old in zip(update.student.parameters(), before, strict=True)]
        moved.append(torch.cat([move.flatten() for move in moves]))
    torch.testing.assert_close(losses[1], losses[0], rtol=0.03, atol=0.0)
    assert torch.cosine_similarity(*moved, dim=0) > 0.98
    assert not torch.equal(*moved)


# ---- folding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["trades", "ard", "adaad"])
def test_folded_attacks_change_no_more_than_rounding(name):
    outcomes, weights, sums = [], [], []
    for fold in ("false", "true"):
        update = make_update(name, attack_bn="eval", fold=fold, steps=3)
        assert isinstance(update.attacked.model, FoldedNetwork) == (fold == "true")
        update.attacked.refresh()
        outcomes.append(update.method.attack(update.attacked.model, make_batch(seed=9, count=24)).x_adv)
        sums.append(torch.stack(steps(update, 3)))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in update.student.parameters()]))
    assert ((outcomes[0] - outcomes[1]).abs() < 1e-5).float().mean() > 0.99
    torch.testing.assert_close(sums[1][:, 0], sums[0][:, 0], rtol=0.02, atol=1e-5)
    torch.testing.assert_close(weights[1], weights[0], rtol=0.0, atol=0.02 * float(weights[0].abs().max()))


def test_folded_weights_are_those_of_the_update(monkeypatch):
    """Before each attack the form that is attacked gives the student's own logits, running statistics included."""
    update = make_update("at", attack_bn="eval", fold="true")
    x, differences = make_batch(seed=3).x, []
    attack = update.method.attack

    def compare(network, batch):
        with attack_mode(update.student, "eval"), torch.no_grad():
            differences.append(float((network(x) - update.student(x)).abs().max()))
        return attack(network, batch)

    monkeypatch.setattr(update.method, "attack", compare)
    steps(update, 4, rate=0.5)
    assert max(differences) < 1e-4
    with attack_mode(update.student, "eval"), torch.no_grad():  # stale by now
        assert (update.attacked.model(x) - update.student(x)).abs().max() > 1e-3


def test_the_form_that_is_attacked_is_said(monkeypatch):
    update = make_update("at", attack_bn="eval", fold="true", precision="bf16")
    assert update.attacked.model.dtype == torch.bfloat16
    assert "bfloat16 autocast" in update.describe()[0]
    assert update.describe()[1].startswith("attack on folded weights, refreshed before each update: 3 of 3 batch norms")
    for settings in ({"attack_bn": "train"}, {"attack_bn": "train_frozen"}, {"fold": "false"}):
        update = make_update("at", **{"fold": "true", **settings})
        assert update.attacked.model is update.student and update.attacked.facts == []

    def refuse(*args, **settings):
        raise Unfoldable("its forward depends on values")

    monkeypatch.setattr(forms, "FoldedNetwork", refuse)
    update = make_update("at", attack_bn="eval", fold="true")
    said = "attack on the student itself, which cannot be folded: its forward depends on values"
    assert update.attacked.model is update.student and update.describe()[1:] == [said]
    steps(update)


def test_parity_is_plain():
    update = make_update("trades", parity=True, fold="auto")  # whose attack is in eval mode in its code, too
    assert update.compute == ComputeConfig(CPU, "fp32", "fp32", channels_last=False, fold=False, compile=False)
    assert update.attacked.model is update.student
    assert update.describe() == ["training step on cpu in float32, TF32 off, contiguous; evaluation in float32"]


# ---- compiling ----------------------------------------------------------------------------------------------------


def test_compiled_forwards_train_the_same_student(monkeypatch):
    """With the backward pass that torch.compile would compile, run by torch."""
    compile_ = torch.compile
    for module in (forms, updates):
        monkeypatch.setattr(module.torch, "compile", lambda network: compile_(network, backend="aot_eager"))
    weights = []
    for compiled in (False, True):
        update = make_update("ard", compile=compiled, fold="false", steps=2)
        steps(update, 2)
        weights.append({name: value.clone() for name, value in update.student.state_dict().items()})
    torch._dynamo.reset()
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)
    assert update.attacked.facts == ["attack on the compiled student"]
    assert "forward compiled" in update.describe()[0]
    assert all(parameter.requires_grad for parameter in update.student.parameters())
