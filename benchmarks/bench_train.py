"""A whole training iteration of Adversarially Robust Distillation against its published code, gain by gain.

    python benchmarks/bench_train.py [--device cpu|cuda] [--json FILE] [--quick] [--cases A,B] [--variants A,B]

Cases are a student and a teacher: mobilenetv2 and resnet18 with a ResNet-18, mobilenetv2-wrn and resnet18-wrn with a
WideResNet-34-10; digits is for trying out. Initial weights, random images: time depends on neither. PGD-10, batch 128
on a GPU, 16 on a CPU (`--batch`). Baselines:

    published        the iteration of the published code (`_published.py`), eager float32, TF32 off
    published-tf32   the same with TF32 on, for matrix products and convolutions
    published-eval   the same with the student in eval mode during the attack: the baseline of equal semantics for the
                     rungs from `eval-attack` on, for which nothing is gained by leaving batch statistics out
    torchattacks     torchattacks' PGD (eval mode) and `F.kl_div`, no clean branch; optional, `_attack_peers.py`
    compile          `published` with networks, step and loss compiled; only when named: it takes minutes
    cuda-graph       `published` as one CUDA graph

Ours, each rung the one before it with one thing changed; up to `folded` in plain torch (`_ladder.py`):

    no-dead-work     no clean branch of weight zero
    channels-last    images and weights
    lean-teacher     batch norm folded into the teacher's convolutions
    cached-teacher   its logits from a table that knows them all
    bf16             the student's forward passes in bfloat16 under autocast, the teacher too (GPU)
    eval-attack      the student in eval mode during the attack
    folded           its batch norm folded into its convolutions for the attack, anew in every iteration
    fused            the package's trainer with its loader and kernels
    graph            the whole iteration as one CUDA graph (GPU)

The last rung, `graph` on a GPU and `fused` on a CPU, is what `python -m ard_fast.train --method ard` runs (on the
digits that folds nothing: the networks are too small to gain).

Beside the ladder, all by the package's trainer:

    parity           --parity: what `published` does
    train-attack     the last rung with the student in train mode during the attack (--attack-bn train), as published
    cold             the last rung without the teacher's table: a first epoch

Everybody sees the same batches. Before anything is timed, an iteration of each is held against `published` or
`published-eval`, whose semantics it has (`_iteration_checks.py`); one that differs ends the run with exit status 1.
Beside the time stands the most memory of an iteration, with all that the variant holds except the networks it is
given, and what part of it is the attack, the teacher, the data and the update.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from _baselines import CompiledIteration, GraphedIteration, TorchattacksIteration
from _cli import Row, WrongResult, parse_args, positive, run, why
from _iteration_checks import Iteration, References
from _ladder import Changes, LeanerIteration, TrainerIteration
from _memory import Peak, PeakMemory
from _published import PublishedIteration, Recipe
from _shares import Shares
from _timing import (
    TIMING_FIELDS,
    Measurement,
    Variant,
    format_table,
    make_clock,
    measure,
    number,
    paired_ratio,
    sample_fields,
    summarize,
    unavailable_row,
)
from _training_case import PAIRS, TrainingCase

DEFAULT_CASES = ("mobilenetv2", "mobilenetv2-wrn", "resnet18", "resnet18-wrn")
QUICK_CASES = ("digits",)
BATCH = {"cpu": 16, "cuda": 128}
DIGITS_BATCH = 64
VIEWS = 162
"""Crops (9 x 9) and flips of a CIFAR image: the rows of it that the teacher's table has."""
EPOCHS = 200
GRAPH_CALLS = 6
"""Calls after which a graph has been captured and replayed, after one call that was checked."""

FIELDS = (
    "role",
    "student",
    "teacher",
    "batch",
    "attack_bn",
    "precision",
    "images_per_s",
    "x_published",
    "x_published_eval",
    "x_rung_before",
    "first_run_us",
    "peak_mib",
    "reserved_mib",
    "attack_pct",
    "teacher_pct",
    "data_pct",
    "update_pct",
    "loss",
    "gradient_cosine",
    "attacked_loss",
    "same_pixels_pct",
)
"""Fields of a row beside those that all benchmarks have."""


@dataclass(frozen=True)
class Kind:
    """A variant.

    Attributes:
        make: Builds it.
        role: "baseline", "rung" of the ladder, or "beside" it.
        attack_bn: Mode of the student during its attack; what it is checked against follows from it.
        rounding: "fp32", "tf32" or "bf16": how far its result may be from the published one's.
        cuda_only: Left out by default on a CPU.
        default: Whether it runs without being named.
        clamp_start: Whether the attack's start is clamped to [0, 1] when it is checked; the package does, parity does
            not, and whoever is compared with either starts as it.
        graphed: Whether it is a CUDA graph from its fourth call on.
    """

    make: Callable[[TrainingCase, Recipe], Iteration]
    role: str
    attack_bn: str = "train"
    rounding: str = "fp32"
    cuda_only: bool = False
    default: bool = True
    clamp_start: bool = True
    graphed: bool = False


def published(cls: type[PublishedIteration], case: TrainingCase, recipe: Recipe, **settings: Any) -> Iteration:
    """The published iteration or one of its relatives."""
    return cls(case.student(), case.teacher(), case.batches(), recipe, **settings)


def rung(**changes: Any) -> Callable[[TrainingCase, Recipe], Iteration]:
    """Builds a rung in plain torch."""
    return lambda case, recipe: LeanerIteration(case, recipe, Changes(**changes))


def trainer(**flags: Any) -> Callable[[TrainingCase, Recipe], Iteration]:
    """Builds an iteration of the package's trainer with these settings, the others as they are by default."""
    return lambda case, recipe: TrainerIteration(case, recipe, flags)


BASELINES = {
    "published": Kind(partial(published, PublishedIteration), "baseline"),
    "published-tf32": Kind(
        partial(published, PublishedIteration, precision="tf32"), "baseline", rounding="tf32", cuda_only=True
    ),
    "published-eval": Kind(partial(published, PublishedIteration, attack_bn="eval"), "baseline", "eval"),
    "torchattacks": Kind(partial(published, TorchattacksIteration), "baseline", "eval"),
    "compile": Kind(partial(published, CompiledIteration), "baseline", default=False),
    "cuda-graph": Kind(partial(published, GraphedIteration), "baseline", cuda_only=True, graphed=True),
}


def kinds(device: str) -> dict[str, Kind]:
    """The variants by name, in order. bfloat16 is a rung on a GPU; on a CPU rungs go on in float32 without it."""
    on_gpu = device == "cuda"
    cached = {"channels_last": True, "teacher": "cached"}
    half = {**cached, "bf16": on_gpu}
    own: dict[str, Any] = {"rounding": "bf16" if on_gpu else "fp32"}
    graph: dict[str, Any] = {"graphed": True, "cuda_only": True}
    ladder = {
        "no-dead-work": Kind(rung(), "rung"),
        "channels-last": Kind(rung(channels_last=True), "rung"),
        "lean-teacher": Kind(rung(channels_last=True, teacher="lean"), "rung"),
        "cached-teacher": Kind(rung(**cached), "rung"),
        "bf16": Kind(rung(**cached, bf16=True), "rung", rounding="bf16", cuda_only=True),
        "eval-attack": Kind(rung(**half, attack_bn="eval"), "rung", "eval", **own),
        "folded": Kind(rung(**half, attack_bn="eval", folded=True), "rung", "eval", **own),
        "fused": Kind(trainer(graph="off"), "rung", "eval", **own),
        "graph": Kind(trainer(), "rung", "eval", **own, **graph),
    }
    last: dict[str, Any] = {**own, "graphed": on_gpu}
    beside = {
        "parity": Kind(trainer(parity=True), "beside", clamp_start=False, graphed=on_gpu),
        "train-attack": Kind(trainer(attack_bn="train"), "beside", **last),
        "cold": Kind(trainer(teacher_cache="off"), "beside", "eval", **last),
    }
    return {**BASELINES, **ladder, **beside}


class Built:
    """A variant that has been built and checked.

    Args:
        name: Of the variant.
        kind: What it is.
        case: Networks and images.
        recipe: Constants.
        wanted: What `published` computes.

    Raises:
        WrongResult: If it computes something else.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        case: TrainingCase,
        recipe: Recipe,
        wanted: References,
    ) -> None:
        self.name, self.kind = name, kind
        memory = PeakMemory(case.device)
        self.iteration = kind.make(case, recipe)
        self.checked = wanted.check(
            self.iteration,
            attack_bn=kind.attack_bn,
            clamp_start=kind.clamp_start,
            rounding=kind.rounding,
            same_start=name != "torchattacks",
        )
        self.peak: Peak = memory.of(self.iteration, GRAPH_CALLS if kind.graphed else 1)
        if kind.graphed and not self.iteration.replays:
            raise WrongResult("no graph was replayed")

    def call(self, _i: int) -> None:
        """One iteration."""
        self.iteration()


# ---------------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------------


def computed_share(epochs: int, views: int = VIEWS) -> float:
    """The share of lookups that a table misses in the first run of a teacher: each epoch shows one view at random."""
    return views * (1 - (1 - 1 / views) ** epochs) / epochs


def train_rows(
    measured: dict[str, Measurement],
    built: dict[str, Built],
    shares: dict[str, dict[str, float]],
    common: Row,
) -> list[Row]:
    """Returns a row for each measured variant; ratios are medians of the rounds' ratios."""
    rungs = [name for name in measured if built[name].kind.role == "rung"]
    seconds = {name: m.seconds for name, m in measured.items()}

    def over(other: str | None, name: str) -> float | None:
        return paired_ratio(seconds[other], seconds[name]) if other in seconds else None

    rows = []
    for name, m in measured.items():
        stats, variant = summarize(m.seconds), built[name]
        before = rungs[rungs.index(name) - 1] if name in rungs[1:] else "published" if name in rungs else None
        rows.append(
            {
                **dict.fromkeys((*TIMING_FIELDS, *FIELDS)),
                **common,
                **variant.checked,
                **sample_fields(name, m),
                "buffer_sets": None,
                "speedup_vs_baseline": over("published", name),
                "fused_speedup": paired_ratio(m.seconds, seconds[rungs[-1]]) if rungs else None,
                "role": variant.kind.role,
                "attack_bn": variant.kind.attack_bn,
                "precision": variant.kind.rounding,
                "images_per_s": common["batch"] / stats.median,  # type: ignore[operator]
                "x_published": over("published", name),
                "x_published_eval": over("published-eval", name),
                "x_rung_before": over(before, name),
                "peak_mib": variant.peak.allocated,
                "reserved_mib": variant.peak.reserved,
                **{f"{part}_pct": share for part, share in shares.get(name, {}).items()},
            }
        )
    by_name = {row["variant"]: row for row in rows}
    if rungs and "cold" in by_name:
        last, cold = by_name[rungs[-1]], by_name["cold"]
        miss = computed_share(EPOCHS)
        last["first_run_us"] = (1 - miss) * last["median_us"] + miss * cold["median_us"]  # type: ignore[operator]
    return rows


def print_case(rows: Sequence[Row]) -> None:
    """Prints the table of one case."""
    first = rows[0]
    print(f"\n{first['case']}: {first['student']} taught by {first['teacher']}, batch {first['batch']}")
    table = [
        [
            r["variant"],
            number(r["median_us"] / 1e3),  # type: ignore[operator]
            number(r["min_us"] / 1e3),  # type: ignore[operator]
            number(r["images_per_s"]),
            number(r["x_published"]),
            number(r["x_published_eval"]),
            number(r["x_rung_before"]),
            number(r["peak_mib"]),
            number(r["reserved_mib"]),
            *(number(r[f"{part}_pct"], 2) for part in ("attack", "teacher", "data", "update")),
            number(r["gradient_cosine"], 4),
            number(r["same_pixels_pct"]),
        ]
        for r in rows
        if r["status"] == "ok"
    ]
    headers = [
        "variant", "ms", "min ms", "images/s", "x published", "x pub-eval", "x before", "peak MiB", "reserved",
        "attack %", "teacher %", "data %", "update %", "grad cos", "same px %",
    ]  # fmt: skip
    print(format_table(headers, table))
    for r in rows:
        if r["status"] != "ok":
            print(f"{r['variant']}: {r['status']}")
        elif r["first_run_us"] is not None:
            print(
                f"{r['variant']}, mean over the first {EPOCHS} epochs of a teacher, whose table misses "
                f"{100 * computed_share(EPOCHS):.0f} % of them (computed from it and cold): "
                f"{number(r['first_run_us'] / 1e3)} ms"  # type: ignore[operator]
            )


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------


def run_case(name: str, env: Row, args: argparse.Namespace) -> list[Row]:
    """Builds, checks and times the chosen variants of a case and prints its table; returns the rows.

    Raises:
        WrongResult: If a variant computes something else than it should.
    """
    device, pair = torch.device(args.device), PAIRS[name]
    batch = args.batch or (DIGITS_BATCH if name == "digits" else BATCH[args.device])
    recipe = Recipe(steps=args.steps)
    case = TrainingCase(pair, batch, device)
    common = {
        **env,
        "benchmark": "train",
        "case": name,
        "shape": list(case.batches()[0].x.shape),
        "dtype": "fp32",
        "student": pair.student,
        "teacher": pair.teacher,
        "batch": batch,
    }
    wanted, built, absent = References(case, recipe), {}, {}
    wanted("train", True)  # whatever a process does once is done: the first variant's memory shall not have it
    for variant in args.variants:
        begin = time.perf_counter()
        try:
            built[variant] = Built(variant, kinds(args.device)[variant], case, recipe, wanted)
        except WrongResult as error:
            raise WrongResult(f"{name}, {variant}: {error}") from error
        except Exception as error:  # a peer or a compiler that is not there must not take the rest with it
            if variant not in BASELINES or variant == "published":
                raise
            absent[variant] = why(error)
            continue
        note = ", ".join(f"{k} {number(v, 4)}" for k, v in built[variant].checked.items() if isinstance(v, float))
        print(f"  {variant}: checked in {time.perf_counter() - begin:.1f} s ({note})", flush=True)
    measured = measure(
        [Variant(variant, b.call, lambda n: None) for variant, b in built.items()],
        make_clock(device),
        n_sets=1,
        rounds=args.rounds,
        min_sample_s=0.0,
        warm_up=0,
        progress=lambda done, variant, s: print(f"  round {done + 1}: {variant} {s:.4g} s", flush=True),
    )
    shares = {}
    for variant, b in built.items():
        if parts := b.iteration.parts():
            shares[variant] = Shares(device, "update").of(b.iteration, parts)
    rows = train_rows(measured, built, shares, common)
    fields = {**dict.fromkeys((*TIMING_FIELDS, *FIELDS)), **common}
    rows += [unavailable_row(variant, reason, common=fields) for variant, reason in absent.items()]
    print_case(rows)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status (0 timed, 1 wrong result, 2 no device)."""

    def extra(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--batch", type=positive, help="images a step (default: 128 on a GPU, 16 on a CPU)")
        parser.add_argument("--steps", type=positive, default=Recipe.steps, help="of the attack (default 10)")

    variants = kinds("cuda")
    args = parse_args(
        "A whole training iteration of Adversarially Robust Distillation.",
        argv,
        cases=tuple(PAIRS),
        quick_cases=QUICK_CASES,
        default_cases=DEFAULT_CASES,
        variants=tuple(variants),
        left_out={
            "cpu": [name for name, kind in variants.items() if kind.cuda_only or not kind.default],
            "cuda": [name for name, kind in variants.items() if not kind.default],
        },
        rounds=5,
        quick_rounds=3,
        extra=extra,
    )
    warnings.filterwarnings("ignore", "reduction: 'mean' divides")  # as published
    return run("bench_train", args, lambda case, _dtype, env: run_case(case, env, args))


if __name__ == "__main__":
    sys.exit(main())
