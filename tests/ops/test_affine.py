"""affine_relu and its backward pass: the bits of the plain form, torch's own gradients, layouts, edges, refusals."""

import itertools
import math

import pytest
import torch

from ard_fast import functional as F
from ard_fast import reference

pytestmark = pytest.mark.sanitizer

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EDGES = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, -1e-45, 1e-40, -1e-39, 6e-8, 2.9e-8, -3e-8, 65504.0, -3e38]
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


def case(shape, dtype, layout, device="cpu", edges=True):
    """x, scale, shift, residual and a gradient; a fifth of the values from the edges."""
    generator = torch.Generator().manual_seed(sum(shape))

    def values(*size):
        plain = torch.randn(size, generator=generator)
        picked = torch.tensor(EDGES)[torch.randint(len(EDGES), size, generator=generator)]
        return torch.where(torch.rand(size, generator=generator) < 0.2, picked, plain) if edges else plain

    def tensor():
        return values(*shape).to(dtype).to(device).contiguous(memory_format=layout)

    coefficients = (torch.randn(shape[1], generator=generator).to(device) for _ in range(2))
    return tensor(), *coefficients, tensor(), tensor()


def assert_same(actual, expected):
    """Equal as numbers, NaN equal to NaN, in the same memory order."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    assert actual.stride() == expected.stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_of_the_plain_form(shape, dtype, device):
    for layout in layouts(shape):
        x, scale, shift, residual, grad = case(shape, dtype, layout, device)
        for with_scale, with_shift, with_residual in GIVEN:
            arguments = (
                scale if with_scale else None,
                shift if with_shift else None,
                residual if with_residual else None,
            )
            for relu, mask in ((True, True), (True, False), (False, False)):
                expected, expected_bits = reference.affine_relu(x, *arguments, relu=relu, mask=mask)
                before = x.clone()
                y, bits = F.affine_relu(x, *arguments, relu=relu, mask=mask)
                assert_same(y, expected)
                assert bits.equal(expected_bits)
                assert_same(x, before)
                written = x.clone()
                assert F.affine_relu_(written, *arguments, relu=relu, mask=mask).equal(expected_bits)
                assert_same(written, expected)
            _, bits = F.affine_relu(x, *arguments, mask=True)
            for relu in (True, False):
                found = F.affine_relu_backward(grad, bits, arguments[0], relu=relu)
                assert_same(found, reference.affine_relu_backward(grad, bits, arguments[0], relu=relu))


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
        assert_same(y, torch.relu(every))
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
    for shape in SHAPES:
        for layout in layouts(shape):
            x, scale, shift, residual, grad = case(shape, dtype, layout, device, edges=False)
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


def test_coefficients_of_channels_reach_their_channel(device):
    """Each channel's own number, in both memory orders."""
    for shape in SHAPES:
        for layout in layouts(shape):
            x = torch.zeros(shape, device=device).contiguous(memory_format=layout)
            numbers = torch.arange(1.0, shape[1] + 1, device=device)
            expected = numbers.view(1, -1, *(1,) * (len(shape) - 2)).expand(shape)
            assert F.affine_relu(x, None, numbers)[0].equal(expected)
            assert F.affine_relu(x + 1, numbers)[0].equal(expected)
            assert F.affine_relu_backward(x + 1, None, numbers, relu=False).equal(expected)


@pytest.mark.parametrize("offset", [1, 2, 4, 7])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_at_any_offset(dtype, offset, device):
    for shape in [(2, 3, 5, 7), (4, 16, 4, 4), (3, 33)]:
        tensors = case(shape, dtype, torch.contiguous_format, device)
        expected, bits = F.affine_relu(*tensors[:4], mask=True)

        def moved(t):
            buffer = torch.full((t.numel() + offset + 8,), 7.0, dtype=t.dtype, device=device)
            buffer[offset : offset + t.numel()] = t.flatten()
            return buffer, buffer[offset : offset + t.numel()].view(t.shape)

        (buffer, x), (_, scale), (_, shift), (_, residual), (_, grad) = map(moved, tensors)
        assert F.affine_relu_(x, scale, shift, residual, mask=True).equal(bits)
        assert_same(x, expected)
        assert buffer[:offset].eq(7).all() and buffer[offset + x.numel() :].eq(7).all()
        found = F.affine_relu_backward(grad, bits, scale)
        assert_same(found, reference.affine_relu_backward(grad, bits, scale))


def test_dimensions_of_size_one_and_none(device):
    for shape in [(0, 3, 4, 4), (2, 0, 3, 3), (2, 3, 0, 4), (0, 5)]:
        x = torch.zeros(shape, device=device)
        y, mask = F.affine_relu(x, torch.ones(shape[1], device=device), mask=True)
        assert y.shape == x.shape and mask.shape == (0,) and mask.dtype == torch.uint8
        assert F.affine_relu_(x, mask=True).shape == (0,)
        assert F.affine_relu_backward(x, mask).shape == x.shape
    # One pixel, in either memory order and with strides that mean nothing.
    x = torch.arange(-3.0, 3.0, device=device).view(2, 3, 1, 1)
    for view in (x, x.contiguous(memory_format=torch.channels_last), x.as_strided(x.shape, (3, 1, 77, 5))):
        assert F.affine_relu(view, None, torch.tensor([0.0, 1.0, 2.0], device=device))[0].flatten().tolist() == [
            *(0.0, 0.0, 1.0),
            *(0.0, 2.0, 4.0),
        ]


def test_residual_may_be_x_itself_or_lie_otherwise(device):
    x = torch.randn(2, 3, 4, 5, device=device)
    expected = torch.relu(x + x)
    assert F.affine_relu(x, residual=x)[0].equal(expected)
    assert F.affine_relu(x, residual=x.contiguous(memory_format=torch.channels_last))[0].equal(expected)
    F.affine_relu_(x, residual=x)
    assert x.equal(expected)


def test_split_among_threads():
    """Parts of the elements go to different threads; none of them writes another's byte of the mask."""
    x, scale, shift, residual, grad = case((7, 24, 67, 61), torch.float32, torch.contiguous_format)
    expected = reference.affine_relu(x, scale, shift, residual, mask=True)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y, mask = F.affine_relu(x, scale, shift, residual, mask=True)
            assert_same(y, expected[0])
            assert mask.equal(expected[1])
            assert_same(F.affine_relu_backward(grad, mask, scale), reference.affine_relu_backward(grad, mask, scale))
    finally:
        torch.set_num_threads(before)


def test_the_write_is_counted():
    x = torch.randn(2, 3, 4, 4)
    version = x._version
    F.affine_relu_(x)
    assert x._version > version
    # So that autograd notices when something it saved has changed.
    leaf = torch.randn(2, 3, 4, 4, requires_grad=True)
    x = leaf * 1.0
    y = x.exp()
    with torch.no_grad():
        F.affine_relu_(y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_other_devices():
    x, other = torch.zeros(2, 3, device="cuda"), torch.zeros(3)
    with pytest.raises(RuntimeError, match=r"scale must be on the device of x \(cuda:0\), got cpu"):
        F.affine_relu(x, other)
    with pytest.raises(RuntimeError, match=r"residual must be on the device of x \(cuda:0\), got cpu"):
        F.affine_relu(x, residual=torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match=r"mask must be on the device of grad \(cuda:0\), got cpu"):
        F.affine_relu_backward(x, torch.zeros(1, dtype=torch.uint8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cpu_and_cuda_give_the_same_bits(dtype):
    for shape in SHAPES:
        for layout in layouts(shape):
            arguments = case(shape, dtype, layout)
            on_cuda = [t.cuda() for t in arguments]
            y, mask = F.affine_relu(*arguments[:4], mask=True)
            y_cuda, mask_cuda = F.affine_relu(*on_cuda[:4], mask=True)
            assert_same(y_cuda.cpu(), y)
            assert mask_cuda.cpu().equal(mask)
            for scale in (0, 1):
                mine = F.affine_relu_backward(arguments[4], mask, arguments[1] if scale else None)
                theirs = F.affine_relu_backward(on_cuda[4], mask_cuda, on_cuda[1] if scale else None)
                assert_same(theirs.cpu(), mine)
