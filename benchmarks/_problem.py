"""What bench_steps.py runs: one operator at one size, in all its variants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from _cli import Row, WrongResult
from _timing import Variant

EPS_ROUNDING = 6e-8  # float32 rounding of a pixel


@dataclass
class Problem:
    """One operator at one size, over rotated buffers.

    Attributes:
        shape: Of the images or logits.
        bytes_min: Least traffic of one call: each input read once, each output written once.
        traffic: The same in words.
        baseline: The variant that `speedup_vs_baseline` refers to.
        names: Variants there are.
        make: Makes one by name; may raise whatever keeps it from existing here.
        check: Runs one once and returns the row fields that say what was checked; raises `WrongResult`.
        uncapturable: Variants that wait for the device, so that no CUDA graph can hold them.
    """

    shape: tuple[int, ...]
    bytes_min: int
    traffic: str
    baseline: str
    names: tuple[str, ...]
    make: Callable[[str], Variant]
    check: Callable[[Variant], Row]
    uncapturable: frozenset[str] = frozenset()


def compiled(function: Callable[..., object]) -> Callable[..., object]:
    """Returns `function` compiled as one graph for these shapes; anything less is an error, not a slow run."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def copies(tensor: torch.Tensor, n: int) -> list[torch.Tensor]:
    """Returns `n` separately allocated copies."""
    return [tensor.clone() for _ in range(n)]


def require_close(name: str, what: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    """Compares two tensors in float64.

    Raises:
        WrongResult: If they differ by more than `tolerance` anywhere, in shape, or if one is NaN.
    """
    if got.shape != want.shape:
        raise WrongResult(f"{name}: {what} has shape {tuple(got.shape)} instead of {tuple(want.shape)}")
    worst = float((got.double() - want.double()).abs().max())
    if not worst <= tolerance:  # so that NaN fails
        raise WrongResult(f"{name}: {what} differs by {worst:.3g}, allowed {tolerance:.3g}")
