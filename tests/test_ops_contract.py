"""What torch expects of an operator: opcheck, torch.compile, torch.func, no wait for the GPU, CUDA graphs."""

import math

import pytest
import torch
from fold_cases import make_layers, places

from ard_fast import _ops
from ard_fast import functional as F


def step_arguments(device, grad_dtype=torch.float32, shape=(2, 3, 4, 5), per_sample=False):
    x = torch.rand(shape, device=device)
    sizes = torch.full((shape[0],), 0.1, device=device) if per_sample else None
    return x.clone(), torch.randn_like(x).to(grad_dtype), x, sizes, sizes, 0.1, 0.2, False, 0.0, 1.0


def mifgsm_arguments(device, **options):
    x_adv, grad, x, steps, radii, step_size, eps, *rest = step_arguments(device, **options)
    return x_adv, torch.randn_like(x), grad, x, steps, radii, step_size, eps, 0.9, *rest


def select_arguments(device, lower=False):
    best, candidate = torch.rand(2, 4, 3, 5, device=device)
    best_loss, loss, out = torch.rand(3, 4, device=device)
    return best, candidate, best_loss, loss, out, lower


def start_arguments(device, normal=False, last=False):
    x = torch.rand(2, 3, 4, 5, device=device)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    seed = torch.tensor([7], device=device)
    ids = torch.tensor([5, 6], device=device)
    return x, None, 0.1, seed, ids if last else None, normal, 0.001, True, 0.0, 1.0


def loss_arguments(
    device,
    dtype=torch.float32,
    with_clean=True,
    reduce=True,
    with_grad=True,
    with_teacher=False,
    with_labels=True,
    per_sample=False,
):
    student, teacher, clean = (torch.randn(3, 6, device=device).to(dtype) for _ in range(3))
    labels = torch.tensor([0, 5, 2], device=device) if with_clean and with_labels else None
    clean = clean if with_clean else None
    rows = [torch.rand(3, device=device) + 0.5 if per_sample else None for _ in range(3)]
    if labels is not None or clean is None:
        rows[2] = None
    numbers = 4.0, 3.0, 2.0, 0.5, 0.25, 0.5, 0.25, reduce, with_grad, with_teacher
    return student, teacher, clean, labels, *rows, *numbers


def pair_arguments(device, mart, dtype=torch.float32, weighted=False, reduce=True, with_grad=True):
    adv, clean = (torch.randn(3, 6, device=device).to(dtype) for _ in range(2))
    labels = torch.tensor([0, 5, 2], device=device)
    weight = torch.rand(3, device=device) if weighted else None
    return adv, clean, labels, weight, mart, 5.0, 1.0, 5.0, 1.0, reduce, with_grad


def gradient_arguments(device, loss=0, dtype=torch.float32, with_rows=True):
    logits = torch.randn(3, 6, device=device).to(dtype)
    labels = torch.tensor([0, 5, 2], device=device)
    return logits, labels, labels.flip(0) if loss == 3 else None, loss, 50.0, with_rows


def apgd_arguments(device, grad_dtype=torch.float32, l2=False, first=False, grad=True, per_sample=False, window=0):
    pixels = torch.rand(5, 3, 2, 4, 5, device=device)
    x_adv, x_prev, x_best, x_fooled, x = (p.clone() for p in pixels)
    gradients = torch.randn(2, *x.shape, device=device).to(grad_dtype)
    state, state_out = torch.rand(2, 7, 3, device=device).unbind()
    loss_rows, correct = torch.rand(3, device=device), torch.tensor([True, False, True], device=device)
    radii = torch.full((3,), 0.1, device=device) if per_sample else None
    written = x_adv, x_prev, x_best, gradients[0].clone(), x_fooled, state.clone(), state_out.clone()
    read = gradients[1].clone() if grad else None, x, loss_rows, correct, radii
    return *written, *read, 0.1, l2, first, window, 0.75, 0.75, 0.0, 1.0


def crop_arguments(device, given=False, last=False, ids=True):
    images = torch.randint(0, 256, (5, 3, 6, 4), dtype=torch.uint8, device=device)
    positions = torch.tensor([4, 0, 0, 2], device=device)
    seed, names = torch.tensor([7], device=device), torch.arange(5, device=device) * 3
    drawn = (None, None, positions * 3) if given else (seed, names if ids else None, None)
    return images, positions, *drawn, 2, True, 255, last


def fold_arguments(device, dtype=torch.float32):
    layers = make_layers(shapes=[(3, 2, 3, 3), (5, 4, 1, 1), None], parts=[(1, 1, 1, True)], device=device)
    layers += make_layers(shapes=[(2, 3, 1, 1)], parts=[(0, 0, 0, False)], device=device)
    layers += make_layers(shapes=[None], parts=[(0, 1, 1, True)], device=device)
    at, weights, affine = places(layers)
    out = torch.zeros(weights, dtype=dtype, device=device), torch.zeros(affine, device=device)
    return *out, [t for layer in layers for t in layer.tensors], [layer.eps for layer in layers], at


def affine_arguments(device, dtype=torch.float32, last=False, coefficients=True, relu=True, mask=True):
    layout = torch.channels_last if last else torch.contiguous_format
    x, residual = (torch.randn(2, 3, 4, 5, device=device).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    scale, shift = torch.randn(2, 3, device=device).unbind() if coefficients else (None, None)
    return x, scale, shift, residual if coefficients else None, relu, mask


def affine_backward_arguments(device, dtype=torch.float32, last=False, masked=True):
    grad, scale, *_ = affine_arguments(device, dtype, last)
    return grad, torch.randint(256, (15,), dtype=torch.uint8, device=device) if masked else None, scale


CASES = {
    "affine": lambda device: (_ops.affine_relu, affine_arguments(device)),
    "affine plain": lambda device: (_ops.affine_relu, affine_arguments(device, coefficients=False, mask=False)),
    "affine bf16 channels_last": lambda device: (_ops.affine_relu, affine_arguments(device, torch.bfloat16, True)),
    "affine in place": lambda device: (_ops.affine_relu_, affine_arguments(device, last=True)),
    "affine in place fp16 linear": lambda device: (
        _ops.affine_relu_,
        affine_arguments(device, torch.float16, relu=False, mask=False),
    ),
    "affine backward": lambda device: (_ops.affine_relu_backward, affine_backward_arguments(device)),
    "affine backward bf16 channels_last": lambda device: (
        _ops.affine_relu_backward,
        affine_backward_arguments(device, torch.bfloat16, True),
    ),
    "affine backward linear": lambda device: (
        _ops.affine_relu_backward,
        affine_backward_arguments(device, masked=False),
    ),
    "apgd first": lambda device: (_ops.apgd_step_, apgd_arguments(device, first=True)),
    "apgd checkpoint bf16": lambda device: (_ops.apgd_step_, apgd_arguments(device, torch.bfloat16, window=2)),
    "apgd l2 per sample": lambda device: (
        _ops.apgd_step_,
        apgd_arguments(device, torch.float16, l2=True, per_sample=True, window=3),
    ),
    "apgd last": lambda device: (_ops.apgd_step_, apgd_arguments(device, grad=False)),
    "crop": lambda device: (_ops.crop_flip, crop_arguments(device)),
    "crop by position channels_last": lambda device: (_ops.crop_flip, crop_arguments(device, last=True, ids=False)),
    "crop given": lambda device: (_ops.crop_flip, crop_arguments(device, given=True)),
    "fold": lambda device: (_ops.fold_batch_norm_, fold_arguments(device)),
    "fold bf16": lambda device: (_ops.fold_batch_norm_, fold_arguments(device, torch.bfloat16)),
    "step": lambda device: (_ops.pgd_linf_step_, step_arguments(device)),
    "step bf16": lambda device: (_ops.pgd_linf_step_, step_arguments(device, torch.bfloat16)),
    "step per sample": lambda device: (_ops.pgd_linf_step_, step_arguments(device, per_sample=True)),
    "l2 step": lambda device: (_ops.pgd_l2_step_, step_arguments(device)),
    "l2 step fp16 per sample": lambda device: (
        _ops.pgd_l2_step_,
        step_arguments(device, torch.float16, per_sample=True),
    ),
    "mifgsm step": lambda device: (_ops.mifgsm_step_, mifgsm_arguments(device)),
    "mifgsm step bf16 per sample": lambda device: (
        _ops.mifgsm_step_,
        mifgsm_arguments(device, grad_dtype=torch.bfloat16, per_sample=True),
    ),
    "select": lambda device: (_ops.select_best_, select_arguments(device)),
    "select lower": lambda device: (_ops.select_best_, select_arguments(device, True)),
    "start": lambda device: (_ops.random_start, start_arguments(device)),
    "start normal channels_last": lambda device: (_ops.random_start, start_arguments(device, True, True)),
    "loss": lambda device: (_ops.kd_loss, loss_arguments(device)),
    "loss fp16 rows": lambda device: (_ops.kd_loss, loss_arguments(device, torch.float16, False, False)),
    "loss both gradients": lambda device: (_ops.kd_loss, loss_arguments(device, with_clean=False, with_teacher=True)),
    "loss teacher fp16": lambda device: (
        _ops.kd_loss,
        loss_arguments(device, torch.float16, with_clean=False, with_grad=False, with_teacher=True),
    ),
    "loss per sample": lambda device: (
        _ops.kd_loss,
        loss_arguments(device, with_clean=False, with_teacher=True, per_sample=True),
    ),
    "loss two students bf16": lambda device: (
        _ops.kd_loss,
        loss_arguments(device, torch.bfloat16, with_labels=False, per_sample=True),
    ),
    "trades": lambda device: (_ops.pair_loss, pair_arguments(device, False)),
    "trades fp16 weighted": lambda device: (_ops.pair_loss, pair_arguments(device, False, torch.float16, True)),
    "mart": lambda device: (_ops.pair_loss, pair_arguments(device, True)),
    "mart rows": lambda device: (_ops.pair_loss, pair_arguments(device, True, torch.bfloat16, True, reduce=False)),
    "mart alone": lambda device: (_ops.pair_loss, pair_arguments(device, True, with_grad=False)),
    "loss alone": lambda device: (_ops.kd_loss, loss_arguments(device, with_grad=False)),
    "gradient": lambda device: (_ops.attack_gradient, gradient_arguments(device)),
    "gradient alone": lambda device: (_ops.attack_gradient, gradient_arguments(device, 1, with_rows=False)),
    "gradient dlr": lambda device: (_ops.attack_gradient, gradient_arguments(device, 2, torch.float16)),
    "gradient targeted": lambda device: (_ops.attack_gradient, gradient_arguments(device, 3, torch.bfloat16)),
    "scale": lambda device: (_ops.scale_rows_, (torch.randn(3, 6, device=device), torch.rand(3, device=device), 2.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_opcheck(case, device):
    op, arguments = CASES[case](device)
    torch.library.opcheck(op, arguments)


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
        return F.ard_loss(s * 1.0, t, c * 1.0, y, alpha=0.5, temperature=3.0)

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
        total = F.trades_loss(a, b, labels, weight=weight) + F.mart_loss(a, b, labels)
        total = total + F.rslad_loss(a, b, frozen, teacher_temperature=weight + 1.0)
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
        return ce.loss, ce.correct, (ce.grad + dlr + kl) @ weight.t()

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


def apgd_run(x, start, norm="linf", steps=6):
    """Auto-PGD on a loss whose gradient needs no network."""
    run = F.APGDRun(x, start, eps=0.1, norm=norm, steps=steps)
    weight = torch.linspace(-1, 1, x[0].numel(), device=x.device).view(x[0].shape)
    for _ in range(steps):
        loss = (weight * run.x_adv.square()).flatten(1).sum(1)
        run.step(2 * weight * run.x_adv, loss, loss < 0)
    loss = (weight * run.x_adv.square()).flatten(1).sum(1)
    run.finish(loss, loss < 0)
    return run.x_best, run.x_fooled, run.loss_best, run.fooled, run.step_size


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


def test_torch_func_grad(device):
    student, teacher = torch.randn(3, 6, device=device), torch.randn(3, 6, device=device)

    def loss(s):
        return 2.5 * F.kl_distill_loss(s, teacher, temperature=2.0)

    by_func = torch.func.grad(loss)(student)
    leaf = student.clone().requires_grad_()
    torch.testing.assert_close(by_func, torch.autograd.grad(loss(leaf), leaf)[0])
    assert by_func.abs().max() > 0


def test_torch_func_grad_of_two_rows(device):
    adv, clean = torch.randn(2, 3, 6, device=device)
    labels = torch.tensor([0, 5, 2], device=device)
    for loss in (lambda a, c: F.trades_loss(a, c, labels), lambda a, c: F.kl_distill_loss(a, c)):
        by_func = torch.func.grad(loss, argnums=(0, 1))(adv, clean)
        leaves = [adv.clone().requires_grad_(), clean.clone().requires_grad_()]
        for a, b in zip(by_func, torch.autograd.grad(loss(*leaves), leaves), strict=True):
            torch.testing.assert_close(a, b)
            assert a.abs().max() > 0


def test_under_autocast(device):
    """Logits come out of autocast in bfloat16; the loss takes them as they are and is float32."""
    layer = torch.nn.Linear(8, 5, device=device)
    x, teacher = torch.randn(4, 8, device=device), torch.randn(4, 5, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        logits = layer(x)
        loss = F.kl_distill_loss(logits, teacher)
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    loss.backward()
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.abs().max() > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nothing_waits_for_the_gpu():
    device = torch.device("cuda")
    x, seed = torch.rand(4, 3, 8, 8, device=device), torch.tensor([3], device=device)
    student, teacher, clean = (torch.randn(4, 10, device=device) for _ in range(3))
    labels = torch.tensor([1, 2, 3, 4], device=device)
    images = torch.zeros((5, 3, 8, 8), dtype=torch.uint8, device=device)
    folding = fold_arguments(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        _ops.fold_batch_norm_(*folding)
        x_adv = F.random_start(x, eps=0.1, seed=seed)
        F.random_start(x, eps=0.1)
        F.pgd_linf_step_(x_adv, torch.ones_like(x), x, step_size=0.02, eps=0.1)
        F.crop_flip(images, labels, padding=4, levels=255, seed=seed)
        F.crop_flip(images, labels, padding=4, levels=255, views=labels)
        sizes = torch.full((4,), 0.1, device=device)
        momentum = torch.zeros_like(x)
        for norm in ("linf", "l2"):
            apgd_run(x, x_adv, norm)
            for init in ("uniform", "surface", "normal"):
                F.random_start(x, eps=sizes, norm=norm, init=init, seed=seed)
        F.pgd_l2_step_(x_adv, torch.ones_like(x), x, step_size=sizes, eps=0.1)
        F.mifgsm_step_(x_adv, momentum, torch.ones_like(x), x, step_size=0.02, eps=sizes)
        F.select_best_(x_adv, sizes, momentum, sizes + 1.0)
        leaves = [student.requires_grad_(), clean.requires_grad_()]
        loss = F.ard_loss(leaves[0], teacher, leaves[1], labels, alpha=0.5)
        torch.autograd.grad(loss, leaves, torch.full((), 3.0, device=device))
        for name in ("ce", "margin", "dlr"):
            F.attack_gradient(student, labels, loss=name, with_rows=True)
        F.attack_gradient(student, labels.flip(0), loss="dlr_targeted", labels=labels)
        F.attack_gradient(student, teacher, loss="kl", temperature=2.0)
        y, mask = F.affine_relu(x, sizes[:3], sizes[1:], x_adv, mask=True)
        F.affine_relu_(y)
        F.affine_relu_backward(y, mask, sizes[:3])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graph_of_a_whole_attack_and_loss():
    """Captured once, replayed on other data: the same as eager, with fresh random starts."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    weight = torch.randn(192, 10, device=device)
    x, teacher = torch.rand(4, 3, 8, 8, device=device), torch.randn(4, 10, device=device)
    seed = torch.tensor([1], device=device)

    def work():
        x_adv = F.random_start(x, eps=0.1, seed=seed)
        for _ in range(3):
            probe = x_adv.detach().requires_grad_()
            loss = F.kl_distill_loss(probe.flatten(1) @ weight, teacher, reduction="sum")
            F.pgd_linf_step_(x_adv, torch.autograd.grad(loss, probe)[0], x, step_size=0.02, eps=0.1)
        return x_adv, F.ard_loss(x_adv.flatten(1) @ weight, teacher)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    for value in (1, 2, 3):
        seed.fill_(value)
        x.copy_(torch.rand_like(x))
        graph.replay()
        eager = work()
        assert captured[0].equal(eager[0])
        torch.testing.assert_close(captured[1], eager[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graph_of_restarts_over_whole_samples():
    """The steps that launch clusters are captured too, and the selection takes its losses from the replay."""
    device = torch.device("cuda")
    x, seed = torch.rand(2, 3, 64, 64, device=device), torch.tensor([1], device=device)
    grad = torch.randn_like(x)

    def work():
        best, best_loss = x.clone(), torch.full((2,), -math.inf, device=device)
        for init in ("uniform", "surface"):
            x_adv, momentum = F.random_start(x, eps=0.5, norm="l2", init=init, seed=seed), torch.zeros_like(x)
            F.pgd_l2_step_(x_adv, grad, x, step_size=0.2, eps=0.5)
            F.mifgsm_step_(x_adv, momentum, grad, x, step_size=0.01, eps=0.03)
            best_loss = F.select_best_(best, best_loss, x_adv, (x_adv * grad).flatten(1).sum(1))
        return best, best_loss

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    for value in (1, 2, 3):
        seed.fill_(value)
        grad.copy_(torch.randn_like(x))
        graph.replay()
        for mine, eager in zip(captured, work(), strict=True):
            torch.testing.assert_close(mine, eager)


@pytest.mark.gpu
@pytest.mark.sanitizer
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
# Digits: a warp a sample; CIFAR in a small batch: clusters; ImageNet: eight blocks a sample; no vectors; a large batch.
@pytest.mark.parametrize(
    "shape", [(5, 1, 8, 8), (3, 3, 32, 32), (2, 3, 224, 224), (2, 3, 17, 13), (700, 1, 8, 8)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cpu_and_cuda_agree_over_whole_samples(shape, dtype):
    for op, make in ((_ops.pgd_l2_step_, step_arguments), (_ops.mifgsm_step_, mifgsm_arguments)):
        arguments = make("cpu", grad_dtype=dtype, shape=shape)
        on_cuda = [a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments]
        op(*on_cuda)
        op(*arguments)
        # The sums have another order; a float that is rounded from them may differ in its last digit.
        torch.testing.assert_close(on_cuda[0].cpu(), arguments[0], rtol=0, atol=2e-7)
        torch.testing.assert_close(on_cuda[1].cpu(), arguments[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_cuda_graph_of_an_apgd_run(norm):
    device = torch.device("cuda")
    x = torch.rand(4, 3, 8, 8, device=device)
    start = x.clone()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        apgd_run(x, start, norm, 10)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = apgd_run(x, start, norm, 10)
    for _ in range(3):
        x.copy_(torch.rand_like(x))
        start.copy_(F.random_start(x, eps=0.1 if norm == "linf" else 0.01))
        graph.replay()
        for a, b in zip(captured, apgd_run(x, start, norm, 10), strict=True):
            assert a.equal(b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graph_of_a_batch():
    """Captured once; positions, seed and images are read at each replay."""
    images, positions, seed, ids, *_ = crop_arguments("cuda")
    settings = {"seed": seed, "ids": ids, "padding": 2, "levels": 255}
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        F.crop_flip(images, positions, **settings)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = F.crop_flip(images, positions, **settings)
    for value in (1, 2, 3):
        seed.fill_(value)
        positions.copy_(positions.roll(1) + 1).remainder_(5)
        images.copy_(torch.randint_like(images, 256))
        graph.replay()
        for mine, eager in zip(captured, F.crop_flip(images, positions, **settings), strict=True):
            assert mine.equal(eager)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graph_of_a_fold():
    """Captured once, with the table of layers; parameters are read at each replay."""
    device = torch.device("cuda")
    captured, eager = fold_arguments(device, torch.bfloat16), fold_arguments(device, torch.bfloat16)
    _ops.fold_batch_norm_(*captured)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _ops.fold_batch_norm_(*captured)
    for _ in range(3):
        for mine, theirs in zip(captured[2], eager[2], strict=True):
            if mine is not None:
                theirs.copy_(mine.add_(0.5))
        graph.replay()
        _ops.fold_batch_norm_(*eager)
        assert captured[0].equal(eager[0]) and captured[1].equal(eager[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graph_of_affine_relu():
    """Captured once; the input and the coefficients are read at each replay."""
    x, scale, shift, residual, *_ = affine_arguments("cuda", last=True)

    def work():
        y, mask = F.affine_relu(x, scale, shift, residual, mask=True)
        again = F.affine_relu_(y.clone(), None, -shift, mask=True)
        return y, mask, again, F.affine_relu_backward(residual, mask, scale)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    for _ in range(3):
        for tensor in (x, scale, shift, residual):
            tensor.copy_(torch.randn_like(tensor))
        graph.replay()
        for mine, eager in zip(captured, work(), strict=True):
            assert mine.equal(eager)


@pytest.mark.gpu
@pytest.mark.sanitizer
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (2, 3, 17, 13)])
def test_cpu_and_cuda_give_the_same_step(shape):
    arguments = step_arguments("cpu", shape=shape)
    arguments[1][0, 0, 0, 0] = math.nan
    on_cuda = [a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments]
    _ops.pgd_linf_step_(*on_cuda)
    _ops.pgd_linf_step_(*arguments)
    assert on_cuda[0].cpu().equal(arguments[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_runs_on_torchs_current_stream():
    """A kernel on the wrong stream would read x before the slow copy in front of it has written it."""
    x = torch.zeros(1 << 20, device="cuda")
    source = torch.full((1 << 20,), 0.5, device="cuda")
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.copy_(source)
        F.pgd_linf_step_(x, torch.ones_like(x), source, step_size=0.1, eps=0.2)
    stream.synchronize()
    assert x.eq(torch.tensor(0.5, device="cuda") + 0.1).all()
