"""The CUDA random-start kernel, run on the host emulator, against the plain formula and against the CPU op."""

from __future__ import annotations

import math

import emulator
import pytest
import torch
from test_emulated_pgd import guards_intact, placed, same_bits

from ard_fast import functional, reference

# Elements a sample: around the 4 of one Philox block, a warp of them, and an image.
SHAPES = [
    (1, 1),
    (3, 2),
    (2, 3),
    (5, 4),
    (4, 5),
    (3, 7),
    (2, 1023),
    (3, 3, 5, 7),
    (2, 3, 32, 32),
    (130, 6),
    (0, 3, 4, 4),
]
SEEDS = [0, 1, 2**63 - 1, -1, 0x0123456789ABCDEF]


def images(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("init", ["uniform", "normal"])
@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_reference_and_cpu(shape: tuple[int, ...], clamp: bool, init: str) -> None:
    x = images(shape)
    for number, seed in enumerate(SEEDS):
        options = {
            "seed": seed,
            "eps": torch.linspace(0.0, 0.1, shape[0]) if number % 2 else 8 / 255,
            "init": init,
            "std": 0.02,
            "clamp": clamp,
            "sample_ids": torch.arange(shape[0]) * (2**40 + 7) - 3 if number % 3 else None,
        }
        got = emulator.random_start(x, **options)
        expected = reference.random_start(x, **options)
        assert same_bits(got, functional.random_start(x, **options)), f"seed {seed}: differs from the CPU op"
        if init == "uniform":
            assert same_bits(got, expected), f"seed {seed}: differs from the formula"
        else:  # the reference takes torch's normal quantile, in float64
            assert torch.allclose(got, expected, rtol=0, atol=2e-7), f"seed {seed}: differs from the formula"


@pytest.mark.parametrize("offsets", [(0, 0), (1, 1), (2, 3), (0, 1), (3, 0)], ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (3, 8), (2, 1027)], ids=str)
def test_any_alignment(shape: tuple[int, int], offsets: tuple[int, int]) -> None:
    x = placed(images(shape).reshape(-1), offsets[0]).view(shape)
    out = placed(torch.zeros(math.prod(shape)), offsets[1])
    options = {"eps": 0.1, "seed": 11}
    emulator.random_start(x, **options, out=out.view(shape))
    assert same_bits(out.view(shape), functional.random_start(x.clone(), **options))
    assert guards_intact(out)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (3, 2, 4, 4), (1, 5, 3, 3), (2, 16, 1, 3)], ids=str)
@pytest.mark.parametrize("init", ["uniform", "normal"])
def test_memory_layout_does_not_change_the_noise(shape: tuple[int, ...], init: str) -> None:
    x = images(shape)
    options = {"eps": 0.1, "init": init, "seed": 5}
    contiguous = emulator.random_start(x, **options)
    channels_last = emulator.random_start(x.contiguous(memory_format=torch.channels_last), **options)
    assert same_bits(channels_last.contiguous(), contiguous)


def test_noise_does_not_depend_on_the_batch() -> None:
    x = images((6, 3, 5, 5))
    ids = torch.tensor([4, 1, 3, 0, 2, 9])
    options = {"eps": 0.1, "seed": 5}
    together = emulator.random_start(x, **options, sample_ids=ids)
    for i in range(6):
        alone = emulator.random_start(x[i : i + 1], **options, sample_ids=ids[i : i + 1])
        assert same_bits(alone[0].contiguous(), together[i].contiguous())


def test_nan_pixels_stay_nan_and_bounds_hold() -> None:
    x = images((2, 100))
    x[0, 3] = math.nan
    out = emulator.random_start(x, eps=0.5, seed=1, bounds=(0.25, 0.75))
    assert out.isnan().nonzero().tolist() == [[0, 3]]
    rest = out[~out.isnan()]
    assert rest.min() == 0.25 and rest.max() == 0.75
