"""Random starts, the choice of the best, and the crop and flip, for any shape, layout, dtype and edge value."""

import math
from functools import partial

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
    with_edges,
)

from ard_fast import functional as F
from ard_fast import reference

# Drawn pixels lie outside the bounds, too, and balls are wider than they are.
random_start = partial(F.random_start, check_bounds=False)

words = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from((0, -1, 2**32 - 1, 2**32)))
ways = st.sampled_from((("linf", "uniform"), ("linf", "surface"), ("linf", "normal"), ("l2", "uniform"),
                        ("l2", "surface"), ("l2", "normal")))  # fmt: skip


@st.composite
def starts(draw):
    """Images, layout and arguments of a random start."""
    shape = draw(shapes(least=2))
    generator = torch.Generator().manual_seed(draw(seeds))
    x = torch.rand(shape, generator=generator)
    eps = draw(sizes)
    if draw(st.booleans()):
        eps = eps * torch.rand(shape[0], generator=generator)
    ids = None
    if draw(st.booleans()):
        ids = torch.randint(-(2**62), 2**62, shape[:1], generator=generator)
    norm, init = draw(ways)
    settings = {"eps": eps, "norm": norm, "init": init, "std": draw(st.sampled_from((0.0, 0.001, 1.0))),
                "clamp": draw(st.booleans()), "bounds": draw(bounds)}  # fmt: skip
    return x, draw(layouts()), {**settings, "seed": draw(words), "sample_ids": ids}


@given(starts())
@often
def test_random_start_is_the_formula(case):
    """Bits where nothing but products and sums are taken; else the roundings of a norm or a quantile."""
    x, layout, settings = case
    found = random_start(layout.place(x), **settings)
    expected = reference.random_start(x, **settings)
    assert found.shape == x.shape and found.dtype == torch.float32
    if (settings["norm"], settings["init"]) == ("linf", "uniform"):
        assert same(found, expected)
    else:
        size = settings["std"] if settings["init"] == "normal" else torch.as_tensor(settings["eps"]).max().item() \
            if torch.as_tensor(settings["eps"]).numel() else 0.0  # fmt: skip
        assert ((found - expected).abs() <= 4 * UNIT * (x.abs() + 8 * size) + 1e-9 * size).all()


@given(starts())
@often
def test_random_start_is_in_the_ball_and_the_bounds(case):
    x, layout, settings = case
    settings = {**settings, "init": "surface" if settings["init"] == "normal" else settings["init"]}
    low, high = settings["bounds"]
    x = x.clamp(low, high) if settings["clamp"] else x
    found = random_start(layout.place(x), **settings)
    if settings["clamp"]:
        assert (found >= low).all() and (found <= high).all()
    eps = torch.as_tensor(settings["eps"])
    if settings["norm"] == "linf":
        away = over(eps, x) if eps.dim() else eps
        assert ((found <= x + away) & (found >= x - away)).all()
    elif x.numel():
        norms = (found - x).double().reshape(len(x), -1).norm(dim=1)
        slack = UNIT * (math.sqrt(x[0].numel()) * 2 + 4 * eps)  # every pixel's own rounding
        assert (norms <= eps + slack).all()


@given(starts())
@often
def test_random_start_knows_a_sample_by_its_id(case):
    """Whatever its batch, its place there and the layout."""
    x, layout, settings = case
    ids = torch.arange(len(x)) if settings["sample_ids"] is None else settings["sample_ids"]
    whole = random_start(layout.place(x), **settings)
    order = permutation(len(x), 1)
    exact = settings["init"] == "normal" or (settings["norm"], settings["init"]) == ("linf", "uniform")
    for only in (order, order[:1]):
        eps = settings["eps"][only] if isinstance(settings["eps"], torch.Tensor) else settings["eps"]
        part = random_start(x[only], **{**settings, "eps": eps, "sample_ids": ids[only]})
        if exact:
            assert same(part, whole[only])
        else:
            largest = torch.as_tensor(eps).max() if torch.as_tensor(eps).numel() else 0.0
            assert ((part - whole[only]).abs() <= 4 * UNIT * (x[only].abs() + largest)).all()


# ---- the better of two --------------------------------------------------------------------------------------------


@given(shapes(), seeds, shares, layouts(dense=True, keep_batch=True), layouts(), st.booleans())
@often
def test_select_best(shape, seed, share, layout, layout_candidate, lower):
    generator = torch.Generator().manual_seed(seed)
    best, candidate = (with_edges(torch.rand(shape, generator=generator), share, EDGES, generator) for _ in range(2))
    losses = [with_edges(torch.randint(-2, 3, shape[:1], generator=generator).float(), 0.3, EDGES, generator)
              for _ in range(2)]  # fmt: skip
    expected = reference.select_best(best, losses[0], candidate, losses[1], lower=lower)
    kept, given_candidate = layout.place(best), layout_candidate.place(candidate)
    found = F.select_best_(kept, losses[0], given_candidate, losses[1], lower=lower)
    assert same(kept, expected[0]) and same(found, expected[1])
    assert same(given_candidate, candidate), "an input was written"
    again = F.select_best_(kept, found, given_candidate, losses[1], lower=lower)
    assert same(kept, expected[0]) and same(again, found), "the same candidate won twice"
    mirrored = layout.place(best)
    F.select_best_(mirrored, -losses[0], candidate, -losses[1], lower=not lower)
    assert same(mirrored, kept)


# ---- crop and flip ------------------------------------------------------------------------------------------------


@st.composite
def crops(draw):
    """Stored images, positions and arguments."""
    generator = torch.Generator().manual_seed(draw(seeds))
    size = [draw(st.sampled_from((1, 2, 3, 4, 5, 8, 17))) for _ in range(2)]
    count, channels = draw(st.integers(1, 6)), draw(st.sampled_from((1, 2, 3, 4)))
    images = torch.randint(0, 256, (count, channels, *size), generator=generator, dtype=torch.uint8)
    positions = torch.randint(0, count, (draw(st.integers(0, 7)),), generator=generator)
    ids = torch.randint(-(2**62), 2**62, (count,), generator=generator) if draw(st.booleans()) else None
    settings = {"padding": draw(st.sampled_from((0, 1, 4, 40))), "levels": draw(st.sampled_from((1, 16, 255))),
                "flip": draw(st.booleans()), "channels_last": draw(st.booleans())}  # fmt: skip
    return images, positions, ids, draw(words), settings


@given(crops())
@often
def test_crop_flip(case):
    images, positions, ids, seed, settings = case
    x, views = F.crop_flip(images, positions, seed=seed, ids=ids, **settings)
    expected, drawn = reference.crop_flip(images, positions, seed=seed, ids=ids, **settings)
    assert same(x, expected) and same(views, drawn)
    layout = torch.channels_last if settings["channels_last"] else torch.contiguous_format
    assert x.is_contiguous(memory_format=layout)
    count = 2 * (2 * settings["padding"] + 1) ** 2
    assert ((views >= 0) & (views < count)).all()
    assert settings["flip"] or (views % 2 == 0).all()
    # The views drawn, given back, are the same pixels; and an image's draw does not depend on its batch.
    again, told = F.crop_flip(images, positions, views=views, **settings)
    assert same(again, x) and same(told, views)
    order = permutation(len(positions), 1)
    other, _ = F.crop_flip(images, positions[order], seed=seed, ids=ids, **settings)
    assert same(other, x[order])
