"""Makes a table of ncu's CSV: a line for each kernel that a case of profile_kernels.py launched.

    python benchmarks/ncu_summary.py ncu.csv

`DRAM %` and `SM %` are ncu's speed of light: the share of the peak memory and instruction throughput reached.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from _timing import format_table

COLUMNS = {
    "us": "gpu__time_duration.sum",
    "DRAM MB": "dram__bytes.sum",
    "DRAM %": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "memory %": "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed",
    "SM %": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "warps %": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "regs": "launch__registers_per_thread",
}

CASE = re.compile(r"(?:step|start|loss|attack|augment|ceiling|copy)-[\w-]+")
"""The NVTX range of a case of profile_kernels.py."""

# what ncu's units have to be multiplied by to give microseconds and megabytes
SCALE = {
    "nsecond": 1e-3, "usecond": 1.0, "msecond": 1e3, "second": 1e6, "ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6,
    "byte": 1e-6, "Kbyte": 1e-3, "Mbyte": 1.0, "Gbyte": 1e3, "B": 1e-6, "KB": 1e-3, "MB": 1.0, "GB": 1e3,
}  # fmt: skip


def read_kernels(text: str) -> list[dict[str, str]]:
    """Returns a row for each profiled kernel: case, kernel, grid, block and the `COLUMNS`, as text.

    Args:
        text: Output of ncu with `--csv`, a line for each metric; lines before the header (`==PROF==`) are passed over.

    Raises:
        ValueError: If there is no header or no kernel.
    """
    lines = text.splitlines()
    header = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if header is None:
        raise ValueError('no line that starts with "ID": not the output of ncu --csv')
    titles = {metric: title for title, metric in COLUMNS.items()}
    kernels: dict[str, dict[str, str]] = {}
    for line in csv.DictReader(line for line in lines[header:] if line.startswith('"')):
        row = kernels.setdefault(
            line["ID"],
            {
                "case": _case(line),
                "kernel": re.sub(r"^void |[<(].*", "", line.get("Kernel Name", "")),
                "grid": line.get("Grid Size", "").replace(" ", ""),
                "block": line.get("Block Size", "").replace(" ", ""),
                **dict.fromkeys(COLUMNS, "-"),
            },
        )
        if line["Metric Name"] in titles:
            row[titles[line["Metric Name"]]] = _value(line["Metric Value"], line["Metric Unit"])
    if not kernels:
        raise ValueError("ncu profiled no kernel")
    return list(kernels.values())


def _case(kernel: dict[str, str]) -> str:
    """The NVTX range the kernel ran in, from whichever column of this ncu version holds it."""
    for column, value in kernel.items():
        if column and "Push/Pop" in column:
            found = CASE.search(value or "")
            if found:
                return found.group()
    return "-"


def _value(text: str, unit: str) -> str:
    try:
        return f"{float(text.replace(',', '')) * SCALE.get(unit, 1.0):.4g}"
    except ValueError:
        return text


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    (path,) = sys.argv[1:] if argv is None else argv
    rows = read_kernels(Path(path).read_text())
    print(format_table(list(rows[0]), [list(r.values()) for r in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
