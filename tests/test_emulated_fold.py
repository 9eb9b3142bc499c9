"""The CUDA kernel that folds batch norms, run on the host emulator, against the formula: same bits."""

from __future__ import annotations

import emulated_fold as emulated
import emulator
import pytest
import torch
from fold_cases import expected, make_layers, places, read, same_bits
from test_emulated_pgd import guards_intact, placed
from test_fold import DTYPES, assert_gaps_untouched


def fold(layers, dtype):
    at, weights, affine = places(layers)
    out = placed(torch.full((weights,), 7.0).to(dtype), 0), placed(torch.full((affine,), 7.0), 0)
    emulated.fold_batch_norm_(*out, layers, at)
    assert guards_intact(out[0]) and guards_intact(out[1])
    assert_gaps_untouched(layers, out[0])
    return read(layers, at, *out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("edges", [False, True])
def test_bits_of_the_formula(edges: bool, channels_last: bool, offset: int, dtype: torch.dtype) -> None:
    layers = make_layers(edges=edges, channels_last=channels_last, offset=offset)  # of several tables
    for layer, results in zip(layers, fold(layers, dtype), strict=True):
        weight, scale, shift = expected(layer)
        want = None if weight is None else weight.to(dtype), scale, shift
        assert all(same_bits(a, b) for a, b in zip(results, want, strict=True))


@pytest.mark.parametrize("order", ["reverse", "shuffled"])
def test_order_of_threads_does_not_matter(order: str) -> None:
    layers = make_layers(parts=[(1, 1, 1, True)])
    forward = fold(layers, torch.float32)
    emulator.set_order(order, 1)
    try:
        other = fold(layers, torch.float32)
    finally:
        emulator.set_order("forward")
    for mine, theirs in zip(forward, other, strict=True):
        assert all(same_bits(a, b) for a, b in zip(mine, theirs, strict=True))
