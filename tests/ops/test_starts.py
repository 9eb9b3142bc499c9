"""The Philox random start and the choice of the best of several: the formulas for any shape, layout and edge value."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import often
from property_tensors import (
    EDGES,
    UNIT,
    bounds,
    layouts,
    over,
    permutation,
    same,
    seeds,
    shapes,
    shares,
    sizes,
    untouched_around,
    with_edges,
)

from ard_fast import functional as F
from ard_fast import reference

pytestmark = pytest.mark.sanitizer

# Drawn pixels lie outside the bounds, too, and balls are wider than they are.
random_start = partial(F.random_start, check_bounds=False)
WAYS = [(norm, init) for norm in ("linf", "l2") for init in ("uniform", "surface", "normal")]
SHAPES = [(1, 1), (3, 33), (5, 1, 8, 8), (4, 3, 7, 5), (2, 3, 32, 32)]


def check(found, x, settings):
    """Bits where nothing but products and sums are taken; else the roundings of a norm or a quantile."""
    expected = reference.random_start(x, **settings)
    assert found.shape == x.shape and found.dtype == torch.float32
    if (settings["norm"], settings["init"]) == ("linf", "uniform"):
        assert same(found, expected)
    else:
        eps = torch.as_tensor(settings["eps"])
        size = settings["std"] if settings["init"] == "normal" else float(eps.max()) if eps.numel() else 0.0
        assert ((found - expected).abs() <= 4 * UNIT * (x.abs() + 8 * size) + 1e-9 * size).all()


@pytest.mark.parametrize("norm, init", WAYS)
def test_formula(norm, init, device):
    """On every device, in either memory order, with the bits of the plain one where they are promised."""
    for shape, seed in zip(SHAPES, (0, 12345678901234567, -1, 7, -9), strict=True):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
        settings = {"norm": norm, "init": init, "eps": 0.1, "std": 0.5, "seed": seed}
        for clamp in (True, False):
            found = F.random_start(x, clamp=clamp, **settings)
            check(found, x, settings | {"clamp": clamp})
        if len(shape) == 4:
            last = F.random_start(x.contiguous(memory_format=torch.channels_last), clamp=False, **settings)
            assert last.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(last, found, rtol=0, atol=0 if init == "normal" or norm == "linf" else 1e-7)


@pytest.mark.parametrize("init", ["uniform", "surface", "normal"])
def test_images_of_8_bits_start_as_such(init, device):
    """The bits of uint8 / 255, in the ball counted in levels; uniform noise is that of the formula, then rounded."""
    levels = torch.arange(256).repeat(2, 8).reshape(2, 4, 16, 32)
    x, settings = (levels / 255).to(device), {"eps": 7.905 / 255, "init": init, "std": 0.01, "seed": 5, "levels": 255}
    found = F.random_start(x, **settings)
    at = (found.cpu() * 255).round().to(torch.uint8)
    assert same(found.cpu(), at.float() / 255)
    moved = (at.long() - levels).abs()
    assert moved.max() == 7 or (init == "normal" and moved.max() > 7)
    if init == "uniform":
        assert same(found, reference.random_start(x, **settings))
    last = F.random_start(x.contiguous(memory_format=torch.channels_last), **settings)
    assert last.is_contiguous(memory_format=torch.channels_last) and same(last.contiguous(), found)
    tensor = torch.full((2,), 7.905 / 255, device=device)
    assert same(F.random_start(x, **settings | {"eps": tensor}), found)


words = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from((0, -1, 2**32 - 1, 2**32)))


@st.composite
def starts(draw):
    """Images, layout and arguments of a random start."""
    shape = draw(shapes(least=2))
    generator = torch.Generator().manual_seed(draw(seeds))
    x = torch.rand(shape, generator=generator)
    eps = draw(sizes)
    if draw(st.booleans()):
        eps = eps * torch.rand(shape[0], generator=generator)
    ids = torch.randint(-(2**62), 2**62, shape[:1], generator=generator) if draw(st.booleans()) else None
    norm, init = draw(st.sampled_from(WAYS))
    settings = {"eps": eps, "norm": norm, "init": init, "std": draw(st.sampled_from((0.0, 0.001, 1.0)))}
    settings |= {"clamp": draw(st.booleans()), "bounds": draw(bounds), "seed": draw(words), "sample_ids": ids}
    return x, draw(layouts()), settings


@given(starts())
@often
def test_start_for_any_arguments(case):
    """The formula; in the ball and the bounds; a sample known by its id, whatever its batch and layout."""
    x, layout, settings = case
    whole = random_start(layout.place(x), **settings)
    check(whole, x, settings)
    eps, (low, high) = torch.as_tensor(settings["eps"]), settings["bounds"]
    if settings["clamp"]:
        assert (whole >= low).all() and (whole <= high).all()
    elif settings["init"] != "normal" and settings["norm"] == "linf":
        away = over(eps, x) if eps.dim() else eps
        assert ((whole <= x + away) & (whole >= x - away)).all()
    elif settings["init"] != "normal" and x.numel():
        slack = UNIT * (math.sqrt(x[0].numel()) * 2 + 4 * eps)  # every pixel's own rounding
        assert ((whole - x).double().flatten(1).norm(dim=1) <= eps + slack).all()
    ids = torch.arange(len(x)) if settings["sample_ids"] is None else settings["sample_ids"]
    only = permutation(len(x), 1)[: (len(x) + 1) // 2]
    part = random_start(x[only], **settings | {"eps": eps[only] if eps.dim() else eps, "sample_ids": ids[only]})
    if settings["init"] == "normal" or (settings["norm"], settings["init"]) == ("linf", "uniform"):
        assert same(part, whole[only])
    elif part.numel():
        assert ((part - whole[only]).abs() <= 4 * UNIT * (x[only].abs() + eps.max())).all()


def test_philox_is_random123s():
    """The published answer for a counter and a key of zeros."""
    words = reference.philox_bits(4, seed=0, sample_ids=torch.zeros(1, dtype=torch.int64))
    assert words.tolist() == [[0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]]


def test_normal_quantile_over_its_whole_range():
    """Every one of 2^20 uniforms, tails included, within 2 ulp-sized steps of the exact quantile."""
    x = torch.zeros(1, 2**20)
    out = F.random_start(x, eps=0.0, init="normal", std=1.0, clamp=False, seed=11).double()
    exact = torch.special.ndtri((1 + reference.philox_uniform(x.shape, seed=11).double()) / 2)
    assert exact.abs().max() > 4.5  # the tail branch is reached
    assert ((out - exact).abs() <= 4e-7 * exact.abs() + 1e-9).all()


def test_distribution():
    """Moments and correlations of neighbours within five standard errors."""
    x = torch.zeros(64, 4096)
    uniform = F.random_start(x, eps=1.0, clamp=False, seed=5).double()
    normal = F.random_start(x, eps=0.0, init="normal", std=1.0, clamp=False, seed=5).double()
    n = uniform.numel()
    for values, variance, fourth in ((uniform, 1 / 3, 1 / 5), (normal, 1.0, 3.0)):
        assert abs(values.mean()) < 5 * math.sqrt(variance / n)
        assert abs(values.pow(2).mean() - variance) < 5 * math.sqrt((fourth - variance**2) / n)
        assert abs((values[:, 1:] * values[:, :-1]).mean()) < 5 * variance / math.sqrt(n)
        assert abs((values[1:] * values[:-1]).mean()) < 5 * variance / math.sqrt(n)
    # In the L2 ball the radius to the power of the dimension is uniform, and the direction another stream's.
    points = F.random_start(torch.zeros(20_000, 3), eps=2.0, norm="l2", clamp=False, seed=1).double()
    n, share = len(points), (points.norm(dim=1) / 2.0) ** 3
    directions = points / points.norm(dim=1, keepdim=True)
    assert abs(share.mean() - 0.5) < 5 * math.sqrt(1 / 12 / n)
    assert abs(share.square().mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / n)
    assert (directions.mean(0).abs() < 5 * math.sqrt(1 / 3 / n)).all()
    assert abs((share[:, None] - 0.5).mul(directions).mean(0)).max() < 5 * math.sqrt(1 / 36 / n)


def test_seeds(device):
    x = torch.full((2, 8), 0.5, device=device, requires_grad=True)
    torch.manual_seed(0)
    first, second = F.random_start(x, eps=0.1), F.random_start(x, eps=0.1)
    assert not first.equal(second) and not first.requires_grad
    torch.manual_seed(0)
    assert F.random_start(x, eps=0.1).equal(first)
    tensor = torch.tensor([42], device=device)
    assert F.random_start(x, eps=0.1, seed=tensor).equal(F.random_start(x, eps=0.1, seed=42))
    assert not F.random_start(x, eps=0.1, seed=43).equal(F.random_start(x, eps=0.1, seed=42))


def test_nan_pixels_stay_nan(device):
    x = torch.tensor([[0.5, math.nan, 0.5]], device=device)
    assert F.random_start(x, eps=0.1, seed=8).isnan().tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("message", "changes", "error"),
    [
        ("norm must be one of 'linf', 'l2', got 'l3'", {"norm": "l3"}, ValueError),
        ("init must be one of 'uniform', 'surface', 'normal', got 'gauss'", {"init": "gauss"}, ValueError),
        ("eps must be finite", {"eps": math.inf}, ValueError),
        ("levels must be None for norm='l2'", {"levels": 255, "norm": "l2"}, ValueError),
        ("clamp must be True with levels", {"levels": 255, "clamp": False}, ValueError),
        ("x must hold whole levels, k/16", {"levels": 16, "x": torch.full((2, 3), 0.1)}, ValueError),
        ("std must be finite and at least 0", {"init": "normal", "std": -1.0}, ValueError),
        ("bounds must be", {"bounds": (0.5, 0.5)}, ValueError),
        ("seed must be an int of 64 bits", {"seed": 2**64}, ValueError),
        ("seed must be an int of 64 bits", {"seed": 1.5}, ValueError),
        ("seed must be int64, got float32", {"seed": torch.ones(1)}, RuntimeError),
        ("seed must have one element", {"seed": torch.ones(2, dtype=torch.int64)}, RuntimeError),
        (r"sample_ids must have shape \[2\]", {"sample_ids": torch.arange(3)}, RuntimeError),
        ("sample_ids must be int64", {"sample_ids": torch.arange(2, dtype=torch.int32)}, RuntimeError),
        (r"eps must have shape \[2\]", {"eps": torch.ones(5)}, RuntimeError),
        (r"eps must have shape \[2\]", {"eps": torch.ones(5), "norm": "l2"}, RuntimeError),
        ("x must be float32, got float64", {"x": torch.rand(2, 3).double()}, RuntimeError),
        ("x must have a batch dimension", {"x": torch.tensor(0.5)}, RuntimeError),
    ],
)
def test_bad_starts(message, changes, error):
    with pytest.raises(error, match=message):
        F.random_start(**{"x": torch.rand(2, 3), "eps": 0.1, **changes})


# ---- the better of two


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5, 5), (3, 32, 32), (4099,)], ids=str)
def test_select_best_for_every_pair_of_losses(shape, lower, device):
    """NaN never wins and always loses; at a tie the earlier one stays. Pixels are moved, not judged."""
    edges = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, -1e-45, 1.0, 2.0], device=device)
    best_loss, loss = (t.flatten() for t in torch.meshgrid(edges, edges, indexing="ij"))
    best, candidate = torch.rand(2, len(loss), *shape, device=device)
    candidate.view(-1)[::7] = math.nan
    expected = reference.select_best(best, best_loss, candidate, loss, lower=lower)
    out = F.select_best_(best, best_loss, candidate, loss, lower=lower)
    assert same(best, expected[0]) and same(out, expected[1])
    better = loss < best_loss if lower else loss > best_loss
    assert (out.isnan() == (best_loss.isnan() & loss.isnan())).all() and same(out[better], loss[better])


@given(shapes(), seeds, shares, layouts(dense=True, keep_batch=True), layouts(), st.booleans())
@often
def test_select_best_for_any_arguments(shape, seed, share, layout, layout_candidate, lower):
    generator = torch.Generator().manual_seed(seed)
    best, candidate = (with_edges(torch.rand(shape, generator=generator), share, EDGES, generator) for _ in range(2))
    losses = torch.randint(-2, 3, (shape[0], 2), generator=generator).float().unbind(1)  # of any stride
    expected = reference.select_best(best, losses[0], candidate, losses[1], lower=lower)
    kept, given_candidate = layout.place(best), layout_candidate.place(candidate)
    found = F.select_best_(kept, losses[0], given_candidate, losses[1], lower=lower)
    assert same(kept, expected[0]) and same(found, expected[1]) and untouched_around(kept)
    assert same(given_candidate, candidate), "an input was written"


def test_bad_selections():
    x, rows, memory = torch.rand(2, 3, 4, 4), torch.zeros(2), torch.rand(100)
    moved, three = x.transpose(0, 1), torch.zeros(3)
    for message, arguments, error in (
        ("candidate must have the shape of best", (x, rows, x[:1], rows), RuntimeError),
        ("best must be float32, got float64", (x.double(), rows, x, rows), RuntimeError),
        ("candidate must be float32, got float16", (x, rows, x.half(), rows), RuntimeError),
        (r"best_loss must have shape \[2\]", (x, three, x, rows), RuntimeError),
        ("loss must be float32, got float64", (x, rows, x, rows.double()), RuntimeError),
        ("best must be dense", (torch.rand(2, 3, 4, 8)[..., ::2], rows, x, rows), RuntimeError),
        ("best must have its batch dimension outermost", (moved, three, moved, three), RuntimeError),
        ("partly overlap candidate", (memory[:96].view(2, 48), rows, memory[4:].view(2, 48), rows), RuntimeError),
        ("best must not require grad", (x.clone().requires_grad_(), rows, x, rows), ValueError),
    ):
        with pytest.raises(error, match=message):
            F.select_best_(*arguments)
    with pytest.raises(RuntimeError, match="best_loss_out must not overlap best_loss"):  # which other blocks read
        torch.ops.ard_fast.select_best_(x, x.clone(), memory[:2], memory[2:4], memory[1:3], False)
