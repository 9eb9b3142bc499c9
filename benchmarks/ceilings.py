"""How near the kernels are to what the hardware allows: a roofline table with a verdict for each bound.

    python benchmarks/ceilings.py [--device cpu|cuda] [--json FILE] [--quick] [--cases A,B] [--ncu NCU_CSV]

Bounds, of a GPU:

    copy       at ImageNet size at least 90 % of the speed of a copy of as many bytes, measured in the same rounds
    time       less than 3 microseconds of device time at CIFAR batch 128, buffers in L2 (see _ceiling_cases.py)
    launches   one for each call

Without ncu a time is that of a captured graph of many calls, replayed: from one kernel's start to the next one's, so
for the shortest kernels rather too long. With `--ncu`, output of

    ncu --csv --metrics ... --nvtx --profile-from-start off --clock-control none --cache-control none \\
        python benchmarks/profile_kernels.py --cases 'ceiling-*,copy-*'

(scripts/gpu_check.sh has the metrics), it is the kernel's own, and the copy is one by a kernel: a plain copy is none,
so ncu does not see it. A file in which ncu says that it may not read the counters is passed over. Launches are counted
in a trace of the driver's activity (torch.profiler), or by ncu.

`floor us` is the time of the copy, and `DRAM %` what ncu says of the peak. On a CPU everything runs likewise, but the
bounds are not its: it prints what it measures, and no verdict. Exit status: 0, 1 if a result is wrong or a bound is
missed, 2 without the device.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import _ceiling_cases
import torch
from _ceiling_cases import MAKERS, MEMORY, SHORT
from _cli import Row, parse_args, run
from _timing import (
    GRAPH_SUFFIX,
    Variant,
    copy_variant,
    format_table,
    make_clock,
    measure,
    number,
    paired_ratio,
    summarize,
    with_graph,
)
from ncu_summary import read_kernels
from torch.autograd import DeviceType

COPY_PERCENT = 90.0
SHORT_US = 3.0
LAUNCHES = 1
GRAPH_CALLS = 32
QUICK_CASES = tuple(case for case, (kind, _) in MAKERS.items() if kind == SHORT)


@dataclass(frozen=True)
class Found:
    """What is known of a call's cost.

    Attributes:
        us: Device time of a call (CPU: time).
        copy_us: The same of a copy of as many bytes.
        pct_of_copy: Their ratio; paired by rounds where both were timed so.
        launches: Kernels and fills a call; None where nobody counted.
        dram_pct: Of the peak, by ncu; None without.
        source: Where the time is from.
    """

    us: float
    copy_us: float
    pct_of_copy: float
    launches: float | None
    dram_pct: float | None
    source: str


@dataclass(frozen=True)
class Verdict:
    """One bound of one case; `holds` is None where it cannot be judged, and then `why` says why."""

    bound: str
    found: str
    holds: bool | None
    why: str = ""

    def words(self) -> str:
        """As printed."""
        return self.why if self.holds is None else ("pass" if self.holds else "FAIL")


def judge(kind: str, found: Found, device_type: str) -> list[Verdict]:
    """Returns the verdicts of the bounds that a case of this kind has."""
    counted = found.launches is not None
    launches = Verdict(
        f"launches = {LAUNCHES}", number(found.launches), counted and found.launches == LAUNCHES, "not counted"
    )
    if not counted:
        launches = Verdict(launches.bound, "-", None, "not counted")
    if kind == MEMORY:
        first = Verdict(
            f">= {COPY_PERCENT:g} % of copy", f"{found.pct_of_copy:.1f} %", found.pct_of_copy >= COPY_PERCENT
        )
    else:
        first = Verdict(f"< {SHORT_US:g} us", f"{found.us:.2f} us", found.us < SHORT_US)
    if device_type != "cuda":
        first = Verdict(first.bound, first.found, None, "a GPU's bound")
    return [first, launches]


# ---------------------------------------------------------------------------------------------------------------------
# Sources
# ---------------------------------------------------------------------------------------------------------------------


def time_call(call: _ceiling_cases.Call, device: torch.device, *, rounds: int, min_sample_s: float) -> Found:
    """Times a call and a copy of as many bytes, interleaved; on CUDA both as replayed graphs."""
    variants = [call.variant, copy_variant(call.bytes_min, call.sets, device)]
    suffix, source = "", "call"
    if device.type == "cuda":
        variants, suffix, source = [_many(variant, call.sets) for variant in variants], GRAPH_SUFFIX, "graph"
    measured = measure(variants, make_clock(device), n_sets=call.sets, rounds=rounds, min_sample_s=min_sample_s)
    ours, copied = measured[f"fused{suffix}"].seconds, measured[f"copy{suffix}"].seconds
    return Found(
        us=1e6 * summarize(ours).median,
        copy_us=1e6 * summarize(copied).median,
        pct_of_copy=100.0 * paired_ratio(copied, ours),
        launches=None,
        dram_pct=None,
        source=source,
    )


def _many(variant: Variant, sets: int) -> Variant:
    """Returns `GRAPH_CALLS` of the variant as one captured graph, over as many buffer sets as there are."""
    around = Variant(variant.name, lambda i: variant.call(i % sets), lambda _n: variant.reset(sets))
    return with_graph(around, GRAPH_CALLS)


def count_launches(call: Callable[[int], object], *, calls: int = 10) -> float | None:
    """Returns what one call launches on the current CUDA device, mean of several; None if nothing could be traced."""
    call(0)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        for _ in range(calls):
            call(0)
        torch.cuda.synchronize()
    return launches_in(trace.events(), calls)


def launches_in(events: Sequence[object], calls: int) -> float | None:
    """Returns the kernels, fills and copies a call among a trace's events; None without any.

    What is there once and not once a call, as the tracer's own work is, drops out.
    """
    names = Counter(event.name for event in events if event.device_type == DeviceType.CUDA)  # type: ignore[attr-defined]
    return float(sum(round(count / calls) for count in names.values())) if names else None


def from_ncu(text: str) -> dict[str, Found]:
    """Returns what ncu says of each case that it saw together with its copy; nothing if it saw no kernel."""
    try:
        kernels = read_kernels(text)
    except ValueError:
        return {}
    by_case: dict[str, list[dict[str, str]]] = defaultdict(list)
    for kernel in kernels:
        by_case[kernel["case"]].append(kernel)
    found = {}
    for case in MAKERS:
        ours, copied = by_case.get(f"ceiling-{case}"), by_case.get(f"copy-{case}")
        if not ours or not copied or any(kernel["us"] == "-" for kernel in (*ours, *copied)):
            continue
        us, copy_us = (sum(float(kernel["us"]) for kernel in part) for part in (ours, copied))
        longest = max(ours, key=lambda kernel: float(kernel["us"]))
        found[case] = Found(
            us=us,
            copy_us=copy_us,
            pct_of_copy=100.0 * copy_us / us,
            launches=float(len(ours)),
            dram_pct=None if longest["DRAM %"] == "-" else float(longest["DRAM %"]),
            source="ncu",
        )
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------


def run_case(case: str, env: Row, args: argparse.Namespace, ncu: dict[str, Found]) -> list[Row]:
    """Checks and times a case; returns a row for each source.

    Raises:
        WrongResult: If its result is wrong.
    """
    device = torch.device(args.device)
    call = _ceiling_cases.make(case, device)
    call.check()
    call.variant.reset(call.sets)
    timed = time_call(call, device, rounds=args.rounds, min_sample_s=args.min_sample_ms * 1e-3)
    if device.type == "cuda":
        timed = Found(**{**vars(timed), "launches": count_launches(call.variant.call)})
    kind = MAKERS[case][0]
    rows = []
    for found in (timed, *([ncu[case]] if case in ncu else [])):
        verdicts = judge(kind, found, device.type)
        rows.append(
            {
                **env,
                "benchmark": "ceilings",
                "case": case,
                "kind": kind,
                "bytes_min": call.bytes_min,
                "buffer_sets": call.sets,
                **vars(found),
                "gb_per_s": call.bytes_min / found.us * 1e-3,
                "bound": verdicts[0].bound,
                "verdict": verdicts[0].words(),
                "launch_verdict": verdicts[1].words(),
            }
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Returns the table that a person reads."""
    headers = ["case", "source", "MB", "us", "GB/s", "floor us", "% of copy", "DRAM %", "bound", "", "launches", " "]
    cells = [
        [
            str(row["case"]),
            str(row["source"]),
            number(row["bytes_min"] / 1e6),  # type: ignore[operator]
            number(row["us"]),
            number(row["gb_per_s"]),
            number(row["copy_us"]),
            number(row["pct_of_copy"]),
            number(row["dram_pct"]),
            str(row["bound"]),
            str(row["verdict"]),
            number(row["launches"]),
            str(row["launch_verdict"]),
        ]
        for row in rows
    ]
    return format_table(headers, cells)


def missed(rows: Sequence[Row]) -> list[str]:
    """Returns the bounds that fail, in words: of ncu where it saw a case; of launches if anyone says so."""
    decisive = {row["case"]: row for row in rows}  # ncu's row comes last
    found = [f"{row['case']}: {row['bound']}" for row in decisive.values() if row["verdict"] == "FAIL"]
    many = dict.fromkeys(str(row["case"]) for row in rows if row["launch_verdict"] == "FAIL")
    return found + [f"{case}: launches = {LAUNCHES}" for case in many]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    args = parse_args(
        "How near the kernels are to what the hardware allows.",
        argv,
        cases=tuple(MAKERS),
        quick_cases=QUICK_CASES,
        dtypes=("own",),
        variants=("fused",),
        extra=lambda parser: parser.add_argument("--ncu", metavar="CSV", help="ncu's output for profile_kernels.py"),
    )
    ncu: dict[str, Found] = {}
    if args.ncu:
        ncu = from_ncu(Path(args.ncu).read_text(errors="replace"))
        print(f"ncu saw {len(ncu)} of {len(args.cases)} cases" if ncu else "ncu saw no kernel of these cases")
    rows: list[Row] = []

    def one(case: str, _dtype: str, env: Row) -> list[Row]:
        rows.extend(found := run_case(case, env, args, ncu))
        print(f"{case}: {', '.join(str(row['verdict']) for row in found)}")
        return found

    status = run("ceilings", args, one)
    if rows:
        print("\n" + table(rows))
    failed = missed(rows)
    if args.device == "cuda":
        print(f"bounds missed: {'; '.join(failed) if failed else 'none'}")
    return status or (1 if failed else 0)


if __name__ == "__main__":
    sys.exit(main())
