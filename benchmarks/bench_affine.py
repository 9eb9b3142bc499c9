"""What stands between the convolutions of a network whose batch norms are folded: affine_relu against torch's own.

    python benchmarks/bench_affine.py [--device cpu|cuda] [--json FILE] [--quick]

Cases are PASS-SHAPE, with channels_last activations of a batch of 128 on CUDA and of 32 on a CPU:

    norm       relu(x * scale[c] + shift[c]) to new memory, against batch_norm in eval mode and relu_
    add        relu(x + residual) over x, against add_ and relu_
    backward   the gradient through relu, against threshold_backward

    resnet18-64, resnet18-512             the widest and the narrowest planes of ResNet-18 on 32x32 images
    mobilenetv2-144, mobilenetv2-960      the same of MobileNetV2
    imagenet-64                           behind the first convolution of a ResNet on 224x224 images

Every forward pass leaves what its backward pass needs: ours a bit an element, the others their result, which the
backward pass reads again. The least traffic counts each input and output once, with the bits as ours reads or writes
them. `compile` is torch.compile of the plain form. Every variant is checked in float64 before anything is timed, and a
difference ends the run with exit status 1. On CUDA every variant is also timed as a captured graph (`...+graph`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from _cli import Row, WrongResult, parse_args, run
from _problem import Problem, compiled, copies, require_close, run_problem
from _timing import Variant, rotation_sets
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BATCH = {"cpu": 32, "cuda": 128}
SHAPES = {
    "resnet18-64": (64, 32, 32),
    "resnet18-512": (512, 4, 4),
    "mobilenetv2-144": (144, 32, 32),
    "mobilenetv2-960": (960, 4, 4),
    "imagenet-64": (64, 112, 112),
}
PASSES = ("norm", "add", "backward")
CASES = {f"{name}-{shape}": (name, shape) for name in PASSES for shape in SHAPES}
VARIANTS = ("torch", "compile", "fused")
EPS = 1e-5


class Buffers:
    """Activations, residuals or gradients, and coefficients of one case; `n_sets` of the large ones.

    Attributes:
        x: What each call reads and, in the pass "add", overwrites.
        other: Residuals, or the activations of the forward pass.
        masks: Of those activations.
        kept: Where results go, so that each goes to other memory.
    """

    def __init__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, n_sets: int):
        from ard_fast import reference

        generator = torch.Generator().manual_seed(0)

        def activations() -> Tensor:
            values = torch.randn(shape, generator=generator).to(dtype).to(device)
            return values.contiguous(memory_format=torch.channels_last)

        self.name, self.n_sets = name, n_sets
        self.start = activations()
        self.x = copies(self.start, n_sets)
        self.gamma, self.beta, self.mean, var = torch.randn(4, shape[1], generator=generator).to(device)
        self.var = var.square() + 0.5
        self.scale = self.gamma / (self.var + EPS).sqrt()
        self.shift = self.beta - self.mean * self.scale
        self.other: list[Tensor] = []
        self.masks: list[Tensor] = []
        if name != "norm":
            self.other = copies(activations().relu_() if name == "backward" else activations(), n_sets)
        if name == "backward":
            self.masks = copies(reference.pack_mask(self.other[0]), n_sets)
        self.kept: list[object] = [None] * n_sets

    def reset(self, n: int) -> None:
        if self.name == "add":
            for x in self.x[:n]:
                x.copy_(self.start)

    def make(self, variant: str) -> Variant:
        work = getattr(self, f"_{self.name}")(variant)

        def call(i: int) -> object:
            self.kept[i] = out = work(i)
            return out

        return Variant(variant, call, self.reset)

    def _norm(self, variant: str):
        from ard_fast import functional as F

        if variant == "fused":
            return lambda i: F.affine_relu(self.x[i], self.scale, self.shift, mask=True)
        if variant == "torch":
            numbers = self.mean, self.var, self.gamma, self.beta
            return lambda i: torch.relu_(torch.nn.functional.batch_norm(self.x[i], *numbers, False, 0.0, EPS))
        scale, shift = self.scale.view(-1, 1, 1), self.shift.view(-1, 1, 1)
        whole = compiled(lambda x: torch.relu(x * scale + shift).to(x.dtype))
        return lambda i: whole(self.x[i])

    def _add(self, variant: str):
        from ard_fast import functional as F

        if variant == "fused":
            return lambda i: (self.x[i], F.affine_relu_(self.x[i], residual=self.other[i], mask=True))
        if variant == "torch":
            return lambda i: self.x[i].add_(self.other[i]).relu_()
        whole = compiled(lambda x, residual: x.add_(residual).relu_())
        return lambda i: whole(self.x[i], self.other[i])

    def _backward(self, variant: str):
        from ard_fast import functional as F

        if variant == "fused":
            return lambda i: F.affine_relu_backward(self.x[i], self.masks[i])
        if variant == "torch":
            return lambda i: torch.ops.aten.threshold_backward(self.x[i], self.other[i], 0)
        whole = compiled(lambda grad, y: torch.ops.aten.threshold_backward(grad, y, 0))
        return lambda i: whole(self.x[i], self.other[i])

    def check(self, variant: Variant) -> Row:
        """Runs the variant once against float64, the mask against the result."""
        from ard_fast import reference

        x = self.start.double()
        if self.name == "norm":
            want, _ = reference.affine_relu(x, self.scale.double(), self.shift.double())
        elif self.name == "add":
            want, _ = reference.affine_relu(x, residual=self.other[0].double())
        else:
            want = x.where(self.other[0] > 0, torch.zeros_like(x))
        self.reset(1)
        got, mask = variant.call(0), None  # type: ignore[var-annotated]
        if isinstance(got, tuple):
            got, mask = got
        # Rounded once at the end by all; torch's batch norm has its own order of float32 operations.
        tolerance = float(want.abs().max()) * (2e-7 if self.start.dtype == torch.float32 else 4e-3)
        require_close(variant.name, "result", got, want, tolerance)
        if not got.is_contiguous(memory_format=torch.channels_last):
            raise WrongResult(f"{variant.name}: not channels_last")
        if mask is not None and not mask.equal(reference.pack_mask(got)):
            raise WrongResult(f"{variant.name}: not the mask of its result")
        return {"checked": f"within {tolerance:.1g}"}


def least_bytes(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Returns the bytes that one call must move: tensors read and written, and the bits."""
    numel = torch.Size(shape).numel()
    return numel * dtype.itemsize * (3 if name == "add" else 2) + numel // 8


def run_case(case: str, dtype_name: str, env: Row, args: argparse.Namespace) -> list[Row]:
    """Checks and times all variants of one case and prints its table; returns the rows.

    Raises:
        WrongResult: If a variant gives a wrong result.
    """
    name, size = CASES[case]
    shape, dtype = (BATCH[args.device], *SHAPES[size]), DTYPES[dtype_name]
    cache = int(env["cache_bytes"])  # type: ignore[call-overload]
    bytes_min = least_bytes(name, shape, dtype)
    n_sets = 1 if args.warm else rotation_sets(bytes_min, cache)
    buffers = Buffers(name, shape, dtype, torch.device(args.device), n_sets)
    problem = Problem(
        shape=shape,
        bytes_min=bytes_min,
        traffic=("two tensors read, one" if name == "add" else "a tensor read, one") + " written, a bit an element",
        baseline="torch",
        names=VARIANTS,
        make=buffers.make,
        check=buffers.check,
    )
    return run_problem(problem, "affine", case, dtype_name, env, args, n_sets)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status (0 timed, 1 wrong result, 2 no device)."""
    args = parse_args(
        "Scale, shift, residual and relu in one pass, and their backward pass.",
        argv,
        cases=tuple(CASES),
        quick_cases=tuple(f"{name}-resnet18-512" for name in PASSES),
        dtypes=tuple(DTYPES),
        variants=VARIANTS,
    )
    return run("bench_affine", args, lambda case, dtype, env: run_case(case, dtype, env, args))


if __name__ == "__main__":
    sys.exit(main())
