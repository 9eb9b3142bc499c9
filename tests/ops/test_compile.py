"""The functional API inside torch.compile, in one graph without a break, and inside torch.export."""

import io

import pytest
import torch
from op_cases import CALLS, fold_arguments, tensors

from ard_fast import functional as F
from ard_fast.functional import _ops

EMULATED = False  # tracing does not reach a kernel


def moved(values, device):
    """Copies of tensors on a device, and the other values."""
    return [value.to(device, copy=True) if isinstance(value, torch.Tensor) else value for value in values]


@pytest.mark.parametrize("name", CALLS)
def test_every_public_function_in_one_graph(name, device):
    """With the results of the eager call, and its writes to the arguments."""
    function, positional, keywords = CALLS[name]

    def call(*positional, **keywords):
        return [t * 1 for t in tensors(function(*positional, **keywords))]

    def arguments():
        return moved(positional, device), dict(zip(keywords, moved(keywords.values(), device), strict=True))

    torch._dynamo.reset()
    (mine, mine_keys), (other, other_keys) = arguments(), arguments()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)(*mine, **mine_keys)
    expected = call(*other, **other_keys)
    for a, b in zip((*compiled, *tensors(mine)), (*expected, *tensors(other)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradients_of_the_losses(dtype, device):
    """All losses with two live rows, a weight and temperatures, in one graph with its backward pass."""
    torch.manual_seed(0)
    first, second, frozen = (torch.randn(4, 10, device=device).to(dtype) for _ in range(3))
    labels = torch.tensor([1, 2, 3, 4], device=device)
    weight = torch.tensor([0.5, 1.0, 2.0, 0.0], device=device)

    def gradients(loss):
        leaves = [first.clone().requires_grad_(), second.clone().requires_grad_()]
        value = loss(*leaves)
        return value.detach(), torch.autograd.grad(3.0 * value, leaves)

    def loss(a, b):
        a, b = a * 1.0, b * 1.0
        pair = {"clean_logits": b, "labels": labels}
        total = F.trades_loss(a, **pair, weight=weight) + F.mart_loss(a, **pair)
        total = total + F.rslad_loss(a, student_logits=b, teacher_logits=frozen, teacher_temperature=weight + 1.0)
        total = total + F.ard_loss(a, teacher_logits=frozen, student_logits=b, labels=labels, alpha=0.5)
        return total + F.kl_distill_loss(a, b, weight=weight, teacher_temperature=2.0)

    torch._dynamo.reset()
    eager, compiled = gradients(loss), gradients(torch.compile(loss, backend="aot_eager", fullgraph=True))
    torch.testing.assert_close(compiled[0], eager[0])
    # The compiler may keep float32 between the gradients that it adds up; eager rounds each of them.
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 4e-3, "atol": 4e-3}
    for a, b in zip(compiled[1], eager[1], strict=True):
        torch.testing.assert_close(a, b, **tolerance)
        assert b.abs().max() > 0


def test_fold(device):
    """Written to arguments of the compiled function, and read behind it in the same graph."""

    def fold(weights, affine, tensors, eps, at):
        _ops.fold_batch_norm_(weights, affine, tensors, eps, at)
        return weights * 2.0, affine + 1.0

    mine, theirs = fold_arguments(device), fold_arguments(device)
    torch._dynamo.reset()
    compiled = torch.compile(fold, backend="aot_eager", fullgraph=True)(*mine)
    for a, b in zip((*compiled, *mine[:2]), (*fold(*theirs), *theirs[:2]), strict=True):
        assert a.equal(b) and b.abs().max() > 0


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


def test_training_steps_by_the_default_compiler(device):
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
    inputs = step_inputs(device, 9)
    for exported in (program, torch.export.load(file), program.run_decompositions()):
        torch.testing.assert_close(exported.module()(*inputs), step(*inputs))


def test_loss_under_autocast(device):
    """Autocast inside the graph, around the network alone or around the loss too."""
    torch._dynamo.reset()
    layer = torch.nn.Linear(8, 5, device=device)
    x, teacher = torch.randn(4, 8, device=device), torch.randn(4, 5, device=device)

    def loss(x):
        with torch.autocast(device.type, torch.bfloat16):
            return F.kl_distill_loss(layer(x), teacher, temperature=2.0)

    found, expected = torch.compile(loss, backend="aot_eager", fullgraph=True)(x), loss(x)
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(value, layer.weight)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0
