"""The CUDA step kernel, run on the host emulator, against the plain formula and against the CPU op: same bits."""

from __future__ import annotations

import math

import emulator
import pytest
import torch

from ard_fast import functional, reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Around the vector width (4 or 8 elements), a warp, a block and several blocks, with every kind of tail.
SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 127, 1023, 1024, 1025, 2051, 8192, 30721]
# First element of x_adv, grad and x in their buffers: all aligned, shifted together (a scalar head could align
# them), and apart (no head can).
OFFSETS = [(0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4), (8, 8, 8), (1, 0, 0), (0, 1, 0), (0, 0, 3), (2, 6, 1)]
EDGES = [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, -1e-39, 0.25, 1.0, 1.5, 3.4e38, math.inf, -math.inf, math.nan]
GUARD = 16


def placed(values: torch.Tensor, offset: int) -> torch.Tensor:
    """A copy that starts `offset` elements into a 64-byte aligned buffer, with more elements behind it."""
    buffer = torch.full((offset + values.numel() + GUARD,), 7.0).to(values.dtype)
    view = buffer[offset : offset + values.numel()]
    view.copy_(values)
    return view


def guards_intact(view: torch.Tensor) -> bool:
    buffer = view._base
    start = view.storage_offset()
    outside = torch.cat([buffer[:start], buffer[start + view.numel() :]])
    return bool((outside == 7.0).all())


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, where any NaN equals any NaN."""
    return bool(((a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())).all())


def case(n: int, seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_adv, grad and x of n elements; a third of them edge values."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.tensor(EDGES)

    def tensor(scale: float, shift: float) -> torch.Tensor:
        plain = torch.rand(n, generator=generator) * scale + shift
        picked = edges[torch.randint(len(EDGES), (n,), generator=generator)]
        return torch.where(torch.rand(n, generator=generator) < 1 / 3, picked, plain)

    return tensor(1.2, -0.1), (tensor(2.0, -1.0) * 1e-3).to(dtype), tensor(1.0, 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offsets", OFFSETS, ids=str)
def test_any_size_and_alignment(dtype: torch.dtype, offsets: tuple[int, int, int]) -> None:
    for n in SIZES:
        x_adv, grad, x = (placed(t, o) for t, o in zip(case(n, n, dtype), offsets, strict=True))
        options = {"step_size": 2 / 255, "eps": 8 / 255, "targeted": bool(n % 2)}
        expected = reference.pgd_linf_step(x_adv, grad, x, **options)
        on_cpu = functional.pgd_linf_step_(x_adv.clone(), grad, x, **options, check_bounds=False)
        emulator.pgd_linf_step_(x_adv, grad, x, **options)
        assert same_bits(x_adv, expected), f"n={n}: differs from the formula"
        assert same_bits(x_adv, on_cpu), f"n={n}: differs from the CPU op"
        assert guards_intact(x_adv), f"n={n}: wrote outside the tensor"


def test_every_edge_combination() -> None:
    edges = torch.tensor(EDGES)
    x_adv, grad, x = (t.reshape(-1).clone() for t in torch.meshgrid(edges, edges, edges, indexing="ij"))
    for bounds in [(0.0, 1.0), (-math.inf, math.inf), (-1.0, 2.0)]:
        for step_size, eps in [(2 / 255, 8 / 255), (0.0, 0.0), (1e-45, 1e-45), (math.inf, 1.0)]:
            options = {"step_size": step_size, "eps": eps, "bounds": bounds}
            expected = reference.pgd_linf_step(x_adv, grad, x, **options)
            got = emulator.pgd_linf_step_(x_adv.clone(), grad, x, **options)
            assert same_bits(got, expected), (options,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(3, 5), (5, 3, 4, 4), (2, 3, 7, 5), (7, 1), (4, 1025), (0, 3, 4, 4), (1, 4099)], ids=str
)
@pytest.mark.parametrize("which", ["step_size", "eps", "both"])
def test_per_sample(dtype: torch.dtype, shape: tuple[int, ...], which: str) -> None:
    n = math.prod(shape)
    x_adv, grad, x = (t.reshape(shape) for t in case(n, 5, dtype))
    steps = torch.linspace(0.0, 0.02, shape[0])
    radii = torch.linspace(0.05, 0.0, shape[0])
    options = {
        "step_size": steps if which in ("step_size", "both") else 0.01,
        "eps": radii if which in ("eps", "both") else 0.03,
    }
    expected = reference.pgd_linf_step(x_adv, grad, x, **options)
    on_cpu = functional.pgd_linf_step_(x_adv.clone(), grad, x, **options, check_bounds=False)
    emulator.pgd_linf_step_(x_adv, grad, x, **options)
    assert same_bits(x_adv, expected)
    assert same_bits(x_adv, on_cpu)


@pytest.mark.parametrize("per_sample", [False, True])
def test_channels_last(per_sample: bool) -> None:
    shape = (3, 3, 5, 7)
    x_adv, grad, x = (
        t.reshape(shape).contiguous(memory_format=torch.channels_last) for t in case(math.prod(shape), 9, torch.float32)
    )
    options = {"step_size": 0.01, "eps": torch.tensor([0.01, 0.02, 0.03]) if per_sample else 0.02}
    expected = reference.pgd_linf_step(x_adv, grad, x, **options)
    emulator.pgd_linf_step_(x_adv, grad, x, **options)
    assert x_adv.is_contiguous(memory_format=torch.channels_last)
    assert same_bits(x_adv.contiguous(), expected.contiguous())


def test_x_adv_may_be_x() -> None:
    x_adv, grad, _ = case(1001, 3, torch.float32)
    expected = reference.pgd_linf_step(x_adv, grad, x_adv, step_size=0.1, eps=0.05)
    emulator.pgd_linf_step_(x_adv, grad, x_adv, step_size=0.1, eps=0.05)
    assert same_bits(x_adv, expected)


@pytest.mark.parametrize("order", ["reverse", "shuffled"])
def test_order_of_threads_does_not_matter(order: str) -> None:
    x_adv, grad, x = case(20_003, 4, torch.bfloat16)
    forward = emulator.pgd_linf_step_(x_adv.clone(), grad, x, step_size=0.01, eps=0.03)
    emulator.set_order(order, 1)
    try:
        other = emulator.pgd_linf_step_(x_adv.clone(), grad, x, step_size=0.01, eps=0.03)
    finally:
        emulator.set_order("forward")
    assert same_bits(forward, other)
