"""The fused crop, flip and conversion: bits, uniform views, independence of batch and layout, refusals."""

import math

import pytest
import torch

from ard_fast import functional as F
from ard_fast import reference
from ard_fast.data.splits import pixels

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


def test_against_float64(device):
    images, positions = images_of((4, 3, 6, 6), device), torch.tensor([3, 1, 0], device=device)
    x, _ = F.crop_flip(images, positions, padding=0, levels=255, seed=0, flip=False)
    exact = images[positions].double() / 255
    assert (x.double() - exact).abs().max() <= 2.0**-25


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


def test_without_padding_and_flip_there_is_one_view(device):
    images = images_of((6, 3, 5, 7), device)
    positions = torch.tensor([5, 0, 0, 2], device=device)
    x, view = F.crop_flip(images, positions, padding=0, levels=255, seed=3, flip=False)
    assert view.tolist() == [0] * 4
    assert x.equal(pixels(images[positions], 255))


def test_given_views_repeat_drawn_ones(device):
    images = images_of((30, 3, 9, 9), device)
    positions = torch.randperm(30, generator=torch.Generator().manual_seed(0)).to(device)
    x, view = F.crop_flip(images, positions, padding=3, levels=255, seed=11)
    again, same = F.crop_flip(images, positions, padding=3, levels=255, views=view)
    assert again.equal(x) and same.equal(view)
    assert len(view.unique()) > 15


def test_a_view_depends_on_seed_and_id_alone(device):
    images = images_of((8, 3, 6, 6), device)
    ids = torch.tensor([900, 7, 2**40 + 1, 3, 0, -5, 12, 13], device=device)
    positions = torch.arange(8, device=device)
    settings = {"padding": 4, "levels": 255, "seed": 1}
    x, view = F.crop_flip(images, positions, ids=ids, **settings)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2)).to(device)
    in_order = F.crop_flip(images, order, ids=ids, **settings)
    assert in_order[0].equal(x[order]) and in_order[1].equal(view[order])
    # As a streamed batch: the images gathered beforehand, their ids with them.
    gathered = F.crop_flip(images[order], positions, ids=ids[order], **settings)
    assert gathered[0].equal(x[order]) and gathered[1].equal(view[order])
    alone = F.crop_flip(images[2:3], torch.zeros(1, dtype=torch.int64, device=device), ids=ids[2:3], **settings)
    assert alone[0].equal(x[2:3])
    tensor = torch.tensor([1], device=device)
    assert F.crop_flip(images, positions, ids=ids, **{**settings, "seed": tensor})[1].equal(view)
    assert not F.crop_flip(images, positions, ids=ids, **{**settings, "seed": 2})[1].equal(view)


def test_without_a_seed_torchs_generator_decides(device):
    images, positions = images_of((50, 1, 2, 2), device), torch.arange(50, device=device)
    torch.manual_seed(0)
    first, second = (F.crop_flip(images, positions, padding=4, levels=255)[1] for _ in range(2))
    torch.manual_seed(0)
    assert F.crop_flip(images, positions, padding=4, levels=255)[1].equal(first)
    assert not first.equal(second)


@pytest.mark.parametrize("padding", [1, 2, 4])
def test_views_are_uniform(padding):
    """Counts over many images, one seed, and over many seeds, one image: chi-squared within five deviations."""
    n, span = 60_000, 2 * padding + 1
    images = torch.zeros((n, 1, 1, 1), dtype=torch.uint8)
    one = torch.zeros((1, 1, 1, 1), dtype=torch.uint8)
    settings = {"padding": padding, "levels": 255}
    over_images = F.crop_flip(images, torch.arange(n), seed=77, **settings)[1]
    by_seed = [F.crop_flip(one, torch.zeros(1, dtype=torch.int64), seed=s, **settings)[1] for s in range(4000)]
    for views in (over_images, torch.cat(by_seed)):
        for values, kinds in ((views, 2 * span**2), (views // 2 // span, span), (views // 2 % span, span)):
            counts = torch.bincount(values, minlength=kinds).double()
            assert len(counts) == kinds
            expected = len(values) / kinds
            chi = ((counts - expected) ** 2 / expected).sum().item()
            assert abs(chi - (kinds - 1)) < 5 * math.sqrt(2 * (kinds - 1))
        share = (views % 2).double().mean().item()
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(len(views))


def test_without_flip_no_view_is_odd():
    images = torch.zeros((2000, 1, 1, 1), dtype=torch.uint8)
    flipped, plain = (
        F.crop_flip(images, torch.arange(2000), padding=4, levels=1, seed=3, flip=f)[1] for f in (True, False)
    )
    assert plain.remainder(2).sum() == 0 and plain.equal(flipped // 2 * 2)


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


def test_a_slice_of_the_images_is_not_copied(device):
    images = images_of((6, 3, 5, 5), device)
    positions = torch.tensor([2, 0], device=device)
    settings = {"padding": 1, "levels": 255, "seed": 1, "ids": torch.tensor([4, 5, 6], device=device)}
    assert F.crop_flip(images[3:], positions, **settings)[0].equal(
        F.crop_flip(images[3:].clone(), positions, **settings)[0]
    )


def test_the_images_are_left_alone(device):
    images = images_of((4, 3, 5, 5), device)
    before = images.clone()
    F.crop_flip(images, torch.arange(4, device=device), padding=2, levels=255, seed=1)
    assert images.equal(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shape", [*SHAPES, (3, 3, 224, 224)], ids=str)
def test_same_bits_on_both_devices(shape):
    images = images_of(shape)
    for positions, settings in cases(images):
        on_cuda = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in settings.items()}
        for channels_last in (False, True):
            x, view = F.crop_flip(images.cuda(), positions.cuda(), channels_last=channels_last, **on_cuda)
            expected = F.crop_flip(images, positions, channels_last=channels_last, **settings)
            assert x.cpu().equal(expected[0]) and view.cpu().equal(expected[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_does_not_exist_becomes_nan_on_cuda():
    images = images_of((4, 3, 5, 6), "cuda")
    positions = torch.tensor([0, -1, 4], device="cuda")
    x, view = F.crop_flip(images, positions, padding=1, levels=255, seed=1)
    assert x[1:].isnan().all() and not x[0].isnan().any() and view[1:].tolist() == [-1, -1]
    views = torch.tensor([17, 18, -1], device="cuda")
    x, view = F.crop_flip(images, positions.clamp(0, 3), padding=1, levels=255, views=views)
    assert x[1:].isnan().all() and not x[0].isnan().any() and view.tolist() == [17, -1, -1]


PLAIN = {"padding": 1, "levels": 255, "seed": 1}


@pytest.mark.parametrize(
    ("message", "changes", "error"),
    [
        ("padding must be an int from 0 to 32767, got -1", {"padding": -1}, ValueError),
        ("padding must be an int from 0 to 32767, got 32768", {"padding": 32768}, ValueError),
        ("padding must be an int from 0 to 32767, got 1.5", {"padding": 1.5}, ValueError),
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
