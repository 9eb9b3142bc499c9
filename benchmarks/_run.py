"""What the benchmarks share beside the clock: command line, checks before anything is timed, rows and tables."""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _timing import (
    GRAPH_SUFFIX,
    Variant,
    age_allocator,
    copy_variant,
    environment,
    make_clock,
    measure,
    rotation_sets,
    timing_rows,
    with_graph,
)

Row = dict[str, Any]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class WrongResult(Exception):
    """A variant's result is not what it must be; nothing may be timed."""


# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------


def names_among(allowed: Collection[str]) -> Callable[[str], list[str]]:
    """Returns an argparse type: a list of names, separated by commas, all of them in `allowed`."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"expected any of {', '.join(allowed)}, got {name!r}")
        return names

    return parse


def positive(text: str) -> int:
    """An argparse type: an int of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def parse_args(
    description: str,
    argv: Sequence[str] | None,
    *,
    cases: Collection[str],
    quick_cases: Sequence[str],
    variants: Collection[str],
    dtypes: Sequence[str] = (),
    left_out: Mapping[str, Collection[str]] = {},
    default_dtypes: Sequence[str] | None = None,
    default_cases: Sequence[str] | None = None,
    rounds: int = 21,
    quick_rounds: int = 5,
    extra: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> argparse.Namespace:
    """Returns the options common to the benchmarks; `cases`, `dtypes` and `variants` are lists of checked names.

    Args:
        description: What the benchmark measures; its first line is shown.
        argv: Arguments without the program's name; None means `sys.argv[1:]`.
        cases: Names that `--cases` takes.
        quick_cases: Those that `--quick` runs.
        variants: Names that `--variants` takes.
        dtypes: Names that `--dtypes` takes. Without any, calls are timed one by one and in one dtype: there is no
            `--dtypes`, `--min-sample-ms` or `--warm`.
        left_out: By device, variants that run only when they are named.
        default_dtypes: Those that run without `--dtypes`; None means all.
        default_cases: Those that run without `--cases`; None means all.
        rounds: Samples per variant without `--rounds`.
        quick_rounds: The same under `--quick`.
        extra: Adds the benchmark's own options.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--json", metavar="FILE", help="write the rows here (CSV if the name ends in .csv)")
    add("--quick", action="store_true", help=f"few rounds, only {', '.join(quick_cases)}")
    add("--cases", metavar="A,B", type=names_among(cases), help=f"any of {', '.join(cases)}")
    add("--variants", metavar="A,B", type=names_among(variants), help=f"any of {', '.join(variants)}")
    add("--rounds", type=positive, help=f"samples per variant (default {rounds}, quick {quick_rounds})")
    add("--threads", type=positive, help="CPU threads (default: torch's)")
    if dtypes:
        add("--dtypes", metavar="A,B", type=names_among(dtypes), help=f"any of {', '.join(dtypes)}")
        add("--min-sample-ms", type=float, help="length of a sample (default 5, quick 1)")
        add("--warm", action="store_true", help="one buffer set: time from the cache, not from memory")
    extra(parser)
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (quick_rounds if args.quick else rounds)
    args.cases = args.cases or list(quick_cases if args.quick else default_cases or cases)
    args.variants = args.variants or [v for v in variants if v not in left_out.get(args.device, ())]
    if dtypes:
        args.dtypes = args.dtypes or list(default_dtypes or dtypes)
        args.min_sample_ms = args.min_sample_ms or (1.0 if args.quick else 5.0)
    else:
        args.dtypes = ["fp32"]
    return args


def run(program: str, args: argparse.Namespace, run_case: Callable[[str, str, Row], list[Row]]) -> int:
    """Runs `run_case(case, dtype, environment)` for all cases and dtypes and writes the rows; returns the exit status.

    Status 0: all timed. 1: a variant gave a wrong result. 2: the device is not there.
    """
    if args.device == "cuda" and not torch.cuda.is_available():
        print(f"{program}: --device cuda: torch sees no CUDA device", file=sys.stderr)
        return 2
    if args.threads:
        torch.set_num_threads(args.threads)
    age_allocator()
    env = environment(torch.device(args.device))
    print("  ".join(f"{k}={v}" for k, v in env.items() if v is not None))
    rows: list[Row] = []
    try:
        for case in args.cases:
            for dtype in args.dtypes:
                if any("compile" in name for name in args.variants):
                    torch.compiler.reset()  # a fresh recompile budget: no variant may fall back to eager unseen
                rows += run_case(case, dtype, env)
                sys.stdout.flush()
                if args.json and rows:  # so that a run cut off later leaves what it has
                    write_rows(Path(args.json), rows)
    except WrongResult as error:
        print(f"{program}: wrong result, this case was not timed: {error}", file=sys.stderr)
        return 1
    return 0


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Writes rows as JSON (a list of objects), or as CSV if the name ends in `.csv`; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(json.dumps(list(rows), indent=1) + "\n")


# ---------------------------------------------------------------------------------------------------------------------
# Variants
# ---------------------------------------------------------------------------------------------------------------------


def build_variants(
    names: Sequence[str],
    make: Callable[[str], Variant],
    check: Callable[[Variant], Row],
    *,
    n_sets: int,
    device: torch.device,
    uncapturable: Collection[str] = (),
    required: Collection[str] = ("fused", "fused" + GRAPH_SUFFIX),
) -> tuple[list[Variant], dict[str, Row], dict[str, str]]:
    """Makes and checks the named variants, on CUDA each also as a captured graph.

    A baseline that cannot exist here (no compiler, no CuPy) is left out with its reason; `required` ones must work.

    Args:
        names: Variants to make.
        make: Makes one by name.
        check: Runs it once, raises `WrongResult` or returns the row fields that say what was checked.
        n_sets: Buffer sets there are.
        device: Where they are.
        uncapturable: Variants that wait for the device; capturing one would fail and spoil the captures after it.
        required: Variants without which the run is an error.

    Returns:
        The variants, the checked fields by variant name, the reasons by name of those that are absent.

    Raises:
        WrongResult: If a variant's result is wrong.
    """
    variants: list[Variant] = []
    checks: dict[str, Row] = {}
    absent: dict[str, str] = {}

    def attempt(name: str, build: Callable[[], tuple[Variant, Row]]) -> Variant | None:
        try:
            variant, checks[name] = build()
        except WrongResult:
            raise
        except Exception as error:
            if name in required:
                raise
            absent[name] = why(error)
            return None
        variants.append(variant)
        return variant

    def make_and_check(name: str) -> tuple[Variant, Row]:
        variant = make(name)
        return variant, check(variant)

    for name in names:
        eager = attempt(name, lambda name=name: make_and_check(name))
        if eager is None or device.type != "cuda":
            continue
        if name in uncapturable:
            absent[name + GRAPH_SUFFIX] = "not captured"
        else:
            attempt(name + GRAPH_SUFFIX, lambda eager=eager: (with_graph(eager, n_sets), checks[eager.name]))
    return variants, checks, absent


def why(error: Exception) -> str:
    """Returns an exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def unavailable_rows(absent: Mapping[str, str], common: Row) -> list[Row]:
    """Returns the rows of variants that could not run here; `status` says why."""
    return [{**common, "variant": name, "status": f"unavailable: {reason}"} for name, reason in absent.items()]


@dataclass
class Problem:
    """One operator at one size, over rotated buffers.

    Attributes:
        shape: Of the images or logits.
        bytes_min: Least traffic of one call: each input read once, each output written once.
        traffic: The same in words.
        baseline: The variant that `speedup_vs_baseline` refers to.
        makers: By variant, in order: makes `call(i)` over the buffers; may raise whatever keeps it from existing here.
        check: From the name of a variant and what `call(0)` returned to the row fields that say what was checked;
            raises `WrongResult`.
        reset: `reset(n)` restores buffer sets 0 to n-1.
        uncapturable: Variants that wait for the device, so that no CUDA graph can hold them.
    """

    shape: tuple[int, ...]
    bytes_min: int
    traffic: str
    baseline: str
    makers: dict[str, Callable[[], Callable[[int], object]]]
    check: Callable[[str, Any], Row]
    reset: Callable[[int], None] = lambda n: None
    uncapturable: Collection[str] = ()


Sets = Callable[[int], int]
"""From the bytes of a buffer set to how many are rotated."""


def run_problem(make: Callable[[Sets], Problem], args: argparse.Namespace, common: Row) -> list[Row]:
    """Checks and times all variants of one case and prints its table; returns the rows.

    Args:
        make: Builds the problem, asking once how many buffer sets it is to have.
        args: From `parse_args`.
        common: Fields of every row: environment, benchmark, case, dtype.

    Raises:
        WrongResult: If a variant gives a wrong result.
    """
    device, n_sets = torch.device(args.device), 1

    def sets(set_bytes: int) -> int:
        nonlocal n_sets
        n_sets = 1 if args.warm else rotation_sets(set_bytes, common["cache_bytes"])
        return n_sets

    problem = make(sets)
    common = {**common, "shape": list(problem.shape)}

    def check(variant: Variant) -> Row:
        variant.reset(1)
        return problem.check(variant.name, variant.call(0))

    variants, checks, absent = build_variants(
        [name for name in args.variants if name in problem.makers],
        lambda name: Variant(name, problem.makers[name](), problem.reset),
        check,
        n_sets=n_sets,
        device=device,
        uncapturable=problem.uncapturable,
    )
    variants.append(copy_variant(problem.bytes_min, n_sets, device))
    measured = measure(
        variants, make_clock(device), n_sets=n_sets, rounds=args.rounds, min_sample_s=args.min_sample_ms * 1e-3
    )
    rows = timing_rows(
        measured, checks, common=common, baseline=problem.baseline, bytes_min=problem.bytes_min, n_sets=n_sets
    )
    rows += unavailable_rows(absent, common)
    title = (
        f"{common['case']}  {'x'.join(map(str, problem.shape))}  {common['dtype']}  "
        f"least traffic {problem.bytes_min / 1e6:.3g} MB ({problem.traffic}), {n_sets} buffer sets"
    )
    print_rows(
        title,
        rows,
        {
            "us": "median_us",
            "IQR us": lambda row: row["q3_us"] - row["q1_us"],
            "min us": "min_us",
            "GB/s": "gb_per_s",
            "% of copy": "pct_of_copy",
            f"x {problem.baseline}": "speedup_vs_baseline",
            "fused is x": "fused_speedup",
            "checked": "checked",
        },
    )
    return rows


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function` compiled as one graph for these shapes; anything less is an error, not a slow run."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def copies(tensor: torch.Tensor, n: int) -> list[torch.Tensor]:
    """Returns `n` separately allocated copies."""
    return [tensor.clone() for _ in range(n)]


def require_close(name: str, what: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> Row:
    """Compares two tensors in float64; returns the row field that says so.

    Raises:
        WrongResult: If they differ by more than `tolerance` anywhere, in shape, or if one is NaN.
    """
    if got.shape != want.shape:
        raise WrongResult(f"{name}: {what} has shape {tuple(got.shape)} instead of {tuple(want.shape)}")
    worst = float((got.double() - want.double()).abs().max())
    if not worst <= tolerance:  # so that NaN fails
        raise WrongResult(f"{name}: {what} differs by {worst:.3g}, allowed {tolerance:.3g}")
    return {"checked": f"within {tolerance:.1e}" if tolerance else "bit-equal"}


def require_errors(
    name: str, value: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...], bounds: tuple[float, float] | None
) -> Row:
    """Compares a loss and its gradients with those in float64 by relative errors; returns these as row fields.

    Args:
        name: Of the variant.
        value: The loss, a scalar, and its gradients.
        want: The same in float64.
        bounds: Largest allowed errors of the loss and of each gradient's norm; None: shown, not judged.

    Raises:
        WrongResult: If an error is beyond its bound or NaN.
    """
    loss, grad = (
        max(float((g.detach().double() - w.detach()).norm() / w.detach().norm()) for g, w in pairs)
        for pairs in (zip(value[:1], want[:1], strict=True), zip(value[1:], want[1:], strict=True))
    )
    if bounds and not (loss <= bounds[0] and grad <= bounds[1]):
        raise WrongResult(
            f"{name}: relative error of loss {loss:.3g}, of gradient {grad:.3g}; "
            f"allowed {bounds[0]:.0e} and {bounds[1]:.0e}"
        )
    return {"loss_rel_error": loss, "grad_rel_error": grad, "checked": f"errors {loss:.0e}, {grad:.0e}"}


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def print_rows(title: str, rows: Sequence[Row], columns: Mapping[str, str | Callable[[Row], object]]) -> None:
    """Prints a table of the rows that were timed, then why the others were not.

    Args:
        title: A line above it.
        rows: Of one case.
        columns: Header and the row's field, or what to make of the row.
    """
    table = [["variant", *columns]]
    for row in rows:
        if row["status"] == "ok":
            values = [row.get(field) if isinstance(field, str) else field(row) for field in columns.values()]
            table.append([row["variant"], *(value if isinstance(value, str) else number(value) for value in values)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print(f"\n{title}")
    for line in [table[0], ["-" * width for width in widths], *table[1:]]:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join([line[0].ljust(widths[0]), *cells[1:]]).rstrip())
    for row in rows:
        if row["status"] != "ok":
            print(f"{row['variant']}: {row['status']}")


def number(value: float | None, digits: int = 3) -> str:
    """Returns `value` with about `digits` significant digits and no exponent between 0.01 and 1e6; "-" for None."""
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return str(value)
    if not 1e-2 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
