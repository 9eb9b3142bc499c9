"""Tables of accuracies: Markdown, and LaTeX with booktabs."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence

from ard_fast._figures import deviation

_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
Rows = Mapping[str, Sequence[Sequence[float] | None]]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text."""
    table = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|" + "|".join("-" * (width + 1) + (":" if index else "-") for index, width in enumerate(widths)) + "|"
    return "\n".join([line(table[0]), rule, *(line(row) for row in table[1:])])


def escape(text: str) -> str:
    """Text as LaTeX prints it."""
    return re.sub(r"[\\~^&%$#_{}]", lambda found: _SPECIAL.get(found[0], "\\" + found[0]), text)


def latex_table(columns: Sequence[str], teachers: Rows, students: Rows, *, caption: str) -> str:
    """A `table`: a line a method, `mean ± sample standard deviation` over the seeds, a student's best mean in bold.

    Args:
        columns: titles of the accuracies.
        teachers: by its name the accuracies in percent of each column's seeds, None for what is not known; above a
            line of their own.
        students: likewise.
        caption: LaTeX.
    """
    best: list[float | None] = []
    for place in range(len(columns)):
        means = [_mean(values) for row in students.values() if (values := row[place])]
        best.append(max(means) if len(means) > 1 else None)
    parts = [
        [_line(name, row, bold) for name, row in rows.items()]
        for rows, bold in ((teachers, [None] * len(columns)), (students, best))
        if rows
    ]
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{caption}}}",
        f"  \\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"    \toprule",
        f"    {' & '.join(['Method', *map(escape, columns)])} \\\\",
        *(line for part in parts for line in (r"    \midrule", *part)),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float]) -> float:
    return round(statistics.fmean(values), 2)  # as printed: what looks equal is equally good


def _line(name: str, row: Sequence[Sequence[float] | None], best: Sequence[float | None]) -> str:
    cells = [escape(name)]
    for values, top in zip(row, best, strict=True):
        if not values:
            cells.append("--")
            continue
        mean = f"{_mean(values):.2f}"
        error = rf" \pm {deviation(values):.2f}" if len(values) > 1 else ""
        cells.append(rf"$\mathbf{{{mean}}}{error}$" if _mean(values) == top else f"${mean}{error}$")
    return f"    {' & '.join(cells)} \\\\"
