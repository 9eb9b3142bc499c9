"""The variants of the kernels that shapes and dtypes choose: vectors or single elements, a warp or a block a row."""

import fake_device
import pytest
import torch
from fake_device import on_device, on_host

from ard_fast import _ops

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LABELS = torch.tensor([3, 0])


def same(op, arguments, index, exact):
    """The operator on a device gives what it gives on the CPU; the names of the kernels that it started."""
    given = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    results = op(*[on_device(a, index) if isinstance(a, torch.Tensor) else a for a in given])
    expected = op(*arguments)
    pairs = list(zip(given, arguments, strict=True))
    if expected is not None:
        results, expected = ([r] if isinstance(r, torch.Tensor) else list(r) for r in (results, expected))
        pairs += [(on_host(mine), theirs) for mine, theirs in zip(results, expected, strict=True)]
    for mine, theirs in pairs:
        if isinstance(theirs, torch.Tensor):
            if exact:
                assert mine.equal(theirs)
            else:
                torch.testing.assert_close(
                    mine, theirs, rtol=1e-2 if theirs.dtype != torch.float32 else 1e-4, atol=1e-5
                )
    return {launch.kernel.removeprefix("ard::cuda::") for launch in fake_device.DRIVER.take_log()}


# 7 and 8: a warp a row; 1025 and 1032: a block.
@pytest.mark.parametrize("classes", [7, 8, 1025, 1032])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_logits(dtype, classes):
    torch.manual_seed(0)
    first, second = torch.randn(2, 2, classes).to(dtype).unbind()
    numbers = 4.0, 3.0, 4.0, 1.0, 0.5, 1.0, 0.5
    started = same(
        _ops.kd_loss, (first, second, first, LABELS, None, None, None, *numbers, True, True, False), 0, False
    )
    for mart in (False, True):
        pair = first, second, LABELS, None, mart, 5.0, 1.0, 5.0, 1.0, True, True
        started |= same(_ops.pair_loss, pair, 1, False)
    for loss in range(4):
        other = LABELS.flip(0) if loss == 3 else None
        started |= same(_ops.attack_gradient, (first, LABELS, other, loss, 50.0, True), 0, False)
    started |= same(_ops.scale_rows_, (first.clone(), torch.rand(2), 2.0), 1, True)
    mine = {torch.float32: "float", torch.float16: "ard::f16", torch.bfloat16: "ard::bf16"}[dtype]
    assert sum(f"<{mine}, " in name for name in started) >= 6
    assert not [name for name in started if "<" in name and f"<{mine}" not in name]


# 15 elements a sample: no vectors; 3,072: vectors; 27,648: several blocks a sample, in clusters where there are any.
@pytest.mark.parametrize("side", [(5, 1), (32, 32), (96, 96)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [0, 1])
def test_steps(dtype, side, index):
    torch.manual_seed(0)
    x, grad = torch.rand(2, 3, *side), torch.randn(2, 3, *side).to(dtype)
    numbers = None, None, 0.1, 0.2
    started = same(_ops.pgd_linf_step_, (x.clone(), grad, x, *numbers, False, 0.0, 1.0), index, True)
    started |= same(_ops.pgd_l2_step_, (x.clone(), grad, x, *numbers, False, 0.0, 1.0), index, False)
    momentum = torch.randn(x.shape)
    arguments = x.clone(), momentum, grad, x, *numbers, 0.9, False, 0.0, 1.0
    started |= same(_ops.mifgsm_step_, arguments, index, False)
    assert len(started) >= 3


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 3, 1), (2, 16, 4, 4), (2, 6, 4, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_affine_relu(dtype, shape, last):
    torch.manual_seed(0)
    layout = torch.channels_last if last else torch.contiguous_format
    x, residual = (torch.randn(shape).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    scale, shift = torch.randn(2, shape[1]).unbind()
    started = same(_ops.affine_relu, (x, scale, shift, residual, True, True), 0, True)
    _, mask = _ops.affine_relu(x, scale, shift, residual, True, True)
    started |= same(_ops.affine_relu_backward, (x, mask, scale), 0, True)
    assert len(started) == 2
