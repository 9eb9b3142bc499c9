"""The CUDA kernels of affine_relu, run on the host emulator, against the CPU operators: same bits."""

from __future__ import annotations

import emulated_affine as emulated
import emulator
import pytest
import torch
from test_affine import DTYPES, GIVEN, assert_same, case, layouts
from test_emulated_pgd import guards_intact, placed

from ard_fast import functional as F

# Vectors within a channel, over whole channels and across both; a tail; several blocks; fewer elements than a vector.
SHAPES = [
    (1, 1, 1, 1),
    (1, 3, 1, 1),
    (2, 8, 4, 4),
    (2, 3, 5, 7),
    (3, 16, 7, 7),
    (3, 33),
    (5, 40),
    (2, 1, 9, 3),
    (2, 2, 1, 3),
    (1, 24, 33, 8),
    (1, 7, 33, 31),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_cpu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for layout in layouts(shape):
        x, scale, shift, residual, grad = case(shape, dtype, layout)
        for with_scale, with_shift, with_residual in GIVEN:
            arguments = (
                scale if with_scale else None,
                shift if with_shift else None,
                residual if with_residual else None,
            )
            expected, bits = F.affine_relu(x, *arguments, mask=True)
            y, found = emulated.affine_relu(x, *arguments, mask=True)
            assert_same(y, expected)
            assert found.equal(bits)
            in_place = x.clone()
            assert emulated.affine_relu(in_place, *arguments, mask=True, out=in_place)[1].equal(bits)
            assert_same(in_place, expected)
        for relu in (True, False):
            y, none = emulated.affine_relu(x, scale, shift, residual, relu=relu)
            assert_same(y, F.affine_relu(x, scale, shift, residual, relu=relu)[0])
            assert none.shape == (0,)
        for factor in (scale, None):
            expected = F.affine_relu_backward(grad, bits, factor)
            assert_same(emulated.affine_relu_backward(grad, bits, factor), expected)
            expected = F.affine_relu_backward(grad, None, factor, relu=False)
            assert_same(emulated.affine_relu_backward(grad, None, factor), expected)


# First element of x, the result, the residual, scale, shift and the mask in their buffers.
OFFSETS = [(0,) * 6, (1,) * 6, (4, 4, 4, 0, 0, 0), (8, 8, 8, 4, 4, 1), (0, 0, 0, 1, 0, 3), (0, 0, 0, 0, 2, 0)]
OFFSETS += [(2, 0, 0, 0, 0, 0), (0, 3, 0, 0, 0, 0), (0, 0, 5, 0, 0, 0)]


@pytest.mark.parametrize("offsets", OFFSETS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_alignment(dtype: torch.dtype, offsets: tuple[int, ...]) -> None:
    for shape in [(2, 3, 5, 7), (3, 8, 4, 4), (3, 16), (2, 5)]:
        x, scale, shift, residual, grad = case(shape, dtype, torch.contiguous_format)
        expected, bits = F.affine_relu(x, scale, shift, residual, mask=True)
        values = x, x, residual, scale, shift, bits
        moved = [placed(t.flatten(), o) for t, o in zip(values, offsets, strict=True)]
        mask = moved[5].fill_(7)
        moved[1].fill_(7)
        y, _ = emulated.affine_relu(
            moved[0].view(shape),
            *moved[3:5],
            moved[2].view(shape),
            mask=mask,
            out=moved[1].view(shape),
        )
        assert_same(y, expected)
        assert mask.equal(bits)
        assert all(guards_intact(t) for t in moved)
        grad, out = placed(grad.flatten(), offsets[0]), placed(x.flatten(), offsets[1])
        found = emulated.affine_relu_backward(grad.view(shape), mask, moved[3], out=out.view(shape))
        assert_same(found, F.affine_relu_backward(grad.view(shape), bits, scale))
        assert guards_intact(out)


@pytest.mark.parametrize("order", ["reverse", "shuffled"])
def test_order_of_threads_does_not_matter(order: str) -> None:
    arguments = case((2, 24, 33, 5), torch.float32, torch.channels_last)[:4]
    expected = emulated.affine_relu(*arguments, mask=True)
    emulator.set_order(order, 1)
    try:
        other = emulated.affine_relu(*arguments, mask=True)
    finally:
        emulator.set_order("forward")
    assert_same(other[0], expected[0])
    assert other[1].equal(expected[1])
