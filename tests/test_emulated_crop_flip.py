"""The CUDA augmentation kernel, run on the host emulator, against the CPU op and the plain formula: same bits."""

from __future__ import annotations

import math

import emulated_crop_flip as emulated
import emulator
import pytest
import torch
from test_crop_flip import SHAPES, cases, images_of
from test_emulated_pgd import guards_intact, placed

from ard_fast import functional as F
from ard_fast import reference


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_reference_and_cpu(shape: tuple[int, ...], channels_last: bool) -> None:
    images = images_of(shape)
    for positions, settings in cases(images):
        settings = {**settings, "channels_last": channels_last}
        x, view = emulated.crop_flip(images, positions, **settings)
        for other in (reference.crop_flip, F.crop_flip):
            expected, expected_view = other(images, positions, **settings)
            assert x.equal(expected), (other, settings)
            assert view.equal(expected_view), (other, settings)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("offset", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (3, 1, 7, 5), (2, 3, 5, 4)], ids=str)
def test_any_alignment(shape: tuple[int, ...], offset: int, channels_last: bool) -> None:
    images, positions = images_of(shape), torch.tensor([1, 0, 1, 1])
    out = placed(torch.zeros(4 * math.prod(shape[1:])), offset)
    settings = {"padding": 2, "levels": 255, "seed": 3, "channels_last": channels_last}
    x, _ = emulated.crop_flip(images, positions, **settings, out=out)
    assert x.equal(F.crop_flip(images, positions, **settings)[0])
    assert guards_intact(out)


@pytest.mark.parametrize("batch", [1, 2, 700])
def test_few_and_many_blocks_a_sample(batch: int) -> None:
    """Small batches spread an image over many blocks, large ones give a thread several vectors."""
    images = images_of((2, 3, 40, 44))
    positions = torch.arange(batch) % 2
    settings = {"padding": 3, "levels": 255, "seed": 5}
    x, view = emulated.crop_flip(images, positions, **settings)
    expected = F.crop_flip(images, positions, **settings)
    assert x.equal(expected[0]) and view.equal(expected[1])


@pytest.mark.parametrize("channels_last", [False, True])
def test_what_does_not_exist_becomes_nan(channels_last: bool) -> None:
    images, settings = images_of((4, 3, 5, 6)), {"padding": 1, "levels": 255, "channels_last": channels_last}
    positions = torch.tensor([0, -1, 3, 4, -(2**62), 2**62, 1])
    x, view = emulated.crop_flip(images, positions, seed=1, **settings)
    lost = torch.tensor([1, 3, 4, 5])
    kept = torch.tensor([0, 2, 6])
    assert x[lost].isnan().all() and view[lost].eq(-1).all()
    expected = F.crop_flip(images, positions[kept], seed=1, **settings)
    assert x[kept].equal(expected[0]) and view[kept].equal(expected[1])

    views = torch.tensor([0, 17, 18, -1, 2**62, -(2**62)])
    x, view = emulated.crop_flip(images, torch.zeros(6, dtype=torch.int64), views=views, **settings)
    assert x.isnan().flatten(1).any(1).tolist() == [False, False, True, True, True, True]
    assert x[2:].isnan().all() and view.tolist() == [0, 17, -1, -1, -1, -1]


@pytest.mark.parametrize("order", ["reverse", "shuffled"])
def test_order_of_threads_does_not_matter(order: str) -> None:
    images, positions = images_of((3, 3, 33, 20)), torch.tensor([2, 0, 1, 1])
    settings = {"padding": 4, "levels": 255, "seed": 9}
    forward = emulated.crop_flip(images, positions, **settings)
    emulator.set_order(order, 1)
    try:
        other = emulated.crop_flip(images, positions, **settings)
    finally:
        emulator.set_order("forward")
    assert forward[0].equal(other[0]) and forward[1].equal(other[1])
