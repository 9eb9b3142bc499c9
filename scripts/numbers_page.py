#!/usr/bin/env python3
"""Writes docs/numbers.md: every recorded row of benchmarks/results, with its device, versions and date.

    python scripts/numbers_page.py

The files are what `benchmarks/bench_*.py --json FILE` and `benchmarks/count_ops.py --json FILE` write; a new one needs
nothing here.
"""

from __future__ import annotations

import ast
import csv
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from _timing import GRAPH_SUFFIX  # noqa: E402

from ard_fast._files import write_text  # noqa: E402
from ard_fast.training.report import markdown_table  # noqa: E402

PAGE = ROOT / "docs" / "numbers.md"
RESULTS = ROOT / "benchmarks" / "results"

_INTRO = """# Numbers

This page is written by `python scripts/numbers_page.py` from the files in `benchmarks/results`: measure, do not edit.
Nothing here was copied by hand, and every row names the device, the versions and the date. There are no rows of
a GPU where none is named.

- Times are medians over rounds in which all variants took turns; a ratio is the median of the ratios inside the rounds,
  which is not the ratio of the two medians.
- `vs NAME`: how many times faster ours is than the variant NAME. Below 1 it is slower.
- `% of copy`: our speed against a plain copy of as many bytes as the operation must move, timed in the same rounds. An
  operation that writes in place can pass 100 %.
- `graph`: the same as one captured CUDA graph, without the gaps between launches.
- [methods.md](methods.md) lists what each training method reaches on the digits.
"""

# The program that writes the rows of a benchmark.
_PROGRAMS = {
    "pgd_linf_step": "bench_pgd.py",
    "kd_loss": "bench_kd_loss.py",
    "attack_steps": "bench_steps.py",
    "affine": "bench_affine.py",
    "fold": "bench_fold.py",
    "augment": "bench_augment.py",
    "attacks": "bench_attacks.py",
    "attack_loop": "bench_attack_loop.py",
    "train": "bench_train.py",
}
_COUNTS = "count_ops.py"

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]


def page() -> str:
    """The page's text."""
    parts: list[str] = [_INTRO]
    described: set[str] = set()
    for path, rows in sorted(recorded().items(), key=lambda item: (_order(item[1]), item[0].name)):
        program = _program(rows)
        first, rest = _description(program)
        parts += [f"## {path.stem}", "", f"{first} `python benchmarks/{program}`", ""]
        if program not in described:
            described.add(program)
            parts += ["<details><summary>What is compared</summary>", "", "```text", rest, "```", "", "</details>", ""]
        parts += [_table(rows), ""]
        parts += [f"- not measured: {text}" for text in _missing(rows)]
    return "\n".join(parts).rstrip()


def recorded() -> dict[Path, list[Row]]:
    """The rows by file. JSON that is not a list of rows, such as the methods' figures, belongs to another page.

    Raises:
        ValueError: rows of a benchmark that this page does not know.
    """
    found: dict[Path, list[Row]] = {}
    for path in RESULTS.iterdir():
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                found[path] = list(csv.DictReader(file))
        elif path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, list):
                found[path] = content
    for path, rows in found.items():
        for row in rows:
            if "benchmark" in row and row["benchmark"] not in _PROGRAMS:
                raise ValueError(f"{path.name}: expected rows of {', '.join(_PROGRAMS)}, got {row['benchmark']!r}")
    return found


def _program(rows: list[Row]) -> str:
    return _PROGRAMS[rows[0]["benchmark"]] if "benchmark" in rows[0] else _COUNTS


def _order(rows: list[Row]) -> int:
    """Whole iterations first, then attacks, then single operators."""
    order = ["bench_train.py", "bench_attack_loop.py", "bench_attacks.py", _COUNTS]
    program = _program(rows)
    return order.index(program) if program in order else len(order)


def _description(program: str) -> tuple[str, str]:
    """First line and rest of a program's docstring."""
    text = ast.get_docstring(ast.parse((ROOT / "benchmarks" / program).read_text(encoding="utf-8")))
    if not text:
        raise ValueError(f"{program}: expected a docstring that says what is compared, got none")
    first, _, rest = text.partition("\n")
    return first, rest.strip("\n")


def _table(rows: list[Row]) -> str:
    measured = [row for row in rows if row["status"] == "ok"]
    if "benchmark" not in rows[0]:
        return _counts_table(measured)
    if rows[0]["benchmark"] in ("train", "attack_loop", "attacks"):
        return _rows_table(measured)
    return _ratios_tables(measured)


def _missing(rows: list[Row]) -> list[str]:
    return [f"{row.get('case', row.get('attack'))}, {row.get('variant', row.get('package'))}: {row['status']}"
            for row in rows if row["status"] != "ok"]  # fmt: skip


# --- a line a case: ours, and how much longer the others take --------------------------------------------------------


def _ratios_tables(rows: list[Row]) -> str:
    """A table for each set of peers, so that none has columns that a case cannot fill."""
    cases: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        variant, graph = _split(row["variant"])
        key = (row["case"], row["shape"], row["dtype"], _number(row, "temperature"), graph, *_where(row))
        cases.setdefault(key, {})[variant] = row
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for (case, shape, dtype, temperature, graph, *where), variants in cases.items():
        if "fused" not in variants:
            continue  # a ratio to nothing
        ours = variants["fused"]
        peers = tuple(name for name in variants if name not in ("fused", "copy"))
        tables.setdefault(peers, []).append(
            [
                f"{case}{', graph' if graph else ''}",
                shape.strip("[]"),
                dtype + (f", T {temperature}" if temperature else ""),
                _number(ours, "median_us"),
                _number(ours, "pct_of_copy"),
                *(_number(variants[peer], "fused_speedup") for peer in peers),
                *where,
            ]
        )
    return "\n\n".join(
        _without_empty(["case", "shape", "dtype", "ours, us", "% of copy", *(f"vs {p}" for p in peers), *_WHERE], lines)
        for peers, lines in tables.items()
    )


# --- a line a variant: whole attacks and iterations -----------------------------------------------------------------


def _rows_table(rows: list[Row]) -> str:
    def milliseconds(row: Row) -> str:
        return _significant(float(row["median_us"]) / 1e3)

    def network(row: Row) -> str:
        taught = f" taught by {row['teacher']}" if row.get("teacher") else ""
        return f"{row.get('student') or row['case']}{taught}"

    def variant(row: Row) -> str:
        name, graph = _split(row["variant"])
        version = f" {row['version']}" if row.get("version") and name not in ("fused", "dropping") else ""
        return f"{name}{version}{', graph' if graph else ''}"

    columns: list[Column] = [
        ("network", network),
        ("batch", lambda row: str(row["batch"])),
        ("attack", lambda row: row.get("attack") or ""),
        ("variant", variant),
        ("dtype", lambda row: row.get("precision") or row["dtype"]),
        ("ms", milliseconds),
        ("images/s", lambda row: _number(row, "images_per_s")),
        ("faster than published", lambda row: _number(row, "x_published")),
        ("faster than published-eval", lambda row: _number(row, "x_published_eval")),
        ("ours is faster", lambda row: _number(row, "fused_speedup")),
        ("outside the network, %", lambda row: _number(row, "outside_model_pct")),
        ("robust accuracy left, %", lambda row: _number(row, "robust_acc")),
        ("peak MiB", lambda row: _number(row, "peak_mib")),
        *((name, lambda row, i=i: _where(row)[i]) for i, name in enumerate(_WHERE)),
    ]
    return _without_empty([name for name, _ in columns], ([cell(row) for _, cell in columns] for row in rows))


# --- counts -----------------------------------------------------------------------------------------------------------


def _counts_table(rows: list[Row]) -> str:
    columns: list[Column] = [
        ("attack", lambda row: row["attack"]),
        ("package", lambda row: f"{row['package']} {row['version']}"),
        *(
            (f"{title} a step", lambda row, key=key: _number(row, f"{key}_per_step"))
            for title, key in (("image-sized", "image"), ("logits", "logits"), ("all", "all"), ("waits", "sync"))
        ),
        *(
            (f"{title} a call", lambda row, key=key: str(row[f"{key}_whole_call"]))
            for title, key in (("all", "all"), ("waits", "sync"), ("forward passes", "fwd"), ("backward", "bwd"))
        ),
        ("writes param.grad", lambda row: "yes" if str(row["writes_param_grad"]) == "True" else "no"),
        ("torch", lambda row: row["torch"]),
    ]
    return _without_empty([name for name, _ in columns], ([cell(row) for _, cell in columns] for row in rows))


# --- cells ------------------------------------------------------------------------------------------------------------

_WHERE = ("device", "versions", "date")


def _where(row: Row) -> tuple[str, str, str]:
    if row["device"] == "cpu":
        device = f"{row['cpu_model']}, {row['threads']} thread{'' if str(row['threads']) == '1' else 's'}"
    else:
        device = row["device_name"]
    if row.get("allocator") == "fresh":
        device += ", fresh malloc"
    return device, f"ard-fast {row['ard_fast']}, torch {row['torch']}", str(row["date"])[:10]


def _split(variant: str) -> tuple[str, bool]:
    """A variant's name, and whether it was captured as a graph."""
    return variant.removesuffix(GRAPH_SUFFIX), variant.endswith(GRAPH_SUFFIX)


def _number(row: Row, key: str) -> str:
    value = row.get(key)
    return "" if value in (None, "") else _significant(float(value))


def _significant(value: float) -> str:
    """Three significant digits, whole above 100, without an exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _without_empty(header: list[str], lines: Iterable[list[str]]) -> str:
    """A Markdown table without the columns in which no line has anything."""
    lines = list(lines)
    kept = [i for i in range(len(header)) if any(line[i] not in ("", "-") for line in lines)]
    return markdown_table([header[i] for i in kept], [[line[i] or "-" for i in kept] for line in lines])


def main() -> None:
    """Write the page."""
    write_text(PAGE, page() + "\n")


if __name__ == "__main__":
    main()
