"""The operator that folds batch norms: bits of the formula, float64, layouts, edge values, places, refusals."""

import fold_cases
import pytest
import torch
from fold_cases import expected, make_layers, places, read, same_bits

from ard_fast.functional import _ops

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def fold(layers, dtype=torch.float32):
    at, weights, affine = places(layers)
    device = layers[0].tensors[4 if layers[0].weight is None else 0].device
    out = torch.full((weights,), 7.0, device=device).to(dtype), torch.full((affine,), 7.0, device=device)
    _ops.fold_batch_norm_(*out, [t for layer in layers for t in layer.tensors], [layer.eps for layer in layers], at)
    return read(layers, at, *out), out


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("edges", [False, True])
def test_bits_of_the_formula(edges, channels_last, offset, device):
    """torch on the CPU rounds the same operations the same way; the CUDA kernel must give its bits."""
    layers = make_layers(edges=edges, channels_last=channels_last, offset=offset, device=device)
    on_cpu = make_layers(edges=edges, channels_last=channels_last, offset=offset)
    for dtype in DTYPES:
        found, out = fold(layers, dtype)
        for layer, (weight, scale, shift) in zip(on_cpu, found, strict=True):
            want = expected(layer)
            want = None if want[0] is None else want[0].to(dtype), *want[1:]
            for a, b in zip((weight, scale, shift), want, strict=True):
                assert same_bits(None if a is None else a.cpu(), b)
        assert_gaps_untouched(layers, out[0])


def assert_gaps_untouched(layers, weights):
    at, _, _ = places(layers)
    kept = torch.ones(len(weights), dtype=torch.bool)
    for layer, first in zip(layers, at[::3], strict=True):
        if layer.weight is not None:
            kept[first : first + layer.weight.numel()] = False
    assert weights.cpu()[kept].eq(7.0).all()


def test_against_float64(device):
    """Scale and shift within 3 and weights within 4 roundings of the exact ones, half types one of theirs more."""
    layers = make_layers(device=device)
    eps = 2.0**-24
    for dtype, rounding in zip(DTYPES, (0.0, 2.0**-11, 2.0**-8), strict=True):
        for layer, (weight, scale, shift) in zip(layers, fold(layers, dtype)[0], strict=True):
            exact_weight, exact_scale, exact_shift = expected(layer, torch.float64)
            if weight is not None:
                # fp16 has subnormals below 6.1e-5, of a fixed size
                atol = 2.0**-25 if dtype == torch.float16 else 0.0
                torch.testing.assert_close(weight.double(), exact_weight, rtol=4 * eps + rounding, atol=atol)
            if scale is not None:
                torch.testing.assert_close(scale.double(), exact_scale, rtol=3 * eps, atol=0)
            # the sum may cancel: of its terms' size
            terms = exact_shift.abs().max().item() + (
                layer.mean.abs().max().item() * 100 if layer.mean is not None else 0
            )
            torch.testing.assert_close(shift.double(), exact_shift, rtol=0, atol=6 * eps * terms)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_channels(threads):
    before = torch.get_num_threads()
    layers = make_layers(shapes=[(70, 300, 3, 3), (300, 70, 1, 1), None])
    torch.set_num_threads(threads)
    try:
        found, _ = fold(layers)
    finally:
        torch.set_num_threads(before)
    for layer, results in zip(layers, found, strict=True):
        assert all(same_bits(a, b) for a, b in zip(results, expected(layer), strict=True))


def test_many_layers_take_several_tables(device):
    """More than one launch's table holds; the outputs of all of them."""
    layers = make_layers(shapes=[(3, 2, 1, 1), None, (2, 2, 3, 3)], device=device) * 5
    assert len(layers) > 100
    for layer, results in zip(layers, fold(layers)[0], strict=True):
        want = expected(layer)
        for a, b in zip(results, want, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=3e-7, atol=1e-7)


def test_no_layers(device):
    out = torch.full((4,), 7.0, device=device)
    affine = out.clone()
    _ops.fold_batch_norm_(out, affine, [], [], [])
    assert out.eq(7.0).all() and affine.eq(7.0).all()


def test_the_dtype_is_rounded_to_nearest_even(device):
    """1 + 2^-8 is halfway between two bfloat16; an overflow of float16 is infinite, its least half rounds to 0."""
    weight = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, 65520.0, 2.0**-25, 1.5 * 2.0**-25], device=device)
    layer = fold_cases.Layer(weight.view(5, 1, 1, 1), None, None, None, None, None, 0.0)
    for dtype in DTYPES:
        assert fold([layer], dtype)[0][0][0].view(-1).equal(weight.to(dtype))
    halves = fold([layer], torch.float16)[0][0][0].view(-1)
    assert halves[2:].tolist() == [float("inf"), 0.0, 2.0**-24]
    assert fold([layer], torch.bfloat16)[0][0][0].view(-1)[:2].tolist() == [1.0, 1 + 2.0**-6]


def arguments(device="cpu", **replaced):
    weight = torch.randn(4, 3, 2, 2, device=device)
    vectors = {name: torch.rand(4, device=device) for name in ("bias", "gamma", "beta", "mean", "var")}
    given = {"weight": weight, **vectors, "weights": torch.zeros(48, device=device), "eps": [0.1], "places": [0, -1, 0]}
    given = {**given, "affine": torch.zeros(8, device=device), **replaced}
    tensors = given.get("tensors", [given[name] for name in ("weight", *vectors)])
    return given["weights"], given["affine"], tensors, given["eps"], given["places"]


@pytest.mark.parametrize(
    ("message", "replaced"),
    [
        (r"weights must be float32, float16 or bfloat16, got float64", {"weights": torch.zeros(48).double()}),
        (r"weights must be a contiguous vector, got shape \[6, 8\]", {"weights": torch.zeros(6, 8)}),
        (r"weights must begin on a 16-byte boundary", {"weights": torch.zeros(49)[1:]}),
        (r"affine must be float32, got bfloat16", {"affine": torch.zeros(8).bfloat16()}),
        (r"affine must be a contiguous vector", {"affine": torch.zeros(16)[::2]}),
        (r"tensors must have 6 entries a layer, 6 for the 1 of eps, got 5", {"tensors": [None] * 5}),
        (r"places must have 3 entries a layer, 3 for the 1 of eps, got 2", {"places": [0, 0]}),
        (r"weight of layer 0 must be float32, got float16", {"weight": torch.zeros(4, 3, 2, 2).half()}),
        (r"weight of layer 0 must have shape \[O, I, H, W\]", {"weight": torch.zeros(4, 12)}),
        (r"weight of layer 0 .* without empty dimensions", {"weight": torch.zeros(4, 0, 2, 2)}),
        (
            r"weight of layer 0 must be contiguous or channels_last",
            {"weight": torch.zeros(3, 4, 2, 2).transpose(0, 1)},
        ),
        (r"weight of layer 0 must have a place for 48 .* from 0 to 44", {"weights": torch.zeros(44)}),
        (r"weight of layer 0 must have a place .* multiple of 4, got 1", {"places": [1, -1, 0]}),
        (r"weight of layer 0 must have a place .* got -4", {"places": [-4, -1, 0]}),
        (r"shift of layer 0 must have a place for 4 .* from 0 to 8 .* got 5", {"places": [0, -1, 5]}),
        (r"scale of layer 0 must have a place", {"weight": None, "bias": None, "places": [-1, -1, 0]}),
        (r"shift of layer 0 .* from 4 to 8", {"weight": None, "bias": None, "places": [-1, 0, 3]}),
        (r"gamma of layer 0 must have shape \[4\].*got \[3\]", {"gamma": torch.zeros(3)}),
        (r"var of layer 0 must be float32, got float64", {"var": torch.zeros(4).double()}),
        (r"bias of layer 0 must be contiguous", {"bias": torch.zeros(8)[::2]}),
        (r"mean of layer 0 and var of layer 0 must be given together", {"mean": None}),
        (r"gamma of layer 0 and beta of layer 0 must not be given without", {"mean": None, "var": None}),
        (r"bias of layer 0 must not be given without a weight", {"weight": None}),
        (r"layer 0 must have a weight, or mean and var", {"tensors": [None] * 6}),
    ],
)
def test_bad_tensors(message, replaced):
    with pytest.raises(RuntimeError, match=message):
        _ops.fold_batch_norm_(*arguments(**replaced))


def test_outputs_and_inputs_must_not_overlap():
    memory = torch.zeros(128)
    with pytest.raises(RuntimeError, match="weights must not overlap weight of layer 0"):
        _ops.fold_batch_norm_(*arguments(weights=memory[:48], weight=memory[40:88].view(4, 3, 2, 2)))
    with pytest.raises(RuntimeError, match="affine must not overlap gamma of layer 0"):
        _ops.fold_batch_norm_(*arguments(affine=memory[:8], gamma=memory[4:8]))
    with pytest.raises(RuntimeError, match="weights must not overlap affine"):
        _ops.fold_batch_norm_(*arguments(weights=memory[:48], affine=memory[44:52]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_all_on_one_device():
    with pytest.raises(RuntimeError, match="must be on the device of weights"):
        _ops.fold_batch_norm_(*arguments("cuda", mean=torch.zeros(4)))
