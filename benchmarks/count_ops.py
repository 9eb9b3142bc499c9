"""Counts what an attack does outside the network: operations and host syncs a step, ours and the peers'.

    python benchmarks/count_ops.py [--json FILE] [--attacks A,B]

An operation is a call into torch's dispatcher that computes something (views and bare allocations are not counted):
about one kernel launch each in eager CUDA, and each moves its tensors through memory. What runs between the network's
input and its logits, forward and backward, belongs to the network and is left out; the loss and its gradient for the
logits count. Columns, each a step:

    image    touches a tensor with a pixel for each pixel of the batch
    logits   touches logits [B, C], and no image
    all      all of them, with those on [B] and scalars
    sync     waits for the device when on one: .item(), nonzero, unique, indexing by a boolean mask
    fwd bwd  passes through the network

"a step" is the difference of two runs, with twice as many steps in the second, over the difference of the steps: what
happens once per call (start, checks, APGD's checkpoints, last evaluation) drops out. It is part of what stands under
"whole call", of the published number of steps: 20, APGD 100. The same network, images and labels for all; every image
is classified as its label at the start, so that nobody has fewer to attack. Counts do not depend on the device, except
that copies between devices can only be seen on one.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from _attack_peers import OFFERED, PUBLISHED_STEPS, Attack, Setting, make_attack, version
from _timing import format_table, write_rows
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BATCH, CHANNELS, SIZE, CLASSES = 8, 3, 6, 10
PIXELS = CHANNELS * SIZE * SIZE
KINDS = ("image", "logits", "all", "sync", "fwd", "bwd")

SYNCS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::is_nonzero",
    "aten::_unique2",
    "aten::unique_dim",
}
ALLOCATIONS = {
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::_local_scalar_dense",  # a sync, and no kernel
}


@dataclass
class Boundary:
    """Whether the network runs now, and how often it ran.

    Attributes:
        inside: True between the network's input and its logits, forward or backward.
        passes: Counts "fwd" and "bwd".
    """

    inside: bool = False
    passes: Counter[str] = field(default_factory=Counter)


class _Input(torch.autograd.Function):
    """Where the network begins: its backward is the last thing that happens there."""

    @staticmethod
    def forward(ctx: object, x: Tensor, boundary: Boundary) -> Tensor:
        ctx.boundary = boundary  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        ctx.boundary.inside = False  # type: ignore[attr-defined]
        return grad, None


class _Logits(torch.autograd.Function):
    """Where the network ends: its backward is the first thing that happens there."""

    @staticmethod
    def forward(ctx: object, logits: Tensor, boundary: Boundary) -> Tensor:
        ctx.boundary = boundary  # type: ignore[attr-defined]
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        ctx.boundary.passes["bwd"] += 1  # type: ignore[attr-defined]
        ctx.boundary.inside = True  # type: ignore[attr-defined]
        return grad, None


class Bounded(nn.Module):
    """A linear network [B, 3, 6, 6] -> [B, 10] that tells `boundary` when it runs."""

    def __init__(self, boundary: Boundary) -> None:
        super().__init__()
        self.boundary = boundary
        self.linear = nn.Linear(PIXELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 10] of images [B, 3, 6, 6]."""
        self.boundary.passes["fwd"] += 1
        x = _Input.apply(x, self.boundary)
        self.boundary.inside = True
        logits = self.linear(x.flatten(1))
        self.boundary.inside = False
        return _Logits.apply(logits, self.boundary)


class CountOps(TorchDispatchMode):
    """Counts what is dispatched while the network does not run, by kind and, in `names`, by operator."""

    def __init__(self, boundary: Boundary) -> None:
        super().__init__()
        self.boundary = boundary
        self.counts: Counter[str] = Counter()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Runs the operator, and counts it."""
        out = func(*args, **(kwargs or {}))
        if not self.boundary.inside:
            self._count(func, args, kwargs or {}, out)
        return out

    def _count(self, func, args, kwargs, out) -> None:
        schema = func._schema
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        if _syncs(schema.name, args, tensors):
            self.counts["sync"] += 1
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        if is_view or schema.name in ALLOCATIONS:
            return
        self.names[schema.name] += 1
        self.counts["all"] += 1
        if any(is_image(t) for t in tensors):
            self.counts["image"] += 1
        elif any(t.dim() == 2 and t.shape[1] == CLASSES for t in tensors):
            self.counts["logits"] += 1


def is_image(tensor: Tensor) -> bool:
    """Whether a tensor holds images, also of a part of the batch: [b, 3, 6, 6], or flattened [b, 108]."""
    return tensor.dim() >= 2 and tensor.shape[1:].numel() == PIXELS


def _syncs(name: str, args: Sequence[object], tensors: Iterable[Tensor]) -> bool:
    """Whether an operator makes the host wait for the device."""
    if name in SYNCS:
        return True
    if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
        indices = args[1]
        return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices)  # type: ignore[attr-defined]
    if name in ("aten::_to_copy", "aten::copy_"):
        return len({t.device.type for t in tensors}) > 1
    return False


def count_call(attack: Attack, boundary: Boundary, x: Tensor, y: Tensor) -> tuple[Counter[str], Counter[str]]:
    """Returns the counts of one call, by `KINDS` and by operator.

    Args:
        attack: On a network that tells `boundary` when it runs.
        boundary: Of that network.
        x: Images [B, 3, 6, 6].
        y: Labels [B].
    """
    attack(x, y)  # what happens only in the first call is nobody's step
    boundary.passes.clear()
    with CountOps(boundary) as counter:
        attack(x, y)
    return counter.counts + boundary.passes, counter.names


def count_attack(package: str, attack: str) -> tuple[dict[str, object], dict[str, float]]:
    """Returns the row of one attack of one package, and what it dispatches a step by operator.

    Raises:
        ImportError: If the package is not installed.
    """
    torch.manual_seed(0)
    boundary = Boundary()
    model = Bounded(boundary).eval()
    x = torch.rand(BATCH, CHANNELS, SIZE, SIZE)
    y = model(x).argmax(1)
    n = PUBLISHED_STEPS[attack]
    runs = []
    for steps in (n, 2 * n):
        setting = Setting(attack, eps=8 / 255, step_size=2 / 255, steps=steps)
        runs.append(count_call(make_attack(package, setting, model), boundary, x, y))
    adversarial = make_attack(package, setting, model)(x, y)
    (short, short_names), (long, long_names) = runs
    a_step = {kind: (long[kind] - short[kind]) / n for kind in KINDS}
    row: dict[str, object] = {
        "attack": attack,
        "package": package,
        "version": version(package),
        "torch": torch.__version__,
        "status": "ok",
        "steps_counted": [n, 2 * n],
        **{f"{kind}_per_step": round(a_step[kind], 3) for kind in KINDS},
        **{f"{kind}_whole_call": short[kind] for kind in KINDS},
        "writes_param_grad": any(p.grad is not None for p in model.parameters()),
        "output_requires_grad": adversarial.requires_grad,
    }
    names = {name: (long_names[name] - short_names[name]) / n for name in long_names}
    return row, {name: count for name, count in sorted(names.items(), key=lambda kv: -kv[1]) if count}


def number(value: float) -> str:
    """A count: whole where it is, else with one decimal."""
    return f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}"


def print_rows(rows: Sequence[dict[str, object]]) -> None:
    """Prints the counts as a table, and a line for each package that could not be counted."""
    counted = [r for r in rows if r["status"] == "ok"]
    headers = ["attack", "package", *KINDS, "whole call: all", "sync", "fwd", "writes .grad", "output has grad"]
    table = [
        [
            str(r["attack"]),
            f"{r['package']} {r['version']}",
            *(number(r[f"{kind}_per_step"]) for kind in KINDS),  # type: ignore[arg-type]
            *(str(r[f"{kind}_whole_call"]) for kind in ("all", "sync", "fwd")),
            "yes" if r["writes_param_grad"] else "no",
            "yes" if r["output_requires_grad"] else "no",
        ]
        for r in counted
    ]
    print(format_table(headers, table))
    for r in rows:
        if r["status"] != "ok":
            print(f"{r['attack']}: {r['package']}: {r['status']}")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the counts; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--attacks", metavar="A,B", help=f"any of {', '.join(OFFERED)} (default: all)")
    parser.add_argument("--json", metavar="FILE", help="write the rows here (CSV if the name ends in .csv)")
    parser.add_argument("--operators", action="store_true", help="also print how often each operator runs a step")
    args = parser.parse_args(argv)
    chosen = args.attacks.split(",") if args.attacks else list(OFFERED)
    for name in chosen:
        if name not in OFFERED:
            parser.error(f"--attacks: expected any of {', '.join(OFFERED)}, got {name!r}")
    rows: list[dict[str, object]] = []
    operators: list[str] = []
    for attack in chosen:
        for package in OFFERED[attack]:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message=".*zero gradient")  # pyautoattack, about the images
                    row, names = count_attack(package, attack)
            except ImportError as error:
                reason = f"unavailable: {type(error).__name__}: {error}"
                rows.append({"attack": attack, "package": package, "status": reason})
                continue
            rows.append(row)
            listed = ", ".join(f"{name} {number(count)}" for name, count in names.items())
            operators.append(f"{attack}: {package}: {listed}")
    print_rows(rows)
    if args.operators:
        print("", *operators, sep="\n")
    if args.json:
        write_rows(args.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
