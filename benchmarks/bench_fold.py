"""Every batch norm of a network folded into its convolution, once, against the ways to write it in torch.

    python benchmarks/bench_fold.py [--device cpu|cuda] [--json FILE] [--quick]

Cases are NETWORK or NETWORK-last (the parameters channels_last); the dtype is that of the folded weights. They go to
memory of their own that stays where it is, channels_last, as a captured attack on the folded network needs them:

    layers     layer by layer: five operations each, none of them with an intermediate of the weight's size
    foreach    scales and shifts of all layers by torch._foreach_*, then one product a layer straight into its place
               (torch._foreach_mul goes one by one too where shapes differ, with an intermediate)
    compile    torch.compile of the first form over all layers
    fused      ard_fast.folding.FoldedWeights.refresh

Least traffic: each weight read as float32 and written in the dtype, four vectors read and one written for each output
channel. Every variant is checked against float64 before anything is timed, and a difference ends the run with exit
status 1. On CUDA every variant is also timed as a captured graph (`...+graph`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
from _cli import Row, parse_args, run
from _problem import Problem, compiled, require_close, run_problem
from _timing import Variant, rotation_sets
from torch import Tensor, nn

NETWORKS = ("mobilenetv2", "resnet18")
CASES = {f"{name}{suffix}": (name, suffix != "") for name in NETWORKS for suffix in ("", "-last")}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
VARIANTS = ("layers", "foreach", "compile", "fused")
# Of the largest element of a tensor. 2^-8 is half a unit of bfloat16's last place just above a power of two.
TOLERANCES = {"fp32": 5e-7, "bf16": 2.0**-8 + 5e-7}

Pairs = list[tuple[nn.Conv2d, nn.BatchNorm2d]]


def conv_norm_pairs(network: nn.Module) -> Pairs:
    """Returns the convolutions of a post-activation network with the norms behind them, in order."""
    modules = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    pairs = list(zip(modules[::2], modules[1::2], strict=True))
    for conv, norm in pairs:
        if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and conv.bias is None):
            raise ValueError(f"expected convolutions without bias and norms in turn, got {conv} and {norm}")
    return pairs  # type: ignore[return-value]


def make_pairs(name: str, channels_last: bool, device: torch.device, seed: int) -> Pairs:
    """Returns the pairs of a new network whose norms have statistics and parameters of a trained one's size."""
    from ard_fast.models import build_model

    torch.manual_seed(seed)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    pairs = conv_norm_pairs(build_model(name, num_classes=10).to(device, memory_format=layout))
    with torch.no_grad():
        for _, norm in pairs:
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.running_var.uniform_(0.1, 2.0)  # type: ignore[union-attr]
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
    return pairs


class Plain:
    """The torch forms on one network; `weights` and `shifts` are what they write."""

    def __init__(self, pairs: Pairs, dtype: torch.dtype) -> None:
        self.sources = [conv.weight.detach() for conv, _ in pairs]
        norms = [norm for _, norm in pairs]
        self.gammas = [norm.weight.detach() for norm in norms]
        self.betas = [norm.bias.detach() for norm in norms]
        self.means: list[Tensor] = [norm.running_mean for norm in norms]  # type: ignore[misc]
        self.variances: list[Tensor] = [norm.running_var for norm in norms]  # type: ignore[misc]
        self.eps = norms[0].eps
        self.weights = [torch.empty_like(w, dtype=dtype, memory_format=torch.channels_last) for w in self.sources]
        self.shifts = [torch.empty_like(mean) for mean in self.means]

    def layers(self) -> None:
        """One layer after the other."""
        for i, source in enumerate(self.sources):
            scale = (self.variances[i] + self.eps).rsqrt_().mul_(self.gammas[i])
            torch.mul(source, scale.view(-1, 1, 1, 1), out=self.weights[i])
            torch.addcmul(self.betas[i], self.means[i], scale, value=-1, out=self.shifts[i])

    def foreach(self) -> None:
        """The vectors of all layers at once."""
        scales = torch._foreach_add(self.variances, self.eps)
        torch._foreach_rsqrt_(scales)
        torch._foreach_mul_(scales, self.gammas)
        torch._foreach_copy_(self.shifts, torch._foreach_addcmul(self.betas, self.means, scales, value=-1))
        for source, scale, weight in zip(self.sources, scales, self.weights, strict=True):
            torch.mul(source, scale.view(-1, 1, 1, 1), out=weight)


def functional_layers(
    sources: list[Tensor],
    gammas: list[Tensor],
    betas: list[Tensor],
    means: list[Tensor],
    variances: list[Tensor],
    weights: list[Tensor],
    shifts: list[Tensor],
    eps: float,
) -> None:
    """For the compiler: the same, layer by layer."""
    for i, source in enumerate(sources):
        scale = gammas[i] * (variances[i] + eps).rsqrt()
        weights[i].copy_(source * scale.view(-1, 1, 1, 1))
        shifts[i].copy_(betas[i] - means[i] * scale)


def least_traffic(pairs: Pairs, dtype: torch.dtype) -> int:
    """Returns the bytes of one folding."""
    weights = sum(conv.weight.numel() for conv, _ in pairs)
    channels = sum(norm.num_features for _, norm in pairs)
    return weights * (4 + dtype.itemsize) + channels * 4 * (4 + 1)


def make_problem(name: str, channels_last: bool, dtype_name: str, device: torch.device, n_sets: int) -> Problem:
    """Returns the networks of a case: `n_sets` of them, each in other memory."""
    from ard_fast import reference
    from ard_fast.folding import FoldedWeights, FoldLayer

    dtype = DTYPES[dtype_name]
    networks = [make_pairs(name, channels_last, device, seed) for seed in range(n_sets)]

    def make(variant: str) -> Variant:
        if variant == "fused":
            folded = [FoldedWeights([FoldLayer(*pair) for pair in pairs], dtype) for pairs in networks]
            count = len(networks[0])
            written = lambda: [(folded[0].weight(i), folded[0].shift(i)) for i in range(count)]  # noqa: E731
            work: Callable[[int], object] = lambda i: folded[i].refresh()  # noqa: E731
        else:
            forms = [Plain(pairs, dtype) for pairs in networks]
            written = lambda: list(zip(forms[0].weights, forms[0].shifts, strict=True))  # noqa: E731
            if variant == "compile":
                whole = compiled(functional_layers)
                work = lambda i: whole(**vars(forms[i]))  # noqa: E731
            else:
                work = lambda i: getattr(forms[i], variant)()  # noqa: E731
        outputs[variant] = written
        return Variant(variant, work, lambda n: None)

    outputs: dict[str, Callable[[], list[tuple[Tensor, Tensor]]]] = {}

    def check(variant: Variant) -> Row:
        for weight, shift in outputs[variant.name]():
            weight.zero_()
            shift.zero_()
        variant.call(0)
        for (conv, norm), (weight, shift) in zip(networks[0], outputs[variant.name](), strict=True):
            tensors = (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
            kernel, gamma, beta, mean, var = (t.detach().double() for t in tensors)
            wanted = reference.fold_batch_norm(kernel, None, gamma, beta, mean, var, norm.eps)
            for what, got, want in (("a weight", weight, wanted[0]), ("a shift", shift, wanted[2])):
                tolerance = TOLERANCES[dtype_name if what == "a weight" else "fp32"]
                require_close(variant.name, what, got, want, tolerance * float(want.abs().max()))
        return {"checked": f"within {TOLERANCES[dtype_name]:.2g} of the largest"}

    return Problem(
        shape=(len(networks[0]), sum(conv.weight.numel() for conv, _ in networks[0])),
        bytes_min=least_traffic(networks[0], dtype),
        traffic=f"4 bytes read, {dtype.itemsize} written for each weight, 20 for each channel",
        baseline="layers",
        names=VARIANTS,
        make=make,
        check=check,
    )


def run_case(case: str, dtype_name: str, env: Row, args: argparse.Namespace) -> list[Row]:
    """Checks and times all variants of one case and prints its table; returns the rows.

    Raises:
        WrongResult: If a variant gives a wrong result.
    """
    name, channels_last = CASES[case]
    device = torch.device(args.device)
    one = least_traffic(make_pairs(name, channels_last, torch.device("cpu"), 0), DTYPES[dtype_name])
    n_sets = 1 if args.warm else rotation_sets(one, int(env["cache_bytes"]))  # type: ignore[call-overload]
    problem = make_problem(name, channels_last, dtype_name, device, n_sets)
    return run_problem(problem, "fold", case, dtype_name, env, args, n_sets)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status (0 timed, 1 wrong result, 2 no device)."""
    args = parse_args(
        "Every batch norm of a network folded into its convolution.",
        argv,
        cases=tuple(CASES),
        quick_cases=("mobilenetv2",),
        dtypes=tuple(DTYPES),
        variants=VARIANTS,
    )
    return run("bench_fold", args, lambda case, dtype, env: run_case(case, dtype, env, args))


if __name__ == "__main__":
    sys.exit(main())
