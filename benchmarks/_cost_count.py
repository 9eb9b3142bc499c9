"""Multiplications and bytes of a network's passes, counted operation by operation without computing anything.

Tensors are fake: they have shapes and no memory, so a WRN-34-10 at any size is counted in a second. A multiply-add of a
convolution or a matrix product is one MAC; what else there is (batch norm, ReLU, losses) has none. Bytes: every
operation reads each of its tensors once and writes each result once, in fp32, as torch runs them one by one; views are
free. So the bytes are those of eager torch: fused forms move fewer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FREE = {"aten::detach", "aten::alias", "aten::empty_like", "aten::empty", "aten::empty_strided", "aten::lift_fresh"}


@dataclass(frozen=True)
class Cost:
    """MACs and bytes moved."""

    macs: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.bytes + other.bytes)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.macs - other.macs, self.bytes - other.bytes)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.macs * times, self.bytes * times)


@dataclass(frozen=True)
class Passes:
    """How often a network runs.

    Attributes:
        forward: Forward passes.
        to_input: Backward passes to the image alone.
        full: Backward passes to the weights (and, but for the first layer, to what they were applied to).
        synced: Forward passes with batch norm in train mode, whose statistics several processes exchange.
    """

    forward: int = 0
    to_input: int = 0
    full: int = 0
    synced: int = 0

    @property
    def units(self) -> int:
        """In forward passes, at the usual rule of thumb: a backward to the image is one, to the weights too two."""
        return self.forward + self.to_input + 2 * self.full


class Tally(TorchDispatchMode):
    """Counts what runs within.

    Attributes:
        cost: MACs and bytes so far.
        calls: For each convolution's weight, by its storage, how often it was used: "forward", "to_input", "full".
    """

    def __init__(self) -> None:
        super().__init__()
        self.cost, self.calls = Cost(), Counter()

    def __torch_dispatch__(
        self, function: torch._ops.OpOverload, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        result = function(*args, **(kwargs or {}))
        name = function.name().split(".")[0]
        if not function.is_view and name not in FREE and not name.startswith("prim::"):
            moved = [*tree_leaves((args, kwargs)), *tree_leaves(result)]
            self.cost += Cost(self._macs(name, args, result), sum(_bytes(leaf) for leaf in moved))
        return result

    def _macs(self, name: str, args: tuple, result: object) -> int:
        if name == "aten::convolution":
            self.calls[_storage(args[1]), "forward"] += 1
            return result.numel() * prod(args[1].shape[1:])  # type: ignore[attr-defined]
        if name == "aten::convolution_backward":
            grad, weight, mask = args[0], args[2], args[-1]
            self.calls[_storage(weight), "full" if mask[1] else "to_input"] += 1
            return grad.numel() * prod(weight.shape[1:]) * (mask[0] + mask[1])
        if name in ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"):
            first = args[1] if name in ("aten::addmm", "aten::baddbmm") else args[0]
            return result.numel() * first.shape[-1]  # type: ignore[attr-defined]
        return 0

    def passes(self, network: nn.Module) -> Passes:
        """How often a network ran, by its last convolution."""
        weight = _last(network, nn.Conv2d).weight
        return Passes(*(self.calls[_storage(weight), kind] for kind in ("forward", "to_input", "full", "synced")))


def _bytes(leaf: object) -> int:
    return leaf.numel() * leaf.element_size() if isinstance(leaf, Tensor) else 0


def _last(network: nn.Module, kind: type[nn.Module]) -> nn.Module:
    return [module for module in network.modules() if isinstance(module, kind)][-1]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def counted(work: Callable[[], object]) -> Cost:
    """Returns what `work` costs; its tensors must be fake."""
    with Tally() as tally:
        work()
    return tally.cost


@dataclass(frozen=True)
class Network:
    """A network of the package on RGB images of `size` x `size`.

    Passes are counted at two images and at three, since batch norm refuses one of a single pixel: what a batch costs
    grows by as much with every other image.
    """

    name: str
    size: int
    classes: int

    def forward(self, batch: int) -> Cost:
        """A forward pass."""
        return self._at(_forward, batch)

    def to_input(self, batch: int) -> Cost:
        """A backward pass to the images, of a network in eval mode."""
        return self._at(_forward_and_to_input, batch) - self.forward(batch)

    def full(self, batch: int) -> Cost:
        """A backward pass to the weights, of a network in train mode."""
        return self._at(_forward_and_full, batch) - self.forward(batch)

    @property
    def parameters(self) -> int:
        """How many."""
        return _sizes(self)[0]

    @property
    def norms(self) -> list[int]:
        """The channels of each batch norm."""
        return _sizes(self)[1]

    def _at(self, work: Callable[[Network, int], Cost], batch: int) -> Cost:
        two = work(self, 2)
        return two + (work(self, 3) - two) * (batch - 2)


def _build(network: Network) -> nn.Module:
    from ard_fast.models import build_model

    return build_model(network.name, network.classes)


@cache
def _sizes(network: Network) -> tuple[int, list[int]]:
    with FakeTensorMode():
        built = _build(network)
    norms = [module.num_features for module in built.modules() if isinstance(module, nn.BatchNorm2d)]
    return sum(parameter.numel() for parameter in built.parameters()), norms


@cache
def _forward(network: Network, batch: int) -> Cost:
    with FakeTensorMode(), torch.no_grad():
        built, x = _build(network).eval(), torch.empty(batch, 3, network.size, network.size)
        return counted(lambda: built(x))


@cache
def _forward_and_to_input(network: Network, batch: int) -> Cost:
    with FakeTensorMode():
        built, x = _build(network).eval(), torch.empty(batch, 3, network.size, network.size, requires_grad=True)
        grad = torch.empty(batch, network.classes)
        return counted(lambda: torch.autograd.grad(built(x), x, grad))


@cache
def _forward_and_full(network: Network, batch: int) -> Cost:
    with FakeTensorMode():
        built, x = _build(network).train(), torch.empty(batch, 3, network.size, network.size)
        grad = torch.empty(batch, network.classes)
        return counted(lambda: built(x).backward(grad))


@cache
def method_passes(method: str, steps: int | None, cached: bool) -> dict[str, Passes]:
    """Counts how often a method runs each network in one update, by running it on small ones with fake tensors.

    Args:
        method: A key of `METHODS`, with its own settings.
        steps: Of the attack; None for the method's.
        cached: Whether teachers' logits at clean images are given.

    Returns:
        For "student" and each teacher's role.
    """
    from ard_fast.data import Batch
    from ard_fast.methods import METHODS, MethodContext, build_method
    from ard_fast.models import build_model
    from ard_fast.teachers import Teacher
    from ard_fast.training.config import resolve

    settings = {"method": method, "dataset": "digits", **({} if steps is None else {"steps": steps})}
    roles, count, classes = METHODS[method].teachers, 4, 10
    with FakeTensorMode():
        teachers = {role: Teacher(build_model("digits-teacher")) for role in roles}
        context = MethodContext(num_classes=classes, epochs=10, teachers=teachers)
        instance = build_method(method, resolve(settings), context)
        student = build_model("digits-student").train()
        ids = torch.zeros(count, dtype=torch.int64)
        norm, weight = _last(student, nn.BatchNorm2d), _last(student, nn.Conv2d).weight
        known = {teacher: torch.zeros(count, classes) for teacher in instance.clean_teachers()} if cached else {}
        batch = Batch(torch.rand(count, 1, 8, 8), ids, ids, ids[:1], teacher_logits=known)
        instance.begin_epoch(5)  # in the middle of a run: what begins later has begun
        with Tally() as tally:
            norm.register_forward_hook(
                lambda module, *_: tally.calls.update({(_storage(weight), "synced"): int(module.training)})
            )
            inner = instance.attack(student, batch)
            instance.loss(student, batch, inner).loss.backward()
            instance.after_backward(batch, inner)
    return {"student": tally.passes(student)} | {role: tally.passes(teachers[role].network) for role in roles}
