"""The command `python -m ard_fast.evaluate`: robust accuracy of a network.

python -m ard_fast.evaluate runs/digits-ard --attacks clean,pgd20,apgd-ce,autoattack
python -m ard_fast.evaluate weights.pt --model my_package.models:make --dataset cifar10 --data-dir data
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from ard_fast._commandline import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Interrupted, Parser, StopRequest, extra
from ard_fast.evaluation.job import Job
from ard_fast.evaluation.settings import Flags, resolve_settings
from ard_fast.training.config import flag


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="python -m ard_fast.evaluate",
        description="Robust accuracy of a network: a table, results.json, report.md, a plot against eps and pictures. "
        "Settings that are not given come from the run's config.yaml.",
        epilog="Robust accuracy is over all images: those misclassified when clean count as wrong. autoattack is "
        "APGD-CE, APGD-T, FAB-T and Square, each attacking what the earlier ones did not fool. Exit code 0, 1 out of "
        "memory, 2 wrong arguments, 130 stopped on request.",
    )
    for name, field in Flags.model_fields.items():
        metavar = extra(field)["metavar"]
        if name == "run":
            parser.add_argument(name, nargs="?", metavar=metavar, help=field.description)
        elif metavar is None:
            parser.add_argument(flag(name), action="store_true", help=field.description)
        else:
            parser.add_argument(flag(name), metavar=metavar, help=field.description)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 out of memory, 2 wrong arguments, 130 stopped on request."""
    flags = vars(make_parser().parse_args(argv))
    with StopRequest() as stop:
        try:
            settings = resolve_settings(flags)
            job = Job(settings, stop)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_USAGE
        print(f"ard_fast.evaluate: torch {torch.__version__}, {settings.device}{settings.device_note}, "
              f"{torch.get_num_threads()} CPU threads -> {settings.out}", flush=True)  # fmt: skip
        try:
            job.run()
        except Interrupted as stopped:
            print(f"\n{stopped}", file=sys.stderr)
            return EXIT_INTERRUPTED
        except torch.OutOfMemoryError as error:
            print(
                f"\nerror: out of memory; try a smaller --batch-size, which does not change results ({error})",
                file=sys.stderr,
            )
            return EXIT_FAILED
    print(f"\nresults: {settings.out / 'results.json'}\nreport: {settings.out / 'report.md'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
