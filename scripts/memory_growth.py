#!/usr/bin/env python3
"""Call everything many times and see whether memory grows.

python scripts/memory_growth.py --calls 10000
python scripts/memory_growth.py --only losses --calls 100000

Each operator, public function, attack, compiled loss and data loader is called with valid arguments; a fifth of the
calls warm up. What is compared from there to the end: the process's resident memory, and how many tensors are alive.
Growth by more tensors than one in a hundred calls, or by more memory than allocators need for their own, is a leak.
Exit code 0 if nothing grows, 1 if something does.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from abuse.samples import images, labels, normal
from abuse.targets import all_targets

from ard_fast import functional as F
from ard_fast.data import load_dataset, make_loader

_KINDS = 20  # of valid arguments, used in turn
_SLACK = 3 << 20  # bytes that allocators may take for their own


@dataclass(frozen=True)
class Growth:
    """What was alive at the end and not after the warm-up.

    Attributes:
        bytes: of resident memory.
        tensors: objects.
        calls: between the two.
    """

    bytes: int
    tensors: int
    calls: int

    @property
    def is_leak(self) -> bool:
        """More than chance and allocators explain."""
        return self.tensors > max(2, self.calls // 100) or self.bytes > _SLACK + 16 * self.calls


def resident_bytes() -> int:
    """Of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def living_tensors() -> int:
    """How many tensor objects Python can reach."""
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def growth(call: Callable[[], Any], calls: int) -> Growth:
    """Call it; a fifth of the calls, at least 10, come before the measurement."""
    for _ in range(max(calls // 5, 10)):
        call()
    tensors, before = living_tensors(), resident_bytes()
    for _ in range(calls):
        call()
    after_tensors = living_tensors()
    return Growth(resident_bytes() - before, after_tensors - tensors, calls)


# ---- what is called --------------------------------------------------------------------------------------------------


def _in_turn(call: Callable[..., Any], arguments: Callable[[random.Random], dict[str, Any]]) -> Callable[[], Any]:
    number = 0

    def one() -> None:
        nonlocal number
        number = (number + 1) % _KINDS
        call(**arguments(random.Random(number)))

    return one


def _loss_with_gradient() -> None:
    rng = random.Random(0)
    student, teacher, clean = (normal(rng, 16, 10) for _ in range(3))
    given = {"teacher_logits": teacher, "student_logits": clean, "labels": labels(rng, 16, 10)}
    loss = F.ard_loss(student.requires_grad_(), **given, alpha=0.5)
    loss.backward()


def _compiled_loss() -> Callable[[], Any]:
    def loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return F.kl_distill_loss(student, teacher, temperature=4.0)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    rng = random.Random(0)
    student, teacher = normal(rng, 16, 10).requires_grad_(), normal(rng, 16, 10)

    def one() -> None:
        compiled(student, teacher).backward()
        student.grad = None

    return one


def _loop_of_steps() -> None:
    x = images(random.Random(0))
    x_adv = x.clone()
    for _ in range(3):
        F.pgd_linf_step_(x_adv, torch.ones_like(x), x, step_size=0.1, eps=0.2)


def _batches(resident: str) -> Callable[[], Any]:
    dataset = load_dataset("digits")
    settings = {"seed": 0, "batch_size": 64, "padding": 2, "flip": True, "layout": torch.contiguous_format}
    loader = make_loader(
        dataset.train, device=torch.device("cpu"), resident=resident, levels=dataset.levels, **settings
    )
    epochs: Iterator[int] = iter(range(10**9))
    batches = iter(())

    def one() -> None:
        nonlocal batches
        try:
            next(batches)
        except StopIteration:
            batches = loader.batches(next(epochs))
            next(batches)

    return one


def everything() -> dict[str, Callable[[], Callable[[], Any]]]:
    """By name, what makes the call."""
    found = {
        target.name: partial(_in_turn, target.call, target.arguments)
        for target in all_targets()
        if not target.name.startswith(("adapters.From", "config"))
    }
    found["losses.ard_loss, backward"] = lambda: _loss_with_gradient
    found["losses.kl_distill_loss, compiled"] = _compiled_loss
    found["functional, a loop of steps"] = lambda: _loop_of_steps
    found["data, resident"] = partial(_batches, "always")
    found["data, streamed"] = partial(_batches, "never")
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--calls", type=int, default=10_000, help="of each, after the warm-up")
    parser.add_argument("--only", default="", help="names that contain this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {args.calls} calls each")
    print(f"{'what':<42}{'KiB more':>10}{'tensors more':>14}{'seconds':>9}")
    leaks = []
    for name, make in everything().items():
        if args.only not in name:
            continue
        started = time.perf_counter()
        found = growth(make(), args.calls)
        seconds = time.perf_counter() - started
        mark = "  LEAK" if found.is_leak else ""
        print(f"{name:<42}{found.bytes / 1024:>10.0f}{found.tensors:>14}{seconds:>9.1f}{mark}", flush=True)
        leaks += [name] if found.is_leak else []
    print(f"grows: {', '.join(leaks) or 'nothing'}")
    return 1 if leaks else 0


if __name__ == "__main__":
    sys.exit(main())
