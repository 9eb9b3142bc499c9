"""What a training iteration costs, and how that grows with batch, image size, classes, steps, teacher and GPUs.

    python benchmarks/cost_model.py [--peak-tflops 100] [--memory-gbs 1000] [--link-gbs 25]
    python benchmarks/cost_model.py --measure [--rounds 3]
    python benchmarks/cost_model.py --page docs/cost.md [--measure]

Modelled: MACs and bytes of each network's passes, counted on the package's own networks (_cost_count.py), times the
passes of the method, counted on the method. The time is a bound for a machine with the given figures: the longer of
arithmetic and memory traffic, and the exchange between GPUs after it. No machine reaches it, and eager torch stays far
from it where the launches of small operations take longer than their work.

Measured (`--measure`): whole iterations of small networks on this CPU, eager and in fp32, each point in ratio to the
first in the same round, beside the ratio that the model gives.

`--page` writes the tables between the marks of docs/cost.md: those that are modelled always, with the figures above at
their defaults; those measured with `--measure`.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from _cost_count import Cost, Network, Passes, method_passes
from _timing import environment, number

FULL_WIDTH = "wrn-34-10"


@dataclass(frozen=True)
class Machine:
    """One GPU and its link, as assumed: peak TFLOP/s, memory GB/s, GB/s that it sends to the others."""

    peak_tflops: float = 100.0
    memory_gbs: float = 1000.0
    link_gbs: float = 25.0


@dataclass(frozen=True)
class Setup:
    """One iteration: `batch` images over all GPUs."""

    method: str = "ard"
    student: str = "resnet18"
    teacher: str = FULL_WIDTH
    batch: int = 128
    size: int = 32
    classes: int = 10
    steps: int | None = 10
    cached: bool = False
    gpus: int = 1


@dataclass(frozen=True)
class Iteration:
    """What an iteration costs.

    Attributes:
        student: MACs and bytes of all GPUs together.
        teacher: The same of all teachers.
        sent: Bytes that each GPU sends.
        messages: In how many exchanges.
    """

    student: Cost
    teacher: Cost
    sent: float
    messages: int

    @property
    def total(self) -> Cost:
        """Of all networks."""
        return self.student + self.teacher

    def seconds(self, machine: Machine, gpus: int) -> float:
        """A bound from below, for the assumed machine."""
        arithmetic = 2 * self.total.macs / gpus / (machine.peak_tflops * 1e12)
        traffic = self.total.bytes / gpus / (machine.memory_gbs * 1e9)
        return max(arithmetic, traffic) + self.sent / (machine.link_gbs * 1e9)


def passes_cost(network: Network, passes: Passes, batch: int) -> Cost:
    """Returns what a network's passes cost."""
    cost = network.forward(batch) * passes.forward
    if passes.to_input:
        cost += network.to_input(batch) * passes.to_input
    if passes.full:
        cost += network.full(batch) * passes.full
    return cost


def iteration(setup: Setup) -> Iteration:
    """Returns the cost of an iteration.

    Raises:
        ValueError: If the GPUs do not share the batch evenly.
    """
    if setup.batch % setup.gpus:
        raise ValueError(f"gpus: expected a divisor of the batch of {setup.batch}, got {setup.gpus}")
    passes = dict(method_passes(setup.method, setup.steps, setup.cached))
    share, own = setup.batch // setup.gpus, passes.pop("student")
    student, teacher = (Network(name, setup.size, setup.classes) for name in (setup.student, setup.teacher))
    cost, taught = passes_cost(student, own, share), Cost()
    for role in passes.values():
        taught += passes_cost(teacher, role, share)
    sent, messages = 0.0, 0
    if setup.gpus > 1:
        channels, norms = sum(student.norms), len(student.norms)
        # fp32 gradients once; of each batch norm in train mode float64 sums: 2 C + 1 forward, 2 C backward
        exchanged = 4 * student.parameters + own.synced * 8 * (4 * channels + norms)
        sent, messages = 2 * (setup.gpus - 1) / setup.gpus * exchanged, 1 + 2 * own.synced * norms
    return Iteration(cost * setup.gpus, taught * setup.gpus, sent, messages)


# ---------------------------------------------------------------------------------------------------------------------
# Modelled tables
# ---------------------------------------------------------------------------------------------------------------------


def growth() -> Iterator[tuple[str, list[Setup]]]:
    """What is varied, one thing at a time, and its setups; the first of all is the base."""
    base = Setup()
    yield "base", [base]
    yield "student", [replace(base, student="mobilenetv2")]
    yield (
        "teacher",
        [
            replace(base, teacher="resnet18"),
            replace(base, teacher="wrn-70-16"),
            replace(base, cached=True),
            replace(base, student="mobilenetv2", cached=True),
        ],
    )
    yield "batch", [replace(base, batch=batch) for batch in (32, 64, 256, 512)]
    yield "image", [replace(base, size=size) for size in (64, 224)]
    yield "classes", [replace(base, classes=classes) for classes in (100, 1000)]
    yield "steps", [replace(base, steps=steps) for steps in (1, 5, 20)]
    yield "GPUs", [replace(base, gpus=gpus) for gpus in (2, 4, 8)]
    yield "GPUs, batch grows", [replace(base, gpus=gpus, batch=128 * gpus) for gpus in (2, 8)]


def in_words(setup: Setup, base: Setup) -> str:
    """What differs from the base."""
    words = [
        f"{name} {getattr(setup, name)}"
        for name in ("method", "student", "teacher", "batch", "size", "classes", "steps", "gpus")
        if getattr(setup, name) != getattr(base, name)
    ]
    return ", ".join([*words, *(["teacher cached"] if setup.cached else [])]) or "as above"


def growth_table(machine: Machine) -> str:
    """Returns the Markdown table of how the cost grows."""
    base = Setup()
    lines = [
        "| varied | | GMAC | GMAC an image | teacher's share | GB moved | MB sent by a GPU | exchanges | bound, ms "
        "| x base |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    unit = iteration(base).seconds(machine, base.gpus)
    for what, setups in growth():
        for setup in setups:
            found = iteration(setup)
            macs, seconds = found.total.macs, found.seconds(machine, setup.gpus)
            cells = [
                number(macs / 1e9),
                number(macs / setup.batch / 1e9),
                f"{100 * found.teacher.macs / macs:.0f} %",
                number(found.total.bytes / 1e9),
                number(found.sent / 1e6),
                str(found.messages),
                number(1e3 * seconds),
                number(seconds / unit),
            ]
            lines.append(f"| {what} | {in_words(setup, base)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def methods_table() -> str:
    """Returns the Markdown table of the methods: passes and arithmetic of an update."""
    from ard_fast.methods import METHODS

    lines = [
        "| method | student: forward, to image, to weights | teachers: forward, to image | teachers, cached "
        "| GMAC an image, ResNet-18 | MobileNetV2 | cached: ResNet-18 | MobileNetV2 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for method, spec in METHODS.items():
        steps = 10 if spec.defaults.get("steps", 1) > 1 else None
        cells, per_image = [], []
        for cached in (False, True):
            passes = dict(method_passes(method, steps, cached))
            own = passes.pop("student")
            roles = "-"
            if passes:
                roles = "{}, {}".format(*(sum(getattr(p, k) for p in passes.values()) for k in ("forward", "to_input")))
            cells.append(roles)
            for student in ("resnet18", "mobilenetv2"):
                setup = Setup(method=method, student=student, batch=1, steps=steps, cached=cached)
                per_image.append(number(iteration(setup).total.macs / 1e9))
        lines.append(f"| {method} | {own.forward}, {own.to_input}, {own.full} | {' | '.join([*cells, *per_image])} |")
    return "\n".join(lines)


def cache_table() -> str:
    """Returns the Markdown table of what a cache of the teacher's logits holds and saves."""
    views, images = 162, 50_000
    lines = [
        "| classes | fp32 table | fp16 table | epochs | teacher epochs computed in one run that begins empty |",
        "|---:|---:|---:|---:|---:|",
    ]
    for classes in (10, 100, 1000):
        sizes = [f"{images * views * classes * size / 1e9:.2f} GB" for size in (4, 2)]
        for epochs in (30, 200):
            computed = views * (1 - (1 - 1 / views) ** epochs)
            lines.append(f"| {classes} | {' | '.join(sizes)} | {epochs} | {computed:.1f} |")
    return "\n".join(lines)


def modelled(machine: Machine) -> str:
    """Returns all that is modelled, in Markdown."""
    base = Setup()
    return "\n\n".join(
        [
            f"Base: {base.method}, {base.student} student, {base.teacher} teacher, batch {base.batch}, {base.size}x"
            f"{base.size} images, {base.classes} classes, {base.steps} steps, one GPU, no cache. `bound`: of an "
            f"assumed machine with {machine.peak_tflops:g} TFLOP/s, {machine.memory_gbs:g} GB/s of memory and a link of"
            f" {machine.link_gbs:g} GB/s.",
            growth_table(machine),
            "An update of each method, 10 steps where it attacks in several; teacher(s) WRN-34-10.",
            methods_table(),
            "The cache of a teacher's logits: 50,000 images, 162 crops and flips of each.",
            cache_table(),
        ]
    )


# ---------------------------------------------------------------------------------------------------------------------
# Measured table
# ---------------------------------------------------------------------------------------------------------------------


def points() -> list[Setup]:
    """Setups small enough for a CPU; the first is the base."""
    base = Setup(student="resnet18-tiny", teacher="resnet18-narrow", batch=32, steps=10)
    return [
        base,
        replace(base, batch=16),
        replace(base, batch=64),
        replace(base, size=16),
        replace(base, size=64),
        replace(base, classes=100),
        replace(base, steps=5),
        replace(base, steps=20),
        replace(base, teacher="resnet18"),
        replace(base, cached=True),
        replace(base, method="at"),
        replace(base, method="rslad"),
        replace(base, method="adaad"),
    ]


def make_iteration(setup: Setup) -> Callable[[], object]:
    """Returns an update of the method, with SGD, on random images; teachers as plain networks."""
    from ard_fast.data import Batch
    from ard_fast.methods import METHODS, MethodContext, build_method
    from ard_fast.models import build_model
    from ard_fast.teachers import Teacher
    from ard_fast.training.config import resolve

    torch.manual_seed(0)
    student = build_model(setup.student, setup.classes).train()
    teachers = {role: Teacher(build_model(setup.teacher, setup.classes)) for role in METHODS[setup.method].teachers}
    context = MethodContext(num_classes=setup.classes, epochs=10, train_size=1000, teachers=teachers)
    config = resolve({"method": setup.method, "dataset": "digits", "steps": setup.steps})
    method = build_method(setup.method, config, context)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
    ids = torch.arange(setup.batch)
    x = torch.rand(setup.batch, 3, setup.size, setup.size)
    known = {teacher: teacher(x) for teacher in method.clean_teachers()} if setup.cached else {}
    batch = Batch(x, ids % setup.classes, ids, ids[:1], teacher_logits=known)
    method.begin_epoch(5)

    def update() -> None:
        optimizer.zero_grad()
        inner = method.attack(student, batch)
        method.loss(student, batch, inner).loss.backward()
        method.after_backward(batch, inner)
        optimizer.step()

    return update


def measured_table(setups: Sequence[Setup], rounds: int) -> str:
    """Returns the Markdown table of iterations timed on this CPU, interleaved, and of what the model says of them."""
    updates = [make_iteration(setup) for setup in setups]
    for update in updates:
        update()
    seconds: list[list[float]] = [[] for _ in setups]
    for _ in range(rounds):
        for update, samples in zip(updates, seconds, strict=True):
            start = time.perf_counter()
            update()
            samples.append(time.perf_counter() - start)
    base, model = setups[0], [iteration(setup).total for setup in setups]
    lines = [
        "| | ms (median) | x base, measured | x base, MACs | x base, bytes | GMAC/s | GB/s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for setup, samples, cost in zip(setups, seconds, model, strict=True):
        median = statistics.median(samples)
        ratio = statistics.median(a / b for a, b in zip(samples, seconds[0], strict=True))
        cells = [1e3 * median, ratio, cost.macs / model[0].macs, cost.bytes / model[0].bytes]
        cells += [cost.macs / median / 1e9, cost.bytes / median / 1e9]
        lines.append(f"| {in_words(setup, base)} | {' | '.join(number(cell) for cell in cells)} |")
    return "\n".join(lines)


def measured(setups: Sequence[Setup], rounds: int) -> str:
    """Returns all that is measured, in Markdown."""
    env, base = environment(torch.device("cpu"), "aged"), setups[0]
    where = f"{env['cpu_model']}, {env['threads']} thread(s), torch {env['torch']}, {env['date']}, {rounds} rounds"
    return "\n\n".join(
        [
            f"{where}. Base: {base.method}, {base.student} student, {base.teacher} teacher, batch {base.batch}, "
            f"{base.size}x{base.size} images, {base.classes} classes, {base.steps} steps.",
            measured_table(setups, rounds),
        ]
    )


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


def section(page: str, name: str) -> str:
    """Returns what stands between the marks of a section.

    Raises:
        ValueError: If the page has not exactly one.
    """
    found = re.findall(rf"<!-- {name} -->\n(.*?)\n<!-- end of {name} -->", page, re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"page: expected one section between <!-- {name} --> and <!-- end of {name} -->")
    return found[0]


def with_section(page: str, name: str, content: str) -> str:
    """Returns the page with another content of a section."""
    old = f"<!-- {name} -->\n{section(page, name)}\n<!-- end of {name} -->"
    return page.replace(old, f"<!-- {name} -->\n{content}\n<!-- end of {name} -->")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints or writes the tables; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    for name, what in (
        ("peak-tflops", "peak arithmetic"),
        ("memory-gbs", "memory"),
        ("link-gbs", "link to the others"),
    ):
        default = getattr(Machine, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=float, default=default, help=f"{what} (default {default:g})")
    parser.add_argument("--measure", action="store_true", help="time small iterations on this CPU")
    parser.add_argument("--rounds", type=int, default=3, help="of the measurement (default 3)")
    parser.add_argument("--page", metavar="FILE", type=Path, help="write the tables into this page")
    args = parser.parse_args(argv)
    machine = Machine(args.peak_tflops, args.memory_gbs, args.link_gbs)
    if min(machine.peak_tflops, machine.memory_gbs, machine.link_gbs) <= 0 or args.rounds < 1:
        parser.error("expected numbers above 0")
    if args.page is None:
        print(measured(points(), args.rounds) if args.measure else modelled(machine))
        return 0
    if machine != Machine():
        parser.error("--page: the page holds the default machine")
    page = with_section(args.page.read_text(encoding="utf-8"), "modelled", modelled(machine))
    if args.measure:
        page = with_section(page, "measured", measured(points(), args.rounds))
    args.page.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
