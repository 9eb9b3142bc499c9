"""The fused L2 step against the formula in float64."""

import math

import pytest
import torch

from ard_fast import functional as F
from ard_fast import reference

pytestmark = pytest.mark.sanitizer

# 1: a single pixel; 7, 33: odd tails; 8x8 digits; 3x32x32 CIFAR; 3x224x224 ImageNet.
SHAPES = [(1, 1), (1, 7), (3, 33), (5, 1, 8, 8), (4, 3, 32, 32), (3, 5000), (2, 3, 224, 224)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def random_case(seed, shape, device="cpu", eps=0.5):
    """Points within, on and beyond the ball around x, and a gradient of any direction."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator)
    away = torch.randn(shape, generator=generator)
    away = away / away.reshape(shape[0], -1).norm(dim=1).reshape(-1, *(1,) * (len(shape) - 1))
    radii = eps * torch.linspace(0.0, 1.2, shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
    grad = torch.randn(shape, generator=generator)
    return (x + radii * away).to(device), grad.to(device), x.to(device)


def distances(x_adv, x):
    return (x_adv.double() - x.double()).reshape(len(x), -1).norm(dim=1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("grad_dtype", DTYPES)
@pytest.mark.parametrize("targeted", [False, True])
def test_formula(shape, grad_dtype, targeted, device):
    x_adv, grad, x = random_case(sum(shape), shape, device)
    grad = grad.to(grad_dtype)
    settings = {"step_size": 0.2, "eps": 0.5, "targeted": targeted, "bounds": (-0.05, 1.02)}
    expected = reference.pgd_l2_step(x_adv, grad, x, **settings)
    before = x_adv.clone()
    assert F.pgd_l2_step_(x_adv, grad, x, **settings) is x_adv
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=2e-7)
    assert not x_adv.equal(before)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pixel", [None, 0.7, 1.0, 1e-6])
def test_the_ball_is_never_left(shape, pixel, device, on_cpu):
    """Images of one colour are the hard case: there every pixel's rounding points the same way."""
    if shape[-1] == 224 and not on_cpu:
        shape = (1, 3, 96, 96)  # for an emulated GPU's sake
    for seed, eps in enumerate((0.5, 3.0, 1 / 255)):
        x_adv, grad, x = random_case(seed, shape, device, eps)
        if pixel is not None:
            x_adv += pixel - x
            x.fill_(pixel)
            grad.copy_(grad.sign())
        for _ in range(3):
            F.pgd_l2_step_(x_adv, grad, x, step_size=4 * eps, eps=eps, bounds=(-10.0, 10.0))
            assert (distances(x_adv, x) <= eps * (1 + 1.2e-7)).all()
        # It is reached all the same, but for at most an ulp a pixel.
        slack = math.sqrt(x[0].numel()) * 1.2e-7
        assert (distances(x_adv, x) >= eps - slack - 1e-6 * eps).all()


# Entries that are huge, tiny, subnormal or mixed: the direction is what counts.
@pytest.mark.parametrize("scale", [1e38, 1e20, 1e-20, 1e-38, 1e-40, 1e-44])
def test_gradients_of_any_size(scale, device):
    x_adv, _, x = random_case(3, (4, 3, 5, 5), device)
    signs = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(4)).to(device).sign()
    grad = signs * torch.tensor(scale, device=device)
    expected = reference.pgd_l2_step(x_adv, signs, x, step_size=0.2, eps=0.5)
    F.pgd_l2_step_(x_adv, grad, x, step_size=0.2, eps=0.5)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=2e-7)


def test_one_entry_decides(device):
    """Beside an entry of 1e38 those of 1 are nothing; a lone subnormal is a direction."""
    x = torch.full((2, 20), 0.5, device=device)
    grad = torch.zeros(2, 20, device=device)
    grad[0] = 1.0
    grad[0, 3] = -1e38
    grad[1, 7] = 1e-45
    out = F.pgd_l2_step_(x.clone(), grad, x, step_size=0.25, eps=1.0)
    expected = x.clone()
    expected[0, 3] -= 0.25
    expected[1, 7] += 0.25
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("zero", [0.0, -0.0, math.nan])
def test_no_gradient_no_move(zero, device):
    x_adv, grad, x = random_case(5, (3, 40), device)
    inside = (x + 0.3 * (x_adv - x)).clamp(0.0, 1.0)
    assert F.pgd_l2_step_(inside.clone(), grad.fill_(zero), x, step_size=0.2, eps=0.5).allclose(inside, atol=1e-7)
    # From the image itself, where the distance to scale is zero as well.
    assert F.pgd_l2_step_(x.clone(), grad, x, step_size=0.2, eps=0.5).equal(x)
    assert F.pgd_l2_step_(x.clone(), grad, x, step_size=0.2, eps=0.0).equal(x)


def test_infinite_and_nan_gradients(device):
    """An infinity counts as the largest float, so that the sample moves along its infinities."""
    x = torch.full((1, 8), 0.5, device=device)
    grad = torch.tensor([[math.inf, -math.inf, math.nan, 1.0, 0.0, 1.0, -1.0, 2.0]], device=device)
    out = F.pgd_l2_step_(x.clone(), grad, x, step_size=0.1, eps=1.0)
    expected = torch.tensor([[1.0, -1.0, 0, 0, 0, 0, 0, 0]], device=device) * 0.1 / math.sqrt(2) + 0.5
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-7)


def test_nan_pixels_spoil_their_sample_only(device):
    x_adv, grad, x = random_case(6, (3, 40), device)
    expected = reference.pgd_l2_step(x_adv, grad, x, step_size=0.2, eps=0.5)
    for spoiled in (x_adv, x):
        tensors = [x_adv.clone(), grad, x.clone()]
        tensors[0 if spoiled is x_adv else 2][1, 3] = math.nan
        out = F.pgd_l2_step_(*tensors, step_size=0.2, eps=0.5)
        assert out[1].isnan().all()
        torch.testing.assert_close(out[::2], expected[::2], rtol=0, atol=2e-7)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("per_sample", ["eps", "step_size", "both"])
def test_per_sample_sizes(memory_format, per_sample, device):
    for shape in ((6, 3, 5, 5), (6, 1, 8, 8)):
        x_adv, grad, x = (t.contiguous(memory_format=memory_format) for t in random_case(1, shape, device))
        sizes = torch.linspace(0, 0.6, 6, device=device)
        settings = {"eps": sizes if per_sample != "step_size" else 0.5}
        settings["step_size"] = sizes.flip(0) if per_sample != "eps" else 0.2
        expected = reference.pgd_l2_step(x_adv, grad, x, **settings)
        F.pgd_l2_step_(x_adv, grad, x, **settings)
        torch.testing.assert_close(x_adv, expected, rtol=0, atol=2e-7)
        assert x_adv.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16])
def test_unaligned_views(offset, grad_dtype, device):
    for shifts in ((offset,) * 3, (offset, 0, 1), (0, offset, 2)):
        for numel in (95, 96):
            flat = random_case(offset, (5, 131), device)
            x_adv, grad, x = (t.flatten()[s : s + 4 * numel].view(4, numel) for t, s in zip(flat, shifts, strict=True))
            grad = (
                torch.empty(400, dtype=grad_dtype, device=device)[shifts[1] : shifts[1] + 4 * numel]
                .view(4, numel)
                .copy_(grad)
            )
            guard = flat[0].clone()
            expected = reference.pgd_l2_step(x_adv, grad, x, step_size=0.3, eps=0.5)
            F.pgd_l2_step_(x_adv, grad, x, step_size=0.3, eps=0.5)
            torch.testing.assert_close(x_adv, expected, rtol=0, atol=2e-7)
            outside = torch.ones(655, dtype=torch.bool, device=device)
            outside[shifts[0] : shifts[0] + 4 * numel] = False
            assert flat[0].flatten()[outside].equal(guard.flatten()[outside]), "wrote outside of the view"


def test_layouts_are_brought_together(device):
    x_adv, grad, x = random_case(3, (2, 3, 6, 5), device)
    expected = reference.pgd_l2_step(x_adv, grad, x, step_size=0.2, eps=0.5)
    last = torch.channels_last
    for formats in ((False, True, False), (True, False, True), (True, True, False)):
        tensors = [
            t.contiguous(memory_format=last) if f else t.clone() for t, f in zip((x_adv, grad, x), formats, strict=True)
        ]
        strides = tensors[0].stride()
        F.pgd_l2_step_(*tensors, step_size=0.2, eps=0.5)
        torch.testing.assert_close(tensors[0], expected, rtol=0, atol=2e-7)
        assert tensors[0].stride() == strides


def test_from_the_image_itself(device):
    x = torch.rand(2, 17, device=device)
    grad = torch.randn_like(x)
    expected = reference.pgd_l2_step(x, grad, x, step_size=0.1, eps=0.05)
    F.pgd_l2_step_(x, grad, x, step_size=0.1, eps=0.05)
    torch.testing.assert_close(x, expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (4, 0), (0,)])
def test_empty(shape, device):
    x = torch.empty(shape, device=device)
    assert F.pgd_l2_step_(x.clone(), x, x, step_size=0.1, eps=0.1).shape == shape
    sizes = torch.empty(shape[0], device=device)
    assert F.pgd_l2_step_(x.clone(), x, x, step_size=sizes, eps=sizes).shape == shape


def bad_calls():
    x = torch.rand(2, 3, 4, 4)
    ok = {"step_size": 0.1, "eps": 0.1}
    gappy = torch.rand(2, 3, 4, 8)[..., ::2]
    yield "grad.*shape of x_adv", (x, x[:1], x), ok, RuntimeError
    yield "^.*x must have the shape", (x, x, x[:, :2]), ok, RuntimeError
    yield "x_adv must be float32.*float64", (x.double(), x, x.double()), ok, RuntimeError
    yield "x must be float32.*uint8", (x, x, x.byte()), ok, RuntimeError
    yield "grad must be float32, float16 or bfloat16, got int64", (x, x.long(), x), ok, RuntimeError
    yield "x_adv must be dense", (gappy, x, x), ok, RuntimeError
    yield r"eps must have shape \[2\]", (x, x, x), {"step_size": 0.1, "eps": torch.ones(3)}, RuntimeError
    yield "eps must be finite and at least 0, got -0.1", (x, x, x), {"step_size": 0.1, "eps": -0.1}, ValueError
    yield "step_size must be finite", (x, x, x), {"step_size": math.inf, "eps": 0.1}, ValueError
    yield "bounds must be", (x, x, x), {**ok, "bounds": (1.0, 0.0)}, ValueError
    yield "x_adv must not require grad", (x.clone().requires_grad_(), x, x), ok, ValueError
    shifted = torch.rand(200)
    yield (
        "must not partly overlap x",
        (shifted[1:97].view(2, 48), x.view(2, 48), shifted[:96].view(2, 48)),
        ok,
        (RuntimeError),
    )
    moved = x.transpose(0, 1)
    yield "batch dimension outermost", (moved, moved, moved), ok, RuntimeError
    scalar = torch.tensor(0.5)
    yield "batch dimension", (scalar, scalar, scalar), ok, RuntimeError


@pytest.mark.parametrize("message, tensors, settings, error", list(bad_calls()))
def test_bad_calls(message, tensors, settings, error):
    before = tensors[0].detach().clone()
    with pytest.raises(error, match=message):
        F.pgd_l2_step_(*tensors, **settings)
    assert tensors[0].detach().equal(before)


def test_the_write_is_counted():
    x = torch.rand(2, 5)
    weight = torch.rand(2, 5, requires_grad=True)
    product = weight * x  # saves x
    F.pgd_l2_step_(x, torch.ones(2, 5), x.clone(), step_size=0.1, eps=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
