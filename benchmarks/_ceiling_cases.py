"""The calls that ceilings.py and profile_kernels.py hold against the limits of the hardware.

Two kinds of case:

    memory   images of ImageNet's size, or as large as that: the time must be near that of a copy of as many bytes
    short    a CIFAR batch of 128: what counts is the time of the shortest kernels there are

Memory cases walk over buffers that do not fit into the cache; short ones stay in one set, which a GPU's L2 holds, as in
an attack: what a step reads has just been written by the network's backward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import bench_augment
import bench_kd_loss
import bench_pgd
import bench_steps
import torch
from _cli import WrongResult
from _timing import Variant, cache_bytes, rotation_sets
from torch import Tensor, nn

if TYPE_CHECKING:
    from ard_fast.folding.weights import FoldLayer

MEMORY, SHORT = "memory", "short"
ATTACK_IMAGES = "imagenet-128"
TEMPERATURE = 30.0
AFFINE_SHAPE = (64, 256, 56, 56)


@dataclass
class Call:
    """One operator at one size.

    Attributes:
        variant: The call, over `sets` buffer sets.
        sets: How many there are.
        bytes_min: Least traffic: each input read once, each output written once.
        check: Runs it once on set 0; raises `WrongResult`.
    """

    variant: Variant
    sets: int
    bytes_min: int
    check: Callable[[], object]


def _sets(kind: str, set_bytes: int, device: torch.device) -> int:
    return 1 if kind == SHORT else rotation_sets(set_bytes, cache_bytes(device))


def step(kind: str, device: torch.device) -> Call:
    """The L-infinity PGD step; fp32 gradients."""
    shape = bench_pgd.CASES["cifar-128" if kind == SHORT else ATTACK_IMAGES]
    numel = torch.Size(shape).numel()
    sets = _sets(kind, 12 * numel, device)
    buffers = bench_pgd.make_buffers(shape, torch.float32, device, sets)
    variant = bench_pgd.make_variant("fused", buffers)
    return Call(variant, sets, 16 * numel, lambda: bench_pgd.check_variant(variant, buffers))


def loss(kind: str, device: torch.device) -> Call:
    """The distillation loss with the student's gradient, as the operator gives them; 10 classes, or 1000 at B = 4096.

    Without autograd's own kernels: in training its first backward launches one more, which returns at once.
    """
    from ard_fast.functional import _ops

    shape = bench_kd_loss.CASES["c10-128" if kind == SHORT else "c1000-4096"]
    numel = torch.Size(shape).numel()
    sets = _sets(kind, 8 * numel, device)
    generator = torch.Generator().manual_seed(0)
    student, teacher = ((5 * torch.randn(shape, generator=generator)).to(device) for _ in range(2))
    students, teachers = [student.clone() for _ in range(sets)], [teacher.clone() for _ in range(sets)]
    kl = TEMPERATURE**2 / shape[0]
    numbers = (TEMPERATURE, TEMPERATURE, TEMPERATURE, kl, 0.0, kl, 0.0, True, True, False)
    kept: list[object] = [None] * sets

    def call(i: int) -> tuple[Tensor, ...]:
        kept[i] = out = _ops.kd_loss(students[i], teachers[i], None, None, None, None, None, *numbers)
        return out

    def check() -> None:
        errors = bench_kd_loss.relative_errors(
            *call(0)[:2], student, teacher, temperature=TEMPERATURE, reduction="batchmean"
        )
        if not (errors[0] <= 2e-5 and errors[1] <= 1e-4):
            raise WrongResult(f"loss: relative errors of loss and gradient {errors[0]:.3g}, {errors[1]:.3g}")

    return Call(Variant("fused", call, lambda n: None), sets, 12 * numel, check)


def augment(kind: str, device: torch.device) -> Call:
    """Crop, flip and conversion of a batch."""
    size = "cifar-128" if kind == SHORT else "imagenet-128"
    numel = torch.Size(bench_augment.SIZES[size]).numel()
    sets = _sets(kind, 5 * numel, device)
    problem = bench_augment.make_problem(size, False, device, sets)
    variant = problem.make("fused")
    return Call(variant, sets, problem.bytes_min, lambda: problem.check(variant))


def apgd(kind: str, device: torch.device) -> Call:
    """A step of Auto-PGD in L-infinity, bookkeeping and selection included; fp32 gradients."""
    size = "cifar-128" if kind == SHORT else ATTACK_IMAGES
    sets = _sets(kind, bench_steps.set_bytes("apgd-linf", size, torch.float32), device)
    problem = bench_steps.make_problem("apgd-linf", size, "fp32", device, sets)
    variant = problem.make("fused")
    return Call(variant, sets, problem.bytes_min, lambda: problem.check(variant))


def affine(kind: str, device: torch.device, dtype: torch.dtype) -> Call:
    """Shift, residual, ReLU and mask between two convolutions of a ResNet-50 at ImageNet size, in place."""
    from ard_fast import functional as F
    from ard_fast import reference

    shape = AFFINE_SHAPE
    numel = torch.Size(shape).numel()
    sets = _sets(kind, 2 * dtype.itemsize * numel, device)
    generator = torch.Generator().manual_seed(0)
    x0, residual0 = (
        torch.randn(shape, generator=generator).to(device, dtype, memory_format=torch.channels_last) for _ in range(2)
    )
    shift = torch.randn(shape[1], generator=generator).to(device)
    x, residual = [x0.clone() for _ in range(sets)], [residual0.clone() for _ in range(sets)]
    masks: list[object] = [None] * sets

    def call(i: int) -> Tensor:
        masks[i] = out = F.affine_relu_(x[i], None, shift, residual[i], mask=True)
        return out

    def reset(n: int) -> None:
        for i in range(n):
            x[i].copy_(x0)

    def check() -> None:
        want, bits = reference.affine_relu(x0, None, shift, residual0, relu=True, mask=True)
        found = call(0)
        if not (torch.equal(x[0], want) and torch.equal(found, bits)):
            raise WrongResult("affine_relu: not the reference's bits")
        reset(1)

    bytes_min = numel * 3 * dtype.itemsize + -(-numel // 8)
    return Call(Variant("fused", call, reset), sets, bytes_min, check)


def fold(kind: str, device: torch.device, dtype: torch.dtype) -> Call:
    """All batch norms of a ResNet-18 into its convolutions, as once an iteration."""
    from ard_fast.folding.weights import FoldedWeights
    from ard_fast.models import build_model

    network = build_model("resnet18", 10).to(device)
    layers = _conv_norms(network)
    weights = sum(layer.conv.weight.numel() for layer in layers)
    channels = sum(layer.conv.out_channels for layer in layers)
    bytes_min = weights * (4 + dtype.itemsize) + 4 * 5 * channels  # 4 numbers a channel read, the shift written
    sets = _sets(kind, bytes_min, device)
    folded = [FoldedWeights(_conv_norms(copy.deepcopy(network)), dtype) for _ in range(sets)]

    def check() -> None:
        folded[0].refresh()
        for index, (conv, norm) in enumerate(layers):
            s = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            want = conv.weight.double() * s.view(-1, 1, 1, 1)
            tolerance = 1e-6 if dtype == torch.float32 else 1e-2
            if not torch.allclose(folded[0].weight(index).double(), want, rtol=tolerance, atol=0.0):
                raise WrongResult(f"fold: layer {index}: not the folded weight")

    return Call(Variant("fused", lambda i: folded[i].refresh(), lambda n: None), sets, bytes_min, check)


def _conv_norms(network: nn.Module) -> list[FoldLayer]:
    """Convolutions and the batch norm behind each, in a network that registers them in this order."""
    from ard_fast.folding.weights import FoldLayer

    modules = list(network.modules())
    return [
        FoldLayer(first, second)
        for first, second in pairwise(modules)
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d)
    ]


MAKERS: dict[str, tuple[str, Callable[[str, torch.device], Call]]] = {
    "step-cifar": (SHORT, step),
    "step-imagenet": (MEMORY, step),
    "loss-cifar": (SHORT, loss),
    "loss-imagenet": (MEMORY, loss),
    "augment-cifar": (SHORT, augment),
    "augment-imagenet": (MEMORY, augment),
    "apgd-cifar": (SHORT, apgd),
    "apgd-imagenet": (MEMORY, apgd),
    "affine-fp32": (MEMORY, lambda kind, device: affine(kind, device, torch.float32)),
    "affine-bf16": (MEMORY, lambda kind, device: affine(kind, device, torch.bfloat16)),
    "fold-fp32": (MEMORY, lambda kind, device: fold(kind, device, torch.float32)),
    "fold-bf16": (MEMORY, lambda kind, device: fold(kind, device, torch.bfloat16)),
}
"""Kind and maker of each case."""


def make(case: str, device: torch.device) -> Call:
    """Returns the call of a case; allocates its buffers."""
    kind, maker = MAKERS[case]
    return maker(kind, device)


def kernel_copy(case: str, device: torch.device) -> Callable[[], object]:
    """Returns a copy of as many bytes as the case must move, by a kernel: a plain copy is none, so ncu does not see it.

    Both tensors are float32; the kernel is torch's vectorised elementwise one.
    """
    half = make(case, device).bytes_min // 8
    source, target = torch.rand(half, device=device), torch.empty(half, device=device)
    return lambda: torch.abs(source, out=target)
