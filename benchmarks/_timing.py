"""Timing that can be trusted: the clock that all benchmarks here share.

* Variants are interleaved: each round times every variant once, in a shuffled order, so that a slow minute of the
  machine hits all of them; ratios are taken round by round (paired) and their median is reported.
* Every variant walks over the same number of buffer sets, together `ROTATION_FACTOR` times larger than the last-level
  cache (CPU) or the L2 (GPU), so nobody times the cache by accident.
* Buffers are restored before each sample, outside the timed region, and the cache is then flushed.
* CPU: `time.perf_counter`. CUDA: events around a batch of calls; variants named `...+graph` are one captured CUDA graph
  replayed, which leaves out the launch gaps.
"""

from __future__ import annotations

import datetime
import gc
import math
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


# ---------------------------------------------------------------------------------------------------------------------
# The machine
# ---------------------------------------------------------------------------------------------------------------------


def cache_bytes(device: torch.device) -> int:
    """Returns the size of the cache that timed buffers must not fit into: the GPU's L2 or the CPU's last level."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")  # such as 32768K
    return max((int(size.read_text().strip().rstrip("K")) << 10 for size in sizes), default=32 << 20)


def cpu_model() -> str:
    """Returns the processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.lower().startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def environment(device: torch.device) -> dict[str, object]:
    """Returns where and with what a row was measured: date (UTC), device, versions, threads."""
    import ard_fast

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model(),
        "cpu_model": cpu_model(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "ard_fast": ard_fast.__version__,
        "cache_bytes": cache_bytes(device),
    }


def age_allocator() -> None:
    """Brings glibc's malloc to the state it has in a process that has trained for a while.

    glibc gives large blocks back to the system on free, so the next intermediate pays for its pages again, until the
    first free of a block of that size raises the limit (to 32 MiB at most). A fresh process thus times page faults.
    """
    torch.empty(2**23 - 2**12, dtype=torch.float32)  # just under 32 MiB, freed at once


def rotation_sets(set_bytes: int, cache: int) -> int:
    """Returns how many buffer sets of `set_bytes` make `ROTATION_FACTOR` times the `cache`, from 1 to `MAX_SETS`."""
    return max(1, min(MAX_SETS, math.ceil(ROTATION_FACTOR * cache / set_bytes)))


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
    reset: Callable[[int], None] = lambda n: None
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
    name = variant.name + GRAPH_SUFFIX
    return Variant(name, lambda _i: graph.replay(), lambda _n: variant.reset(n_calls), calls_per_run=n_calls)


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
    progress: Callable[[int, str, float], None] = lambda done, name, seconds: None,
) -> dict[str, Measurement]:
    """Times `variants` interleaved.

    Args:
        variants: What to time; names must differ.
        clock: From `make_clock`.
        n_sets: Buffer sets every variant walks over.
        rounds: Samples per variant.
        min_sample_s: Each sample repeats the call until it lasts about this long; 0 is one call.
        seed: Of the order of the variants within the rounds.
        warm_up: Calls of a variant before its length is judged, and in each probe of it.
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
        once = min(clock.sample(v.call, calls) for _ in range(5))
        runs[v.name] = max(1, min(10_000, math.ceil(min_sample_s / max(once, 1e-9))))
    seconds: dict[str, list[float]] = {v.name: [] for v in variants}
    order = list(variants)
    rng = random.Random(seed)
    collecting = gc.isenabled()
    gc.disable()  # as timeit: a collection walks all rotated buffers and would be charged to whoever is being timed
    gc.collect()
    gc.freeze()  # what is there now need not be walked between the rounds
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
        gc.unfreeze()
        if collecting:
            gc.enable()
    return {v.name: Measurement(seconds[v.name], runs[v.name] * v.calls_per_run) for v in variants}


def copy_variant(n_bytes: int, n_sets: int, device: torch.device) -> Variant:
    """Returns the ceiling: a copy that moves `n_bytes` in all (half read, half written), rotated like the rest."""
    n = max(1, n_bytes // 8)
    sources = [torch.rand(n, device=device) for _ in range(n_sets)]
    targets = [torch.zeros_like(s) for s in sources]
    return Variant("copy", lambda i: targets[i].copy_(sources[i]))


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Returns the median over rounds of `numerator[r] / denominator[r]`.

    Taking the ratio inside a round first cancels what the machine did in that round to both.
    """
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def timing_rows(
    measured: dict[str, Measurement],
    checks: dict[str, dict[str, object]],
    *,
    common: dict[str, object],
    baseline: str,
    ours: str = "fused",
    bytes_min: int | None = None,
    n_sets: int = 1,
) -> list[dict[str, object]]:
    """Returns a row for each measured variant.

    Args:
        measured: From `measure`.
        checks: Fields by variant, such as what was checked.
        common: Fields of every row: environment, benchmark, case, shape, dtype.
        baseline: Name of the variant that `speedup_vs_baseline` refers to.
        ours: Name of ours; `fused_speedup` is the row's time over ours (a captured graph's over our captured graph's).
        bytes_min: Bytes the operation must move at least, each input read once and each output written once; `measured`
            then holds "copy", the ceiling.
        n_sets: Buffer sets that were rotated.
    """
    rows = []
    for name, m in measured.items():
        seconds = sorted(m.seconds)
        quartiles = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
        own = measured.get(ours + (GRAPH_SUFFIX if name.endswith(GRAPH_SUFFIX) else ""))
        base = measured.get(baseline)
        rows.append(
            {
                **common,
                "variant": name,
                "status": "ok",
                "checked": None,
                "median_us": quartiles[1] * 1e6,
                "q1_us": quartiles[0] * 1e6,
                "q3_us": quartiles[2] * 1e6,
                "min_us": seconds[0] * 1e6,
                "rounds": len(seconds),
                "calls_per_sample": m.calls_per_sample,
                "buffer_sets": n_sets,
                "bytes_min": bytes_min,
                "gb_per_s": bytes_min / quartiles[1] * 1e-9 if bytes_min else None,
                "pct_of_copy": 100 * paired_ratio(measured["copy"].seconds, m.seconds) if bytes_min else None,
                "speedup_vs_baseline": paired_ratio(base.seconds, m.seconds) if base else None,
                "fused_speedup": paired_ratio(m.seconds, own.seconds) if own else None,
                **checks.get(name, {}),
            }
        )
    return rows
