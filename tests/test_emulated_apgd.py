"""The CUDA kernels of the Auto-PGD step, run on the host emulator, against the CPU operator and the plain formula."""

from __future__ import annotations

import math
from functools import partial

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


def assert_near(mine: APGDIterate, expected: APGDIterate) -> None:
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


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


# A cluster of 0 blocks is the launcher's choice: one block for most of these, a cluster for the largest samples.
@pytest.mark.parametrize(
    "geometry", [(0, 0, True), (1, 64, True), (1, 32, False), (2, 64, True), (4, 32, False)], ids=str
)
@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (3, 1), (2, 7), (3, 8), (2, 33), (3, 1024), (2, 4096)], ids=str)
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
def test_l2_against_float64(geometry: tuple[int, int, bool], shape: tuple[int, ...], grad_dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    x, start = cases.images(generator, shape)
    eps = 0.05 * shape[1] ** 0.5
    radii = torch.linspace(0.2, 1.0, shape[0]) * eps
    op = partial(emulated_apgd.apgd_step_, cluster=geometry[0], threads=geometry[1], cached=geometry[2])
    mine = cases.fresh(x, start, grad_dtype)
    for i, grad, loss, correct in cases.rounds(generator, x, 7, grad_dtype):
        settings = {"norm": "l2", "first": i == 0, "window": cases.window_at(i), "eps": radii if i % 2 else eps}
        given = None if i == 6 else grad
        wide = copied(mine, torch.float64)
        wide_grad = None if given is None else grad.double()
        expected = reference.apgd_step(wide, wide_grad, x.double(), loss.double(), correct, **settings)
        mine = call(mine, given, x, loss, correct, **settings, op=op)
        for name, a, b in zip(APGDIterate._fields, mine, expected, strict=True):
            if name == "x_adv":
                torch.testing.assert_close(a, b.float(), rtol=0, atol=2e-6 * max(eps, 0.1))
            else:
                assert same(a, b.to(a.dtype)), (i, name)


def test_l2_gradients_of_any_size() -> None:
    """As on the CPU: no overflow, no underflow, no step without a gradient, NaN and infinite entries counted alike."""
    generator = torch.Generator().manual_seed(4)
    x, _ = cases.images(generator, (9, 500))
    sizes = torch.tensor([3e38, 1e20, 1.0, 1e-12, 1e-25, 1e-36, 1e-44, 0.0, 1.0])
    grad = torch.nn.functional.normalize(torch.randn(500, generator=generator), dim=0, p=math.inf) * sizes[:, None]
    grad[8, ::4], grad[8, 1] = math.nan, math.inf
    loss, correct = torch.zeros(9), torch.ones(9, dtype=torch.bool)
    settings = {"eps": 0.05, "norm": "l2", "first": True}
    mine = call(cases.fresh(x, x), grad, x, loss, correct, **settings, op=emulated_apgd.apgd_step_)
    on_cpu = call(cases.fresh(x, x), grad, x, loss, correct, **settings)
    torch.testing.assert_close(mine.x_adv, on_cpu.x_adv, rtol=0, atol=1e-7)
    assert mine.x_adv[7].equal(x[7])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
def test_unaligned_views(norm: str, grad_dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(8)
    x, start = cases.images(generator, (3, 96))
    for offsets in ((1,) * 6, (3, 1, 0, 2, 4, 5), (0, 0, 0, 1, 0, 0), (0, 4, 0, 0, 0, 0), (4, 4, 4, 8, 4, 4)):
        aligned = cases.fresh(x, start, grad_dtype)
        placed = [cases.in_buffer(t, o) for t, o in zip(aligned[:5], offsets, strict=False)]
        mine = APGDIterate(*(view for view, _ in placed), aligned.state.clone())
        shifted_x = cases.in_buffer(x, offsets[5])[0]
        for i, grad, loss, correct in cases.rounds(generator, x, 7, grad_dtype):
            settings = {"eps": 0.05, "norm": norm, "first": i == 0, "window": cases.window_at(i)}
            aligned = call(aligned, grad, x, loss, correct, **settings, op=emulated_apgd.apgd_step_)
            shifted = cases.in_buffer(grad, offsets[3])[0]
            mine = call(mine, shifted, shifted_x, loss, correct, **settings, op=emulated_apgd.apgd_step_)
            # Another variant adds up in another order.
            assert_same(mine, aligned, (offsets, i)) if norm == "linf" else assert_near(mine, aligned)
        for (_, buffer), offset in zip(placed, offsets, strict=False):
            assert cases.outside_intact(buffer, offset, x.numel()), "wrote outside of the view"


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("order", ["reverse", "shuffled"])
def test_order_of_threads_and_blocks_does_not_matter(order: str, norm: str) -> None:
    def run() -> APGDIterate:
        generator = torch.Generator().manual_seed(2)
        x, start = cases.images(generator, (3, 5000))
        mine = cases.fresh(x, start)
        for i, grad, loss, correct in cases.rounds(generator, x, 7):
            settings = {"eps": 0.05, "norm": norm, "first": i == 0, "window": cases.window_at(i)}
            mine = call(mine, grad, x, loss, correct, **settings, op=emulated_apgd.apgd_step_)
        return mine

    forward = run()
    emulator.set_order(order, 1)
    try:
        other = run()
    finally:
        emulator.set_order("forward")
    assert_same(other, forward, order)
