"""Scale, shift, residual and rectifier with their bits, and folded batch norms, for any shape and edge value."""

import torch
from fold_cases import EDGES as FOLD_EDGES
from fold_cases import Layer, expected, places, read, same_bits
from hypothesis import given
from hypothesis import strategies as st
from property_tensors import EDGES, floats, same, seeds, shares, with_edges

from ard_fast import functional as F
from ard_fast import reference
from ard_fast.functional import _ops

sizes = st.sampled_from((1, 2, 3, 5, 7, 8, 9, 16, 31))


@st.composite
def layers(draw):
    """x, scale, shift, residual, a gradient, in one layout; some absent."""
    shape = [draw(st.integers(0, 4)), draw(st.sampled_from((1, 2, 3, 8, 17, 64, 130)))]
    shape += [draw(sizes) for _ in range(draw(st.sampled_from((0, 1, 2, 2, 3))))]
    generator, share, dtype = torch.Generator().manual_seed(draw(seeds)), draw(shares), draw(floats)
    offset, last = draw(st.sampled_from((0, 1, 3))), draw(st.booleans())

    def tensor(*size, dtype=torch.float32, place=True):
        values = with_edges(torch.randn(size, generator=generator), share, EDGES, generator).to(dtype)
        layout = torch.channels_last if last and len(size) == 4 else torch.contiguous_format
        strides = torch.empty(size, device="meta").contiguous(memory_format=layout).stride()
        memory = torch.zeros(values.numel() + offset, dtype=dtype)
        return memory.as_strided(size, strides, offset).copy_(values)

    x, residual, grad = (tensor(*shape, dtype=dtype) for _ in range(3))
    scale, shift = tensor(shape[1])[: shape[1]], tensor(shape[1])
    kept = [value if draw(st.booleans()) else None for value in (scale, shift, residual)]
    return x, *kept, grad


@given(layers(), st.booleans())
def test_affine_relu_has_the_bits_of_the_formula(case, relu):
    x, scale, shift, residual, grad = case
    y, mask = F.affine_relu(x, scale, shift, residual, relu=relu, mask=relu)
    expected_y, expected_mask = reference.affine_relu(x, scale, shift, residual, relu=relu, mask=relu)
    assert same(y, expected_y) and torch.equal(mask, expected_mask)
    assert y.stride() == x.stride() or y.numel() == 0
    found = F.affine_relu_backward(grad, mask if relu else None, scale, relu=relu)
    assert same(found, reference.affine_relu_backward(grad, mask if relu else None, scale, relu=relu))
    bits = F.affine_relu_(x, scale, shift, residual, relu=relu, mask=relu)
    assert same(x, y) and torch.equal(bits, mask)


@given(layers())
def test_the_mask_is_where_the_result_is_not_below_zero(case):
    x, scale, shift, residual, _ = case
    y, mask = F.affine_relu(x, scale, shift, residual, mask=True)
    assert torch.equal(reference.unpack_mask(mask, y), ~(y <= 0)) if y.numel() else len(mask) == 0
    assert not (y < 0).any()
    ones = F.affine_relu_backward(torch.ones_like(y), mask)
    assert torch.equal(ones, (~(y <= 0)).to(y.dtype))


@st.composite
def folds(draw):
    """One to three layers with any of their parts."""
    generator, share = torch.Generator().manual_seed(draw(seeds)), draw(shares)

    def drawn(*shape):
        return with_edges(torch.randn(shape, generator=generator), share, FOLD_EDGES, generator)

    made = []
    for _ in range(draw(st.integers(1, 3))):
        o = draw(sizes)
        norm = draw(st.booleans())
        conv = draw(st.booleans()) or not norm
        last = torch.channels_last if draw(st.booleans()) else torch.contiguous_format
        weight = drawn(o, draw(sizes), draw(sizes), draw(sizes)).contiguous(memory_format=last) if conv else None
        bias = drawn(o) if conv and draw(st.booleans()) else None
        gamma, beta = (drawn(o) if norm and draw(st.booleans()) else None for _ in range(2))
        mean, var = (drawn(o), drawn(o).abs()) if norm else (None, None)
        made.append(Layer(weight, bias, gamma, beta, mean, var, draw(st.sampled_from((1e-5, 1e-3, 1.0)))))
    return made


@given(folds(), floats)
def test_folded_norms_have_the_bits_of_the_formula(made, dtype):
    at, weights, affine = places(made)
    out = torch.full((weights,), 7.0).to(dtype), torch.full((affine,), 7.0)
    _ops.fold_batch_norm_(*out, [t for layer in made for t in layer.tensors], [layer.eps for layer in made], at)
    for layer, found in zip(made, read(made, at, *out), strict=True):
        wanted = expected(layer)
        wanted = None if wanted[0] is None else wanted[0].to(dtype), *wanted[1:]
        assert all(same_bits(a, b) for a, b in zip(found, wanted, strict=True))


@given(st.integers(0, 6), st.sampled_from((1, 2, 7, 8, 33, 1025)), seeds, floats,
       st.sampled_from((0.0, 1.0, 0.5, -3.0)), st.booleans())  # fmt: skip
def test_scaled_rows(batch, classes, seed, dtype, factor, per_row):
    """What the backward pass of the losses does: one rounding of the product in float32."""
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(batch, classes, generator=generator).to(dtype)
    scale = torch.randn(batch if per_row else (), generator=generator)
    rows = scale.reshape(-1, 1)
    wanted = (grad.float() * (rows * factor)).to(dtype)
    _ops.scale_rows_(grad, scale, factor)
    tolerance = {torch.float32: 3e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert torch.allclose(grad.float(), wanted.float(), rtol=tolerance, atol=6e-8 if dtype == torch.float16 else 0.0)
