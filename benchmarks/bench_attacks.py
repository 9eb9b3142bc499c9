"""Whole attacks against the peers': the same network, images and settings, in the same rounds.

    python benchmarks/bench_attacks.py [--device cpu|cuda] [--json FILE] [--quick] [--cases A,B] [--attacks A,B]

Variants, from images and labels to adversarial images:

    fused          this package's attack
    dropping       APGD only, as the evaluation runs it: samples that are fooled leave the run after every 5 steps; its
                   `fwd+bwd` counts passes, most of them on part of the batch
    torchattacks, foolbox, pyautoattack   the package's own, called as its users do (`_attack_peers.py`); optional: one
                   that is not installed is a line that says so
    plain          the attack in plain torch, written with care (`_plain_attacks.py`)
    compile        the same, with what lies outside the network compiled
    model          no attack: only the passes through the network, forward and backward to the images, as many as ours

Cases are networks: the package's digits network, trained against PGD for a few seconds, and CIFAR networks with initial
weights. Step size eps/4, PGD and MI-FGSM with 20 steps, APGD with 100 (`--steps` for others). On CUDA each variant that
does not wait for the device is timed as one captured graph too.

Nearly all of the time belongs to the network. `outside %` is the share of a variant's time that `model` does not
account for, and `fused is x` the ratio of the times: no attack can gain more than the other's outside share. Speed must
not be bought with weakness: beside the time stand the robust accuracy after the attack (100 % before it) and the mean
cross-entropy at its result (AutoAttack gives back the clean image where it found nothing, so its mean is lower); images
outside of the ball or of [0, 1] end the run with exit status 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import _attack_peers
import torch
from _attack_peers import OFFERED, OURS, PUBLISHED_STEPS, Attack, Setting, make_attack
from _cli import Row, WrongResult, build_variants, names_among, parse_args, positive, run
from _plain_attacks import plain_attack
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
from _victims import Victim, cifar, digits
from torch import Tensor

CASES: dict[str, Callable[[int, torch.device], Victim]] = {
    "digits": digits,
    "resnet18-narrow": lambda batch, device: cifar("resnet18-narrow", batch, device),
    "mobilenetv2": lambda batch, device: cifar("mobilenetv2", batch, device),
    "resnet18": lambda batch, device: cifar("resnet18", batch, device),
}
DEFAULT_CASES = ("digits", "resnet18-narrow", "mobilenetv2")
DIGITS_BATCH = 256
CIFAR_BATCH = {"cpu": 16, "cuda": 128}
QUICK_CASES = ("digits",)
PEERS = ("torchattacks", "foolbox", "pyautoattack")
OURS_VARIANTS = ("fused", "dropping")
VARIANTS = (*OURS_VARIANTS, *PEERS, "plain", "compile", "model")
BASELINES = {"pgd": "torchattacks", "pgd-l2": "torchattacks", "mifgsm": "torchattacks"}
UNCAPTURABLE = frozenset({"dropping", "foolbox", "pyautoattack"})
DEFAULT_ATTACKS = ("pgd", "pgd-l2", "mifgsm", "apgd-ce", "apgd-ce-l2")

BALL_TOLERANCE = 1e-5

FIELDS = (
    "attack",
    "steps",
    "eps",
    "step_size",
    "batch",
    "version",
    "images_per_s",
    "outside_model_pct",
    "vs_model",
    "forwards",
    "backwards",
    "images_forwarded",
    "robust_acc",
    "mean_loss",
    "trained",
)
"""Fields of a row beside those that all benchmarks have."""


@dataclass
class Passes:
    """How often the network ran in one call: forward, those of them that kept a graph for a backward, and images."""

    forwards: int = 0
    with_graph: int = 0
    images: int = 0


def count_passes(victim: Victim, attack: Attack) -> tuple[Tensor, Passes]:
    """Runs `attack` once; returns its result and how often it used the network."""
    passes = Passes()

    def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        passes.forwards += 1
        passes.images += len(inputs[0])
        passes.with_graph += inputs[0].requires_grad

    handle = victim.model.register_forward_hook(hook)
    try:
        return attack(victim.x, victim.y).detach(), passes
    finally:
        handle.remove()


def check_result(name: str, victim: Victim, setting: Setting, x_adv: Tensor) -> Row:
    """Returns the strength of an attack as row fields.

    Raises:
        WrongResult: If an image left the ball or [0, 1], or is NaN.
    """
    delta = (x_adv - victim.x).flatten(1)
    largest = float((delta.norm(dim=1) if setting.attack.endswith("-l2") else delta.abs().amax(1)).max())
    inside = bool(((x_adv >= 0) & (x_adv <= 1)).all())
    if not (largest <= setting.eps + BALL_TOLERANCE and inside):  # so that NaN fails
        raise WrongResult(f"{name}, {setting.attack}: {largest:.6g} from the image, eps {setting.eps:.6g}")
    with torch.no_grad():
        logits = victim.model(x_adv)
    return {
        "robust_acc": 100 * float((logits.argmax(1) == victim.y).float().mean()),
        "mean_loss": float(torch.nn.functional.cross_entropy(logits, victim.y)),
        "checked": "in the ball",
    }


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


def make_variant(name: str, victim: Victim, setting: Setting) -> tuple[Variant, Attack | None]:
    """Returns the variant called `name`, and its attack; `model` has none.

    Raises:
        Exception: Whatever keeps the variant from existing here (a package that is not installed, no compiler).
    """
    if name == "model":
        _, passes = count_passes(victim, make_attack(OURS, setting, victim.model))
        return Variant(name, model_passes(victim, passes), lambda n: None), None
    if name in ("plain", "compile"):
        attack = plain_attack(setting, victim.model, compile=name == "compile")
    else:
        attack = make_attack(OURS if name in OURS_VARIANTS else name, setting, victim.model, drop=name == "dropping")
    return Variant(name, lambda _i: attack(victim.x, victim.y), lambda n: None), attack


def run_attack(case: str, victim: Victim, setting: Setting, env: Row, args: argparse.Namespace) -> list[Row]:
    """Checks and times all variants of one attack on one network and prints its table; returns the rows.

    Raises:
        WrongResult: If a variant gives a wrong result.
    """
    device = torch.device(args.device)
    packages = OFFERED[setting.attack]
    chosen = [name for name in args.variants if name not in PEERS or name in packages]
    if not setting.attack.startswith("apgd"):
        chosen = [name for name in chosen if name != "dropping"]
    attacks: dict[str, Attack | None] = {}

    def make(name: str) -> Variant:
        variant, attacks[name] = make_variant(name, victim, setting)
        return variant

    def check(variant: Variant) -> Row:
        attack = attacks[variant.name]
        if attack is None:
            variant.call(0)
            return {}
        x_adv, passes = count_passes(victim, attack)
        return {
            **check_result(variant.name, victim, setting, x_adv),
            "forwards": passes.forwards,
            "backwards": passes.with_graph,
            "images_forwarded": passes.images,
        }

    common = {
        **env,
        "benchmark": "attacks",
        "case": case,
        "shape": list(victim.x.shape),
        "dtype": "fp32",
        "attack": setting.attack,
        "steps": setting.steps,
        "eps": setting.eps,
        "step_size": None if setting.attack.startswith("apgd") else setting.step_size,
        "batch": len(victim.x),
        "trained": victim.trained,
    }
    variants, checks, absent = build_variants(
        chosen, make, check, n_sets=1, device=device, uncapturable=UNCAPTURABLE, required=("fused",)
    )
    measured = measure(
        variants, make_clock(device), n_sets=1, rounds=args.rounds, min_sample_s=0.0, warm_up=1, probes=1
    )
    rows = attack_rows(measured, checks, len(victim.x), setting, common)
    fields = {**dict.fromkeys((*TIMING_FIELDS, *FIELDS)), **common}
    rows += [unavailable_row(name, reason, common=fields) for name, reason in absent.items()]
    for row in rows:
        package = str(row["variant"]).removesuffix(GRAPH_SUFFIX)
        package = OURS if package in OURS_VARIANTS else package
        if row["status"] == "ok" and package in packages:
            row["version"] = _attack_peers.version(package)
    print_attack(rows)
    return rows


def attack_rows(
    measured: dict[str, Measurement], checks: dict[str, Row], batch: int, setting: Setting, common: Row
) -> list[Row]:
    """Returns a row for each measured variant.

    `outside_model_pct` is 1 - model/variant, `vs_model` variant/model, both against the model's own variant of the same
    rounds (a captured graph's against its graph); `fused_speedup` is variant/fused, `speedup_vs_baseline` the first
    peer's time over the variant's.
    """
    rows = []
    for name, m in measured.items():
        suffix = GRAPH_SUFFIX if name.endswith(GRAPH_SUFFIX) else ""
        stats = summarize(m.seconds)
        model, ours = measured.get("model" + suffix), measured.get("fused" + suffix)
        base = measured.get(BASELINES.get(setting.attack, "pyautoattack"))
        over_model = paired_ratio(m.seconds, model.seconds) if model else None
        rows.append(
            {
                **dict.fromkeys((*TIMING_FIELDS, *FIELDS)),
                **common,
                **checks.get(name, {}),
                **sample_fields(name, m),
                "buffer_sets": 1,
                "speedup_vs_baseline": paired_ratio(base.seconds, m.seconds) if base else None,
                "fused_speedup": paired_ratio(m.seconds, ours.seconds) if ours else None,
                "images_per_s": batch / stats.median,
                "outside_model_pct": 100 * (1 - 1 / over_model) if over_model else None,
                "vs_model": over_model,
            }
        )
    return rows


def print_attack(rows: Sequence[Row]) -> None:
    """Prints the table of one attack on one network."""
    first = rows[0]
    print(
        f"\n{first['case']}  {'x'.join(map(str, first['shape']))}  {first['attack']}  "  # type: ignore[call-overload]
        f"{first['steps']} steps  eps {number(first['eps'])}"
        + ("" if first["trained"] else "  (initial weights: look at the loss, not at the accuracy)")
    )

    def passes(row: Row) -> str:
        return "-" if row["forwards"] is None else f"{row['forwards']}+{row['backwards']}"

    table = [
        [
            f"{r['variant']} {r['version'] or ''}".strip(),
            number(r["median_us"] / 1e3),  # type: ignore[operator]
            number((r["q3_us"] - r["q1_us"]) / 1e3),  # type: ignore[operator]
            number(r["min_us"] / 1e3),  # type: ignore[operator]
            number(r["images_per_s"]),
            number(r["outside_model_pct"]),
            number(r["speedup_vs_baseline"]),
            number(r["fused_speedup"]),
            passes(r),
            number(r["robust_acc"]),
            number(r["mean_loss"]),
        ]
        for r in rows
        if r["status"] == "ok"
    ]
    baseline = BASELINES.get(str(first["attack"]), "pyautoattack")
    headers = [
        "variant", "ms", "IQR ms", "min ms", "images/s", "outside %", f"x {baseline}", "fused is x", "fwd+bwd",
        "robust %", "loss",
    ]  # fmt: skip
    print(format_table(headers, table))
    for r in rows:
        if r["status"] != "ok":
            print(f"{r['variant']}: {r['status']}")
    sys.stdout.flush()


def run_case(case: str, env: Row, args: argparse.Namespace) -> list[Row]:
    """Runs the chosen attacks on the network of `case`; returns the rows.

    Raises:
        WrongResult: If a variant gives a wrong result.
    """
    batch = args.batch or (DIGITS_BATCH if case == "digits" else CIFAR_BATCH[args.device])
    victim = CASES[case](batch, torch.device(args.device))
    rows = []
    for attack in args.attacks:
        eps = victim.eps_l2 if attack.endswith("-l2") else victim.eps
        setting = Setting(attack, eps=eps, step_size=eps / 4, steps=args.steps or PUBLISHED_STEPS[attack])
        rows += run_attack(case, victim, setting, env, args)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status (0 timed, 1 wrong result, 2 no device)."""

    def extra(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--attacks",
            metavar="A,B",
            type=names_among(OFFERED),
            default=list(DEFAULT_ATTACKS),
            help=f"any of {', '.join(OFFERED)} (default: {', '.join(DEFAULT_ATTACKS)})",
        )
        parser.add_argument("--batch", type=positive, help="images (default: digits 256; others 16, on a GPU 128)")
        parser.add_argument("--steps", type=positive, help="of every attack (default: 20, APGD 100)")

    args = parse_args(
        "Whole attacks against the peers'.",
        argv,
        cases=tuple(CASES),
        quick_cases=QUICK_CASES,
        default_cases=DEFAULT_CASES,
        variants=VARIANTS,
        rounds=7,
        quick_rounds=3,
        extra=extra,
    )
    return run("bench_attacks", args, lambda case, _dtype, env: run_case(case, env, args))


if __name__ == "__main__":
    sys.exit(main())
