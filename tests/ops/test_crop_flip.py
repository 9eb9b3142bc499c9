"""The fused crop, flip and conversion: bits, uniform views, independence of batch and layout, refusals."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import often
from property_tensors import seeds

from ard_fast import functional as F
from ard_fast import reference

pytestmark = pytest.mark.sanitizer

# One pixel, channels that end within a vector, digits, CIFAR, odd sizes, rows longer than a block of the CPU loop, more
# channels than colours.
SHAPES = [
    (1, 1, 1, 1),
    (2, 4, 3, 3),
    (5, 1, 8, 8),
    (4, 3, 32, 32),
    (3, 3, 7, 5),
    (2, 2, 9, 13),
    (2, 5, 3, 17),
    (2, 3, 2, 2050),
]


def images_of(shape, device="cpu"):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(sum(shape))).to(
        device
    )


def cases(images):
    """(positions, settings): drawn with ids and without, given, with and without padding, flips and samples."""
    generator = torch.Generator().manual_seed(1)
    count, device = len(images), images.device
    positions = torch.randint(count, (2 * count + 3,), generator=generator).to(device)
    ids = torch.randint(-(2**62), 2**62, (count,), generator=generator).to(device)
    for padding in (0, 1, 4, 23):
        yield positions, {"padding": padding, "levels": 255, "seed": padding - 1, "ids": ids}
    yield positions, {"padding": 2, "levels": 17, "seed": 2**62, "flip": False}
    yield positions, {"padding": 0, "levels": 3, "seed": 4, "flip": False}
    views = torch.arange(len(positions), device=device) * 7 % (2 * 81)
    yield positions, {"padding": 4, "levels": 255, "views": views}
    least = min(images.shape[2:])
    for shift, cut in {(0, 1), (0, least), (least - 1, 0), (least - 1, (least + 1) // 2)}:
        yield positions, {"padding": 0 if shift else 3, "levels": 255, "seed": 5, "cropshift": shift, "cutout": cut}
    yield positions[:0], {"padding": 4, "levels": 255, "seed": 1}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_of_the_plain_form(shape, channels_last, device):
    images = images_of(shape, device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for positions, settings in cases(images):
        x, view = F.crop_flip(images, positions, channels_last=channels_last, **settings)
        expected, expected_view = reference.crop_flip(images, positions, **settings)
        assert x.equal(expected) and view.equal(expected_view), settings
        assert x.dtype == torch.float32 and view.dtype == torch.int64
        assert x.is_contiguous(memory_format=layout)


def test_division_is_exact_for_every_pixel_and_level(device):
    images = torch.arange(256, dtype=torch.uint8, device=device).view(1, 1, 16, 16)
    position = torch.zeros(1, dtype=torch.int64, device=device)
    for levels in range(1, 256):
        x, _ = F.crop_flip(images, position, padding=0, levels=levels, seed=0, flip=False)
        # On the CPU: a true division whatever the device's own kernels do.
        assert x.cpu().equal(images.cpu().to(torch.float32) / levels), levels


def test_padding_is_zero_and_everything_else_the_image(device):
    """The crops of an image without zeros: the zeros say where the border was."""
    images = torch.full((1, 1, 4, 6), 255, dtype=torch.uint8, device=device)
    views = torch.arange(2 * 25, device=device)
    x, view = F.crop_flip(images, torch.zeros_like(views), padding=2, levels=255, views=views)
    assert view.equal(views)
    for number, picture in enumerate(x[:, 0].cpu()):
        row, column = divmod(number // 2, 5)
        expected = torch.zeros(8, 10)
        expected[2:6, 2:8] = 1.0
        expected = expected[row : row + 4, column : column + 6]
        assert picture.equal(expected.flip(1) if number % 2 else expected), number


@st.composite
def crops(draw):
    """Stored images, positions and arguments."""
    generator = torch.Generator().manual_seed(draw(seeds))
    size = [draw(st.sampled_from((1, 2, 3, 4, 5, 8, 17))) for _ in range(2)]
    count, channels = draw(st.integers(1, 6)), draw(st.sampled_from((1, 2, 3, 4)))
    images = torch.randint(0, 256, (count, channels, *size), generator=generator, dtype=torch.uint8)
    positions = torch.randint(0, count, (draw(st.integers(0, 7)),), generator=generator)
    ids = torch.randint(-(2**62), 2**62, (count,), generator=generator) if draw(st.booleans()) else None
    settings = {"padding": draw(st.sampled_from((0, 1, 4, 40))), "levels": draw(st.sampled_from((1, 16, 255)))}
    settings |= {"flip": draw(st.booleans()), "channels_last": draw(st.booleans())}
    if draw(st.booleans()):
        settings |= {"cropshift": draw(st.integers(0, min(size) - 1)), "cutout": draw(st.integers(0, min(size)))}
        settings["padding"] = 0 if settings["cropshift"] else settings["padding"]
    return images, positions, ids, draw(st.integers(-(2**63), 2**63 - 1)), settings


@given(crops())
@often
def test_any_arguments(case):
    """The plain form; given views repeat drawn ones; a view depends on seed and id alone."""
    images, positions, ids, seed, settings = case
    before = images.clone()
    x, views = F.crop_flip(images, positions, seed=seed, ids=ids, **settings)
    expected, drawn = reference.crop_flip(images, positions, seed=seed, ids=ids, **settings)
    assert x.equal(expected) and views.equal(drawn) and images.equal(before)
    layout = torch.channels_last if settings["channels_last"] else torch.contiguous_format
    assert x.is_contiguous(memory_format=layout)
    if settings.get("cropshift") or settings.get("cutout"):
        assert ((views >= 0) & (views < 2**62)).all()
    else:
        assert ((views >= 0) & (views < 2 * (2 * settings["padding"] + 1) ** 2)).all()
        assert settings["flip"] or (views % 2 == 0).all()
    again, told = F.crop_flip(images, positions, views=views, **settings)
    assert again.equal(x) and told.equal(views)
    # In another order, and as a streamed batch: the images gathered beforehand, their ids with them.
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(1))
    assert F.crop_flip(images, positions[order], seed=seed, ids=ids, **settings)[0].equal(x[order])
    names = positions if ids is None else ids[positions]
    if len(positions):
        gathered = F.crop_flip(images[positions], torch.arange(len(positions)), seed=seed, ids=names, **settings)
        assert gathered[0].equal(x)


def test_seeds(device):
    """An int, a tensor, or what torch's generator draws."""
    images, positions = images_of((50, 1, 2, 2), device), torch.arange(50, device=device)
    settings = {"padding": 4, "levels": 255}
    torch.manual_seed(0)
    first, second = (F.crop_flip(images, positions, **settings)[1] for _ in range(2))
    torch.manual_seed(0)
    assert F.crop_flip(images, positions, **settings)[1].equal(first) and not first.equal(second)
    one = F.crop_flip(images, positions, seed=1, **settings)[1]
    assert F.crop_flip(images, positions, seed=torch.tensor([1], device=device), **settings)[1].equal(one)
    assert not F.crop_flip(images, positions, seed=2, **settings)[1].equal(one)


@pytest.mark.parametrize("padding", [1, 2, 4])
def test_views_are_uniform(padding):
    """Counts over many images, one seed, and over many seeds, one image: chi-squared within five deviations."""
    n, span = 60_000, 2 * padding + 1
    images = torch.zeros((n, 1, 1, 1), dtype=torch.uint8)
    one = torch.zeros((1, 1, 1, 1), dtype=torch.uint8)
    settings = {"padding": padding, "levels": 255}
    over_images = F.crop_flip(images, torch.arange(n), seed=77, **settings)[1]
    by_seed = [F.crop_flip(one, torch.zeros(1, dtype=torch.int64), seed=s, **settings)[1] for s in range(1000)]
    for views in (over_images, torch.cat(by_seed)):
        for values, kinds in ((views, 2 * span**2), (views // 2 // span, span), (views // 2 % span, span)):
            counts = torch.bincount(values, minlength=kinds).double()
            assert len(counts) == kinds
            expected = len(values) / kinds
            chi = ((counts - expected) ** 2 / expected).sum().item()
            assert abs(chi - (kinds - 1)) < 5 * math.sqrt(2 * (kinds - 1))
        share = (views % 2).double().mean().item()
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(len(views))


def test_a_square_is_zero_and_every_shift_is_taken():
    """Of an image without zeros. Rows and columns that cropshift cuts away: 0 to 2 together, each pair at every place;
    the cut's middle is on every pixel equally often."""
    n, settings = 20_000, {"levels": 255, "seed": 3, "flip": False}
    many, ids = torch.full((n, 1, 4, 5), 255, dtype=torch.uint8), torch.arange(n)
    x, _ = F.crop_flip(many, ids, padding=0, cropshift=2, **settings)
    seen = x[:, 0] > 0
    rows, columns = seen.any(2).sum(1), seen.any(1).sum(1)
    assert torch.equal(seen.sum((1, 2)), rows * columns)  # what is left is a rectangle
    away = torch.stack((4 - rows, 5 - columns), 1).unique(dim=0, return_counts=True)
    assert away[0].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [2, 0]]
    for (row, column), count in zip(*(part.tolist() for part in away), strict=True):
        assert abs(count / n - 1 / 3 / (row + column + 1)) < 0.02
    assert len({tuple(one.flatten().tolist()) for one in seen}) == 1 + 2 + 2 + 3 + 3 + 4
    x, _ = F.crop_flip(many, ids, padding=0, cutout=3, **settings)
    kinds, counts = (x[:, 0] == 0).flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 20 and kinds.sum(1).max() == 9 and kinds.sum(1).min() == 4
    assert (counts / n - 1 / 20).abs().max() < 0.01


def test_largest_padding():
    views = torch.tensor([0, 2 * 65535**2 - 1, 2 * (32767 * 65535 + 32767)])
    images = torch.full((1, 1, 2, 2), 9, dtype=torch.uint8)
    x, _ = F.crop_flip(images, torch.zeros(3, dtype=torch.int64), padding=32767, levels=9, views=views)
    assert x[0].sum() == 0 and x[1].sum() == 0 and x[2].sum() == 4
    drawn = F.crop_flip(images, torch.zeros(1, dtype=torch.int64), padding=32767, levels=9, seed=1)[1]
    assert drawn.equal(reference.draw_views(torch.zeros(1, dtype=torch.int64), seed=1, padding=32767, flip=True))


@pytest.mark.parametrize("channels_last", [False, True])
def test_threads_share_out_the_lines(channels_last):
    """Many threads: blocks of lines begin and end anywhere in a sample."""
    images = images_of((3, 3, 61, 53))
    positions = torch.randint(3, (200,), generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = F.crop_flip(images, positions, padding=5, levels=255, seed=1, channels_last=channels_last)
        torch.set_num_threads(7)
        shared = F.crop_flip(images, positions, padding=5, levels=255, seed=1, channels_last=channels_last)
    finally:
        torch.set_num_threads(before)
    assert alone[0].equal(shared[0]) and alone[1].equal(shared[1])


PLAIN = {"padding": 1, "levels": 255, "seed": 1}


@pytest.mark.parametrize(
    ("message", "changes", "error"),
    [
        ("padding must be an int from 0 to 32767, got -1", {"padding": -1}, ValueError),
        ("padding must be an int from 0 to 32767, got 32768", {"padding": 32768}, ValueError),
        ("padding must be an int from 0 to 32767, got 1.5", {"padding": 1.5}, ValueError),
        ("cropshift must be at least 0 and below height and width, got 5", {"cropshift": 5}, RuntimeError),
        ("padding must be 0 with cropshift, got 1", {"cropshift": 2}, RuntimeError),
        ("cutout must be at least 0 and at most height and width, got 6", {"cutout": 6}, RuntimeError),
        ("levels must be an int from 1 to 255, got 0", {"levels": 0}, ValueError),
        ("levels must be an int from 1 to 255, got 256", {"levels": 256}, ValueError),
        ("seed must be an int of 64 bits", {"seed": 2**64}, ValueError),
        ("seed must be int64, got float32", {"seed": torch.ones(1)}, RuntimeError),
        ("seed must have one element", {"seed": torch.ones(2, dtype=torch.int64)}, RuntimeError),
        (r"ids must have shape \[4\], one entry an image, got \[3\]", {"ids": torch.arange(3)}, RuntimeError),
        ("ids must be int64, got int32", {"ids": torch.arange(4, dtype=torch.int32)}, RuntimeError),
        ("ids must be contiguous", {"ids": torch.arange(8)[::2]}, RuntimeError),
        ("views: with them nothing is drawn, so seed must", {"views": torch.zeros(2, dtype=torch.int64)}, ValueError),
        (
            "views: with them nothing is drawn, so ids must",
            {"views": torch.zeros(2, dtype=torch.int64), "ids": torch.arange(4), "seed": None},
            ValueError,
        ),
        (
            r"views must have shape \[2\], one entry a sample, got \[3\]",
            {"views": torch.zeros(3, dtype=torch.int64), "seed": None},
            RuntimeError,
        ),
        (
            r"views must be in \[0, 18\), got 18 at position 1",
            {"views": torch.tensor([17, 18]), "seed": None},
            RuntimeError,
        ),
        (
            r"views must be in \[0, 18\), got -1 at position 0",
            {"views": torch.tensor([-1, 18]), "seed": None},
            RuntimeError,
        ),
    ],
)
def test_bad_settings(message, changes, error):
    images, positions = images_of((4, 3, 5, 5)), torch.tensor([0, 1])
    with pytest.raises(error, match=message):
        F.crop_flip(images, positions, **{**PLAIN, **changes})


@pytest.mark.parametrize(
    ("message", "images", "positions"),
    [
        ("images must be uint8, got float32", torch.rand(2, 3, 4, 4), torch.tensor([0])),
        (r"images must have shape \[N, C, H, W\], got \[3, 4, 4\]", images_of((3, 4, 4)), torch.tensor([0])),
        (r"images must have at least one pixel each, got shape \[2, 3, 0, 4\]", images_of((2, 3, 0, 4)), None),
        ("images must be contiguous", images_of((2, 3, 4, 5)).transpose(2, 3), torch.tensor([0])),
        ("images must be contiguous", images_of((2, 3, 4, 8))[..., ::2], torch.tensor([0])),
        (
            "images must be contiguous",
            images_of((2, 3, 4, 4)).contiguous(memory_format=torch.channels_last),
            torch.tensor([0]),
        ),
        (r"positions must have shape \[B\], got \[1, 1\]", images_of((2, 3, 4, 4)), torch.tensor([[0]])),
        ("positions must be int64, got int32", images_of((2, 3, 4, 4)), torch.tensor([0], dtype=torch.int32)),
        ("positions must be contiguous", images_of((2, 3, 4, 4)), torch.zeros(4, dtype=torch.int64)[::2]),
        (r"positions must be in \[0, 2\), got 2 at position 1", images_of((2, 3, 4, 4)), torch.tensor([0, 2])),
        (r"positions must be in \[0, 2\), got -1 at position 0", images_of((2, 3, 4, 4)), torch.tensor([-1])),
        (r"positions must be in \[0, 0\), got 0 at position 0", images_of((2, 3, 4, 4))[:0], torch.tensor([0])),
    ],
)
def test_bad_tensors(message, images, positions):
    with pytest.raises(RuntimeError, match=message):
        F.crop_flip(images, torch.tensor([0]) if positions is None else positions, **PLAIN)
