"""The command `python -m ard_fast.evaluate`: evaluate a checkpoint under attack.

python -m ard_fast.evaluate runs/digits-ard --attacks clean,pgd20,apgd-ce,autoattack
python -m ard_fast.evaluate weights.pt --model my_package.models:make --dataset cifar10 --data-dir data
"""

from __future__ import annotations

from ard_fast import _startup as _startup

# isort: split
import sys
from collections.abc import Sequence

import torch

from ard_fast._commandline import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Interrupted, Parser, StopRequest, add_flags
from ard_fast.evaluation.job import Job
from ard_fast.evaluation.settings import Flags, resolve_settings
from ard_fast.evaluation.standard_attacks import AttackError

_MOST_USED = (
    "attacks",
    "norm",
    "eps",
    "dataset",
    "data_dir",
    "download",
    "model",
    "mean",
    "std",
    "n_examples",
    "batch_size",
    "device",
    "out",
    "save_images",
)


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "evaluate",
        short=True,
        usage="%(prog)s [RUN] [--attacks LIST] [--eps FLOAT] [--dataset NAME] [flags]",
        description="Evaluate a checkpoint under attack: a table of clean and robust accuracy, results.json, "
        "report.md, a plot against eps and pictures. Settings that are not given come from the run's config.yaml.",
        epilog="Robust accuracy is over all images: those misclassified when clean count as wrong. autoattack is "
        "APGD-CE, APGD-T, FAB-T and Square, each attacking what the earlier ones did not fool. Exit code 0, 1 out of "
        "memory, 2 wrong arguments, 130 stopped on request.",
    )
    parser.examples = (
        f"{parser.prog} runs/ard --attacks pgd20,autoattack",
        f"{parser.prog} weights.pt --model resnet18 --dataset cifar10 --data-dir data --eps 8/255",
        f"{parser.prog} --model my_package.models:make --dataset cifar10 --data-dir data --norm l2 --eps 0.5",
    )
    run = Flags.model_fields["run"]
    parser.add_argument("run", nargs="?", metavar="RUN", help=run.description)
    add_flags(parser, Flags, _MOST_USED, lambda name: str(Flags.model_fields[name].description))
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
        except AttackError as error:
            print(f"\nerror: {error}", file=sys.stderr)
            return EXIT_FAILED
        except torch.OutOfMemoryError as error:
            print(
                f"\nerror: out of memory; try a smaller --batch-size, which does not change results ({error})",
                file=sys.stderr,
            )
            return EXIT_FAILED
    print(f"\nresults.json, report.md and figures are in {settings.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
