"""Whole attacks against the published loop and the peers': the same network, images and settings, in the same rounds.

    python benchmarks/bench_attacks.py [--device cpu|cuda] [--json FILE] [--quick] [--cases A,B] [--attacks A,B]

Variants, from images and labels to adversarial images (`_attacks.py`):

    fused          this package's attack
    folded         PGD as training runs it: the batch norms folded into the convolutions anew for every attack
    folded-bf16    the same in bfloat16 (GPU)
    graphed        the same as one CUDA graph, by `GraphedPGD` (GPU)
    dropping       APGD as the evaluation runs it: samples that are fooled leave the run after every 5 steps
    published      PGD by the loop of the published ARD code
    torchattacks, pyautoattack   the package's own, called as its users do; optional: one that is not installed is a
                   line that says so
    plain          PGD and MI-FGSM in plain torch, written with care
    compile        the same, with what lies outside the network compiled
    model          no attack: torch's passes through the network, forward and backward to the images, as many as ours

Cases are networks: the package's digits network, trained against PGD for a few seconds, and LeNet-5 and CIFAR networks
with initial weights. Step size eps/4, PGD and MI-FGSM with 20 steps, APGD with 100 (`--steps` for others; in training
PGD has 10).
On CUDA each variant that can be captured is timed as one captured graph too.

Nearly all of the time belongs to the network. `outside %` is the share of a variant's time that `model` does not
account for, and `fused is x` the ratio of the times. On a CPU ours takes a shorter way back through a first convolution
with few channels (`ard_fast/attacks/backward.py`): there its share is negative.

Speed must not be bought with weakness: beside the time stand the robust accuracy after the attack (100 % before it) and
the mean cross-entropy at its result (AutoAttack gives back the clean image where it found nothing, so its mean is
lower). Images outside of the ball or of [0, 1], or a PGD of ours that is weaker than the published loop, end the run
with status 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from _attacks import (
    PEERS,
    Attack,
    Setting,
    folded,
    ours,
    plain_attack,
    published_attack,
    pyautoattack_attack,
    torchattacks_attack,
)
from _networks import Victim, digits, untrained
from _run import (
    Row,
    WrongResult,
    build_variants,
    names_among,
    number,
    parse_args,
    positive,
    print_rows,
    run,
    unavailable_rows,
)
from _timing import GRAPH_SUFFIX, Variant, make_clock, measure, paired_ratio, timing_rows
from torch import Tensor

CASES: dict[str, Callable[[int, torch.device], Victim]] = {
    "digits": digits,
    **{name: partial(untrained, name) for name in ("lenet", "resnet18-narrow", "mobilenetv2", "resnet18")},
}
BATCHES, CIFAR_BATCH = {"digits": 256, "lenet": 64}, {"cpu": 16, "cuda": 128}
APGD_ONLY, PGD_ONLY = ("dropping",), ("folded", "folded-bf16", "graphed", "published")
VARIANTS = ("fused", *PGD_ONLY, *APGD_ONLY, *dict.fromkeys(PEERS.values()), "plain", "compile", "model")
CUDA_ONLY = ("folded-bf16", "graphed")
UNCAPTURABLE = ("dropping", "pyautoattack", "graphed")
DEFAULT_ATTACKS = ("pgd", "pgd-l2", "mifgsm", "apgd-ce", "apgd-ce-l2")

WARM_UP = {"cpu": 1, "cuda": 4}
"""Calls before the first sample; `GraphedPGD` captures its graph in the fourth."""
BALL_TOLERANCE = 1e-5
WEAKER = 0.1
"""By how much of it the cross-entropy that a PGD of ours reaches may lie below the published loop's; starts differ."""


@dataclass
class Passes:
    """How often the network ran in one call: forward, and those of them that kept a graph for a backward."""

    forwards: int = 0
    with_graph: int = 0


def count_passes(victim: Victim, attack: Attack) -> tuple[Tensor, Passes]:
    """Runs `attack` once; returns its result and how often it used the network."""
    passes = Passes()

    def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        passes.forwards += 1
        passes.with_graph += inputs[0].requires_grad

    handle = victim.model.register_forward_hook(hook)
    try:
        return attack(victim.x, victim.y).detach(), passes
    finally:
        handle.remove()


def check_result(name: str, victim: Victim, setting: Setting, x_adv: Tensor, least: float = 0.0) -> Row:
    """Returns the strength of an attack as row fields; `least` is the mean cross-entropy that it must reach.

    Raises:
        WrongResult: If an image left the ball or [0, 1], or is NaN, or the attack is weaker.
    """
    delta = (x_adv - victim.x).flatten(1)
    largest = float((delta.norm(dim=1) if setting.l2 else delta.abs().amax(1)).max())
    inside = bool(((x_adv >= 0) & (x_adv <= 1)).all())
    if not (largest <= setting.eps + BALL_TOLERANCE and inside):  # so that NaN fails
        raise WrongResult(f"{name}, {setting.attack}: {largest:.6g} from the image, eps {setting.eps:.6g}")
    with torch.no_grad():
        logits = victim.model(x_adv)
    loss = float(torch.nn.functional.cross_entropy(logits, victim.y))
    if not loss >= least:
        raise WrongResult(f"{name}, {setting.attack}: reaches a loss of {loss:.4g}, expected at least {least:.4g}")
    accuracy = 100 * float((logits.argmax(1) == victim.y).float().mean())
    return {"robust_acc": accuracy, "mean_loss": loss, "checked": "in the ball"}


def model_passes(victim: Victim, passes: Passes) -> Callable[[int], object]:
    """Returns a call that runs the network as often as `passes` says, and nothing else."""
    with torch.no_grad():
        direction = torch.ones_like(victim.model(victim.x))

    def call(_i: int) -> None:
        for _ in range(passes.with_graph):
            probe = victim.x.detach().requires_grad_()
            torch.autograd.grad(victim.model(probe), probe, direction)
        with torch.no_grad():
            for _ in range(passes.forwards - passes.with_graph):
                victim.model(victim.x)

    return call


def make_attack(name: str, victim: Victim, setting: Setting) -> Attack:
    """Returns the attack of the variant called `name`.

    Raises:
        Exception: Whatever keeps it from existing here (a package that is not installed, no compiler).
    """
    model = victim.model
    if name in ("fused", "dropping"):
        attack = ours(setting, drop_every=5 if name == "dropping" else 0)
        return lambda x, y: attack(model, x, y)
    if name.startswith(("folded", "graphed")):
        on_gpu = victim.x.is_cuda and name != "folded"
        return folded(setting, model, victim.x, bf16=on_gpu, graph=name == "graphed")
    if name in ("plain", "compile"):
        return plain_attack(setting, model, compile=name == "compile")
    makers = {
        "published": published_attack,
        "torchattacks": torchattacks_attack,
        "pyautoattack": pyautoattack_attack,
    }
    return makers[name](setting, model)


def run_attack(case: str, victim: Victim, setting: Setting, env: Row, args: argparse.Namespace) -> list[Row]:
    """Checks and times all variants of one attack on one network and prints its table; returns the rows.

    Raises:
        WrongResult: If a variant gives a wrong result.
    """
    device, apgd, peer = torch.device(args.device), setting.attack.startswith("apgd"), PEERS[setting.attack]
    left_out = {name for name in PEERS.values() if name != peer}
    left_out |= set(APGD_ONLY if not apgd else ("plain", "compile"))
    left_out |= set(PGD_ONLY if setting.attack != "pgd" else ())
    attacks: dict[str, Attack] = {}
    least = 0.0
    if setting.attack == "pgd":
        published = published_attack(setting, victim.model)(victim.x, victim.y)
        least = (1 - WEAKER) * check_result("published", victim, setting, published)["mean_loss"]

    def make(name: str) -> Variant:
        if name == "model":
            _, passes = count_passes(victim, make_attack("fused", victim, setting))
            return Variant(name, model_passes(victim, passes))
        attack = attacks[name] = make_attack(name, victim, setting)
        return Variant(name, lambda _i: attack(victim.x, victim.y))

    def check(variant: Variant) -> Row:
        if variant.name == "model":
            return {}
        x_adv, passes = count_passes(victim, attacks[variant.name])
        judged = least if variant.name in ("fused", *PGD_ONLY) else 0.0
        strength = check_result(variant.name, victim, setting, x_adv, judged)
        return {**strength, "forwards": passes.forwards or None, "backwards": passes.with_graph}

    variants, checks, absent = build_variants(
        [name for name in args.variants if name not in left_out],
        make,
        check,
        n_sets=1,
        device=device,
        uncapturable=UNCAPTURABLE,
        required=("fused", "folded", "graphed"),
    )
    measured = measure(
        variants, make_clock(device), n_sets=1, rounds=args.rounds, min_sample_s=0.0, warm_up=WARM_UP[args.device]
    )
    common = {
        **env,
        "benchmark": "attacks",
        "case": case,
        "shape": list(victim.x.shape),
        "dtype": "fp32",
        "attack": setting.attack,
        "steps": setting.steps,
        "eps": setting.eps,
        "step_size": None if apgd else setting.step_size,
        "batch": len(victim.x),
        "trained": victim.trained,
    }
    rows = timing_rows(measured, checks, common=common, baseline=peer)
    for row in rows:
        suffix = GRAPH_SUFFIX if row["variant"].endswith(GRAPH_SUFFIX) else ""
        row["images_per_s"] = len(victim.x) / row["median_us"] * 1e6
        if model := measured.get("model" + suffix):
            row["vs_model"] = paired_ratio(measured[row["variant"]].seconds, model.seconds)
            row["outside_model_pct"] = 100 * (1 - 1 / row["vs_model"])
    rows += unavailable_rows(absent, common)
    print_rows(
        f"{case}  {'x'.join(map(str, victim.x.shape))}  {setting.attack}  {setting.steps} steps  eps "
        f"{number(setting.eps)}"
        + ("" if victim.trained else "  (initial weights: look at the loss, not the accuracy)"),
        rows,
        {
            "ms": lambda row: row["median_us"] / 1e3,
            "min ms": lambda row: row["min_us"] / 1e3,
            "images/s": "images_per_s",
            "outside %": "outside_model_pct",
            f"x {peer}": "speedup_vs_baseline",
            "fused is x": "fused_speedup",
            "fwd+bwd": lambda row: f"{row['forwards']}+{row['backwards']}" if row.get("forwards") else None,
            "robust %": "robust_acc",
            "loss": "mean_loss",
        },
    )
    sys.stdout.flush()
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status (0 timed, 1 wrong result, 2 no device)."""

    def extra(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--attacks",
            metavar="A,B",
            type=names_among(PEERS),
            default=list(DEFAULT_ATTACKS),
            help=f"any of {', '.join(PEERS)} (default: {', '.join(DEFAULT_ATTACKS)})",
        )
        parser.add_argument(
            "--batch", type=positive, help="images (default: digits 256, LeNet 64; others 16, on a GPU 128)"
        )
        parser.add_argument("--steps", type=positive, help="of every attack (default: 20, APGD 100)")

    args = parse_args(
        str(__doc__),
        argv,
        cases=CASES,
        quick_cases=("digits",),
        default_cases=("digits", "lenet", "resnet18-narrow", "mobilenetv2"),
        variants=VARIANTS,
        left_out={"cpu": CUDA_ONLY},
        rounds=7,
        quick_rounds=3,
        extra=extra,
    )

    def run_case(case: str, dtype: str, env: Row) -> list[Row]:
        batch = args.batch or BATCHES.get(case, CIFAR_BATCH[args.device])
        victim = CASES[case](batch, torch.device(args.device))
        rows = []
        for attack in args.attacks:
            eps = victim.eps_l2 if attack.endswith("-l2") else victim.eps
            steps = args.steps or (100 if attack.startswith("apgd") else 20)
            rows += run_attack(case, victim, Setting(attack, eps, eps / 4, steps), env, args)
        return rows

    return run("bench_attacks", args, run_case)


if __name__ == "__main__":
    sys.exit(main())
