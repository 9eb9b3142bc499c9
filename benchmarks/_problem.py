"""What bench_steps.py and bench_augment.py run: one operator at one size, in all its variants."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from _cli import Row, WrongResult, build_variants
from _timing import (
    Variant,
    copy_variant,
    format_table,
    make_clock,
    measure,
    number,
    timing_rows,
    unavailable_row,
)

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


def run_problem(
    problem: Problem, benchmark: str, case: str, dtype_name: str, env: Row, args: argparse.Namespace, n_sets: int
) -> list[Row]:
    """Checks and times all variants of one case and prints its table; returns the rows.

    Raises:
        WrongResult: If a variant gives a wrong result.
    """
    device = torch.device(args.device)
    common = {**env, "benchmark": benchmark, "case": case, "shape": list(problem.shape), "dtype": dtype_name}
    variants, checks, absent = build_variants(
        [name for name in args.variants if name in problem.names],
        problem.make,
        problem.check,
        n_sets=n_sets,
        device=device,
        uncapturable=problem.uncapturable,
    )
    variants.append(copy_variant(problem.bytes_min, n_sets, device))
    measured = measure(
        variants, make_clock(device), n_sets=n_sets, rounds=args.rounds, min_sample_s=args.min_sample_ms * 1e-3
    )
    rows = timing_rows(measured, n_sets=n_sets, bytes_min=problem.bytes_min, baseline=problem.baseline, common=common)
    for row in rows:
        row.update(checks.get(str(row["variant"]), {}))
    rows += [unavailable_row(name, reason, common=common) for name, reason in absent.items()]
    print_case(rows, problem)
    return rows


def print_case(rows: Sequence[Row], problem: Problem) -> None:
    """Prints one case's table."""
    first = rows[0]
    shape = "x".join(map(str, problem.shape))
    print(
        f"\n{first['case']}  {shape}  {first['dtype']}  least traffic {problem.bytes_min / 1e6:.3g} MB "
        f"({problem.traffic}), {first['buffer_sets']} buffer sets"
    )
    table = [
        [
            str(r["variant"]),
            number(r["median_us"]),
            number(r["q3_us"] - r["q1_us"]),  # type: ignore[operator]
            number(r["min_us"]),
            number(r["gb_per_s"]),
            number(r["pct_of_copy"]),
            number(r["speedup_vs_baseline"]),
            number(r["fused_speedup"]),
            str(r["checked"] or ""),
        ]
        for r in rows
        if r["status"] == "ok"
    ]
    headers = [
        "variant",
        "us",
        "IQR us",
        "min us",
        "GB/s",
        "% of copy",
        f"x {problem.baseline}",
        "fused is x",
        "checked",
    ]
    print(format_table(headers, table))
    for r in rows:
        if r["status"] != "ok":
            print(f"{r['variant']}: {r['status']}")
