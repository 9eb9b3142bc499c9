"""The Philox random start: bits, distribution, and independence of batch, layout and device."""

import math

import pytest
import torch

from ard_fast import functional as F
from ard_fast import reference

pytestmark = pytest.mark.sanitizer

SHAPES = [(1, 1), (2, 3), (3, 33), (5, 1, 8, 8), (4, 3, 7, 5), (2, 3, 32, 32)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, 12345678901234567, -1])
@pytest.mark.parametrize("clamp", [True, False])
def test_uniform_bits(shape, seed, clamp, device):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    out = F.random_start(x, eps=8 / 255, clamp=clamp, seed=seed)
    assert out.equal(reference.random_start(x, eps=8 / 255, clamp=clamp, seed=seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_normal_noise(shape, device):
    x = torch.zeros(shape, device=device)
    out = F.random_start(x, eps=0.1, init="normal", std=1.0, clamp=False, seed=3)
    expected = reference.random_start(x, eps=0.1, init="normal", std=1.0, clamp=False, seed=3)
    torch.testing.assert_close(out, expected, rtol=2e-6, atol=2e-7)


def test_normal_quantile_over_its_whole_range():
    """Every one of 2^20 uniforms, tails included, within 2 ulp-sized steps of the exact quantile."""
    x = torch.zeros(1, 2**20)
    out = F.random_start(x, eps=0.0, init="normal", std=1.0, clamp=False, seed=11).double()
    v = reference.philox_uniform(x.shape, seed=11).double()
    exact = torch.special.ndtri((1 + v) / 2)
    assert exact.abs().max() > 4.5  # the tail branch is reached
    assert ((out - exact).abs() <= 4e-7 * exact.abs() + 1e-9).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("init", ["uniform", "normal"])
@pytest.mark.parametrize("shape", SHAPES)
def test_same_bits_on_both_devices(init, shape):
    x = torch.rand(shape)
    settings = {"eps": 0.03, "init": init, "std": 0.5, "seed": 5}
    assert F.random_start(x.cuda(), **settings).cpu().equal(F.random_start(x, **settings))


@pytest.mark.parametrize("init", ["uniform", "normal"])
def test_a_samples_noise_does_not_depend_on_its_batch(init, device):
    x = torch.rand(8, 3, 5, 5, device=device)
    ids = torch.tensor([900, 7, 2**40 + 1, 3, 0, -5, 12, 13], device=device)
    whole = F.random_start(x, eps=0.1, init=init, seed=1, sample_ids=ids)
    order = torch.randperm(8, device=device)
    assert F.random_start(x[order], eps=0.1, init=init, seed=1, sample_ids=ids[order]).equal(whole[order])
    assert F.random_start(x[2:3], eps=0.1, init=init, seed=1, sample_ids=ids[2:3]).equal(whole[2:3])
    zeros = torch.zeros_like(x)
    noise = F.random_start(zeros, eps=0.1, init=init, clamp=False, seed=1, sample_ids=ids)
    assert not noise[0].equal(noise[1])


@pytest.mark.parametrize("init", ["uniform", "normal"])
@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (2, 3, 8, 8), (2, 4, 2, 3, 4), (3, 1, 4, 4)])
def test_layout_changes_nothing(init, shape, device):
    x = torch.rand(shape, device=device)
    last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    plain = F.random_start(x, eps=0.1, init=init, seed=2)
    out = F.random_start(x.contiguous(memory_format=last), eps=0.1, init=init, seed=2)
    assert out.equal(plain)
    assert out.is_contiguous(memory_format=last)
    assert F.random_start(x.transpose(2, 3).contiguous().transpose(2, 3), eps=0.1, init=init, seed=2).equal(plain)


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_unaligned_view(offset, device):
    flat = torch.rand(200, device=device)
    x = flat[offset : offset + 120].view(2, 60)
    assert F.random_start(x, eps=0.1, seed=4).equal(F.random_start(x.clone(), eps=0.1, seed=4))


def test_distribution():
    x = torch.zeros(64, 4096)
    uniform = F.random_start(x, eps=1.0, clamp=False, seed=5)
    normal = F.random_start(x, eps=0.0, init="normal", std=1.0, clamp=False, seed=5)
    n = uniform.numel()
    for values, variance, fourth in ((uniform, 1 / 3, 1 / 5), (normal, 1.0, 3.0)):
        values = values.double()
        # Five standard errors of each moment.
        assert abs(values.mean()) < 5 * math.sqrt(variance / n)
        assert abs(values.pow(2).mean() - variance) < 5 * math.sqrt((fourth - variance**2) / n)
        # Neighbouring pixels and neighbouring samples are uncorrelated.
        assert abs((values[:, 1:] * values[:, :-1]).mean()) < 5 * variance / math.sqrt(n)
        assert abs((values[1:] * values[:-1]).mean()) < 5 * variance / math.sqrt(n)
    assert uniform.abs().max() < 1.0


def test_per_sample_eps(device):
    x = torch.full((4, 3, 5), 0.5, device=device)
    eps = torch.tensor([0.0, 0.01, 0.1, 0.5], device=device)
    out = F.random_start(x, eps=eps, seed=6)
    assert out.equal(reference.random_start(x, eps=eps, seed=6))
    assert out[0].equal(x[0])


def test_stays_in_the_ball_and_the_bounds(device):
    x = torch.rand(16, 3, 9, device=device)
    out = F.random_start(x, eps=8 / 255, seed=7)
    assert (out - x).abs().max() <= 8 / 255 + 6e-8
    assert out.min() >= 0.0 and out.max() <= 1.0
    assert F.random_start(torch.ones_like(x), eps=0.1, clamp=False, seed=7).max() > 1.0


def test_nan_pixels_stay_nan(device):
    x = torch.tensor([[0.5, math.nan, 0.5]], device=device)
    assert F.random_start(x, eps=0.1, seed=8).isnan().tolist() == [[False, True, False]]


def test_seeds(device):
    x = torch.full((2, 8), 0.5, device=device)
    torch.manual_seed(0)
    first, second = F.random_start(x, eps=0.1), F.random_start(x, eps=0.1)
    assert not first.equal(second)
    torch.manual_seed(0)
    assert F.random_start(x, eps=0.1).equal(first)
    tensor = torch.tensor([42], device=device)
    assert F.random_start(x, eps=0.1, seed=tensor).equal(F.random_start(x, eps=0.1, seed=42))
    assert not F.random_start(x, eps=0.1, seed=43).equal(F.random_start(x, eps=0.1, seed=42))


BALLS = [("l2", "uniform"), ("l2", "surface"), ("linf", "surface")]


@pytest.mark.parametrize("norm, init", BALLS)
@pytest.mark.parametrize("shape", [*SHAPES, (4,)])
def test_balls(norm, init, shape, device):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    for clamp in (False, True):
        settings = {"eps": 0.5, "norm": norm, "init": init, "clamp": clamp, "seed": -9}
        out = F.random_start(x, **settings)
        if len(shape) > 1:
            torch.testing.assert_close(out, reference.random_start(x, **settings), rtol=0, atol=1e-6)
        delta = (out - x).double().reshape(shape[0], -1)
        sizes = torch.linalg.vector_norm(delta, ord=math.inf if norm == "linf" else 2, dim=1)
        assert (sizes <= 0.5 + 1e-6).all()
        if init == "surface" and not clamp:
            assert (sizes >= 0.5 - 1e-6).all()


def test_l2_distribution():
    """The radius has the distribution r^E of the ball, the direction none of its own; both vary by sample."""
    x = torch.zeros(20_000, 3)
    points = F.random_start(x, eps=2.0, norm="l2", clamp=False, seed=1).double()
    radii = points.norm(dim=1) / 2.0
    n = len(points)
    share = radii**3  # uniform on (0, 1)
    assert abs(share.mean() - 0.5) < 5 * math.sqrt(1 / 12 / n)
    assert abs(share.square().mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / n)
    directions = points / points.norm(dim=1, keepdim=True)
    assert (directions.mean(0).abs() < 5 * math.sqrt(1 / 3 / n)).all()
    moments = directions.T @ directions / n
    assert (moments - torch.eye(3) / 3).abs().max() < 5 * math.sqrt(4 / 45 / n)
    # Radius and direction come from different streams.
    assert abs((share[:, None] - 0.5).mul(directions).mean(0)).max() < 5 * math.sqrt(1 / 36 / n)


@pytest.mark.parametrize("norm, init", BALLS)
def test_balls_by_sample(norm, init, device):
    """A sample's start does not depend on its batch; eps may be per sample; layouts agree."""
    x = torch.rand(6, 3, 6, 5, device=device)
    ids = torch.tensor([9, 2**40, 3, 0, -5, 12], device=device)
    eps = torch.linspace(0, 0.5, 6, device=device)
    settings = {"norm": norm, "init": init, "seed": 1}
    whole = F.random_start(x, eps=eps, sample_ids=ids, **settings)
    torch.testing.assert_close(F.random_start(x[2:4], eps=eps[2:4], sample_ids=ids[2:4], **settings), whole[2:4])
    assert whole[0].equal(x[0])
    last = F.random_start(x.contiguous(memory_format=torch.channels_last), eps=eps, sample_ids=ids, **settings)
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, whole)
    assert not (whole[1] - x[1]).div(eps[1]).allclose((whole[2] - x[2]).div(eps[2]), atol=1e-2)


@pytest.mark.parametrize("norm, init", BALLS)
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0)])
def test_empty_balls(norm, init, shape, device):
    assert F.random_start(torch.empty(shape, device=device), eps=0.1, norm=norm, init=init).shape == shape


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0)])
def test_empty(shape, device):
    assert F.random_start(torch.empty(shape, device=device), eps=0.1).shape == shape


def test_the_input_is_left_alone(device):
    x = torch.rand(2, 9, device=device, requires_grad=True)
    before = x.detach().clone()
    out = F.random_start(x, eps=0.1)
    assert x.detach().equal(before) and not out.requires_grad


@pytest.mark.parametrize(
    "message, settings, error",
    [
        ("norm must be one of 'linf', 'l2', got 'l3'", {"norm": "l3"}, ValueError),
        ("init must be one of 'uniform', 'surface', 'normal', got 'gauss'", {"init": "gauss"}, ValueError),
        ("eps must be finite", {"eps": math.inf}, ValueError),
        ("std must be finite and at least 0", {"init": "normal", "std": -1.0}, ValueError),
        ("bounds must be", {"bounds": (0.5, 0.5)}, ValueError),
        ("seed must be an int of 64 bits", {"seed": 2**64}, ValueError),
        ("seed must be an int of 64 bits", {"seed": 1.5}, ValueError),
        ("seed must be int64, got float32", {"seed": torch.ones(1)}, RuntimeError),
        ("seed must have one element", {"seed": torch.ones(2, dtype=torch.int64)}, RuntimeError),
        (r"sample_ids must have shape \[2\]", {"sample_ids": torch.arange(3)}, RuntimeError),
        ("sample_ids must be int64", {"sample_ids": torch.arange(2, dtype=torch.int32)}, RuntimeError),
        (r"eps must have shape \[2\]", {"eps": torch.ones(5)}, RuntimeError),
    ],
)
def test_bad_calls(message, settings, error):
    with pytest.raises(error, match=message):
        F.random_start(torch.rand(2, 3), **{"eps": 0.1, **settings})


def test_bad_images():
    with pytest.raises(RuntimeError, match="x must be float32, got float64"):
        F.random_start(torch.rand(2, 3).double(), eps=0.1)
    with pytest.raises(RuntimeError, match="x must have a batch dimension"):
        F.random_start(torch.tensor(0.5), eps=0.1)
