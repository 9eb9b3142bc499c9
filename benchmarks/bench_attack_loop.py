"""The PGD-10 loop of adversarial training against the published one and torchattacks', gain by gain.

    python benchmarks/bench_attack_loop.py [--device cpu|cuda] [--json FILE] [--quick] [--cases A,B] [--variants A,B]

From images and labels to adversarial images of a network in eval mode whose parameters require gradients, as in
training; batch 128 on a GPU, 16 on a CPU (`--batch`). `bench_attacks.py` compares attacks for evaluation with more
peers. Baselines:

    published        the loop of the published ARD code (`_published.py`), eager float32, TF32 off
    published-tf32   the same with TF32 on, for matrix products and convolutions
    torchattacks     its PGD; optional, `_attack_peers.py` says how to install it
    compile          `published` with the network and the step compiled (on a CPU only when named: it takes minutes)

Ours, each rung the one before it with one thing changed, the first ones in plain torch:

    channels-last    images and weights
    bf16             forward passes in bfloat16 under autocast (GPU)
    folded           batch norm folded into the convolutions, anew for every attack, as in training
    fused            the package's PGD: fused start, gradient at the logits, and step
    graph            the same as one CUDA graph, by `GraphedPGD` (GPU)

    passes           only the passes through the network of the last rung: 10 times forward and backward

On CUDA every variant but `graph` is also timed as a captured graph, `NAME+graph`. Before anything is timed each is
held against `published` from the same start: the cross-entropy that the attack reaches, and how many pixels came out
the same. Images outside of the ball, or an attack that is weaker, end the run with exit status 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as tf
from _baselines import torchattacks_pgd
from _cli import Row, WrongResult, build_variants, parse_args, positive, run
from _memory import Peak, PeakMemory
from _published import Recipe, ascend, published_pgd, uniform_noise
from _timing import (
    GRAPH_SUFFIX,
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
from _training_case import settled
from torch import Tensor, nn

from ard_fast import functional as F
from ard_fast._devices import training_arithmetic
from ard_fast.attacks import PGD, GraphedPGD
from ard_fast.folding import FoldedNetwork
from ard_fast.models import build_model

CASES = {"mobilenetv2": (3, 32), "resnet18": (3, 32), "digits-student": (1, 8)}
"""Networks, and channels and size of their images."""
DEFAULT_CASES = ("mobilenetv2", "resnet18")
QUICK_CASES = ("digits-student",)
BATCH = {"cpu": 16, "cuda": 128}
BASELINES = ("published", "published-tf32", "torchattacks", "compile")
RUNGS = ("channels-last", "bf16", "folded", "fused", "graph")
VARIANTS = (*BASELINES, *RUNGS, "passes")
CUDA_ONLY = ("published-tf32", "compile", "bf16", "graph")
UNCAPTURABLE = ("graph",)  # it is one

WARM_UP = {"cpu": 1, "cuda": 4}
"""Calls before the memory is looked at; `GraphedPGD` captures its graph in the fourth."""

BALL_TOLERANCE = 1e-5
WEAKER = 0.05
"""By how much of it the cross-entropy that a variant reaches may lie below that of `published`."""

FIELDS = (
    "batch",
    "steps",
    "images_per_s",
    "x_published",
    "x_torchattacks",
    "x_rung_before",
    "peak_mib",
    "reserved_mib",
    "loss",
    "same_pixels_pct",
)
"""Fields of a row beside those that all benchmarks have."""

Loop = Callable[[Tensor | None], Tensor]
"""From the start's noise, or None for a random one, to adversarial images."""


@dataclass
class Target:
    """What is attacked.

    Attributes:
        network: In eval mode; its parameters require gradients.
        x: Images `[B, C, H, W]` in [0, 1].
        y: Labels `[B]`: what the network says of them.
        recipe: Constants.
    """

    network: nn.Module
    x: Tensor
    y: Tensor
    recipe: Recipe

    def channels_last(self) -> Target:
        """The same in that layout."""
        network = deepcopy(self.network).to(memory_format=torch.channels_last)
        return Target(network, self.x.contiguous(memory_format=torch.channels_last), self.y, self.recipe)

    def loss(self, x_adv: Tensor) -> float:
        """The mean cross-entropy at images."""
        with torch.no_grad():
            return float(tf.cross_entropy(self.network(x_adv), self.y))


def make_target(name: str, batch: int, steps: int, device: torch.device) -> Target:
    """A network with initial weights and settled statistics, and random images."""
    torch.manual_seed(0)
    channels, size = CASES[name]
    x = torch.rand(batch, channels, size, size, device=device)
    network = settled(build_model(name, in_channels=channels).to(device), x).eval()
    with torch.no_grad():
        y = network(x).argmax(1)
    return Target(network, x, y, Recipe(steps=steps))


# ---------------------------------------------------------------------------------------------------------------------
# Loops
# ---------------------------------------------------------------------------------------------------------------------


def published(target: Target, network: Callable[[Tensor], Tensor] | None = None, move: Any = ascend) -> Loop:
    """The published loop on a network, by default the target's own."""
    t = target

    def loop(noise: Tensor | None) -> Tensor:
        noise = uniform_noise(t.x, t.recipe.eps) if noise is None else noise
        return published_pgd(network or t.network, t.x, t.y, t.recipe, noise, move)

    return loop


def in_tf32(target: Target) -> Loop:
    """The published loop with TF32 on."""
    loop = published(target)

    def wrapped(noise: Tensor | None) -> Tensor:
        with training_arithmetic("tf32", target.x.device):
            return loop(noise)

    return wrapped


def peer(target: Target) -> Loop:
    """torchattacks' loop, whose start cannot be given."""
    attack = torchattacks_pgd(target.network, target.recipe)
    return lambda noise: attack(target.x, target.y)


def compiled(target: Target) -> Loop:
    """The published loop compiled; weights that require a gradient would get one in a compiled backward."""
    network = deepcopy(target.network).requires_grad_(False)
    return published(target, torch.compile(network, dynamic=False), torch.compile(ascend, dynamic=False))


def half(target: Target) -> Loop:
    """The published loop with forward passes in bfloat16."""

    def network(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits = target.network(x)
        return logits.float()

    return published(target, network)


def fold(target: Target, bf16: bool) -> FoldedNetwork:
    """The target's network with its batch norms folded."""
    return FoldedNetwork(target.network, target.x[:16], dtype=torch.bfloat16 if bf16 else torch.float32)


def folded(target: Target, bf16: bool) -> Loop:
    """The published loop on the folded network."""
    network = fold(target, bf16)
    attack = published(target, network)

    def loop(noise: Tensor | None) -> Tensor:
        network.refresh()
        return attack(noise)

    return loop


def fused(target: Target, bf16: bool, *, graph: bool = False) -> Loop:
    """The package's attack on the folded network."""
    t, network = target, fold(target, bf16)
    attack: Callable[..., Tensor] = PGD(eps=t.recipe.eps, step_size=t.recipe.step_size, steps=t.recipe.steps)
    if graph:
        attack = GraphedPGD(attack)
    fixed = torch.zeros(1, dtype=torch.int64, device=t.x.device)

    def loop(noise: Tensor | None) -> Tensor:
        network.refresh()
        return attack(network, t.x, t.y, seed=None if noise is None else fixed)

    return loop


def passes(target: Target, bf16: bool) -> Loop:
    """As many forward and backward passes as the attack needs, and nothing else."""
    t, network = target, fold(target, bf16)
    with torch.no_grad():
        direction = torch.ones_like(network(t.x))

    def loop(noise: Tensor | None) -> Tensor:
        for _ in range(t.recipe.steps):
            probe = t.x.detach().requires_grad_()
            torch.autograd.grad(network(probe), probe, direction)
        return t.x

    return loop


def make_loop(name: str, target: Target) -> Loop:
    """The loop called `name`.

    Raises:
        Exception: whatever keeps a baseline from existing here.
    """
    bf16 = target.x.is_cuda
    if name in BASELINES:
        return {"published": published, "published-tf32": in_tf32, "torchattacks": peer, "compile": compiled}[name](
            target
        )
    target = target.channels_last()
    return {
        "channels-last": lambda: published(target),
        "bf16": lambda: half(target),
        "folded": lambda: folded(target, bf16),
        "fused": lambda: fused(target, bf16),
        "graph": lambda: fused(target, bf16, graph=True),
        "passes": lambda: passes(target, bf16),
    }[name]()


def check(name: str, target: Target, loop: Loop, noise: Tensor, wanted: Tensor) -> Row:
    """Holds a loop against the published one's result `wanted` from the same start; returns row fields.

    Raises:
        WrongResult: If an image left the ball or [0, 1], or the attack is weaker.
    """
    x_adv = loop(noise).detach()
    if name == "passes":
        return {}
    largest = float((x_adv - target.x).abs().max())
    inside = bool(((x_adv >= 0) & (x_adv <= 1)).all())
    if not (largest <= target.recipe.eps + BALL_TOLERANCE and inside):  # so that NaN fails
        raise WrongResult(f"{name}: {largest:.6g} from the image, eps {target.recipe.eps:.6g}")
    loss, least = target.loss(x_adv), (1 - WEAKER) * target.loss(wanted)
    if not loss >= least:
        raise WrongResult(f"{name}: the attack reaches a loss of {loss:.6g}, expected at least {least:.6g}")
    same = None if name == "torchattacks" else 100 * float((x_adv - wanted).abs().le(1e-6).float().mean())
    return {"checked": "in the ball, as strong", "loss": loss, "same_pixels_pct": same}


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------


def loop_rows(
    measured: dict[str, Measurement], checks: dict[str, Row], peaks: dict[str, Peak], common: Row
) -> list[Row]:
    """Returns a row for each measured variant; ratios are medians of the rounds' ratios.

    A captured graph's `x_rung_before` is over the rung before's graph; the other ratios are over eager baselines, which
    is what a user has.
    """
    seconds = {name: m.seconds for name, m in measured.items()}

    def over(other: str | None, name: str) -> float | None:
        return paired_ratio(seconds[other], seconds[name]) if other in seconds else None

    rows = []
    for name, m in measured.items():
        stats, base = summarize(m.seconds), name.removesuffix(GRAPH_SUFFIX)
        suffix = name[len(base) :]
        rungs = ["published", *(rung for rung in RUNGS if rung + suffix in seconds)]
        before = rungs[rungs.index(base) - 1] + suffix if base in rungs[1:] else None
        peak = peaks[base] if base == name else Peak(None)
        rows.append(
            {
                **dict.fromkeys((*TIMING_FIELDS, *FIELDS)),
                **common,
                **checks[name],
                **sample_fields(name, m),
                "buffer_sets": 1,
                "speedup_vs_baseline": over("torchattacks", name),
                "fused_speedup": paired_ratio(m.seconds, seconds["fused" + suffix])
                if "fused" + suffix in seconds
                else None,
                "images_per_s": common["batch"] / stats.median,  # type: ignore[operator]
                "x_published": over("published", name),
                "x_torchattacks": over("torchattacks", name),
                "x_rung_before": over(before, name),
                "peak_mib": peak.allocated,
                "reserved_mib": peak.reserved,
            }
        )
    return rows


def print_case(rows: Sequence[Row]) -> None:
    """Prints the table of one network."""
    first = rows[0]
    print(f"\n{first['case']}: PGD-{first['steps']}, batch {first['batch']}")
    table = [
        [
            r["variant"],
            number(r["median_us"] / 1e3),  # type: ignore[operator]
            number(r["min_us"] / 1e3),  # type: ignore[operator]
            *(number(r[k]) for k in ("images_per_s", "x_published", "x_torchattacks", "x_rung_before")),
            *(number(r[k]) for k in ("peak_mib", "reserved_mib", "loss", "same_pixels_pct")),
        ]
        for r in rows
        if r["status"] == "ok"
    ]
    headers = [
        "variant", "ms", "min ms", "images/s", "x published", "x torchattacks", "x before", "peak MiB", "reserved",
        "loss", "same px %",
    ]  # fmt: skip
    print(format_table(headers, table))
    for r in rows:
        if r["status"] != "ok":
            print(f"{r['variant']}: {r['status']}")
    sys.stdout.flush()


def run_case(name: str, env: Row, args: argparse.Namespace) -> list[Row]:
    """Checks and times the chosen variants on one network and prints its table; returns the rows.

    Raises:
        WrongResult: If a variant's result is wrong.
    """
    device = torch.device(args.device)
    target = make_target(name, args.batch or BATCH[args.device], args.steps, device)
    noise = F.random_start(target.x, eps=target.recipe.eps, seed=0) - target.x
    wanted = published(target)(noise)
    loops: dict[str, Loop] = {}
    peaks: dict[str, Peak] = {}

    def make(variant: str) -> Variant:
        memory = PeakMemory(device)
        loop = loops[variant] = make_loop(variant, target)
        for _ in range(WARM_UP[args.device]):
            loop(noise)
        peaks[variant] = memory.of(lambda: loop(None))
        return Variant(variant, lambda _i: loop(None), lambda n: None)

    def checked(variant: Variant) -> Row:
        return check(variant.name, target, loops[variant.name], noise, wanted)

    common = {
        **env,
        "benchmark": "attack_loop",
        "case": name,
        "shape": list(target.x.shape),
        "dtype": "fp32",
        "batch": len(target.x),
        "steps": target.recipe.steps,
    }
    variants, checks, absent = build_variants(
        args.variants, make, checked, n_sets=1, device=device, uncapturable=UNCAPTURABLE
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
    rows = loop_rows(measured, checks, peaks, common)
    fields = {**dict.fromkeys((*TIMING_FIELDS, *FIELDS)), **common}
    rows += [unavailable_row(variant, reason, common=fields) for variant, reason in absent.items()]
    print_case(rows)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status (0 timed, 1 wrong result, 2 no device)."""

    def extra(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--batch", type=positive, help="images (default: 128 on a GPU, 16 on a CPU)")
        parser.add_argument("--steps", type=positive, default=Recipe.steps, help="of the attack (default 10)")

    args = parse_args(
        "The PGD loop of adversarial training, gain by gain.",
        argv,
        cases=tuple(CASES),
        quick_cases=QUICK_CASES,
        default_cases=DEFAULT_CASES,
        variants=VARIANTS,
        left_out={"cpu": CUDA_ONLY},
        rounds=7,
        quick_rounds=3,
        extra=extra,
    )
    return run("bench_attack_loop", args, lambda case, _dtype, env: run_case(case, env, args))


if __name__ == "__main__":
    sys.exit(main())
