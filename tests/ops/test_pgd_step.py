"""The fused L-infinity step against the published formula, bit for bit."""

import math

import pytest
import torch

from ard_fast import functional as F
from ard_fast import reference

pytestmark = pytest.mark.sanitizer

# NaN, infinities, both zeros, subnormals of either sign, and ordinary values, for the gradient.
EDGE_GRADS = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, -1e-40, 1.0, -2.5]
EDGE_PIXELS = [math.nan, 0.0, -0.0, 1.0, 0.5, 1e-40, -math.inf, math.inf]


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal as numbers, NaN equal to NaN. The sign of a zero is not compared: torch's own depends on the code path."""
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    assert same.all(), f"{int((~same).sum())} of {same.numel()} differ, first at {(~same).nonzero()[0].tolist()}"


def random_case(generator: torch.Generator, shape: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    x = torch.rand(shape, generator=generator)
    x_adv = x + 0.08 * torch.randn(shape, generator=generator)
    grad = torch.randn(shape, generator=generator)
    # A tenth of the entries exactly at the ball's edge, at the image's bounds or without gradient: the ties.
    for values, where in (
        (x + 0.05, x_adv),
        (x - 0.05, x_adv),
        (torch.zeros(shape), x_adv),
        (torch.zeros(shape), grad),
    ):
        pick = torch.rand(shape, generator=generator) < 0.1
        where[pick] = values[pick]
    return x_adv.to(device), grad.to(device), x.to(device)


# 1: a single pixel; 7, 33: odd tails of every vector width; 8x8 digits; 3x32x32 CIFAR; 5000: several blocks.
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 33), (5, 1, 8, 8), (4, 3, 32, 32), (2, 5000)])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("targeted", [False, True])
def test_bits_of_the_formula(shape, grad_dtype, targeted, device):
    generator = torch.Generator().manual_seed(sum(shape))
    x_adv, grad, x = random_case(generator, shape, device)
    grad = grad.to(grad_dtype)
    settings = {"step_size": 2 / 255, "eps": 0.05, "targeted": targeted}
    expected = reference.pgd_linf_step(x_adv, grad, x, **settings)
    assert F.pgd_linf_step_(x_adv, grad, x, **settings) is x_adv
    assert_same_bits(x_adv, expected)


def test_ten_thousand_random_cases_with_edge_values():
    """Every case has its own eps, step and pixels; values come from the edge lists a quarter of the time."""
    generator = torch.Generator().manual_seed(0)
    cases, pixels = 10_000, 37
    shape = (cases, pixels)
    x_adv, grad, x = random_case(generator, shape, torch.device("cpu"))
    for values, where in ((EDGE_GRADS, grad), (EDGE_PIXELS, x_adv), (EDGE_PIXELS, x)):
        picked = torch.tensor(values)[torch.randint(len(values), shape, generator=generator)]
        mask = torch.rand(shape, generator=generator) < 0.25
        where[mask] = picked[mask]
    # Sizes from a hundredth of a grey level to a quarter of the range, in one octave each.
    eps = torch.exp2(-12 * torch.rand(cases, generator=generator)) / 4
    step = torch.exp2(-12 * torch.rand(cases, generator=generator)) / 4
    expected = reference.pgd_linf_step(x_adv, grad, x, step_size=step, eps=eps)
    batched = F.pgd_linf_step_(x_adv.clone(), grad, x, step_size=step, eps=eps, check_bounds=False)
    assert_same_bits(batched, expected)
    for i in range(0, cases, 10):  # and one call a case, with plain numbers
        sizes = {"step_size": step[i].item(), "eps": eps[i].item()}
        one = F.pgd_linf_step_(x_adv[i].clone(), grad[i], x[i], **sizes, check_bounds=False)
        assert_same_bits(one, expected[i])


def test_edge_values(device):
    grads = torch.tensor(EDGE_GRADS, device=device)
    pixels = torch.tensor(EDGE_PIXELS, device=device)
    x_adv, grad, x = (t.flatten() for t in torch.meshgrid(pixels, grads, pixels, indexing="ij"))
    x_adv, grad, x = x_adv.clone(), grad.clone(), x.clone()
    expected = reference.pgd_linf_step(x_adv, grad, x, step_size=0.1, eps=0.3)
    F.pgd_linf_step_(x_adv, grad, x, step_size=0.1, eps=0.3, check_bounds=False)
    assert_same_bits(x_adv, expected)


@pytest.mark.parametrize(
    "grad_value, moves", [(math.nan, 0), (0.0, 0), (-0.0, 0), (1e-40, 1), (-1e-40, -1), (math.inf, 1)]
)
def test_sign_is_torch_sign(grad_value, moves, device):
    x = torch.full((1, 9), 0.5, device=device)
    x_adv = F.pgd_linf_step_(x.clone(), torch.full_like(x, grad_value), x, step_size=0.25, eps=0.5)
    assert x_adv.tolist() == [[0.5 + 0.25 * moves] * 9]


def test_nan_pixels_stay_nan(device):
    x = torch.full((1, 16), 0.5, device=device)
    bad = x.clone()
    bad[0, ::3] = math.nan
    for x_adv, clean in ((bad, x), (x, bad)):
        out = F.pgd_linf_step_(x_adv.clone(), torch.ones_like(x), clean, step_size=0.1, eps=0.2)
        assert out.isnan().equal(bad.isnan())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("per_sample", ["eps", "step_size", "both"])
def test_per_sample_sizes(memory_format, per_sample, device):
    generator = torch.Generator().manual_seed(1)
    # 75 elements a sample: no vector width divides it; 64 does divide.
    for shape in ((6, 3, 5, 5), (6, 1, 8, 8)):
        x_adv, grad, x = random_case(generator, shape, device)
        x_adv, grad, x = (t.contiguous(memory_format=memory_format) for t in (x_adv, grad, x))
        sizes = torch.linspace(0, 0.1, 6, device=device)
        settings = {"eps": sizes if per_sample != "step_size" else 0.05}
        settings["step_size"] = sizes.flip(0) if per_sample != "eps" else 0.02
        expected = reference.pgd_linf_step(x_adv, grad, x, **settings)
        F.pgd_linf_step_(x_adv, grad, x, **settings)
        assert_same_bits(x_adv, expected)


def test_scalar_tensors_and_integers_are_sizes_too(device):
    x_adv, grad, x = random_case(torch.Generator().manual_seed(2), (2, 11), device)
    expected = reference.pgd_linf_step(x_adv, grad, x, step_size=1.0, eps=0.05)
    eps = torch.tensor(0.05, dtype=torch.float64, device=device)
    F.pgd_linf_step_(x_adv, grad, x, step_size=1, eps=eps)
    assert_same_bits(x_adv, expected)


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16])
def test_unaligned_views(offset, grad_dtype, device):
    """Views that start anywhere: together at the same offset (head, vectors, tail) and each at its own."""
    for shifts in ((offset,) * 3, (offset, 0, 1), (0, offset, 2)):
        flat = random_case(torch.Generator().manual_seed(offset), (3, 131), device)
        x_adv, grad, x = (t.flatten()[s : s + 380].view(4, 95) for t, s in zip(flat, shifts, strict=True))
        grad = torch.empty(400, dtype=grad_dtype, device=device)[shifts[1] : shifts[1] + 380].view(4, 95).copy_(grad)
        guard = flat[0].clone()
        expected = reference.pgd_linf_step(x_adv, grad, x, step_size=0.02, eps=0.05)
        F.pgd_linf_step_(x_adv, grad, x, step_size=0.02, eps=0.05)
        assert_same_bits(x_adv, expected)
        outside = torch.ones(393, dtype=torch.bool, device=device)
        outside[shifts[0] : shifts[0] + 380] = False
        assert flat[0].flatten()[outside].equal(guard.flatten()[outside]), "wrote outside of the view"


def test_layouts_are_brought_together(device):
    """A gradient or image in another memory format than the iterate gives the same result."""
    x_adv, grad, x = random_case(torch.Generator().manual_seed(3), (2, 3, 6, 5), device)
    expected = reference.pgd_linf_step(x_adv, grad, x, step_size=0.02, eps=0.05)
    last = torch.channels_last
    for formats in ((False, True, False), (True, False, True), (True, True, False)):
        tensors = [
            t.contiguous(memory_format=last) if f else t.clone() for t, f in zip((x_adv, grad, x), formats, strict=True)
        ]
        strides = tensors[0].stride()
        F.pgd_linf_step_(*tensors, step_size=0.02, eps=0.05)
        assert_same_bits(tensors[0], expected)
        assert tensors[0].stride() == strides
    transposed = x_adv.transpose(0, 2).contiguous().transpose(0, 2)  # dense, in no named format
    F.pgd_linf_step_(transposed, grad, x, step_size=0.02, eps=0.05)
    assert_same_bits(transposed, expected)


def test_from_the_image_itself(device):
    """x_adv and x may be the same tensor: one FGSM step from the image."""
    x = torch.rand(2, 17, device=device)
    grad = torch.randn_like(x)
    expected = reference.pgd_linf_step(x, grad, x, step_size=0.1, eps=0.1)
    F.pgd_linf_step_(x, grad, x, step_size=0.1, eps=0.1)
    assert_same_bits(x, expected)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (4, 0), (0,)])
def test_empty(shape, device):
    x = torch.empty(shape, device=device)
    assert F.pgd_linf_step_(x.clone(), x, x, step_size=0.1, eps=0.1).shape == shape
    sizes = torch.empty(shape[0], device=device)
    assert F.pgd_linf_step_(x.clone(), x, x, step_size=sizes, eps=sizes).shape == shape


def test_other_bounds(device):
    x_adv, grad, x = random_case(torch.Generator().manual_seed(4), (2, 40), device)
    settings = {"step_size": 8.0, "eps": 16.0, "bounds": (-100.0, 255.0)}
    scaled = [255 * x_adv, grad, 255 * x]
    expected = reference.pgd_linf_step(*scaled, **settings)
    assert_same_bits(F.pgd_linf_step_(*scaled, **settings), expected)


def bad_calls():
    x = torch.rand(2, 3, 4, 4)
    ok = {"step_size": 0.1, "eps": 0.1}
    gappy = torch.rand(2, 3, 4, 8)[..., ::2]
    yield "grad.*shape of x_adv", (x, x[:1], x), ok, RuntimeError
    yield "^.*x must have the shape", (x, x, x[:, :2]), ok, RuntimeError
    yield "x_adv must be float32.*float64", (x.double(), x, x.double()), ok, RuntimeError
    yield "x_adv must be float32.*float16", (x.half(), x.half(), x.half()), ok, RuntimeError
    yield "x must be float32.*uint8", (x, x, x.byte()), ok, RuntimeError
    yield "grad must be float32, float16 or bfloat16, got int64", (x, x.long(), x), ok, RuntimeError
    yield "x_adv must be dense", (gappy, x, x), ok, RuntimeError
    yield "x_adv must be dense", (x[:1].expand(2, 3, 4, 4), x, x), ok, RuntimeError
    yield r"eps must have shape \[2\]", (x, x, x), {"step_size": 0.1, "eps": torch.ones(3)}, RuntimeError
    yield r"step_size must have shape \[2\]", (x, x, x), {"step_size": torch.ones(2, 1), "eps": 0.1}, RuntimeError
    yield "eps must be finite and at least 0, got -0.1", (x, x, x), {"step_size": 0.1, "eps": -0.1}, ValueError
    yield "step_size must be finite", (x, x, x), {"step_size": math.nan, "eps": 0.1}, ValueError
    yield "eps must be a number, got str", (x, x, x), {"step_size": 0.1, "eps": "big"}, TypeError
    yield "bounds must be", (x, x, x), {**ok, "bounds": (1.0, 0.0)}, ValueError
    yield "bounds must be a pair", (x, x, x), {**ok, "bounds": 1.0}, ValueError
    yield "x_adv must not require grad", (x.clone().requires_grad_(), x, x), ok, ValueError
    shifted = torch.rand(200)
    yield "must not partly overlap x", (shifted[1:97], shifted[100:196], shifted[:96]), ok, RuntimeError
    moved = x.transpose(0, 1)
    yield "batch dimension outermost", (moved, moved, moved), {"step_size": 0.1, "eps": torch.ones(3)}, RuntimeError


@pytest.mark.parametrize("message, tensors, settings, error", list(bad_calls()))
def test_bad_calls(message, tensors, settings, error):
    before = tensors[0].detach().clone()
    with pytest.raises(error, match=message):
        F.pgd_linf_step_(*tensors, **settings)
    assert tensors[0].detach().equal(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_devices_must_agree():
    x = torch.rand(2, 3)
    with pytest.raises(RuntimeError, match=r"grad must be on the device of x_adv \(cuda:0\), got cpu"):
        F.pgd_linf_step_(x.cuda(), x, x.cuda(), step_size=0.1, eps=0.1)


def test_the_write_is_counted():
    """Autograd must notice that a tensor it saved was stepped over (a silently wrong gradient otherwise)."""
    x = torch.rand(2, 5)
    weight = torch.rand(2, 5, requires_grad=True)
    product = weight * x  # saves x
    F.pgd_linf_step_(x, torch.ones(2, 5), x.clone(), step_size=0.1, eps=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
