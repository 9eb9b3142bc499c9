"""The functional API inside torch.compile, in one graph without a break, and inside torch.export."""

import io

import pytest
import torch
from op_cases import affine_arguments, apgd_run, crop_arguments, fold_arguments

from ard_fast import functional as F
from ard_fast.functional import _ops

EMULATED = False  # tracing does not reach a kernel


# One graph, no break, through both the tracing stack alone and the default compiler.
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_compiled_loss(backend, dtype, device):
    student, teacher, clean = (torch.randn(4, 10, device=device).to(dtype) for _ in range(3))
    labels = torch.tensor([1, 2, 3, 4], device=device)

    def gradients(loss_fn):
        inputs = [student.clone().requires_grad_(), clean.clone().requires_grad_()]
        loss = loss_fn(inputs[0], teacher, inputs[1], labels)
        return loss.detach(), torch.autograd.grad(3.0 * loss, inputs)

    def loss_fn(s, t, c, y):
        return F.ard_loss(s * 1.0, teacher_logits=t, student_logits=c * 1.0, labels=y, alpha=0.5, temperature=3.0)

    torch._dynamo.reset()
    eager, compiled = gradients(loss_fn), gradients(torch.compile(loss_fn, backend=backend, fullgraph=True))
    torch.testing.assert_close(compiled[0], eager[0])
    for a, b in zip(compiled[1], eager[1], strict=True):
        torch.testing.assert_close(a, b)
        assert b.abs().max() > 0


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_compiled_losses_of_two_rows(backend, dtype, device):
    """All losses with two live rows, a weight and temperatures, in one graph."""
    torch.manual_seed(0)
    first, second, frozen = (torch.randn(4, 10, device=device).to(dtype) for _ in range(3))
    labels = torch.tensor([1, 2, 3, 4], device=device)
    weight = torch.tensor([0.5, 1.0, 2.0, 0.0], device=device)

    def gradients(loss_fn):
        inputs = [first.clone().requires_grad_(), second.clone().requires_grad_()]
        loss = loss_fn(*inputs)
        return loss.detach(), torch.autograd.grad(3.0 * loss, inputs)

    def loss_fn(a, b):
        a, b = a * 1.0, b * 1.0
        pair = {"clean_logits": b, "labels": labels}
        total = F.trades_loss(a, **pair, weight=weight) + F.mart_loss(a, **pair)
        total = total + F.rslad_loss(a, student_logits=b, teacher_logits=frozen, teacher_temperature=weight + 1.0)
        return total + F.kl_distill_loss(a, b, weight=weight, teacher_temperature=2.0)

    torch._dynamo.reset()
    eager, compiled = gradients(loss_fn), gradients(torch.compile(loss_fn, backend=backend, fullgraph=True))
    torch.testing.assert_close(compiled[0], eager[0])
    # The compiler keeps float32 between the four gradients that it adds up; eager rounds each of them.
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 4e-3, "atol": 4e-3}
    for a, b in zip(compiled[1], eager[1], strict=True):
        torch.testing.assert_close(a, b, **tolerance)
        assert b.abs().max() > 0


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_compiled_step_and_start(backend, memory_format, device):
    x = torch.rand(2, 3, 4, 5, device=device).contiguous(memory_format=memory_format)
    grad = torch.randn_like(x)

    def attack(x, grad):
        x_adv = F.random_start(x, eps=0.1, seed=3)
        F.pgd_linf_step_(x_adv, grad, x, step_size=0.02, eps=0.1)
        return x_adv + 0.0

    torch._dynamo.reset()
    compiled = torch.compile(attack, backend=backend, fullgraph=True)(x, grad)
    assert compiled.equal(attack(x, grad))
    # In place on an argument of the compiled function.
    torch._dynamo.reset()
    step = torch.compile(
        lambda a, g, x: F.pgd_linf_step_(a, g, x, step_size=0.02, eps=0.1), backend=backend, fullgraph=True
    )
    mine = x.clone()
    step(mine, grad, x)
    assert mine.equal(F.pgd_linf_step_(x.clone(), grad, x, step_size=0.02, eps=0.1))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_compiled_crop_flip(backend, channels_last, device):
    images, positions, seed, ids, *_ = crop_arguments(device)

    def batch(images, positions, seed, ids):
        x, view = F.crop_flip(images, positions, seed=seed, ids=ids, padding=2, levels=255, channels_last=channels_last)
        again, _ = F.crop_flip(images, positions, views=view, padding=2, levels=255)
        return x + 0.0, view, again

    torch._dynamo.reset()
    compiled = torch.compile(batch, backend=backend, fullgraph=True)(images, positions, seed, ids)
    for a, b in zip(compiled, batch(images, positions, seed, ids), strict=True):
        assert a.equal(b)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_fold(backend, dtype, device):
    """Written to arguments of the compiled function, and read behind it in the same graph."""

    def fold(weights, affine, tensors, eps, at):
        _ops.fold_batch_norm_(weights, affine, tensors, eps, at)
        return weights * 2.0, affine + 1.0

    mine, theirs = fold_arguments(device, dtype), fold_arguments(device, dtype)
    torch._dynamo.reset()
    compiled = torch.compile(fold, backend=backend, fullgraph=True)(*mine)
    for a, b in zip((*compiled, *mine[:2]), (*fold(*theirs), *theirs[:2]), strict=True):
        assert a.equal(b) and b.abs().max() > 0


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("last", [False, True])
def test_compiled_affine_relu(backend, last, device):
    """Forward, in place and out of place, and backward in one graph, in either memory order."""
    x, scale, shift, residual, *_ = affine_arguments(device, last=last)

    def passes(x, residual):
        y, mask = F.affine_relu(x, scale, shift, residual, mask=True)
        bits = F.affine_relu_(x, None, shift, mask=True)
        return y + 0.0, F.affine_relu_backward(y * 2.0, mask, scale), F.affine_relu_backward(x * 2.0, bits)

    torch._dynamo.reset()
    mine, other = x.clone(), x.clone()
    compiled = torch.compile(passes, backend=backend, fullgraph=True)(mine, residual)
    for a, b in zip(compiled, passes(other, residual), strict=True):
        assert a.equal(b)
    assert mine.equal(other) and not mine.equal(x)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_attack_gradient(backend, device):
    """An attack's gradient through a network, in one graph."""
    weight, x = torch.randn(8, 10, device=device), torch.randn(4, 8, device=device)
    labels = torch.tensor([1, 2, 3, 4], device=device)
    other = torch.randn(4, 10, device=device)

    def rows_and_gradients(x, weight):
        logits = x @ weight
        ce = F.attack_gradient(logits, labels, with_rows=True)
        dlr = F.attack_gradient(logits, labels.flip(0), loss="dlr_targeted", labels=labels)
        kl = F.attack_gradient(logits, other, loss="kl", temperature=2.0)
        scaled, scale = F.attack_gradient(logits, labels, scaled=True)
        return ce.loss, ce.correct, (ce.grad + dlr + kl) @ weight.t(), scaled @ weight.t(), scale

    torch._dynamo.reset()
    compiled = torch.compile(rows_and_gradients, backend=backend, fullgraph=True)(x, weight)
    for a, b in zip(compiled, rows_and_gradients(x, weight), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_sample_operators(backend, device):
    """The operators that take a sample as a whole, in one graph, writing to arguments of the compiled function."""
    x = torch.rand(3, 3, 4, 5, device=device)
    grad, losses = torch.randn_like(x), torch.tensor([[0.0, 2.0, 1.0], [1.0, 1.0, 2.0]], device=device)

    def restart(x_adv, momentum, grad, x, losses):
        start = F.random_start(x, eps=0.5, norm="l2", init="surface", seed=3)
        F.pgd_l2_step_(start, grad, x, step_size=0.2, eps=0.5)
        F.mifgsm_step_(x_adv, momentum, grad, x, step_size=0.02, eps=0.1)
        return F.select_best_(x_adv, losses[0], start, losses[1])

    torch._dynamo.reset()
    compiled = torch.compile(restart, backend=backend, fullgraph=True)
    mine, other = ([x.clone(), torch.zeros_like(x)] for _ in range(2))
    assert compiled(*mine, grad, x, losses).equal(restart(*other, grad, x, losses))
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert not mine[0].equal(x)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_compiled_apgd_run(backend, norm, device):
    """The whole run in one graph."""
    x = torch.rand(3, 2, 4, 5, device=device)
    start = F.random_start(x, eps=0.1 if norm == "linf" else 0.01, seed=1)
    expected = apgd_run(x, start, norm)
    torch._dynamo.reset()
    compiled = torch.compile(apgd_run, backend=backend, fullgraph=True)(x, start, norm)
    for a, b in zip(compiled, expected, strict=True):
        torch.testing.assert_close(a, b)


class Step(torch.nn.Module):
    """A training step up to the loss, with a step of the attack in place before it."""

    def __init__(self):
        super().__init__()
        self.student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 10))
        self.teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 10))

    def forward(self, x, grad, labels):
        x_adv = F.random_start(x, eps=0.1, seed=3)
        F.pgd_linf_step_(x_adv, grad, x, step_size=0.02, eps=0.1)
        with torch.no_grad():
            teacher = self.teacher(x)
        given = {"teacher_logits": teacher, "student_logits": self.student(x), "labels": labels}
        ard = F.ard_loss(self.student(x_adv), **given, alpha=0.5, temperature=3.0)
        return ard + F.trades_loss(self.student(x_adv), clean_logits=self.student(x), labels=labels)


def step_inputs(device, batch):
    x = torch.rand(batch, 3, 4, 5, device=device)
    return x, torch.randn_like(x), torch.arange(batch, device=device) % 10


def test_compiled_training_steps(device):
    """Forward, loss and backward as two graphs, for any batch size without compiling again; then SGD."""
    torch._dynamo.reset()
    mine, theirs = Step().to(device), Step().to(device)
    theirs.load_state_dict(mine.state_dict())
    optimizers = [torch.optim.SGD(m.student.parameters(), lr=0.1) for m in (mine, theirs)]
    compiled = torch.compile(mine, fullgraph=True, dynamic=True)
    for stance, batch in [("default", 8), ("fail_on_recompile", 7), ("fail_on_recompile", 9)]:
        inputs = step_inputs(device, batch)
        with torch.compiler.set_stance(stance):
            loss = compiled(*inputs)
            loss.backward()
        expected = theirs(*inputs)
        expected.backward()
        torch.testing.assert_close(loss, expected)
        for a, b in zip(mine.student.parameters(), theirs.student.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
            assert b.grad.abs().max() > 0
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_exported_step(device):
    """torch.export of a model with its loss, for any batch size; saved, loaded and run again."""
    step = Step().to(device)
    batch = torch.export.Dim("batch", min=2, max=1024)
    program = torch.export.export(step, step_inputs(device, 8), dynamic_shapes=[{0: batch}] * 3)
    called = {str(node.target) for node in program.graph.nodes if "ard_fast" in str(node.target)}
    assert called == {f"ard_fast.{op}.default" for op in ("random_start", "pgd_linf_step_", "kd_loss", "pair_loss")}
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    for size in (8, 9):
        inputs = step_inputs(device, size)
        for exported in (program, loaded):
            torch.testing.assert_close(exported.module()(*inputs), step(*inputs))
    # As a functional graph of core operators, the in-place step included.
    functional = program.run_decompositions()
    inputs = step_inputs(device, 6)
    torch.testing.assert_close(functional.module()(*inputs), step(*inputs))


def test_exported_step_in_place(device):
    """The step on an argument of the exported program is written to that argument."""

    class Attack(torch.nn.Module):
        def forward(self, x_adv, grad, x):
            F.pgd_linf_step_(x_adv, grad, x, step_size=0.02, eps=0.1)

    x, grad, _ = step_inputs(device, 4)
    program = torch.export.export(Attack(), (x.clone(), grad, x))
    x_adv = x.clone()
    program.module()(x_adv, grad, x)
    assert x_adv.equal(F.pgd_linf_step_(x.clone(), grad, x, step_size=0.02, eps=0.1)) and not x_adv.equal(x)


def test_compiled_loss_under_autocast(device):
    """Autocast inside the graph, around the network alone or around the loss too."""
    torch._dynamo.reset()
    layer = torch.nn.Linear(8, 5, device=device)
    x, teacher = torch.randn(4, 8, device=device), torch.randn(4, 5, device=device)

    def loss_fn(x):
        with torch.autocast(device.type, torch.bfloat16):
            return F.kl_distill_loss(layer(x), teacher, temperature=2.0)

    loss, expected = torch.compile(loss_fn, backend="aot_eager", fullgraph=True)(x), loss_fn(x)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    gradients = (torch.autograd.grad(value, layer.weight)[0] for value in (loss, expected))
    torch.testing.assert_close(*gradients)
