"""The fused MI-FGSM step against the formula: momentum in float64, the sign step bit for bit along it."""

import math

import pytest
import torch

from ard_fast import functional as F
from ard_fast import reference

pytestmark = pytest.mark.sanitizer

SHAPES = [(1, 1), (1, 7), (3, 33), (5, 1, 8, 8), (4, 3, 32, 32), (3, 5000), (2, 3, 224, 224)]
SETTINGS = {"step_size": 2 / 255, "eps": 8 / 255}


def random_case(seed, shape, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator)
    x_adv = x + 0.05 * torch.randn(shape, generator=generator)
    momentum = torch.randn(shape, generator=generator) / x[:1].numel()
    grad = 1e-3 * torch.randn(shape, generator=generator)
    return tuple(t.to(device) for t in (x_adv, momentum, grad, x))


def check(x_adv, momentum, grad, x, **settings):
    """Steps in place; the momentum to float accuracy, the pixels bit for bit from the momentum there is now."""
    before, momentum_before = x_adv.clone(), momentum.clone()
    _, expected = reference.mifgsm_step(before, momentum_before, grad, x, **settings)
    assert F.mifgsm_step_(x_adv, momentum, grad, x, **settings) is x_adv
    torch.testing.assert_close(momentum, expected, rtol=5e-7, atol=3e-7 / x[:1].numel())
    settings.pop("decay", None)
    stepped = reference.pgd_linf_step(before, momentum, x, **settings)
    assert x_adv.equal(stepped)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("targeted", [False, True])
def test_formula(shape, grad_dtype, targeted, device):
    x_adv, momentum, grad, x = random_case(sum(shape), shape, device)
    for decay in (1.0, 0.25):
        check(x_adv, momentum, grad.to(grad_dtype), x, decay=decay, targeted=targeted, **SETTINGS)


@pytest.mark.parametrize("scale", [1e38, 1e20, 1e-20, 1e-38, 1e-40, 1e-44])
def test_gradients_of_any_size(scale, device):
    x_adv, _, _, x = random_case(3, (4, 3, 5, 5), device)
    signs = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(4)).to(device).sign()
    momentum = torch.zeros_like(x)
    F.mifgsm_step_(x_adv, momentum, signs * torch.tensor(scale, device=device), x, **SETTINGS)
    torch.testing.assert_close(momentum, signs / 75, rtol=5e-7, atol=0)


@pytest.mark.parametrize("zero", [0.0, -0.0, math.nan])
def test_a_zero_gradient_adds_nothing(zero, device):
    x_adv, momentum, grad, x = random_case(5, (3, 40), device)
    momentum[0] = 0.0
    before, pixels = momentum.clone(), x_adv.clone()
    F.mifgsm_step_(x_adv, momentum, grad.fill_(zero), x, decay=1.0, **SETTINGS)
    assert momentum.equal(before)
    assert x_adv.equal(reference.pgd_linf_step(pixels, momentum, x, **SETTINGS))
    F.mifgsm_step_(x_adv, momentum, grad, x, decay=0.5, **SETTINGS)
    assert momentum.equal(0.5 * before)


def test_infinite_and_nan_gradients(device):
    x = torch.full((1, 8), 0.5, device=device)
    momentum = torch.zeros_like(x)
    grad = torch.tensor([[math.inf, -math.inf, math.nan, 1.0, 0.0, 1e38, -1.0, 2.0]], device=device)
    F.mifgsm_step_(x.clone(), momentum, grad, x, **SETTINGS)
    largest = torch.finfo(torch.float32).max
    total = 2 * largest + 1e38
    expected = torch.tensor([[largest / total, -largest / total, 0, 0, 0, 1e38 / total, 0, 0]], device=device)
    torch.testing.assert_close(momentum, expected, rtol=1e-6, atol=1e-37)


def test_nan_momentum_stays_and_does_not_move(device):
    x = torch.full((1, 9), 0.5, device=device)
    momentum = torch.zeros_like(x)
    momentum[0, 4] = math.nan
    x_adv = F.mifgsm_step_(x.clone(), momentum, torch.ones_like(x), x, **SETTINGS)
    assert momentum.isnan().sum() == 1
    assert x_adv[0, 4] == 0.5 and (x_adv.ne(0.5).sum() == 8)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_per_sample_sizes_and_layouts(memory_format, device):
    for shape in ((6, 3, 5, 5), (6, 1, 8, 8)):
        tensors = [t.contiguous(memory_format=memory_format) for t in random_case(1, shape, device)]
        sizes = torch.linspace(0, 0.1, 6, device=device)
        check(*tensors, step_size=sizes.flip(0), eps=sizes)
        check(*tensors, step_size=0.02, eps=sizes)
    x_adv, momentum, grad, x = random_case(2, (2, 3, 6, 5), device)
    check(x_adv, momentum, grad.contiguous(memory_format=torch.channels_last), x, **SETTINGS)


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16])
def test_unaligned_views(offset, grad_dtype, device):
    for shifts in ((offset,) * 4, (offset, 0, 0, 1), (0, offset, 2, 3)):
        flat = random_case(offset, (3, 131), device)
        x_adv, momentum, grad, x = (t.flatten()[s : s + 384].view(4, 96) for t, s in zip(flat, shifts, strict=True))
        grad = torch.empty(400, dtype=grad_dtype, device=device)[shifts[2] : shifts[2] + 384].view(4, 96).copy_(grad)
        guards = flat[0].clone(), flat[1].clone()
        check(x_adv, momentum, grad, x, **SETTINGS)
        for whole, guard, shift in zip(flat, guards, shifts, strict=False):
            outside = torch.ones(393, dtype=torch.bool, device=device)
            outside[shift : shift + 384] = False
            assert whole.flatten()[outside].equal(guard.flatten()[outside]), "wrote outside of the view"


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (4, 0)])
def test_empty(shape, device):
    x = torch.empty(shape, device=device)
    assert F.mifgsm_step_(x.clone(), x.clone(), x, x, **SETTINGS).shape == shape


def bad_calls():
    x = torch.rand(2, 3, 4, 4)
    m = torch.zeros_like(x)
    yield "momentum must have the shape of x_adv", (x, m[:1], x, x), {}, RuntimeError
    yield "momentum must be float32, got float16", (x, m.half(), x, x), {}, RuntimeError
    last = m.contiguous(memory_format=torch.channels_last)
    yield "momentum must have the memory layout of x_adv", (x, last, x, x), {}, RuntimeError
    yield "momentum must not overlap x_adv", (x, x, x, x), {}, RuntimeError
    yield "momentum must not overlap grad", (x, m, m, x), {}, RuntimeError
    yield "grad must have the shape of x_adv", (x, m, x[:1], x), {}, RuntimeError
    yield "x_adv must be float32", (x.double(), m, x, x), {}, RuntimeError
    yield "decay must be finite and at least 0, got -1", (x, m, x, x), {"decay": -1.0}, ValueError
    yield "eps must be finite", (x, m, x, x), {"eps": math.nan}, ValueError
    yield "momentum must not require grad", (x, m.clone().requires_grad_(), x, x), {}, ValueError
    yield "x_adv must not require grad", (x.clone().requires_grad_(), m, x, x), {}, ValueError
    moved = x.transpose(0, 1)
    yield "batch dimension outermost", (moved, moved.clone(), moved, moved), {}, RuntimeError


@pytest.mark.parametrize("message, tensors, settings, error", list(bad_calls()))
def test_bad_calls(message, tensors, settings, error):
    before = tensors[0].detach().clone(), tensors[1].detach().clone()
    with pytest.raises(error, match=message):
        F.mifgsm_step_(*tensors, **{**SETTINGS, **settings})
    assert tensors[0].detach().equal(before[0]) and tensors[1].detach().equal(before[1])


@pytest.mark.parametrize("which", [0, 1])
def test_the_writes_are_counted(which):
    tensors = [torch.rand(2, 5) for _ in range(4)]
    product = torch.rand(2, 5, requires_grad=True) * tensors[which]
    F.mifgsm_step_(*tensors, **SETTINGS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
