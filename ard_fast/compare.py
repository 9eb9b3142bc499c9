"""The command `python -m ard_fast.compare`: a table of finished runs.

python -m ard_fast.compare runs/digits-compare --baseline at --attacks apgd-ce --out comparison
"""

from __future__ import annotations

from ard_fast import _startup as _startup

# isort: split
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from ard_fast._commandline import EXIT_INTERRUPTED, EXIT_USAGE, Interrupted, Parser, StopRequest, program
from ard_fast._typing import known
from ard_fast.evaluation.job import Job
from ard_fast.evaluation.settings import resolve_settings
from ard_fast.evaluation.standard_attacks import ATTACKS_HELP, read_names
from ard_fast.training.comparison import Comparison
from ard_fast.training.finished import FinishedRun, expand, group_runs, read_run


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "compare",
        description="Compare finished runs: clean test accuracy and robust accuracy under PGD-20 and every attack they "
        "were evaluated with. Runs that differ only in their seed share one line, mean ± standard deviation.",
        epilog="Exit code 0, 2 wrong arguments, 130 stopped on request.",
    )
    parser.examples = (
        f"{parser.prog} runs/digits-compare --baseline at",
        f"{parser.prog} runs/at runs/ard --attacks apgd-ce,autoattack --out comparison",
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="run folder, or a folder of runs, such as that of a comparison")
    add(
        "--attacks",
        metavar="LIST",
        help=f"first evaluate the runs under those of these attacks that they lack; {ATTACKS_HELP}",
    )
    add("--baseline", metavar="NAME", help="method or label of a line; adds the differences from it")
    add(
        "--out",
        metavar="DIR",
        help="also write compare.md, compare.tex, compare.json and the figures (PNG and PDF) there",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 wrong arguments, 130 stopped on request."""
    flags = vars(make_parser().parse_args(argv))
    with StopRequest() as stop:
        try:
            attacks = read_names(flags["attacks"]) if "attacks" in flags else ()
            found = [read_run(folder) or _skipped(folder.path) for folder in expand(flags["runs"])]
            runs = [run for run in found if run is not None]
            if not runs:
                raise ValueError("runs: none of them is finished")
            runs = [_evaluated(run, attacks, stop) for run in runs]
            comparison = Comparison(group_runs(runs))
            if "baseline" in flags:
                comparison = dataclasses.replace(comparison, baseline=comparison.find(flags["baseline"]))
            if "out" in flags:
                comparison.write(Path(flags["out"]))
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_USAGE
        except Interrupted as stopped:
            print(f"\n{stopped}", file=sys.stderr)
            return EXIT_INTERRUPTED
    print("\n".join([comparison.note(), "", comparison.table()]))
    if comparison.baseline:
        print("\n".join(["", *comparison.gap_lines()]))
    return 0


def _skipped(path: Path) -> None:
    print(f"left out: {path} is not finished ({program('train')} --resume {path})", file=sys.stderr)


def _evaluated(run: FinishedRun, attacks: Sequence[str], stop: StopRequest) -> FinishedRun:
    """The run, evaluated under the attacks that it lacked; the results stay in its folder."""
    missing = [name for name in attacks if name not in run.attacks]
    if not missing:
        return run
    flags = {"run": str(run.folder.path), "attacks": ",".join(["clean", *missing]), "eps_curve": "none"}
    if ":" in run.config.student:
        flags["model"] = run.config.student
    Job(resolve_settings(flags), stop).run()
    return known(read_run(run.folder))


if __name__ == "__main__":
    raise SystemExit(main())
