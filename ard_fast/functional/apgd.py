"""Auto-PGD: the loop's whole state machine in one operator a step."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ard_fast._typing import known
from ard_fast.functional import _ops
from ard_fast.functional._arguments import (
    Array,
    bounds_pair,
    check_precondition,
    flag,
    is_plain,
    nonnegative,
    number_or_per_sample,
    one_of,
    tensor,
    with_layout_of,
)
from ard_fast.functional._levels import check_levels, level_count, whole_radius

# Rows of the state, as in csrc/apgd/apgd.h.
_STATE_ROWS = 7
_STEP_SIZE, _LOSS_BEST, _FOOLED = 0, 1, 6
_MOST_STEPS = 1 << 24  # the state counts them in float32


def checkpoint_windows(
    steps: int, *, first: float = 0.22, decrement: float = 0.03, minimum: float = 0.06
) -> tuple[int, ...]:
    """When Auto-PGD looks back on its progress (Croce & Hein 2020, section 3.1, as the authors' code rounds it).

    The first checkpoint comes after `first` of the steps; each interval is shorter than the one before it by
    `decrement` of them, down to `minimum`.

    Args:
        steps: gradient steps of the attack, at least 1.

    Returns:
        `steps` numbers, one for each call of `APGDRun.step`, that say how many steps have passed since the last
        checkpoint if there is one at this call, else 0.

    Raises:
        ValueError: steps is less than 1, or a fraction is negative or not finite.
    """
    steps = _step_count(steps)
    interval = max(int(nonnegative(first, "first") * steps), 1)
    smallest = max(int(nonnegative(minimum, "minimum") * steps), 1)
    shrink = max(int(nonnegative(decrement, "decrement") * steps), 1)
    windows = [0] * steps
    at = interval
    while at < steps:
        windows[at] = interval
        interval = max(interval - shrink, smallest)
        at += interval
    return tuple(windows)


class APGDRun:
    """One run of Auto-PGD (Croce & Hein, ICML 2020) on a batch, from the start to the last step.

    Each sample has its own step size and best point. An iteration is one operator over the images and never waits for
    the GPU. L-infinity iterates are bit for bit those of the authors' code for the same gradients; in L2 the norms are
    taken without underflow, and a zero gradient moves nothing.

    ::

        run = F.APGDRun(x, start, eps=8 / 255, steps=100)
        for _ in range(100):
            ...  # grad, loss_rows [B] and correct [B] at run.x_adv
            run.step(grad, loss_rows, correct)
        ...  # loss_rows and correct at run.x_adv
        run.finish(loss_rows, correct)
        run.x_fooled, run.fooled, run.x_best, run.loss_best

    Args:
        x: clean images `[B, ...]`, float32.
        start: where the run starts, same shape, float32, within the ball and the bounds; it is copied.
        eps: radius of the ball, a number or a tensor `[B]`.
        norm: "linf" or "l2".
        steps: how many times `step` will be called, at least 1; sets the checkpoints.
        rho: at a checkpoint, the step is halved if no more than `rho` of the steps since the last one raised the loss.
        momentum: weight of the gradient step against the move before it, 0 to 1.
        bounds: lowest and highest pixel value.
        levels: the level that stands for 1.0, 1 to 255, as 255 for images of 8 bits: eps is taken down to whole levels,
            each point is rounded to its nearest levels, and no step is shorter than one (see `pgd_linf_step_`).
            `start` must hold whole levels too. L-infinity only.
        check_bounds: check that `x` is inside `bounds` (and at whole `levels`) and eps no wider. On the CPU only: on
            CUDA it would wait.

    Attributes:
        x_adv: `[B, ...]`, where the loss is to be evaluated next. Overwritten by later steps: copy it to keep it.
        x_best: `[B, ...]`, the point of the highest loss so far.
        x_fooled: `[B, ...]`, the last misclassified point, or the start where there was none.
        state: float32 `[7, B]`, what each sample remembers: step size, best loss, previous loss, steps since the last
            checkpoint that raised the loss, best loss at the last checkpoint, 1 if the step was halved there, 1 if the
            sample was misclassified anywhere.

    Raises:
        ValueError: a number or a name is out of range, or (CPU) `x` is not inside `bounds` or eps is wider.
        RuntimeError: shapes, dtypes or devices do not fit; the message names the argument.
    """

    def __init__(
        self,
        x: Array,
        start: Array,
        *,
        eps: float | Array,
        norm: str = "linf",
        steps: int = 100,
        rho: float = 0.75,
        momentum: float = 0.75,
        bounds: tuple[float, float] = (0.0, 1.0),
        levels: int | None = None,
        check_bounds: bool = True,
    ) -> None:
        one_of(norm, "norm", ("linf", "l2"))
        x, start = tensor(x, "x"), tensor(start, "start")
        if x.dim() < 1:
            raise RuntimeError("x must have a batch dimension, got a scalar")
        if start.device != x.device:
            raise RuntimeError(f"start must be on the device of x ({x.device}), got {start.device}")
        if start.shape != x.shape:
            raise RuntimeError(f"start must have the shape of x {list(x.shape)}, got {list(start.shape)}")
        self._l2 = norm == "l2"
        self._windows = checkpoint_windows(steps)
        self._rho = nonnegative(rho, "rho")
        self._momentum = nonnegative(momentum, "momentum")
        if self._momentum > 1.0:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        self._lower, self._upper = bounds_pair(bounds)
        self._eps, self._eps_tensor = number_or_per_sample(eps, "eps", x)
        x = x.detach()
        if flag(check_bounds, "check_bounds") and x.device.type == "cpu":
            radius = self._eps if self._eps_tensor is None else self._eps_tensor
            check_precondition(x, radius, (self._lower, self._upper), norm)
        self._levels = level_count(levels, norm, (self._lower, self._upper))
        if self._levels:
            if check_bounds and x.device.type == "cpu":
                check_levels(x, self._levels)
            self._eps = whole_radius(self._eps, self._levels)
            self._eps_tensor = None if self._eps_tensor is None else whole_radius(self._eps_tensor, self._levels)
        self._x = x if is_plain(x) else x.contiguous()
        self.x_adv = torch.empty_like(self._x).copy_(start.detach())
        self._x_prev = torch.empty_like(self._x)
        self.x_best = torch.empty_like(self._x)
        self.x_fooled = torch.empty_like(self._x)
        self._grad_best: Tensor | None = None
        self.state = x.new_empty((_STATE_ROWS, x.shape[0]), dtype=torch.float32)
        self._state_out = torch.empty_like(self.state)
        self._calls = 0
        self._finished = False

    @property
    def step_size(self) -> Tensor:
        """`[B]`, the step size of the next step."""
        return self.state[_STEP_SIZE]

    @property
    def loss_best(self) -> Tensor:
        """`[B]`, the highest loss so far."""
        return self.state[_LOSS_BEST]

    @property
    def fooled(self) -> Tensor:
        """Bool `[B]`, whether some point so far was misclassified."""
        return self.state[_FOOLED] != 0

    def step(self, grad: Array, loss_rows: Array, correct: Array) -> Tensor:
        """Take the loss at `x_adv` into account and step on along its gradient.

        Args:
            grad: gradient of the loss at `x_adv`, `[B, ...]`, float32, float16 or bfloat16; the same dtype every time.
            loss_rows: `[B]`, float32, the loss there.
            correct: bool `[B]`, whether the sample is classified correctly there.

        Returns:
            The next `x_adv`.
        """
        if self._calls >= len(self._windows):
            raise RuntimeError(f"step was called more than steps = {len(self._windows)} times")
        grad = with_layout_of(tensor(grad, "grad").detach(), self._x)
        if self._grad_best is None:
            self._grad_best = torch.empty_like(self._x, dtype=grad.dtype)
        self._call(grad, loss_rows, correct, self._windows[self._calls])
        self.x_adv, self._x_prev = self._x_prev, self.x_adv
        self._calls += 1
        return self.x_adv

    def take(self, index: Array) -> APGDRun:
        """The run of some of the samples, which go on exactly as they would have here.

        Args:
            index: int64 `[N]`, their positions.

        Returns:
            A run of N samples; this one must not be used any more.
        """
        index = tensor(index, "index")
        part = copy.copy(self)
        for name in ("_x", "x_adv", "_x_prev", "x_best", "x_fooled", "_grad_best", "_eps_tensor"):
            value = getattr(self, name)
            if value is not None:
                setattr(part, name, value[index].contiguous(memory_format=_format_of(value)))
        part.state = self.state[:, index].contiguous()
        part._state_out = torch.empty_like(part.state)
        self._finished = True
        return part

    def finish(self, loss_rows: Array, correct: Array) -> APGDRun:
        """Take the loss at the last point into account; no gradient is needed there. Returns itself."""
        if self._finished or self._grad_best is None:
            raise RuntimeError("finish must be called once, after the steps")
        self._call(None, loss_rows, correct, 0)
        self._finished = True
        return self

    def _call(self, grad: Tensor | None, loss_rows: Array, correct: Array, window: int) -> None:
        if self._finished:
            raise RuntimeError("the run is finished; start another one")
        loss_rows, correct = tensor(loss_rows, "loss_rows"), tensor(correct, "correct")
        written = (self.x_adv, self._x_prev, self.x_best, known(self._grad_best), self.x_fooled, self._state_out)
        _ops.apgd_step_(
            *written[:5],
            self.state,
            self._state_out,
            grad,
            self._x,
            loss_rows.detach(),
            correct,
            self._eps_tensor,
            self._eps,
            self._l2,
            self._calls == 0,
            window,
            self._rho,
            self._momentum,
            self._lower,
            self._upper,
            self._levels,
        )
        torch.autograd.graph.increment_version(written)
        self.state, self._state_out = self._state_out, self.state


def _format_of(tensor: Tensor) -> torch.memory_format:
    """Contiguous or channels_last, as `is_plain` allows."""
    if tensor.is_contiguous():
        return torch.contiguous_format
    return torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d


def _step_count(steps: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be an int, got {type(steps).__name__}")
    if not 1 <= steps <= _MOST_STEPS:
        raise ValueError(f"steps must be at least 1 and at most {_MOST_STEPS}, got {steps}")
    return steps
