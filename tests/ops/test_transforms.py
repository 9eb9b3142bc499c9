"""The losses under torch.func, vmap, forward mode and double backward: right, or refused; never zero in silence."""

import functools

import pytest
import torch
from torch.autograd import forward_ad

from ard_fast import functional as F

CALLS, BATCH, CLASSES = 4, 3, 6
EMULATED = False  # of autograd; the kernels are those of test_losses.py
LABELS = torch.tensor([0, 5, 2])
LOSSES = {
    "kl": lambda a, b: F.kl_distill_loss(a, b, temperature=2.0),
    "kl rows": lambda a, b: F.kl_distill_loss(a, b, reduction="none"),
    "ard": lambda a, b: F.ard_loss(
        a, teacher_logits=b.detach().flip(0), student_logits=b, labels=LABELS.to(a.device), alpha=0.5, temperature=3.0
    ),
    "rslad": lambda a, b: F.rslad_loss(
        a, student_logits=b, teacher_logits=a.detach().flip(0), weight=torch.arange(3.0, device=a.device)
    ),
    "trades": lambda a, b: F.trades_loss(a, clean_logits=b, labels=LABELS.to(a.device)),
    "mart": lambda a, b: F.mart_loss(a, clean_logits=b, labels=LABELS.to(a.device), reduction="mean"),
}
losses = pytest.mark.parametrize("name", LOSSES)


def logits(device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(CALLS, BATCH, CLASSES, generator=generator).to(device, dtype) for _ in range(2)]


def total(name, a, b):
    return LOSSES[name](a, b).sum()


def by_backward(name, a, b):
    """The gradients for both logits, call by call, by plain autograd."""
    grads = []
    for leaves in zip(a.clone(), b.clone(), strict=True):
        leaves = [leaf.requires_grad_() for leaf in leaves]
        grads.append(torch.autograd.grad(total(name, *leaves), leaves))
    return [torch.stack(grad) for grad in zip(*grads, strict=True)]


def check(got, expected, dtype=torch.float32):
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-3, "atol": 1e-4}
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)
        assert b.abs().max() > 0


@losses
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradient_of_each_call(name, dtype, device):
    """vmap over grad: the gradient of every call of its own, as for per-sample gradients."""
    a, b = logits(device, dtype)
    gradient = torch.func.grad(functools.partial(total, name), argnums=(0, 1))
    check(torch.func.vmap(gradient)(a, b), by_backward(name, a, b), dtype)
    # Calls along another dimension, and an argument that all calls share.
    got = torch.func.vmap(gradient, in_dims=(1, None))(a.movedim(0, 1), b[0])
    check(got, by_backward(name, a, b[:1].expand_as(b)), dtype)


@losses
def test_gradient_of_all_calls(name, device):
    """grad over vmap, and backward through vmap to a leaf: `requires_grad` is hidden inside."""
    a, b = logits(device)
    calls = torch.func.vmap(functools.partial(total, name))
    expected = by_backward(name, a, b)
    check(torch.func.grad(lambda *both: calls(*both).sum(), argnums=(0, 1))(a, b), expected)
    leaves = [a.clone().requires_grad_(), b.clone().requires_grad_()]
    calls(*leaves).sum().backward()
    check([leaf.grad for leaf in leaves], expected)


@losses
def test_reverse_mode_jacobian(name, device):
    """jacrev, and vmap over vjp."""
    a, b = (t[0] for t in logits(device))
    leaves = [a.clone().requires_grad_(), b.clone().requires_grad_()]
    rows = LOSSES[name](*leaves)
    incoming = torch.linspace(-2, 2, 5 * rows.numel(), device=device).view(5, *rows.shape)
    expected = [torch.autograd.grad(rows, leaves, g, retain_graph=True) for g in incoming]
    expected = [torch.stack(grads) for grads in zip(*expected, strict=True)]
    pull_back = torch.func.vjp(LOSSES[name], a, b)[1]
    check(torch.func.vmap(pull_back)(incoming), expected)
    with pytest.raises(RuntimeError, match="scale_rows_"):  # torch's older vmap, which knows no functions of ours
        torch.autograd.grad(LOSSES[name](*leaves), leaves, incoming, is_grads_batched=True)
    jacobian = torch.func.jacrev(LOSSES[name], argnums=(0, 1))(a, b)
    check([torch.tensordot(incoming, part, rows.dim()) for part in jacobian], expected)


@losses
def test_a_tensor_that_has_outlived_its_transform(name, device):
    """The gradient goes to what it stands for."""
    a, b = (t[0].requires_grad_() for t in logits(device))
    kept = []
    torch.func.grad(lambda a: kept.append(a) or a.sum())(a)
    total(name, *kept, b).backward()
    check([a.grad, b.grad], [grad[0] for grad in by_backward(name, a.detach()[None], b.detach()[None])])


@losses
def test_forward_mode_is_refused(name, device):
    a, b = (t[0] for t in logits(device))
    for transform in (
        lambda: torch.func.jvp(LOSSES[name], (a, b), (a, b)),
        lambda: torch.func.jacfwd(LOSSES[name])(a, b),
        lambda: torch.func.hessian(functools.partial(total, name))(a, b),
    ):
        with pytest.raises(NotImplementedError, match="forward mode AD"):
            transform()
    for grad_mode in (torch.enable_grad, torch.no_grad):
        with forward_ad.dual_level(), grad_mode(), pytest.raises(NotImplementedError, match="forward mode AD"):
            LOSSES[name](forward_ad.make_dual(a, a), b)


@losses
def test_second_derivatives_are_refused(name, device):
    """Also where another term of the sum can be differentiated, which would hide that this one gave nothing."""
    a, b = (t[0] for t in logits(device))
    leaf = a.clone().requires_grad_()
    (grad,) = torch.autograd.grad(total(name, leaf, b), leaf, create_graph=True)
    check([grad], by_backward(name, a[None], b[None])[0])
    message = "can be differentiated once only"
    with pytest.raises(RuntimeError, match=message):
        (grad.square().sum() + leaf.square().sum()).backward()
    with pytest.raises(RuntimeError, match=message):
        torch.func.grad(lambda a: torch.func.grad(functools.partial(total, name))(a, b).square().sum())(a)


@pytest.mark.parametrize("name", ["ard", "trades"])
def test_func_grad_inside_a_compiled_function(name, device):
    """Where Dynamo would return zeros, the frame runs uncompiled; with fullgraph=True it is an error."""
    a, b = (t[0] for t in logits(device))
    gradient = torch.func.grad(functools.partial(total, name), argnums=(0, 1))
    expected = by_backward(name, a[None], b[None])
    if torch.__version__ >= (2, 13):  # before, torch fails an assertion of its own on the way back to eager
        torch._dynamo.reset()
        check(torch.compile(lambda a, b: gradient(a, b), backend="eager")(a, b), [e[0] for e in expected])
    torch._dynamo.reset()
    compiled = torch.compile(lambda a, b: gradient(a, b), backend="eager", fullgraph=True)
    if torch.__version__ < (2, 15):
        with pytest.raises(Exception, match=r"torch\.func inside torch\.compile needs"):
            compiled(a, b)
    else:
        check(compiled(a, b), [e[0] for e in expected])


def test_operators_without_a_loss_under_vmap(device):
    """Out of place they take torch's fallback, call by call; in place torch refuses them."""
    x, grad = torch.rand(2, 2, 3, 4, device=device)
    for function in (
        lambda x: F.affine_relu(x, mask=True),
        lambda x: F.random_start(x, eps=0.1, seed=3),
        lambda x: F.attack_gradient(x, LABELS[:2].to(x.device).clamp(max=3), with_rows=True),
    ):
        calls = [function(part) for part in x[:, :2]]
        stacked = torch.func.vmap(function)(x[:, :2])
        if isinstance(stacked, torch.Tensor):
            stacked, calls = [stacked], [[call] for call in calls]
        for got, *parts in zip(stacked, *calls, strict=True):
            assert got.equal(torch.stack(parts))
    with pytest.raises(RuntimeError, match="pgd_linf_step_"):
        torch.func.vmap(lambda a, g, x: F.pgd_linf_step_(a, g, x, step_size=0.1, eps=0.1))(x.clone(), grad, x)
