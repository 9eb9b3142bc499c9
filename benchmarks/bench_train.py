"""A whole training iteration of Adversarially Robust Distillation against its published code.

    python benchmarks/bench_train.py [--device cpu|cuda] [--json FILE] [--quick] [--cases A,B] [--variants A,B]

Cases are a student and a teacher: mobilenetv2 and resnet18 with a ResNet-18, mobilenetv2-wrn and resnet18-wrn with a
WideResNet-34-10; digits is for trying out. Initial weights, random images: time depends on neither. PGD-10, batch 128
on a GPU, 16 on a CPU (`--batch`). Baselines (`_published.py`):

    published        the iteration of the published code, eager float32, TF32 off
    published-tf32   the same with TF32 on, for matrix products and convolutions
    published-eval   the same with the student in eval mode during the attack: the baseline of equal semantics for ours
    torchattacks     torchattacks' PGD (eval mode) and the published loss, no clean branch; optional:
                     pip install --no-deps torchattacks==3.5.1 && pip install requests
    compile          `published` with networks, step and loss compiled; only when named: it takes minutes
    cuda-graph       `published` as one CUDA graph

Ours, by the package's trainer, from the loader to the update:

    fused            what `python -m ard_fast.train --method ard` runs: folded student in the attack, teacher logits
                     from a table that knows them all, bfloat16 and one CUDA graph on a GPU
    eager            the same without the graph (GPU)
    fp32             the same in float32, TF32 off (GPU)
    no-cache         the same without the table of teacher logits: a first epoch
    train-attack     the same with the student in train mode during the attack (--attack-bn train), as published
    parity           --parity: what `published` does

AdaAD, IGDM and SAAD ask the teacher in every step of the attack or near its images, where no table of logits can stand
in: each as published, `published-adaad` and so on, and by the trainer as it runs by default, `adaad` (on a GPU one CUDA
graph; eagerly: `adaad-eager`). `x published` is over the published iteration of the same method.

Everybody sees the same batches. Before anything is timed, an iteration of each is held against `published` or
`published-eval`, whose semantics it has; one that differs ends the run with exit status 1. The sign of a gradient near
zero changes by rounding, and in train mode the batch carries it on to all images: after ten steps two right attacks
differ in many pixels. So an iteration is asked twice over: its attack, from the same start, must stay in the ball and
raise what it raises, cross-entropy or divergence, as high; and its loss and its gradient at the student's weights must
be those of the published iteration where both are taken at the published adversarial images.

`peak MiB` (GPU) is the most memory of an iteration, with all that the variant holds.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as tf
from _networks import PAIRS, TrainingCase
from _published import (
    AdaADIteration,
    CompiledIteration,
    GraphedIteration,
    IGDMIteration,
    Noise,
    PublishedIteration,
    Recipe,
    SAADIteration,
    TorchattacksIteration,
)
from _run import Row, WrongResult, build_variants, parse_args, positive, print_rows, run, unavailable_rows
from _timing import Variant, make_clock, measure, paired_ratio, timing_rows
from torch import Tensor

from ard_fast import functional as F
from ard_fast._commandline import StopRequest
from ard_fast._devices import training_arithmetic
from ard_fast.data import Batch
from ard_fast.training.config import resolve
from ard_fast.training.fitting import Environment
from ard_fast.training.run_folder import RunFolder
from ard_fast.training.trainer import Trainer

QUICK_CASES = ("digits",)
OF_ARD = ("alpha", "temperature")
BATCH = {"cpu": 16, "cuda": 128}
DIGITS_BATCH = 64
GRAPH_CALLS = 6
"""Calls after which a graph has been captured and replayed."""

BALL_TOLERANCE = 1e-5
LOSS_TOLERANCE = {"fp32": 5e-3, "tf32": 0.02, "bf16": 0.1}
"""Relative, of the loss; by how the variant rounds."""
COSINE = {"fp32": 0.98, "tf32": 0.95, "bf16": 0.5}
"""Of the gradients, at least. A MobileNetV2 with initial weights magnifies rounding: 0.9998 in float32 in another
layout, 0.77 in bfloat16 (batch 16); a ResNet-18 of width 16 has 0.98 in bfloat16, the digits network 0.9995."""
WEAKER = {"fp32": 0.05, "tf32": 0.05, "bf16": 0.1}
"""By how much of it the cross-entropy that an attack reaches may lie below the published one's. In train mode two right
attacks on MobileNetV2 at batch 8 were 1.7 % apart."""


class TrainerIteration:
    """An iteration of `python -m ard_fast.train`, by its trainer, from the loader to the update.

    Args:
        case: Networks and images.
        recipe: Constants; what it says of the method is what a run of ARD is configured with.
        method: By name.
        flags: The run's settings beside.
    """

    def __init__(self, case: TrainingCase, recipe: Recipe, method: str, flags: Mapping[str, Any]) -> None:
        constants = {key: value for key, value in vars(recipe).items() if method == "ard" or key not in OF_ARD}
        settings = {
            "method": method,
            "dataset": case.pair.dataset,
            "student": case.pair.student,
            "teacher": case.pair.teacher,
            "batch_size": case.batch,
            "device": str(case.device),
            "seed": case.seed,
            **constants,
            **({} if case.pair.dataset == "digits" else {"data_dir": "unused"}),
            **flags,
        }
        env = Environment(case.data.evaluated_on(case.device), case.device, StopRequest())
        self.trainer = Trainer(resolve(settings), RunFolder("unused"), env, {"teacher": case.teacher()})
        self.arithmetic = partial(training_arithmetic, self.trainer.compute.precision, case.device)
        self.student = self.trainer.student
        self.student.load_state_dict(case.student().state_dict())
        self.student.train()
        self.trainer.method.begin_epoch(0)
        if self.trainer.method.clean_teachers():  # the table of logits knows what it is going to be asked
            for batch in self.trainer.loader.batches(0):
                self.trainer.teachers["teacher"].clean(batch)
        self.batches = self._again_and_again()
        self.lr = recipe.lr

    def _again_and_again(self) -> Iterator[Batch]:
        while True:  # the same epoch, so that its views are those that the table knows
            yield from self.trainer.loader.batches(0)

    @property
    def replays(self) -> int:
        """How many steps were replays of a CUDA graph."""
        return 0 if self.trainer.graphed is None else self.trainer.graphed.replays

    def __call__(self) -> Tensor:
        with self.arithmetic():
            batch = next(self.batches)
            update = self.trainer.graphed or self.trainer.update
            return update([batch], epoch=0, rates=[self.lr])[0] / batch.count

    def observed(self, noise: Noise, outer_at: Tensor | None) -> tuple[Tensor, Tensor]:
        """As that of the published iteration; the package's attack starts where the batch's seed says in any case."""
        method: Any = self.trainer.method
        found, perturb = [], method.perturb

        def observing(*args: Any, **kwargs: Any) -> Tensor:
            found.append(perturb(*args, **kwargs))
            return found[0] if outer_at is None else outer_at

        method.perturb = observing
        try:
            return self(), found[0]
        finally:
            del method.perturb


Iteration = PublishedIteration | TrainerIteration


@dataclass(frozen=True)
class Kind:
    """A variant.

    Attributes:
        make: Builds it.
        attack_bn: Mode of the student during its attack; what it is checked against follows from it.
        rounding: "fp32", "tf32" or "bf16": how far its result may be from the published one's.
        clamp_start: Whether the attack's start is clamped to [0, 1] when it is checked; the package does, parity does
            not, and whoever is compared with either starts as it.
        graphed: Whether it is a CUDA graph from its fourth call on.
        baseline: The variant that is the published iteration of its method.
    """

    make: Callable[[TrainingCase, Recipe], Iteration]
    attack_bn: str = "train"
    rounding: str = "fp32"
    clamp_start: bool = True
    graphed: bool = False
    baseline: str = "published"


def published(cls: type[PublishedIteration], case: TrainingCase, recipe: Recipe, **settings: Any) -> Iteration:
    """The published iteration or one of its relatives."""
    return cls(case.student(), case.teacher(), case.batches(), recipe, **settings)


def trainer(method: str = "ard", **flags: Any) -> Callable[[TrainingCase, Recipe], Iteration]:
    """Builds an iteration of the package's trainer with these settings, the others as they are by default."""
    return lambda case, recipe: TrainerIteration(case, recipe, method, flags)


BASELINES = {
    "published": Kind(partial(published, PublishedIteration)),
    "published-tf32": Kind(partial(published, PublishedIteration, precision="tf32"), rounding="tf32"),
    "published-eval": Kind(partial(published, PublishedIteration, attack_bn="eval"), "eval"),
    "torchattacks": Kind(partial(published, TorchattacksIteration), "eval"),
    "compile": Kind(partial(published, CompiledIteration)),
    "cuda-graph": Kind(partial(published, GraphedIteration), graphed=True),
}
THROUGH_THE_TEACHER = {"adaad": AdaADIteration, "igdm": IGDMIteration, "saad": SAADIteration}
PUBLISHED = {"published": PublishedIteration, **{f"published-{name}": cls for name, cls in THROUGH_THE_TEACHER.items()}}
OURS = ("fused", "eager", "fp32", "no-cache", "train-attack", "parity", *THROUGH_THE_TEACHER)
CUDA_ONLY = ("published-tf32", "cuda-graph", "eager", "fp32", *(f"{name}-eager" for name in THROUGH_THE_TEACHER))


def kinds(device: str) -> dict[str, Kind]:
    """The variants by name, in order."""
    gpu = device == "cuda"
    rounding = "bf16" if gpu else "fp32"
    others: dict[str, Kind] = {}
    for name, cls in THROUGH_THE_TEACHER.items():
        own, ours = f"published-{name}", partial(trainer, name, epochs=IGDMIteration.EPOCHS, temperature=1.0)
        others[own] = Kind(partial(published, cls), "eval", baseline=own)
        others[name] = Kind(ours(), "eval", rounding, graphed=gpu, baseline=own)
        others[f"{name}-eager"] = Kind(ours(graph="off"), "eval", rounding, baseline=own)
    return {
        **BASELINES,
        "fused": Kind(trainer(), "eval", rounding, graphed=gpu),
        "eager": Kind(trainer(graph="off"), "eval", rounding),
        "fp32": Kind(trainer(precision="fp32"), "eval", graphed=gpu),
        "no-cache": Kind(trainer(teacher_cache="off"), "eval", rounding, graphed=gpu),
        "train-attack": Kind(trainer(attack_bn="train"), "train", rounding, graphed=gpu),
        "parity": Kind(trainer(parity=True), clamp_start=False, graphed=gpu),
        **others,
    }


@dataclass(frozen=True)
class Outcome:
    """What an iteration computed: the loss, the gradient of all of the student's weights, adversarial images."""

    loss: float
    gradient: Tensor
    x_adv: Tensor


class References:
    """What the published iteration computes on a case's first batch, once for each of its forms.

    Args:
        case: Networks and images.
        recipe: Constants.
    """

    def __init__(self, case: TrainingCase, recipe: Recipe) -> None:
        self.case, self.recipe = case, recipe
        self._known: dict[tuple[str, str, bool], Outcome] = {}

    def plain(self, kind: Kind) -> PublishedIteration:
        """A fresh published iteration of a variant's method, the student in the variant's mode in its attack."""
        case = self.case
        make = PUBLISHED[kind.baseline]
        return make(case.student(), case.teacher(), case.batches(), self.recipe, attack_bn=kind.attack_bn)

    def __call__(self, kind: Kind) -> Outcome:
        """By the method, the student's mode in the attack, and whether the start is clamped to [0, 1]."""
        key = kind.baseline, kind.attack_bn, kind.clamp_start
        if key not in self._known:
            self._known[key] = self.outcome(self.plain(kind), kind, None)
        return self._known[key]

    def outcome(self, iteration: Iteration, kind: Kind, outer_at: Tensor | None) -> Outcome:
        """Runs an iteration once, from the package's start; returns what it computed.

        Raises:
            WrongResult: If a weight has no gradient, or anything is not finite.
        """

        def noise(batch: Batch) -> Tensor:
            how = {"eps": self.recipe.eps, "clamp": kind.clamp_start, **PUBLISHED[kind.baseline].init}
            return F.random_start(batch.x, seed=batch.seed, sample_ids=batch.ids, **how) - batch.x

        loss, x_adv = iteration.observed(noise, outer_at)
        gradients = [p.grad for p in iteration.student.parameters() if p.grad is not None]
        if len(gradients) < len(list(iteration.student.parameters())):
            raise WrongResult("some of the student's weights have no gradient")
        gradient = torch.cat([g.flatten().float() for g in gradients])
        if not (torch.isfinite(loss) and torch.isfinite(gradient).all()):
            raise WrongResult(f"loss {loss.item()}, or a gradient that is not finite")
        return Outcome(float(loss), gradient, x_adv.detach().clone())

    def check(self, iteration: Iteration, kind: Kind) -> Row:
        """Holds a fresh iteration against the published one; returns row fields.

        One that is going to be a graph is still eager in its first call; that replays do the same to the bit is what
        the package's tests are for.

        Raises:
            WrongResult: If its images leave the ball, its attack is weaker, or loss or gradient are others.
        """
        wanted = self(kind)
        found = self.outcome(iteration, kind, wanted.x_adv)
        x, eps = self.case.batches()[0].x, self.recipe.eps
        largest, inside = float((found.x_adv - x).abs().max()), found.x_adv.min() >= 0 and found.x_adv.max() <= 1
        if not (largest <= eps + BALL_TOLERANCE and inside):  # so that NaN fails
            raise WrongResult(f"{largest:.6g} from the image, eps {eps:.6g}")
        plain = self.plain(kind)
        plain.student.train(kind.attack_bn == "train")
        objective = plain.objective(self.case.batches()[0])
        with torch.no_grad():
            reached, least = (float(objective(x_adv)) / len(x) for x_adv in (found.x_adv, wanted.x_adv))
        if not reached >= (1 - WEAKER[kind.rounding]) * least:
            raise WrongResult(f"the attack reaches a loss of {reached:.6g}, the published one {least:.6g}")
        cosine = float(tf.cosine_similarity(found.gradient.double(), wanted.gradient.double(), dim=0))
        apart = abs(found.loss - wanted.loss) / max(abs(wanted.loss), 1e-12)
        if not (apart <= LOSS_TOLERANCE[kind.rounding] and cosine >= COSINE[kind.rounding]):
            raise WrongResult(
                f"loss {found.loss:.6g} for {wanted.loss:.6g}, gradients at a cosine of {cosine:.5f} "
                f"(expected at least {COSINE[kind.rounding]})"
            )
        return {"checked": "as published", "loss": found.loss, "gradient_cosine": cosine, "attacked_loss": reached}


def run_case(name: str, env: Row, args: argparse.Namespace) -> list[Row]:
    """Builds, checks and times the chosen variants of a case and prints its table; returns the rows.

    Raises:
        WrongResult: If a variant computes something else than it should.
    """
    device, pair = torch.device(args.device), PAIRS[name]
    batch = args.batch or (DIGITS_BATCH if name == "digits" else BATCH[args.device])
    case, recipe = TrainingCase(pair, batch, device), Recipe(steps=args.steps)
    references = References(case, recipe)

    def make(variant: str) -> Variant:
        kind = kinds(args.device)[variant]
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        iteration = kind.make(case, recipe)
        try:
            checks[variant] = references.check(iteration, kind)
        except WrongResult as error:
            raise WrongResult(f"{name}, {variant}: {error}") from error
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # not what the check and the published iteration needed
        for _ in range(GRAPH_CALLS if kind.graphed else 1):
            iteration()
        if kind.graphed and not iteration.replays:
            raise WrongResult(f"{name}, {variant}: no graph was replayed")
        if device.type == "cuda":
            checks[variant]["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
        print(f"  {variant}: checked, gradient cosine {checks[variant]['gradient_cosine']:.4f}", flush=True)
        return Variant(variant, lambda _i: iteration())

    checks: dict[str, Row] = {}
    variants, _, absent = build_variants(
        args.variants,
        make,
        lambda variant: {},
        n_sets=1,
        device=torch.device("cpu"),  # nothing is captured here: graphs are variants of their own
        required=("published", *OURS),
    )
    measured = measure(
        variants,
        make_clock(device),
        n_sets=1,
        rounds=args.rounds,
        min_sample_s=0.0,
        warm_up=0,
        progress=lambda done, variant, s: print(f"  round {done + 1}: {variant} {s:.4g} s", flush=True),
    )
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
    rows = timing_rows(measured, checks, common=common, baseline="published")
    for row in rows:
        kind, seconds = kinds(args.device)[row["variant"]], measured[row["variant"]].seconds
        row |= {"attack_bn": kind.attack_bn, "precision": kind.rounding, "images_per_s": batch / row["median_us"] * 1e6}
        own = measured.get(kind.baseline)
        row["speedup_vs_baseline"] = None if own is None else paired_ratio(own.seconds, seconds)
        if "published-eval" in measured:
            row["x_published_eval"] = paired_ratio(measured["published-eval"].seconds, seconds)
    rows += unavailable_rows(absent, common)
    print_rows(
        f"{name}: student {pair.student}, teacher {pair.teacher}, batch {batch}",
        rows,
        {
            "ms": lambda row: row["median_us"] / 1e3,
            "min ms": lambda row: row["min_us"] / 1e3,
            "images/s": "images_per_s",
            "x published": "speedup_vs_baseline",
            "x pub-eval": "x_published_eval",
            "fused is x": "fused_speedup",
            "peak MiB": "peak_mib",
            "grad cos": "gradient_cosine",
        },
    )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status (0 timed, 1 wrong result, 2 no device)."""

    def extra(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--batch", type=positive, help="images a step (default: 128 on a GPU, 16 on a CPU)")
        parser.add_argument("--steps", type=positive, default=Recipe.steps, help="of the attack (default 10)")

    args = parse_args(
        str(__doc__),
        argv,
        cases=PAIRS,
        quick_cases=QUICK_CASES,
        default_cases=[case for case in PAIRS if case not in QUICK_CASES],
        variants=kinds("cuda"),
        left_out={"cpu": (*CUDA_ONLY, "compile"), "cuda": ("compile",)},
        rounds=5,
        quick_rounds=3,
        extra=extra,
    )
    warnings.filterwarnings("ignore", "reduction: 'mean' divides")  # as published
    return run("bench_train", args, lambda case, _dtype, env: run_case(case, env, args))


if __name__ == "__main__":
    sys.exit(main())
