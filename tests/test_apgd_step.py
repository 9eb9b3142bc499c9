"""The Auto-PGD step against the formulas in plain torch: bit for bit in L-infinity, against float64 in L2."""

import math

import pytest
import torch

from ard_fast import _ops, reference
from ard_fast.reference import APGDIterate

pytestmark = pytest.mark.sanitizer

EDGE_GRADS = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, -1e-40, 1.0, -2.5]
EDGE_LOSSES = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0]


def fresh(x, start, grad_dtype=torch.float32):
    """Before the first call: nothing but x_adv holds anything yet."""
    unset = [torch.full_like(x, math.nan) for _ in range(3)]
    state = torch.full((7, x.shape[0]), math.nan, device=x.device)
    return APGDIterate(
        start.clone(), unset[0], unset[1], torch.full_like(x, math.nan, dtype=grad_dtype), unset[2], state
    )


def call(iterate, grad, x, loss_rows, correct, *, eps, norm="linf", first=False, window=0, rho=0.75, momentum=0.75):
    """The operator with the signature of the reference; the iterate it returns is made of the same tensors."""
    state_out = torch.full_like(iterate.state, math.nan)
    radii = eps if isinstance(eps, torch.Tensor) else None
    radius = 0.0 if radii is not None else eps
    numbers = (radius, norm == "l2", first, window, rho, momentum, 0.0, 1.0)
    _ops.apgd_step_(*iterate, state_out, grad, x, loss_rows, correct, radii, *numbers)
    x_adv, x_prev = iterate.x_adv, iterate.x_prev
    if grad is not None:
        x_adv, x_prev = x_prev, x_adv
    return APGDIterate(x_adv, x_prev, *iterate[2:5], state_out)


def copied(iterate, dtype=None):
    return APGDIterate(*(t.to(dtype or t.dtype, copy=True) for t in iterate))


def same(actual, expected):
    """Equal as numbers, NaN equal to NaN."""
    return bool(((actual == expected) | (actual.isnan() & expected.isnan())).all())


def images(generator, shape, device, memory_format=torch.contiguous_format):
    x = torch.rand(shape, generator=generator)
    start = (x + 0.05 * (2 * torch.rand(shape, generator=generator) - 1)).clamp(0, 1)
    return tuple(t.to(device).contiguous(memory_format=memory_format) for t in (x, start))


def rounds(generator, x, count, grad_dtype=torch.float32, edges=False):
    """Gradients, losses and flags that make every kind of decision likely."""
    for i in range(count):
        grad = torch.randn(x.shape, generator=generator)
        loss = torch.randn(x.shape[0], generator=generator) + 0.2 * i
        if edges:
            picked = torch.tensor(EDGE_GRADS)[torch.randint(len(EDGE_GRADS), x.shape, generator=generator)]
            grad = torch.where(torch.rand(x.shape, generator=generator) < 0.25, picked, grad)
            picked = torch.tensor(EDGE_LOSSES)[torch.randint(len(EDGE_LOSSES), loss.shape, generator=generator)]
            loss = torch.where(torch.rand(loss.shape, generator=generator) < 0.3, picked, loss)
        correct = torch.rand(x.shape[0], generator=generator) < 0.5
        grad = torch.empty_like(x, dtype=grad_dtype).copy_(grad)
        yield i, grad, loss.to(x.device), correct.to(x.device)


# 1: a single pixel; 33: a tail of every vector width; 3x32x32: CIFAR; 5000: several pieces and blocks of a sample.
@pytest.mark.parametrize("shape", [(3, 1), (5, 33), (7, 1, 8, 8), (4, 3, 32, 32), (3, 5000), (1, 40_001)])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_run_of_steps(shape, grad_dtype, norm, device):
    generator = torch.Generator().manual_seed(sum(shape))
    x, start = images(generator, shape, device)
    eps = 0.05 if norm == "linf" else 0.05 * math.prod(shape[1:]) ** 0.5
    mine = fresh(x, start, grad_dtype)
    seen_halved = False
    for i, grad, loss, correct in rounds(generator, x, 12, grad_dtype):
        settings = {"eps": eps, "norm": norm, "first": i == 0, "window": 3 if i and i % 3 == 0 else 0}
        if norm == "linf":
            expected = reference.apgd_step(copied(mine), grad, x, loss, correct, **settings)
        else:
            wide = copied(mine, torch.float64)
            expected = reference.apgd_step(wide, grad.double(), x.double(), loss.double(), correct, **settings)
        mine = call(mine, grad, x, loss, correct, **settings)
        for name, a, b in zip(APGDIterate._fields, mine, expected, strict=True):
            if norm == "linf" or name != "x_adv":
                assert same(a, b.to(a.dtype)), (i, name)
            else:
                torch.testing.assert_close(a, b.float(), rtol=0, atol=2e-6 * max(eps, 0.1))
        seen_halved |= bool((mine.state[0] < 2 * eps).any())
    assert seen_halved or shape[0] == 1
