"""The command line the benchmarks share, and the loop that checks and builds variants."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
from _timing import GRAPH_SUFFIX, Variant, age_allocator, environment, with_graph, write_rows

Row = dict[str, object]


class WrongResult(Exception):
    """A variant's result is not what it must be; nothing may be timed."""


def parse_args(
    description: str,
    argv: Sequence[str] | None,
    *,
    cases: Sequence[str],
    quick_cases: Sequence[str],
    dtypes: Sequence[str],
    variants: Sequence[str],
    cuda_only: Sequence[str] = (),
    extra: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> argparse.Namespace:
    """Returns the options common to the benchmarks; `cases`, `dtypes` and `variants` are lists of checked names.

    Args:
        description: What the benchmark measures, one line.
        argv: Arguments without the program's name; None means `sys.argv[1:]`.
        cases: Names that `--cases` takes.
        quick_cases: Those that `--quick` runs.
        dtypes: Names that `--dtypes` takes.
        variants: Names that `--variants` takes.
        cuda_only: Variants left out by default on a CPU.
        extra: Adds the benchmark's own options.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", metavar="FILE", help="write the rows here (CSV if the name ends in .csv)")
    parser.add_argument("--quick", action="store_true", help=f"few rounds, only {', '.join(quick_cases)}")
    parser.add_argument("--cases", metavar="A,B", help=f"any of {', '.join(cases)}")
    parser.add_argument("--dtypes", metavar="A,B", help=f"any of {', '.join(dtypes)}")
    parser.add_argument("--variants", metavar="A,B", help=f"any of {', '.join(variants)}; a copy always runs")
    parser.add_argument("--rounds", type=int, help="samples per variant (default 21, quick 5)")
    parser.add_argument("--min-sample-ms", type=float, help="length of a sample (default 5, quick 1)")
    parser.add_argument("--warm", action="store_true", help="one buffer set: time from the cache instead of memory")
    parser.add_argument(
        "--allocator",
        choices=("aged", "fresh"),
        default="aged",
        help="CPU: malloc as in a process that has trained for a while, or as it happens to be in this fresh one",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    extra(parser)
    args = parser.parse_args(argv)
    if args.rounds is None:
        args.rounds = 5 if args.quick else 21
    if args.min_sample_ms is None:
        args.min_sample_ms = 1.0 if args.quick else 5.0
    if args.rounds < 1 or args.min_sample_ms <= 0:
        parser.error(f"--rounds and --min-sample-ms: expected positive, got {args.rounds} and {args.min_sample_ms}")

    def chosen(option: str, text: str | None, allowed: Sequence[str], default: Sequence[str]) -> list[str]:
        names = text.split(",") if text else list(default)
        for name in names:
            if name not in allowed:
                parser.error(f"{option}: expected any of {', '.join(allowed)}, got {name!r}")
        return names

    args.cases = chosen("--cases", args.cases, cases, quick_cases if args.quick else cases)
    args.dtypes = chosen("--dtypes", args.dtypes, dtypes, dtypes)
    here = [v for v in variants if args.device == "cuda" or v not in cuda_only]
    args.variants = chosen("--variants", args.variants, variants, here)
    return args


def build_variants(
    names: Sequence[str],
    make: Callable[[str], Variant],
    check: Callable[[Variant], Row],
    *,
    n_sets: int,
    device: torch.device,
) -> tuple[list[Variant], dict[str, Row], dict[str, str]]:
    """Makes and checks the named variants, on CUDA each also as a captured graph.

    A baseline that cannot exist here (no compiler, no CuPy) is left out with its reason; ours must work.

    Args:
        names: Variants to make.
        make: Makes one by name.
        check: Runs it once, raises `WrongResult` or returns the row fields that say what was checked.
        n_sets: Buffer sets there are.
        device: Where they are.

    Returns:
        The variants, the checked fields by variant name, the reasons by name of those that are absent.

    Raises:
        WrongResult: If a variant's result is wrong.
    """
    variants: list[Variant] = []
    checks: dict[str, Row] = {}
    absent: dict[str, str] = {}
    for name in names:
        try:
            eager = make(name)
            checks[name] = check(eager)
            variants.append(eager)
        except WrongResult:
            raise
        except Exception as error:
            if name == "fused":
                raise
            absent[name] = _reason(error)
            continue
        if device.type == "cuda":
            try:
                graph = with_graph(eager, n_sets)
            except Exception as error:
                if name == "fused":
                    raise
                absent[name + GRAPH_SUFFIX] = _reason(error)
                continue
            variants.append(graph)
            checks[graph.name] = checks[name]
    return variants, checks, absent


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def run(program: str, args: argparse.Namespace, run_case: Callable[[str, str, Row], list[Row]]) -> int:
    """Runs `run_case(case, dtype, environment)` for all cases and dtypes and writes the rows; returns the exit status.

    Status 0: all timed. 1: a variant gave a wrong result. 2: the device is not there.
    """
    if args.device == "cuda" and not torch.cuda.is_available():
        print(f"{program}: --device cuda: torch sees no CUDA device", file=sys.stderr)
        return 2
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cpu" and args.allocator == "aged":
        age_allocator()
    env = environment(torch.device(args.device), args.allocator)
    print("  ".join(f"{k}={v}" for k, v in env.items() if v is not None))
    rows: list[Row] = []
    try:
        for case in args.cases:
            for dtype in args.dtypes:
                torch.compiler.reset()  # a fresh recompile budget: no variant may fall back to eager unseen
                rows += run_case(case, dtype, env)
                sys.stdout.flush()
    except WrongResult as error:
        print(f"{program}: wrong result, this case was not timed: {error}", file=sys.stderr)
        return 1
    finally:
        if args.json and rows:
            write_rows(args.json, rows)
    return 0
