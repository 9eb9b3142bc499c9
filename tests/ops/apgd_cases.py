"""What the tests of the Auto-PGD step share: inputs, a call with the reference's signature, comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ard_fast.functional import _ops
from ard_fast.reference import APGDIterate

EDGE_GRADS = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, -1e-40, 1.0, -2.5]
EDGE_LOSSES = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0]
STATE_ROWS = 7


def fresh(x: Tensor, start: Tensor, grad_dtype: torch.dtype = torch.float32) -> APGDIterate:
    """Before the first call: nothing but x_adv holds anything yet."""
    x_prev, x_best, x_fooled = (torch.full_like(x, math.nan) for _ in range(3))
    grad_best = torch.full_like(x, math.nan, dtype=grad_dtype)
    state = torch.full((STATE_ROWS, x.shape[0]), math.nan, device=x.device)
    return APGDIterate(start.clone(), x_prev, x_best, grad_best, x_fooled, state)


def copied(iterate: APGDIterate, dtype: torch.dtype | None = None) -> APGDIterate:
    """The same values in other memory."""
    return APGDIterate(*(t.to(dtype or t.dtype, copy=True) for t in iterate))


def call(
    iterate: APGDIterate,
    grad: Tensor | None,
    x: Tensor,
    loss_rows: Tensor,
    correct: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    first: bool = False,
    window: int = 0,
    rho: float = 0.75,
    momentum: float = 0.75,
    bounds: tuple[float, float] = (0.0, 1.0),
    op: Callable[..., None] = _ops.apgd_step_,
) -> APGDIterate:
    """The operator with the signature of the reference; what it returns lies in the same memory."""
    state_out = torch.full_like(iterate.state, math.nan)
    radii = eps if isinstance(eps, Tensor) else None
    radius = 0.0 if radii is not None else eps
    op(
        *iterate,
        state_out,
        grad,
        x,
        loss_rows,
        correct,
        radii,
        radius,
        norm == "l2",
        first,
        window,
        rho,
        momentum,
        *bounds,
    )
    x_adv, x_prev = iterate.x_adv, iterate.x_prev
    if grad is not None:
        x_adv, x_prev = x_prev, x_adv
    return APGDIterate(x_adv, x_prev, *iterate[2:5], state_out)


def same(actual: Tensor, expected: Tensor) -> bool:
    """Equal as numbers, NaN equal to NaN."""
    return bool(((actual == expected) | (actual.isnan() & expected.isnan())).all())


def images(
    generator: torch.Generator,
    shape: tuple[int, ...],
    device: torch.device | str = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[Tensor, Tensor]:
    """Images and starts around them."""
    x = torch.rand(shape, generator=generator)
    start = (x + 0.05 * (2 * torch.rand(shape, generator=generator) - 1)).clamp(0, 1)
    return x.to(device).contiguous(memory_format=memory_format), start.to(device).contiguous(
        memory_format=memory_format
    )


def rounds(
    generator: torch.Generator, x: Tensor, count: int, grad_dtype: torch.dtype = torch.float32, edges: bool = False
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Gradients, losses and flags that make every kind of decision likely; with `edges`, NaN and the like too."""

    def draw(values: list[float], where: Tensor, share: float) -> Tensor:
        picked = torch.tensor(values)[torch.randint(len(values), where.shape, generator=generator)]
        return torch.where(torch.rand(where.shape, generator=generator) < share, picked, where)

    for i in range(count):
        grad = torch.randn(x.shape, generator=generator)
        loss = torch.randn(x.shape[0], generator=generator) + 0.2 * i
        if edges:
            grad, loss = draw(EDGE_GRADS, grad, 0.25), draw(EDGE_LOSSES, loss, 0.3)
        correct = torch.rand(x.shape[0], generator=generator) < 0.5
        yield i, torch.empty_like(x, dtype=grad_dtype).copy_(grad), loss.to(x.device), correct.to(x.device)


def window_at(i: int) -> int:
    """A checkpoint at every third call."""
    return 3 if i and i % 3 == 0 else 0


def in_buffer(tensor: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """A contiguous copy `offset` elements into a buffer of sevens, and the buffer."""
    count = tensor.numel()
    buffer = torch.full((offset + count + 16,), 7.0, device=tensor.device).to(tensor.dtype)
    view = buffer[offset : offset + count].view(tensor.shape)
    view.copy_(tensor)
    return view, buffer


def outside_intact(buffer: Tensor, offset: int, count: int) -> bool:
    """Whether the buffer still holds sevens around the tensor."""
    return bool((buffer[:offset] == 7).all() and (buffer[offset + count :] == 7).all())
