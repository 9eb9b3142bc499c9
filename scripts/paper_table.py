#!/usr/bin/env python3
"""The rows of the papers' CIFAR-10 tables, trained here, beside the published figures.

    python scripts/paper_table.py OUT --data-dir DIR --device cuda --epochs 200 --schedule multistep

trains, one after the other, the teacher (adversarially trained ResNet-18) and from it MobileNetV2 by at, kd, ard,
fast-ard and rslad; any flag of `python -m ard_fast.train` may follow OUT. Called again on the same OUT it goes on where
it stopped, so that a long table fits into short turns on a machine. Writes OUT/paper_table.md; with another number of
epochs than the papers' the figures are not comparable, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ard_fast._files import write_text
from ard_fast.train import main as train
from ard_fast.training.config import to_yaml
from ard_fast.training.report import markdown_table
from ard_fast.training.run_folder import RunFolder

PAPER_EPOCHS = 200
ROLE = "teacher"

# Clean and PGD-20 accuracy in percent, with where they stand. ARD, Goldblum et al. (AAAI 2020): table 1 and the table
# "ARD vs AT", adversarially trained ResNet-18 as the teacher. RSLAD, Zi et al. (ICCV 2021): table of CIFAR-10, best
# checkpoint, PGD_SAT, with a TRADES WideResNet-34-10 as the teacher, 300 epochs.
PUBLISHED = {
    ROLE: ("76.54", "44.46", "Goldblum et al., AT ResNet-18"),
    "at": ("80.50", "46.90", "Goldblum et al., AT MobileNetV2"),
    "kd": ("76.86", "38.21", "Goldblum et al.; a public re-run of it: 82.88 / 11.60"),
    "ard": ("79.47", "50.22", "Goldblum et al., AT ResNet-18 teacher"),
    "fast-ard": ("-", "-", "Goldblum et al. give no figure that could be found"),
    "rslad": ("83.40", "53.16", "Zi et al., TRADES WRN-34-10 teacher, 300 epochs"),
}
METHODS = [name for name in PUBLISHED if name != ROLE]


def rows(folder: RunFolder) -> list[list[str]]:
    """One row a finished run: what it is, figures here, figures published."""
    table = []
    for name, (clean, robust, source) in PUBLISHED.items():
        for run in sorted(folder.path.glob(f"seed*-{name}")):
            summary = RunFolder(run).summary()
            if summary is None:
                continue
            table.append(
                [
                    f"{name} ({summary['student']}, {summary['epochs']} epochs)",
                    f"{summary['clean_acc']:.2f}",
                    f"{summary['pgd20_acc']:.2f}",
                    f"{summary['elapsed_s']:.0f}",
                    clean,
                    robust,
                    source,
                ]
            )
    return table


def main(argv: list[str]) -> int:
    """Train what is missing, then write the table of what is there; the exit code of the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the comparison")
    arguments, flags = parser.parse_known_args(argv)
    folder = RunFolder(arguments.out)
    if folder.config_file.exists():
        status = train(["--resume", str(arguments.out)])
    else:
        job = ["--method", "compare", "--compare-methods", ",".join(METHODS), "--compare-seeds", "1"]
        networks = ["--dataset", "cifar10", "--student", "mobilenetv2", "--teacher", "resnet18"]
        status = train([*job, *networks, *flags, "--out", str(arguments.out)])
    table = rows(folder)
    if not table:
        return status
    config = folder.config()
    lines = ["# Published rows", "", markdown_table(
        ["run", "clean %", "PGD-20 %", "seconds", "published clean %", "published PGD-20 %", "published where"], table
    ), ""]  # fmt: skip
    if config.epochs != PAPER_EPOCHS or config.subset is not None:
        lines += [f"Not comparable: {config.epochs} epochs here, {PAPER_EPOCHS} there.", ""]
    lines += ["```yaml", to_yaml(config).rstrip(), "```", ""]
    write_text(folder.path / "paper_table.md", "\n".join(lines))
    print(json.dumps({"table": str(folder.path / "paper_table.md"), "rows": len(table)}))
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
