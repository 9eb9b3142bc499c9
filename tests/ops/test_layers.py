"""affine_relu, its backward pass and the folding of batch norms: the bits of the plain forms, torch's own gradients."""

import itertools
import math

import pytest
import torch
from fold_cases import Layer, expected, make_layers, places, read, same_bits
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import often
from property_tensors import EDGES, Layout, floats, same, seeds, shares, untouched_around, with_edges

from ard_fast import functional as F
from ard_fast import reference
from ard_fast.functional import _ops

pytestmark = pytest.mark.sanitizer

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# One element; fewer than a byte of the mask; no width divisible; planes of 49 and 16; linear layers; more channels
# than a block of the CPU's loop has elements; planes beyond such a block; enough for several threads.
SHAPES = [
    (1, 1, 1, 1),
    (1, 5, 1, 1),
    (2, 3, 5, 7),
    (3, 16, 7, 7),
    (4, 64, 4, 4),
    (3, 33),
    (2, 1030),
    (2, 1, 9, 3),
    (1, 3, 41, 53),
    (3, 24, 33, 31),
]
GIVEN = list(itertools.product([False, True], repeat=3))  # scale, shift, residual


def layouts(shape):
    return [torch.contiguous_format] + ([torch.channels_last] if len(shape) == 4 else [])


def case(shape, dtype, layout, device="cpu", share=0.2):
    """x, scale, shift, residual and a gradient, a share of the values from the edges."""
    generator = torch.Generator().manual_seed(sum(shape))

    def tensor():
        values = with_edges(torch.randn(shape, generator=generator), share, EDGES, generator)
        return values.to(dtype).to(device).contiguous(memory_format=layout)

    coefficients = (torch.randn(shape[1], generator=generator).to(device) for _ in range(2))
    return tensor(), *coefficients, tensor(), tensor()


def check(x, scale, shift, residual, grad, relu):
    """Out of place, in place and backward, with and without the mask: the bits of the formula."""
    before = x.clone()
    wanted, bits = reference.affine_relu(x, scale, shift, residual, relu=relu, mask=relu)
    y, mask = F.affine_relu(x, scale, shift, residual, relu=relu, mask=relu)
    assert same(y, wanted) and mask.equal(bits) and same(x, before)
    assert y.stride() == x.stride() or y.numel() == 0
    assert same(F.affine_relu(x, scale, shift, residual, relu=relu)[0], wanted)
    found = F.affine_relu_backward(grad, mask if relu else None, scale, relu=relu)
    assert same(found, reference.affine_relu_backward(grad, mask if relu else None, scale, relu=relu))
    assert F.affine_relu_(x, scale, shift, residual, relu=relu, mask=relu).equal(mask) and same(x, y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_of_the_plain_form(shape, dtype, device, on_cpu):
    if not on_cpu and shape[1] == 24:
        shape = (1, 24, 11, 31)  # for an emulated GPU's sake
    for layout in layouts(shape):
        tensors = case(shape, dtype, layout, device)
        for given_ones in GIVEN:
            given_tensors = [t if here else None for t, here in zip(tensors[1:4], given_ones, strict=True)]
            for relu in (True, False):
                check(tensors[0].clone(), *given_tensors, tensors[4], relu)


@st.composite
def tensors_of_a_layer(draw):
    """x, scale, shift, residual, a gradient, in one layout anywhere in memory; some absent; empty ones."""
    shape = [draw(st.integers(0, 4)), draw(st.sampled_from((1, 2, 3, 8, 17, 64, 130)))]
    shape += [
        draw(st.sampled_from((0, 1, 2, 3, 5, 7, 8, 9, 16, 31))) for _ in range(draw(st.sampled_from((0, 1, 2, 3))))
    ]
    generator, share, dtype = torch.Generator().manual_seed(draw(seeds)), draw(shares), draw(floats)
    offset, last = draw(st.sampled_from((0, 1, 2, 4, 7))), draw(st.booleans()) and len(shape) == 4

    def tensor(*size, dtype=torch.float32):
        values = with_edges(torch.randn(size, generator=generator), share, EDGES, generator).to(dtype)
        if not (last and len(size) == 4):
            return Layout("plain", 0, offset, True).place(values)
        return Layout("plain", 0, offset, True).place(values.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    x, residual, grad = (tensor(*shape, dtype=dtype) for _ in range(3))
    kept = [t if draw(st.booleans()) else None for t in (tensor(shape[1]), tensor(shape[1]), residual)]
    return x, *kept, grad


@given(tensors_of_a_layer(), st.booleans())
@often
def test_any_arguments(tensors, relu):
    check(*tensors, relu)
    assert untouched_around(tensors[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mask_is_where_torch_passes_the_gradient(shape, dtype, device):
    for layout in layouts(shape):
        x, scale, shift, residual, _ = case(shape, dtype, layout, device)
        y, mask = F.affine_relu(x, scale, shift, residual, mask=True)
        passed = torch.ops.aten.threshold_backward(torch.ones_like(y), y, 0)
        assert reference.unpack_mask(mask, y).equal(passed != 0)
        assert mask.numel() == math.ceil(x.numel() / 8)
        if x.numel() % 8:
            assert int(mask[-1]) >> x.numel() % 8 == 0


def test_mask_of_every_float16_and_bfloat16(device):
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(2**16, dtype=torch.int32, device=device).to(torch.uint16).view(dtype).view(256, 256)
        y, mask = F.affine_relu(every, mask=True)
        assert same(y, torch.relu(every))
        assert reference.unpack_mask(mask, y).equal((every > 0) | every.isnan())


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_a_value_that_is_rounded_to_zero_passes_nothing(dtype, device):
    """As torch: its backward sees the rounded result."""
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x = torch.tensor([[least, least, 2 * least, -least]], dtype=dtype, device=device)
    y, mask = F.affine_relu(x, torch.tensor([0.5, 0.75, 0.5, 1.0], device=device), mask=True)
    assert y.tolist() == [[0.0, least, least, 0.0]] and mask.tolist() == [0b0110]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_float64_and_autograd(dtype, device):
    for shape in SHAPES[2:8]:
        for layout in layouts(shape):
            x, scale, shift, residual, grad = case(shape, dtype, layout, device, share=0.0)
            wide = [t.double().requires_grad_() for t in (x, residual)]
            exact, _ = reference.affine_relu(wide[0], scale.double(), shift.double(), wide[1])
            y, mask = F.affine_relu(x, scale, shift, residual, mask=True)
            rounding = torch.finfo(dtype).eps
            torch.testing.assert_close(y.double(), exact.detach(), rtol=rounding, atol=1e-6)
            before_relu, _ = reference.affine_relu(wide[0], scale.double(), shift.double(), wide[1], relu=False)
            at_the_kink = before_relu.abs() < 1e-5
            for ours, theirs in zip(
                (F.affine_relu_backward(grad, mask, scale), F.affine_relu_backward(grad, mask)),
                torch.autograd.grad(exact, wide, grad.double()),
                strict=True,
            ):
                close = torch.isclose(ours.double(), theirs, rtol=rounding, atol=1e-7)
                assert (close | at_the_kink).all()


def test_residual_may_be_x_itself_or_lie_otherwise(device):
    x = torch.randn(2, 3, 4, 5, device=device)
    wanted = torch.relu(x + x)
    assert F.affine_relu(x, residual=x)[0].equal(wanted)
    assert F.affine_relu(x, residual=x.contiguous(memory_format=torch.channels_last))[0].equal(wanted)
    F.affine_relu_(x, residual=x)
    assert x.equal(wanted)


def test_split_among_threads():
    """Parts of the elements go to different threads; none of them writes another's byte of the mask."""
    x, scale, shift, residual, grad = case((7, 24, 67, 61), torch.float32, torch.contiguous_format)
    wanted = reference.affine_relu(x, scale, shift, residual, mask=True)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y, mask = F.affine_relu(x, scale, shift, residual, mask=True)
            assert same(y, wanted[0]) and mask.equal(wanted[1])
            found = F.affine_relu_backward(grad, mask, scale)
            assert same(found, reference.affine_relu_backward(grad, mask, scale))
    finally:
        torch.set_num_threads(before)


def test_tensors_that_require_grad():
    leaf, plain = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    coefficient = torch.ones(3, requires_grad=True)
    for name, arguments in {
        "x": (leaf,),
        "residual": (plain, None, None, leaf),
        "scale": (plain, coefficient),
        "shift": (plain, None, coefficient),
    }.items():
        for function in (F.affine_relu, F.affine_relu_):
            with pytest.raises(ValueError, match=f"^{name} must not require grad"):
                function(*arguments)
    with torch.no_grad():
        y, _ = F.affine_relu(leaf, None, coefficient, leaf)
    assert not y.requires_grad


X = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("message", "changes", "error"),
    [
        ("mask must be False with relu=False", {"relu": False, "mask": True}, ValueError),
        ("x must be float32, float16 or bfloat16, got float64", {"x": X.double()}, RuntimeError),
        (r"x must have shape \[B, C, ...\], got \[3\]", {"x": torch.zeros(3)}, RuntimeError),
        ("x must be dense in memory", {"x": torch.zeros(2, 3, 4, 8)[..., ::2]}, RuntimeError),
        ("x must be contiguous or channels_last", {"x": torch.zeros(2, 3, 4, 5).transpose(2, 3)}, RuntimeError),
        ("x must have its batch dimension outermost", {"x": torch.zeros(3, 2, 4, 4).transpose(0, 1)}, RuntimeError),
        (r"scale must have shape \[3\], one entry a channel, got \[4\]", {"scale": torch.ones(4)}, RuntimeError),
        (r"shift must have shape \[3\], one entry a channel, got \[3, 1\]", {"shift": torch.ones(3, 1)}, RuntimeError),
        ("scale must be float32, got bfloat16", {"scale": torch.ones(3).bfloat16()}, RuntimeError),
        ("shift must be contiguous", {"shift": torch.ones(6)[::2]}, RuntimeError),
        (
            r"residual must have the shape of x \[2, 3, 4, 4\], got \[2, 3, 4, 5\]",
            {"residual": torch.zeros(2, 3, 4, 5)},
            None,
        ),
        (r"residual must have the dtype of x \(float32\), got float16", {"residual": X.half()}, RuntimeError),
    ],
)
def test_bad_arguments(message, changes, error):
    arguments = {"x": X.clone(), **changes}
    x = arguments.pop("x")
    for function in (F.affine_relu, F.affine_relu_):
        with pytest.raises(error, match=message):
            function(x, **arguments)
    assert not x.any()


def test_shared_memory():
    memory = torch.zeros(100)
    x = memory[:48].view(2, 3, 4, 2)
    with pytest.raises(RuntimeError, match="x must not partly overlap residual"):
        F.affine_relu_(x, residual=memory[1:49].view(2, 3, 4, 2))
    with pytest.raises(RuntimeError, match="x must not overlap scale"):
        F.affine_relu_(x, memory[:3])
    with pytest.raises(RuntimeError, match="x must not overlap shift"):
        F.affine_relu_(x, None, memory[45:48])
    F.affine_relu_(x, memory[48:51], memory[51:54], memory[52:100].view(2, 3, 4, 2))
    assert not memory.any()


MASK = torch.zeros(12, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("message", "grad", "mask", "scale"),
    [
        ("grad must be float32, float16 or bfloat16, got float64", X.double(), MASK, None),
        (r"grad must have shape \[B, C, ...\], got \[96\]", X.flatten(), MASK, None),
        ("grad must be dense in memory", torch.zeros(2, 3, 4, 8)[..., ::2], MASK, None),
        ("grad must be contiguous or channels_last", torch.zeros(2, 3, 4, 5).transpose(2, 3), MASK, None),
        (r"mask must have shape \[12\], one bit for each element of grad, got \[11\]", X, MASK[:11], None),
        (r"mask must have shape \[12\], one bit for each element of grad, got \[0\]", X, MASK[:0], None),
        ("mask must be uint8, got bool", X, MASK.bool(), None),
        ("mask must be contiguous", X, torch.zeros(24, dtype=torch.uint8)[::2], None),
        (r"scale must have shape \[3\], one entry a channel, got \[1\]", X, MASK, torch.ones(1)),
        ("scale must be float32, got float64", X, MASK, torch.ones(3).double()),
    ],
)
def test_bad_arguments_of_the_backward_pass(message, grad, mask, scale):
    with pytest.raises(RuntimeError, match=message):
        F.affine_relu_backward(grad, mask, scale)
    with pytest.raises(ValueError, match="mask must be given with relu=True, got None"):
        F.affine_relu_backward(X, None)


# ---- folded batch norms


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


@st.composite
def folds(draw):
    """One to three layers with any of their parts."""
    generator, share = torch.Generator().manual_seed(draw(seeds)), draw(shares)
    extents = st.sampled_from((1, 2, 3, 5, 7, 8, 9, 16, 31))

    def drawn(*shape):
        return with_edges(torch.randn(shape, generator=generator), share, EDGES, generator)

    made = []
    for _ in range(draw(st.integers(1, 3))):
        o = draw(extents)
        norm = draw(st.booleans())
        conv = draw(st.booleans()) or not norm
        last = torch.channels_last if draw(st.booleans()) else torch.contiguous_format
        weight = drawn(o, draw(extents), draw(extents), draw(extents)).contiguous(memory_format=last) if conv else None
        bias = drawn(o) if conv and draw(st.booleans()) else None
        gamma, beta = (drawn(o) if norm and draw(st.booleans()) else None for _ in range(2))
        mean, var = (drawn(o), drawn(o).abs()) if norm else (None, None)
        made.append(Layer(weight, bias, gamma, beta, mean, var, draw(st.sampled_from((1e-5, 1e-3, 1.0)))))
    return made


@given(folds(), floats)
def test_any_layers(layers, dtype):
    for layer, found in zip(layers, fold(layers, dtype)[0], strict=True):
        want = expected(layer)
        want = None if want[0] is None else want[0].to(dtype), *want[1:]
        assert all(same_bits(a, b) for a, b in zip(found, want, strict=True))


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
