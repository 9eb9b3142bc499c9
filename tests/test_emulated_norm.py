"""The CUDA kernels that treat a sample as a whole, run on the host emulator, against the CPU operators.

The sums are in double, so that their order does not show: the results have the same bits.
"""

from __future__ import annotations

import math

import emulated_norm
import emulator
import pytest
import torch
from test_emulated_pgd import guards_intact, placed, same_bits

from ard_fast import functional

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Around the vector width, a warp of vectors, and an image; vectors that do not divide among blocks.
NUMELS = [1, 2, 3, 4, 5, 8, 15, 16, 33, 64, 127, 128, 192, 1023, 1024, 3072]
# None: as the launcher decides. Otherwise blocks of a cluster, threads of a block, kept in shared memory.
GEOMETRIES = [None, (1, 32, True), (1, 64, False), (2, 32, True), (4, 64, False), (8, 32, True)]
# First element of x_adv, grad, x and momentum in their buffers: all aligned, shifted together, apart.
OFFSETS = [(0, 0, 0, 0), (4, 8, 4, 8), (1, 1, 1, 1), (1, 0, 0, 0), (0, 3, 0, 0), (0, 0, 2, 0), (0, 0, 0, 1)]
EDGES = [0.0, -0.0, 1e-45, -1e-39, 1e-30, -2.5, 3e38, math.inf, -math.inf, math.nan]


def case(batch: int, numel: int, dtype: torch.dtype, edges: bool = False) -> tuple[torch.Tensor, ...]:
    """x_adv, grad, x and momentum [batch, numel]; within, on and beyond a ball of radius 0.5."""
    generator = torch.Generator().manual_seed(numel)
    shape = (batch, numel)
    x = torch.rand(shape, generator=generator)
    away = torch.randn(shape, generator=generator)
    radii = torch.linspace(0.0, 0.7, batch)[:, None]
    x_adv = x + radii * away / away.norm(dim=1, keepdim=True)
    grad = torch.randn(shape, generator=generator) * 1e-3
    if edges:
        picked = torch.tensor(EDGES)[torch.randint(len(EDGES), shape, generator=generator)]
        grad = torch.where(torch.rand(shape, generator=generator) < 0.3, picked, grad)
    return x_adv, grad.to(dtype), x, torch.randn(shape, generator=generator) / numel


def check_l2(x_adv, grad, x, geometry=None, **settings) -> None:
    settings = {"step_size": 0.2, "eps": 0.5, **settings}
    expected = functional.pgd_l2_step_(x_adv.clone(), grad, x, **settings)
    emulated_norm.pgd_l2_step_(x_adv, grad, x, geometry=geometry, **settings)
    assert same_bits(x_adv, expected), f"L2, {geometry}: differs from the CPU op"


def check_mifgsm(x_adv, grad, x, momentum, geometry=None, **settings) -> None:
    settings = {"step_size": 2 / 255, "eps": 8 / 255, "decay": 0.9, **settings}
    expected, expected_momentum = x_adv.clone(), momentum.clone()
    functional.mifgsm_step_(expected, expected_momentum, grad, x, **settings)
    emulated_norm.mifgsm_step_(x_adv, momentum, grad, x, geometry=geometry, **settings)
    assert same_bits(momentum, expected_momentum), f"momentum, {geometry}: differs from the CPU op"
    assert same_bits(x_adv, expected), f"MI-FGSM, {geometry}: differs from the CPU op"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_any_size(dtype, geometry) -> None:
    for numel in NUMELS:
        for targeted in (False, True):
            x_adv, grad, x, momentum = case(3, numel, dtype, edges=targeted)
            check_l2(x_adv.clone(), grad, x, geometry, targeted=targeted)
            check_mifgsm(x_adv, grad, x, momentum, geometry, targeted=targeted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offsets", OFFSETS, ids=str)
def test_any_alignment(dtype, offsets) -> None:
    for numel in (7, 48, 264):
        for geometry in (None, (2, 32, True), (2, 32, False)):
            tensors = [placed(t.flatten(), o) for t, o in zip(case(3, numel, dtype), offsets, strict=True)]
            x_adv, grad, x, momentum = (t.view(3, numel) for t in tensors)
            check_l2(x_adv, grad, x, geometry)
            check_mifgsm(x_adv, grad, x, momentum, geometry)
            assert guards_intact(tensors[0]) and guards_intact(tensors[3]), f"{numel}: wrote outside the tensor"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_per_sample(dtype) -> None:
    sizes = torch.linspace(0.0, 0.3, 5)
    for numel in (5, 64):
        for geometry in (None, (4, 32, True)):
            for settings in ({"eps": sizes}, {"step_size": sizes}, {"eps": sizes, "step_size": sizes.flip(0)}):
                x_adv, grad, x, momentum = case(5, numel, dtype)
                check_l2(x_adv.clone(), grad, x, geometry, **settings)
                check_mifgsm(x_adv, grad, x, momentum, geometry, **settings)


def test_zero_gradients_and_nan_pixels() -> None:
    for geometry in (None, (2, 32, True)):
        x_adv, grad, x, momentum = case(4, 40, torch.float32)
        grad[0] = 0.0
        grad[1] = math.nan
        x_adv[2, 3] = math.nan
        x_adv[3] = x[3]
        check_l2(x_adv.clone(), grad, x, geometry)
        check_mifgsm(x_adv, grad, x, momentum, geometry)


def test_x_adv_may_be_x() -> None:
    for geometry in (None, (2, 32, True), (2, 32, False)):
        for step, settings in ((check_l2, {"eps": 0.1}), (check_mifgsm, {})):
            _, grad, x, momentum = case(3, 100, torch.float32)
            rest = (momentum,) if step is check_mifgsm else ()
            expected = x.clone()
            step(expected, grad, x.clone(), *(m.clone() for m in rest), geometry, **settings)
            run = emulated_norm.mifgsm_step_ if rest else emulated_norm.pgd_l2_step_
            options = {"step_size": 2 / 255, "eps": 8 / 255, "decay": 0.9} if rest else {"step_size": 0.2, **settings}
            run(x, *rest, grad, x, geometry=geometry, **options)
            assert same_bits(x, expected)


@pytest.mark.parametrize("shape", [(2, 3, 224, 224), (300, 1, 8, 8), (0, 3, 8, 8), (3, 0)], ids=str)
def test_image_sizes_as_launched(shape) -> None:
    """From digits, a warp a sample, to ImageNet, a cluster of eight full blocks."""
    x_adv, grad, x, momentum = (
        (t.reshape(shape) for t in case(shape[0], math.prod(shape[1:]) or 1, torch.float32))
        if (math.prod(shape))
        else (torch.empty(shape) for _ in range(4))
    )
    check_l2(x_adv.clone(), grad, x)
    check_mifgsm(x_adv, grad, x, momentum)


@pytest.mark.parametrize("order", ["reverse", "shuffled"])
def test_order_of_threads_does_not_matter(order) -> None:
    emulator.set_order(order, 1)
    try:
        for geometry in GEOMETRIES:
            x_adv, grad, x, momentum = case(2, 600, torch.bfloat16)
            check_l2(x_adv.clone(), grad, x, geometry)
            check_mifgsm(x_adv, grad, x, momentum, geometry)
    finally:
        emulator.set_order("forward")


@pytest.mark.parametrize("numel", [0, 1, 3, 4, 64, 1023, 4096, 4099, 20_000])
@pytest.mark.parametrize("lower", [False, True])
def test_select_best(numel, lower) -> None:
    edges = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, 1.0])
    best_loss, loss = (t.flatten().clone() for t in torch.meshgrid(edges, edges, indexing="ij"))
    for offsets in ((0, 0), (1, 0), (3, 3)):
        batch = len(loss)
        best, candidate = (
            placed(torch.rand(batch * numel), o).view(batch, numel) if numel else torch.empty(batch, 0) for o in offsets
        )
        expected = best.clone()
        expected_loss = functional.select_best_(expected, best_loss, candidate, loss, lower=lower)
        out = emulated_norm.select_best_(best, best_loss, candidate, loss, lower=lower)
        assert same_bits(out, expected_loss) and same_bits(best, expected)
