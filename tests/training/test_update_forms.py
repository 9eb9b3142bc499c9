"""What a step computes in: autocast around the right parts, folded attacks, compiled forwards; parity plain."""

import copy

import pytest
import torch
from distillation_cases import make_batch, make_student, make_teacher
from functorch.compile import make_boxed_func, nop
from test_methods_runs import command, small_and_tidy, without_plots
from test_train import metrics, same_weights, stop_after
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

from ard_fast.attacks import PGD, attack_mode
from ard_fast.evaluation import evaluate
from ard_fast.folding import FoldedNetwork, Unfoldable
from ard_fast.methods import METHODS, MethodContext, build_method
from ard_fast.teachers import Teacher
from ard_fast.train import main
from ard_fast.training import attacked_form as forms
from ard_fast.training import step as updates
from ard_fast.training.attacked_form import AttackedStudent
from ard_fast.training.compute import Machine, resolve_machine
from ard_fast.training.config import resolve
from ard_fast.training.distributed import World
from ard_fast.training.run_folder import RunFolder
from ard_fast.training.step import Update

__all__ = ["small_and_tidy", "without_plots"]  # fixtures

CPU = torch.device("cpu")


def make_update(name="at", student=None, **settings):
    """One method's update of a small student."""
    config = resolve({"method": name, "dataset": "digits", **settings})
    teachers = {role: Teacher(make_teacher(seed)) for seed, role in enumerate(METHODS[name].teachers, start=1)}
    context = MethodContext(num_classes=10, epochs=4, train_size=24, teachers=teachers)
    method = build_method(name, config, context)
    student = student or make_student()
    sample = make_batch(seed=7).x
    return Update(config, student, method, World(), resolve_machine(config, CPU), None, sample=sample)


def steps(update, count=1, rate=0.01):
    """The sums of each of a few updates."""
    rates = [rate] * update.method.replays
    return [update([make_batch(seed=seed, count=24)], epoch=0, rates=rates) for seed in range(count)]


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


class Casts(TorchDispatchMode):
    """Counts the casts of float32 tensors with 4 dimensions to bfloat16, by shape."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and out.dtype == torch.bfloat16 and args[0].dim() == 4:
            self.shapes.append(tuple(out.shape))
        return out


# ---- precision ----------------------------------------------------------------------------------------------------


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
        assert parameter.requires_grad, name
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().sum() > 0, name
    assert all(buffer.dtype != torch.bfloat16 for buffer in student.buffers())
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("name", METHODS)
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
    assert len(within) >= update.method.replays
    assert not any(within)


def test_weights_are_cast_once_for_all_steps_of_an_attack():
    shape = tuple(make_student().features[3].weight.shape)
    counts = []
    for count in (2, 6):
        update = make_update("at", precision="bf16", fold="false", steps=count)
        with Casts() as casts:
            steps(update)
        counts.append(casts.shapes.count(shape))
    assert counts == [2, 2]  # one for the attack, one for the loss


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


def test_evaluation_is_in_float32_under_anybodys_autocast():
    from ard_fast.data import load_dataset

    student, data = Seen(), load_dataset("digits")
    split, attack = data.test.take(torch.arange(10)), PGD(eps=0.1, step_size=0.05, steps=1)
    with torch.autocast("cpu", torch.bfloat16):
        evaluate(student, split, levels=data.levels, attack=attack)
        assert torch.is_autocast_enabled("cpu")
    assert set(student.activations) == {torch.float32}
    assert student.backwards == [False]


# ---- folding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, spec in METHODS.items() if "attack_bn" in spec.defaults])
def test_folded_attacks_change_no_more_than_rounding(name):
    outcomes, weights, sums = [], [], []
    for fold in ("false", "true"):
        few = {"steps": 3} if "steps" in METHODS[name].defaults else {}
        update = make_update(name, attack_bn="eval", fold=fold, **few)
        assert isinstance(update.attacked.model, FoldedNetwork) == (fold == "true")
        batch = make_batch(seed=9, count=24)
        update.attacked.refresh()
        outcomes.append(update.method.attack(update.attacked.model, batch).x_adv)
        sums.append(torch.stack(steps(update, 3)))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in update.student.parameters()]))
    same = ((outcomes[0] - outcomes[1]).abs() < 1e-5).float().mean()
    assert same > 0.99
    torch.testing.assert_close(sums[1][:, 0], sums[0][:, 0], rtol=0.02, atol=1e-5)
    torch.testing.assert_close(weights[1], weights[0], rtol=0.0, atol=0.02 * float(weights[0].abs().max()))


def test_folded_weights_are_those_of_the_update(monkeypatch):
    """After each update the form that is attacked gives the student's own logits, running statistics included."""
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


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_folded_form_is_in_the_precision_of_the_run(precision, dtype):
    update = make_update("at", attack_bn="eval", fold="true", precision=precision)
    assert update.attacked.model.dtype == dtype
    (line,) = update.attacked.facts
    assert line.startswith("attack on folded weights, taken up before each update: 3 of 3 batch norms")


@pytest.mark.parametrize("settings", [{"attack_bn": "train"}, {"attack_bn": "train_frozen"}, {"fold": "false"}])
def test_where_nothing_is_folded(settings):
    update = make_update("at", **{"fold": "true", **settings})
    assert update.attacked.model is update.student
    assert update.attacked.facts == []


def test_a_student_that_cannot_be_folded_is_attacked_itself(monkeypatch):
    def refuse(*args, **settings):
        raise Unfoldable("its forward depends on values")

    monkeypatch.setattr(forms, "FoldedNetwork", refuse)
    update = make_update("at", attack_bn="eval", fold="true")
    assert update.attacked.model is update.student
    assert update.describe()[1:] == [
        "attack on the student itself, which cannot be folded: its forward depends on values"
    ]
    steps(update)


def test_parity_is_plain():
    update = make_update("trades", parity=True, fold="auto")  # whose attack is in eval mode in its code, too
    assert update.machine == Machine(CPU, "fp32", "fp32", channels_last=False, fold=False, compile=False)
    assert update.attacked.model is update.student
    assert update.describe() == ["training step on cpu in float32, TF32 off, contiguous; evaluation in float32"]


# ---- compiling ----------------------------------------------------------------------------------------------------


@pytest.fixture
def without_compiler(monkeypatch):
    """torch.compile with the backward pass that it would compile, run by torch."""
    compile_ = torch.compile
    for module in (forms, updates):
        monkeypatch.setattr(module.torch, "compile", lambda network: compile_(network, backend="aot_eager"))
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_compiled_forwards_train_the_same_student(bn, without_compiler):
    weights = []
    for compiled in (False, True):
        update = make_update("ard", compile=compiled, fold="false", attack_bn=bn, steps=2)
        steps(update, 3)
        weights.append({name: value.clone() for name, value in update.student.state_dict().items()})
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)
    assert update.attacked.facts == ["attack on the compiled student"]
    assert "forward compiled" in update.describe()[0]
    assert all(parameter.requires_grad for parameter in update.student.parameters())


def test_a_compiled_attack_computes_no_gradients_of_weights(monkeypatch):
    masks = []

    def backward_pass(graph, inputs):
        called = [node for node in graph.graph.nodes if node.target is torch.ops.aten.convolution_backward.default]
        masks.extend(tuple(node.args[-1]) for node in called)
        return make_boxed_func(graph.forward)

    recording = aot_autograd(fw_compiler=nop, bw_compiler=backward_pass)
    compile_ = torch.compile
    monkeypatch.setattr(forms.torch, "compile", lambda network: compile_(network, backend=recording))
    student, batch = make_student(), make_batch()
    attack = PGD(eps=0.1, step_size=0.05, steps=2)
    expected = attack(copy.deepcopy(student), batch.x, batch.y, seed=1)
    machine = Machine(CPU, "fp32", "fp32", channels_last=False, fold=False, compile=True)
    found = attack(AttackedStudent(student, machine, "eval", batch.x).model, batch.x, batch.y, seed=1)
    torch._dynamo.reset()
    assert masks == [(True, False, False)] * 3
    torch.testing.assert_close(found, expected)
    assert student.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in student.parameters())


# ---- whole runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [["--fold", "true"], ["--fold", "true", "--precision", "bf16"]])
def test_a_run_stops_and_goes_on_to_the_same_bits(tmp_path, monkeypatch, how):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = [*command("trades", tmp_path), *how]
    assert main([*arguments, "--out", str(whole)]) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        assert main([*arguments, "--out", str(stopped)]) == 130
    assert main(["--resume", str(stopped)]) == 0
    assert same_weights(whole / "last.safetensors", stopped / "last.safetensors")
    assert metrics(whole) == metrics(stopped)
    assert RunFolder(whole).config().fold == "true"


def test_a_run_says_how_it_computes(tmp_path, capsys):
    how = ["--fold", "true", "--precision", "bf16", "--out", str(tmp_path / "run")]
    assert main([*command("trades", tmp_path), *how]) == 0
    text = capsys.readouterr().out
    assert "  training step on cpu in bfloat16 autocast (iterates, logits, losses and weights float32), " in text
    assert "  attack on folded weights, taken up before each update: 3 of 3 batch norms folded" in text
