"""The command line the benchmarks share, and the loop that checks and builds variants."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from _timing import GRAPH_SUFFIX, Variant, age_allocator, environment, with_graph, write_rows

Row = dict[str, object]


class WrongResult(Exception):
    """A variant's result is not what it must be; nothing may be timed."""


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
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return number


def parse_args(
    description: str,
    argv: Sequence[str] | None,
    *,
    cases: Sequence[str],
    quick_cases: Sequence[str],
    variants: Sequence[str],
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
        description: What the benchmark measures, one line.
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
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", metavar="FILE", help="write the rows here (CSV if the name ends in .csv)")
    parser.add_argument("--quick", action="store_true", help=f"few rounds, only {', '.join(quick_cases)}")
    parser.add_argument("--cases", metavar="A,B", type=names_among(cases), help=f"any of {', '.join(cases)}")
    parser.add_argument("--variants", metavar="A,B", type=names_among(variants), help=f"any of {', '.join(variants)}")
    parser.add_argument("--rounds", type=positive, help=f"samples per variant (default {rounds}, quick {quick_rounds})")
    if dtypes:
        parser.add_argument("--dtypes", metavar="A,B", type=names_among(dtypes), help=f"any of {', '.join(dtypes)}")
        parser.add_argument("--min-sample-ms", type=float, help="length of a sample (default 5, quick 1)")
        parser.add_argument("--warm", action="store_true", help="one buffer set: time from the cache, not from memory")
    parser.add_argument(
        "--allocator",
        choices=("aged", "fresh"),
        default="aged",
        help="CPU: malloc as in a process that has trained for a while, or as it happens to be in this fresh one",
    )
    parser.add_argument("--threads", type=positive, help="CPU threads (default: torch's)")
    extra(parser)
    args = parser.parse_args(argv)
    if args.rounds is None:
        args.rounds = quick_rounds if args.quick else rounds
    if not dtypes:
        args.dtypes = ["fp32"]
    else:
        args.dtypes = args.dtypes or list(default_dtypes or dtypes)
        if args.min_sample_ms is None:
            args.min_sample_ms = 1.0 if args.quick else 5.0
        if not args.min_sample_ms > 0:
            parser.error(f"--min-sample-ms: expected a positive number, got {args.min_sample_ms}")
    if args.cases is None:
        args.cases = list(quick_cases if args.quick else default_cases or cases)
    if args.variants is None:
        args.variants = [v for v in variants if v not in left_out.get(args.device, ())]
    return args


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
    for name in names:
        try:
            eager = make(name)
            checks[name] = check(eager)
            variants.append(eager)
        except WrongResult:
            raise
        except Exception as error:
            if name in required:
                raise
            absent[name] = why(error)
            continue
        if device.type == "cuda" and name in uncapturable:
            absent[name + GRAPH_SUFFIX] = "waits for the device in every call"
        elif device.type == "cuda":
            try:
                graph = with_graph(eager, n_sets)
            except Exception as error:
                if name + GRAPH_SUFFIX in required:
                    raise
                absent[name + GRAPH_SUFFIX] = why(error)
                continue
            variants.append(graph)
            checks[graph.name] = checks[name]
    return variants, checks, absent


def why(error: Exception) -> str:
    """Returns an exception in one line."""
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
                if args.json and rows:  # so that a run cut off later leaves what it has
                    write_rows(args.json, rows)
    except WrongResult as error:
        print(f"{program}: wrong result, this case was not timed: {error}", file=sys.stderr)
        return 1
    return 0
