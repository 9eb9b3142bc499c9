"""The command `python -m ard_fast.evaluate`: what accuracy is left of a network under attack.

python -m ard_fast.evaluate runs/digits-ard --attacks clean,pgd20,apgd-ce,autoattack
python -m ard_fast.evaluate weights.pt --model my_package.models:make --dataset cifar10 --data-dir data
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from ard_fast._commandline import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Parser
from ard_fast._interrupts import Interrupted, StopRequest
from ard_fast.attacks.settings import NORMS
from ard_fast.data import DATASETS
from ard_fast.evaluation.accuracy import EVALUATION_SEED
from ard_fast.evaluation.job import Job
from ard_fast.evaluation.plan import ATTACKS_HELP, DEFAULT_ATTACKS
from ard_fast.evaluation.settings import SPLITS, resolve_settings


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="python -m ard_fast.evaluate",
        description="Accuracy of a network under attack: a table, results.json, report.md, a plot against eps and "
        "pictures. Settings that are not given come from the run's config.yaml.",
        epilog="An attack's robust accuracy is over all images, those the network gets wrong as they are counting as "
        "wrong; autoattack is APGD-CE, APGD-T, FAB-T and Square, each on what the ones before left right. Exit code 0, "
        "1 out of memory, 2 wrong arguments, 130 stopped on request.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("run", nargs="?", metavar="RUN", help="a run's folder (its best checkpoint), a .safetensors or a .pt file")
    add("--model", metavar="NAME", help="package.module:factory, called without arguments, then filled from RUN if "
        "given; or a network's name for a checkpoint that does not say")  # fmt: skip
    add("--mean", metavar="LIST", help="weights trained on normalised images: means of the channels of pixels in "
        "[0, 1], comma-separated, taken off inside the network [the file's, or none]")  # fmt: skip
    add("--std", metavar="LIST", help="standard deviations likewise [the file's]")
    add("--weights", metavar="NAME", help="where RUN holds several sets of weights, the key of the one to take, such "
        "as ema [one that is not an average]")  # fmt: skip
    add("--attacks", metavar="LIST", help=f"{ATTACKS_HELP} [{','.join(DEFAULT_ATTACKS['linf'])}, "
        "but for what needs more classes]")  # fmt: skip
    add("--norm", metavar="NORM", help=f"{' or '.join(NORMS)} [{NORMS[0]}]")
    add("--eps", metavar="EPS", help="radius, pixels in [0, 1]; may be written 8/255 [the run's]")
    add("--eps-curve", metavar="LIST", help="radii of the plot, comma-separated, or none; by apgd-ce if that is one of "
        "the attacks, else by pgd20 [0 to 2 eps]")  # fmt: skip
    add("--cascade", action="store_true", help="attack no image again that an earlier attack has fooled: faster, and "
        "only the worst case is then a figure of the whole")  # fmt: skip
    add("--dataset", metavar="NAME", help=f"{' or '.join(DATASETS)} [the run's]")
    add("--data-dir", metavar="PATH", help="where the images are, as in training [the run's]")
    add("--image-size", metavar="N", help="dataset folder: scale to this [the run's]")
    add("--image-cache", metavar="DIR", help="dataset folder: where decoded images are kept [the run's]")
    add("--download", action="store_true", help="fetch what is missing of cifar10, cifar100, mnist or fashion-mnist "
        "into --data-dir, checksummed")  # fmt: skip
    add("--val-size", metavar="N", help="--split val and train: images held out of the training files, as in training "
        "[the run's]")  # fmt: skip
    add("--split", metavar="NAME", help=f"{', '.join(SPLITS)} [{SPLITS[0]}]")
    add("--n-examples", metavar="N", help="N images only, of every class its share; the same ones each time [all]")
    add("--batch-size", metavar="N", help="images a batch; changes no result [the run's]")
    add("--seed", metavar="N", help=f"of every attack's random numbers [{EVALUATION_SEED}]")
    add("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N [the run's, or auto]")
    add(
        "--threads",
        metavar="N",
        help="CPU threads; 0: OMP_NUM_THREADS, else the physical cores one may use [the run's]",
    )
    add(
        "--channels-last",
        metavar="WHEN",
        help="images and weights in channels-last layout: auto, true or false [the run's]",
    )
    add("--out", metavar="DIR", help="folder for the results [RUN/evaluation, or a new one beside it]")
    add("--save-images", action="store_true", help="write the adversarial images, rounded to whole pixel levels inside "
        "the ball and judged again: adversarial.npz and PNG files in samples")  # fmt: skip
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
            print(f"\nerror: out of memory; a smaller --batch-size changes no result ({error})", file=sys.stderr)
            return EXIT_FAILED
    print(f"\nresults: {settings.out / 'results.json'}\nreport: {settings.out / 'report.md'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
