"""The CUDA kernels of the Auto-PGD step, run on the host emulator, against the CPU operator and the plain formula."""

from __future__ import annotations

import apgd_cases as cases
import emulated_apgd
import emulator
import pytest
import torch
from apgd_cases import call, copied, same

from ard_fast import reference
from ard_fast.reference import APGDIterate

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def assert_same(mine: APGDIterate, expected: APGDIterate, note: object) -> None:
    for name, a, b in zip(APGDIterate._fields, mine, expected, strict=True):
        assert same(a, b), (note, name)


# Around the vector width, a block and several blocks of a sample; many samples, so that a block is enough for one.
@pytest.mark.parametrize(
    "shape",
    [(0, 5), (2, 0), (3, 1), (2, 7), (3, 8), (2, 33), (2, 1024), (2, 2051), (1, 9000), (700, 1, 2, 24)],
    ids=str,
)
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("edges", [False, True])
def test_linf_has_the_bits_of_the_formula(shape: tuple[int, ...], grad_dtype: torch.dtype, edges: bool) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    x, start = cases.images(generator, shape)
    eps = torch.linspace(0.0, 0.1, shape[0]) if edges else 0.05
    mine = cases.fresh(x, start, grad_dtype)
    for i, grad, loss, correct in cases.rounds(generator, x, 8, grad_dtype, edges):
        settings = {"eps": eps, "first": i == 0, "window": cases.window_at(i)}
        given = None if i == 7 else grad
        before = copied(mine)
        expected = reference.apgd_step(copied(mine), given, x, loss, correct, **settings)
        mine = call(mine, given, x, loss, correct, **settings, op=emulated_apgd.apgd_step_)
        assert_same(mine, expected, i)
        assert_same(mine, call(before, given, x, loss, correct, **settings), i)


@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
def test_unaligned_views(grad_dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(8)
    x, start = cases.images(generator, (3, 96))
    for offsets in ((1,) * 6, (3, 1, 0, 2, 4, 5), (0, 0, 0, 1, 0, 0), (0, 4, 0, 0, 0, 0), (4, 4, 4, 8, 4, 4)):
        aligned = cases.fresh(x, start, grad_dtype)
        placed = [cases.in_buffer(t, o) for t, o in zip(aligned[:5], offsets, strict=False)]
        mine = APGDIterate(*(view for view, _ in placed), aligned.state.clone())
        shifted_x = cases.in_buffer(x, offsets[5])[0]
        for i, grad, loss, correct in cases.rounds(generator, x, 7, grad_dtype):
            settings = {"eps": 0.05, "first": i == 0, "window": cases.window_at(i)}
            aligned = call(aligned, grad, x, loss, correct, **settings)
            shifted = cases.in_buffer(grad, offsets[3])[0]
            mine = call(mine, shifted, shifted_x, loss, correct, **settings, op=emulated_apgd.apgd_step_)
            assert_same(mine, aligned, (offsets, i))
        for (_, buffer), offset in zip(placed, offsets, strict=False):
            assert cases.outside_intact(buffer, offset, x.numel()), "wrote outside of the view"


@pytest.mark.parametrize("order", ["reverse", "shuffled"])
def test_order_of_threads_and_blocks_does_not_matter(order: str) -> None:
    def run() -> APGDIterate:
        generator = torch.Generator().manual_seed(2)
        x, start = cases.images(generator, (3, 5000))
        mine = cases.fresh(x, start)
        for i, grad, loss, correct in cases.rounds(generator, x, 7):
            settings = {"eps": 0.05, "first": i == 0, "window": cases.window_at(i)}
            mine = call(mine, grad, x, loss, correct, **settings, op=emulated_apgd.apgd_step_)
        return mine

    forward = run()
    emulator.set_order(order, 1)
    try:
        other = run()
    finally:
        emulator.set_order("forward")
    assert_same(other, forward, order)
