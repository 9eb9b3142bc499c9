"""Timing that can be trusted: what every benchmark here shares.

* Variants are interleaved: each round times every variant once, in a shuffled order, so that a slow minute of the
  machine hits all of them; ratios are taken round by round (paired) and their median is reported.
* Every variant walks over the same number of buffer sets, together `ROTATION_FACTOR` times larger than the last-level
  cache (CPU) or the L2 (GPU), so nobody times the cache by accident.
* Buffers are restored before each sample, outside the timed region, and the cache is then flushed.
* A copy of as many bytes as the operation must move is one more variant of the same run: the ceiling.
* CPU: `time.perf_counter`. CUDA: events around a batch of calls; variants named `...+graph` are one captured CUDA graph
  replayed, which leaves out the launch gaps.
"""

from __future__ import annotations

import csv
import datetime
import gc
import json
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

ROTATION_FACTOR = 3
"""Total size of the rotated buffers, in units of the cache they must not fit into."""

MAX_SETS = 4096
MAX_GRAPH_CALLS = 256
GRAPH_SUFFIX = "+graph"

ENVIRONMENT_FIELDS = (
    "date",
    "device",
    "device_name",
    "cpu_model",
    "threads",
    "python",
    "torch",
    "cuda",
    "ard_fast",
    "cache_bytes",
    "allocator",
)
"""Fields that say where and with what a row was measured."""

TIMING_FIELDS = (
    "benchmark",
    "case",
    "shape",
    "dtype",
    "variant",
    "status",
    "checked",
    "median_us",
    "q1_us",
    "q3_us",
    "min_us",
    "rounds",
    "calls_per_sample",
    "buffer_sets",
    "bytes_min",
    "gb_per_s",
    "pct_of_copy",
    "speedup_vs_baseline",
    "fused_speedup",
)
"""Fields of every measured row, beside those of the environment."""


# ---------------------------------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stats:
    """Median, quartiles and minimum of one variant's samples.

    Attributes:
        median: Median of the samples, in the samples' unit.
        q1: First quartile (inclusive method: the minimum and maximum are the 0 % and 100 % points).
        q3: Third quartile.
        minimum: The smallest sample, what an undisturbed machine would give.
        count: How many samples there were.
    """

    median: float
    q1: float
    q3: float
    minimum: float
    count: int

    @property
    def iqr(self) -> float:
        """Spread between the quartiles."""
        return self.q3 - self.q1


def summarize(samples: Sequence[float]) -> Stats:
    """Returns median, quartiles and minimum of `samples`.

    Args:
        samples: At least one number.

    Raises:
        ValueError: If there is no sample.
    """
    if not samples:
        raise ValueError("summarize: expected at least one sample, got none")
    if len(samples) == 1:
        return Stats(samples[0], samples[0], samples[0], samples[0], 1)
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return Stats(median, q1, q3, min(samples), len(samples))


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Returns the median over rounds of `numerator[r] / denominator[r]`.

    Taking the ratio inside a round first cancels what the machine did in that round to both.

    Raises:
        ValueError: If the lengths differ or are zero.
    """
    if len(numerator) != len(denominator) or not numerator:
        raise ValueError(
            f"paired_ratio: expected two equally long, non-empty series, got {len(numerator)} and {len(denominator)}"
        )
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# The machine
# ---------------------------------------------------------------------------------------------------------------------


def parse_cache_size(text: str) -> int:
    """Returns the bytes meant by a Linux cache size such as `32768K` or `32M`.

    Raises:
        ValueError: If `text` is not a number with an optional K, M or G.
    """
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    text = text.strip()
    if text and text[-1].upper() in units:
        return int(text[:-1]) * units[text[-1].upper()]
    return int(text)


def cpu_cache_bytes(default: int = 32 * 2**20) -> int:
    """Returns the size of the largest cache of CPU 0, or `default` where the system does not say."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            sizes.append(parse_cache_size(file.read_text()))
        except (OSError, ValueError):
            continue
    return max(sizes, default=default)


def cache_bytes(device: torch.device) -> int:
    """Returns the size of the cache that timed buffers must not fit into: the GPU's L2 or the CPU's last level."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return cpu_cache_bytes()


def cpu_model() -> str:
    """Returns the processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment(device: torch.device, allocator: str) -> dict[str, object]:
    """Returns the `ENVIRONMENT_FIELDS` of this process: date (UTC), device, versions, threads, state of malloc."""
    import ard_fast

    model = cpu_model()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else model,
        "cpu_model": model,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "ard_fast": ard_fast.__version__,
        "cache_bytes": cache_bytes(device),
        "allocator": allocator if device.type == "cpu" else None,
    }


def age_allocator() -> None:
    """Brings glibc's malloc to the state it has in a process that has trained for a while.

    glibc gives large blocks back to the system on free, so the next intermediate pays for its pages again, until the
    first free of a block of that size raises the limit (to 32 MiB at most). A fresh process thus times page faults.
    """
    torch.empty(2**23 - 2**12, dtype=torch.float32)  # just under 32 MiB, freed at once


def rotation_sets(set_bytes: int, cache: int, *, factor: int = ROTATION_FACTOR, cap: int = MAX_SETS) -> int:
    """Returns how many buffer sets of `set_bytes` make `factor` times the `cache`, at least 1 and at most `cap`.

    Raises:
        ValueError: If `set_bytes` is not positive.
    """
    if set_bytes <= 0:
        raise ValueError(f"rotation_sets: set_bytes: expected a positive number, got {set_bytes}")
    return max(1, min(cap, math.ceil(factor * cache / set_bytes)))


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Variant:
    """One way of doing the operation.

    Attributes:
        name: Short name, as printed and as given to `--variants`.
        call: `call(i)` does the operation once on buffer set `i` (`calls_per_run` times for a captured graph).
        reset: `reset(n)` restores buffer sets 0 to n-1, outside the timed region.
        calls_per_run: How many operations one `call` is.
    """

    name: str
    call: Callable[[int], object]
    reset: Callable[[int], None]
    calls_per_run: int = 1


class CpuClock:
    """Times calls on the CPU by `time.perf_counter`."""

    def __init__(self, flush_bytes: int) -> None:
        self._flush = torch.ones(max(1, flush_bytes // 4), dtype=torch.float32)

    def sample(self, call: Callable[[int], object], indices: Sequence[int]) -> float:
        """Returns the seconds a call takes, mean over `indices` run back to back after a cache flush."""
        self._flush.mul_(1.0)
        start = time.perf_counter()
        for i in indices:
            call(i)
        return (time.perf_counter() - start) / len(indices)


class CudaClock:
    """Times calls on the current CUDA stream by events; the stream is idle before and after each sample."""

    def __init__(self, flush_bytes: int, device: torch.device) -> None:
        self._flush = torch.ones(max(1, flush_bytes // 4), dtype=torch.float32, device=device)
        self._start = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)

    def sample(self, call: Callable[[int], object], indices: Sequence[int]) -> float:
        """Returns the seconds a call takes, mean over `indices` launched back to back after an L2 flush."""
        torch.cuda.synchronize()
        self._flush.mul_(1.0)
        self._start.record()
        for i in indices:
            call(i)
        self._end.record()
        torch.cuda.synchronize()
        return self._start.elapsed_time(self._end) * 1e-3 / len(indices)


def make_clock(device: torch.device) -> CpuClock | CudaClock:
    """Returns the clock for `device`, with a flush buffer twice the size of its cache."""
    flush = 2 * cache_bytes(device)
    return CudaClock(flush, device) if device.type == "cuda" else CpuClock(flush)


def with_graph(variant: Variant, n_sets: int) -> Variant:
    """Returns `variant` as one captured CUDA graph of calls over up to `MAX_GRAPH_CALLS` buffer sets.

    Args:
        variant: A variant that neither synchronises nor allocates outside torch's allocator.
        n_sets: How many buffer sets there are.

    Raises:
        RuntimeError: From torch, if the variant cannot be captured.
    """
    n_calls = min(n_sets, MAX_GRAPH_CALLS)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what a first call does once (handles, compilation) must happen before the capture
        for i in range(min(3, n_calls)):
            variant.call(i)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(n_calls):
            variant.call(i)
    return Variant(
        variant.name + GRAPH_SUFFIX,
        lambda _i: graph.replay(),
        lambda _n: variant.reset(n_calls),
        calls_per_run=n_calls,
    )


@dataclass(frozen=True)
class Measurement:
    """Samples of one variant, a sample a round.

    Attributes:
        seconds: Seconds per operation, in the order of the rounds.
        calls_per_sample: Operations behind each sample.
    """

    seconds: list[float]
    calls_per_sample: int


def measure(
    variants: Sequence[Variant],
    clock: CpuClock | CudaClock,
    *,
    n_sets: int,
    rounds: int,
    min_sample_s: float,
    seed: int = 0,
    warm_up: int = 3,
    probes: int = 5,
    progress: Callable[[int, str, float], None] = lambda done, name, seconds: None,
) -> dict[str, Measurement]:
    """Times `variants` interleaved.

    Args:
        variants: What to time; names must differ.
        clock: From `make_clock`.
        n_sets: Buffer sets every variant walks over.
        rounds: Samples per variant.
        min_sample_s: Each sample repeats the call until it lasts about this long; 0 is one call, which needs no probes.
        seed: Of the order of the variants within the rounds.
        warm_up: Calls of a variant before its length is judged, and in each probe of it.
        probes: Samples that judge it.
        progress: Told the round (from 0), the variant and its sample after each sample, for runs of minutes.

    Returns:
        A measurement for each variant's name.

    Raises:
        ValueError: If two variants share a name.
    """
    if len({v.name for v in variants}) != len(variants):
        raise ValueError(f"measure: variants: expected different names, got {[v.name for v in variants]}")
    runs: dict[str, int] = {}
    for v in variants:
        v.reset(n_sets)
        calls = [i % n_sets for i in range(warm_up)]
        if calls:
            clock.sample(v.call, calls)
        if not min_sample_s:
            runs[v.name] = 1
            continue
        # the fastest of a few: one sample hit by another process must not shrink all later ones
        once = min(clock.sample(v.call, calls) for _ in range(probes))
        runs[v.name] = max(1, min(10_000, math.ceil(min_sample_s / max(once, 1e-9))))
    seconds: dict[str, list[float]] = {v.name: [] for v in variants}
    order = list(variants)
    rng = random.Random(seed)
    collecting = gc.isenabled()
    gc.disable()  # as timeit: a collection walks all rotated buffers and would be charged to whoever is being timed
    try:
        for done in range(rounds):
            rng.shuffle(order)
            gc.collect()
            for v in order:
                indices = [i % n_sets for i in range(runs[v.name])]
                v.reset(min(runs[v.name], n_sets))
                seconds[v.name].append(clock.sample(v.call, indices) / v.calls_per_run)
                progress(done, v.name, seconds[v.name][-1])
    finally:
        if collecting:
            gc.enable()
    return {v.name: Measurement(seconds[v.name], runs[v.name] * v.calls_per_run) for v in variants}


def copy_variant(n_bytes: int, n_sets: int, device: torch.device) -> Variant:
    """Returns the ceiling: a copy that moves `n_bytes` in all (half read, half written), rotated like the rest."""
    n = max(1, n_bytes // 8)
    sources = [torch.rand(n, device=device) for _ in range(n_sets)]
    targets = [torch.zeros_like(s) for s in sources]
    return Variant("copy", lambda i: targets[i].copy_(sources[i]), lambda n: None)


# ---------------------------------------------------------------------------------------------------------------------
# Rows and tables
# ---------------------------------------------------------------------------------------------------------------------


def sample_fields(name: str, measured: Measurement) -> dict[str, object]:
    """Returns what a row of `TIMING_FIELDS` says of a variant's samples alone."""
    stats = summarize(measured.seconds)
    return {
        "variant": name,
        "status": "ok",
        "median_us": stats.median * 1e6,
        "q1_us": stats.q1 * 1e6,
        "q3_us": stats.q3 * 1e6,
        "min_us": stats.minimum * 1e6,
        "rounds": stats.count,
        "calls_per_sample": measured.calls_per_sample,
    }


def timing_rows(
    measured: dict[str, Measurement],
    *,
    n_sets: int,
    bytes_min: int,
    baseline: str,
    fused: str = "fused",
    common: dict[str, object],
) -> list[dict[str, object]]:
    """Returns a row of `TIMING_FIELDS` for each measured variant.

    Args:
        measured: From `measure`; holds "copy", the ceiling.
        n_sets: Buffer sets that were rotated.
        bytes_min: Bytes the operation must move at least: each input read once, each output written once.
        baseline: Name of the variant that `speedup_vs_baseline` refers to.
        fused: Name of ours; `fused_speedup` is the row's time over ours (a captured graph's over our captured graph's).
        common: Fields put into every row (environment, benchmark, case, shape, dtype).
    """
    copy = measured["copy"].seconds
    rows = []
    for name, m in measured.items():
        stats = summarize(m.seconds)
        ours = measured.get(fused + (GRAPH_SUFFIX if name.endswith(GRAPH_SUFFIX) else ""))
        base = measured.get(baseline)
        rows.append(
            {
                **common,
                **sample_fields(name, m),
                "checked": None,
                "buffer_sets": n_sets,
                "bytes_min": bytes_min,
                "gb_per_s": bytes_min / stats.median * 1e-9,
                "pct_of_copy": 100 * paired_ratio(copy, m.seconds),
                "speedup_vs_baseline": paired_ratio(base.seconds, m.seconds) if base else None,
                "fused_speedup": paired_ratio(m.seconds, ours.seconds) if ours else None,
            }
        )
    return rows


def unavailable_row(name: str, reason: str, *, common: dict[str, object]) -> dict[str, object]:
    """Returns the row of a variant that could not run here; `status` says why."""
    return {**dict.fromkeys(TIMING_FIELDS), **common, "variant": name, "status": f"unavailable: {reason}"}


def write_rows(path: str | os.PathLike[str], rows: Sequence[dict[str, object]]) -> None:
    """Writes rows as JSON (a list of objects), or as CSV if the name ends in `.csv`.

    Args:
        path: File to write; its folder is made.
        rows: At least one row; a CSV has the union of their fields in order of appearance.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        fields = list(dict.fromkeys(key for row in rows for key in row))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fields)
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(json.dumps(list(rows), indent=1) + "\n")


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a fixed-width table: the first column left-aligned, the others right-aligned."""
    widths = [max(len(str(r[c])) for r in (headers, *rows)) for c in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        first = str(cells[0]).ljust(widths[0])
        return "  ".join([first, *(str(c).rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]).rstrip()

    return "\n".join([line(headers), "  ".join("-" * w for w in widths), *(line(r) for r in rows)])


def number(value: object, digits: int = 3) -> str:
    """Returns `value` with about `digits` significant digits and no exponent between 0.01 and 1e6; "-" for None."""
    if value is None:
        return "-"
    value = float(value)  # type: ignore[arg-type]
    if value == 0 or not math.isfinite(value):
        return str(value)
    if not 1e-2 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"
