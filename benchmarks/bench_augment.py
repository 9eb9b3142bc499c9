"""A training batch from stored bytes: crop, flip and conversion to float32, against the ways it is done in torch.

    python benchmarks/bench_augment.py [--device cpu|cuda] [--json FILE] [--quick]

Cases are SIZE or SIZE-last (channels_last pixels). Every variant takes the same views of the same images:

    indexing   one advanced indexing of a padded copy of the data set, which takes half again its memory for CIFAR
    masks      as cifar10-airbench does: rows and columns cut by a loop over the shifts with a mask each, then
               torch.where of the flipped ones; from the padded copy too, batch by batch
    compile    torch.compile of the indexing form, from the images as they are, without a padded copy
    fused      ard_fast.functional.crop_flip, which also draws the views: those of the others are drawn beforehand

Least traffic: a byte read and four written for each pixel. The pixels go to new memory, as in training: large batches
on a CPU (imagenet-128) then cost mostly page faults, in every variant alike. Every variant is checked to the bit before
anything is timed, and a difference ends the run with exit status 1. On CUDA every variant that does not wait for the
device is also timed as a captured graph (`...+graph`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
from _cli import Row, WrongResult, parse_args, run
from _problem import Problem, compiled, run_problem
from _timing import Variant, rotation_sets
from torch import Tensor
from torch.nn.functional import pad

PADDING = 4
SEED = 7
SIZES: dict[str, tuple[int, ...]] = {
    "cifar-128": (128, 3, 32, 32),
    "imagenet-128": (128, 3, 224, 224),
}
CASES = {f"{size}{suffix}": (size, suffix != "") for size in SIZES for suffix in ("", "-last")}
VARIANTS = ("indexing", "masks", "compile", "fused")


def split_views(view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns row and column of the crop in the padded image, and whether it is flipped."""
    span = 2 * PADDING + 1
    return view // 2 // span, view // 2 % span, view % 2 != 0


def indexing(padded: Tensor, positions: Tensor, row: Tensor, column: Tensor, flip: Tensor) -> Tensor:
    """Crops, flips and gathers by one index per dimension."""
    channels, height, width = padded.shape[1], padded.shape[2] - 2 * PADDING, padded.shape[3] - 2 * PADDING
    device = padded.device
    rows = row[:, None] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(len(positions), width)
    columns = torch.where(flip[:, None], width - 1 - columns, columns) + column[:, None]
    pixels = padded[
        positions[:, None, None, None],
        torch.arange(channels, device=device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
    return pixels.to(torch.float32) / 255


def masks(padded: Tensor, positions: Tensor, row: Tensor, column: Tensor, flip: Tensor) -> Tensor:
    """Crops one direction after the other, all images of a shift at once, then flips."""
    images = padded[positions]
    count, channels, padded_height, padded_width = images.shape
    height, width = padded_height - 2 * PADDING, padded_width - 2 * PADDING
    half = images.new_empty((count, channels, height, padded_width))
    out = images.new_empty((count, channels, height, width))
    for shift in range(2 * PADDING + 1):
        chosen = row == shift
        half[chosen] = images[chosen, :, shift : shift + height]
    for shift in range(2 * PADDING + 1):
        chosen = column == shift
        out[chosen] = half[chosen, :, :, shift : shift + width]
    pixels = out.to(torch.float32) / 255
    return torch.where(flip.view(-1, 1, 1, 1), pixels.flip(-1), pixels)


def unpadded(images: Tensor, positions: Tensor, row: Tensor, column: Tensor, flip: Tensor) -> Tensor:
    """For the compiler: the same from the images as they are, zero where the index leaves them."""
    channels, height, width = images.shape[1:]
    device = images.device
    rows = row[:, None] - PADDING + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(len(positions), width)
    columns = torch.where(flip[:, None], width - 1 - columns, columns) + column[:, None] - PADDING
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None, :]
    pixels = images[
        positions[:, None, None, None],
        torch.arange(channels, device=device)[None, :, None, None],
        rows.clamp(0, height - 1)[:, None, :, None],
        columns.clamp(0, width - 1)[:, None, None, :],
    ]
    return torch.where(inside, pixels.to(torch.float32) / 255, 0.0)


def make_problem(size: str, channels_last: bool, device: torch.device, n_sets: int) -> Problem:
    """Returns the batches of a case: `n_sets` of them, of different images."""
    from ard_fast import functional as F
    from ard_fast import reference

    batch, *image = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n_sets * batch, *image), dtype=torch.uint8, generator=generator).to(device)
    padded = pad(images, (PADDING,) * 4)
    positions = torch.randperm(len(images), generator=generator).view(n_sets, batch).to(device)
    ids = torch.arange(len(images), device=device)
    seed = torch.tensor([SEED], device=device)
    views = [reference.draw_views(ids[chosen], seed=SEED, padding=PADDING, flip=True) for chosen in positions]
    parts = [split_views(view) for view in views]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    kept: list[object] = [None] * n_sets  # so that each batch goes to other memory

    def formed(form: Callable[..., Tensor], source: Tensor) -> Callable[[int], Tensor]:
        return lambda i: form(source, positions[i], *parts[i]).contiguous(memory_format=layout)

    def make(name: str) -> Variant:
        if name == "fused":
            settings = {"seed": seed, "ids": ids, "padding": PADDING, "levels": 255, "channels_last": channels_last}
            work = lambda i: F.crop_flip(images, positions[i], **settings)[0]  # noqa: E731
        elif name == "compile":
            whole = compiled(lambda *arguments: unpadded(*arguments).contiguous(memory_format=layout))
            work = lambda i: whole(images, positions[i], *parts[i])  # noqa: E731
        else:
            work = formed({"indexing": indexing, "masks": masks}[name], padded)

        def call(i: int) -> Tensor:
            kept[i] = out = work(i)
            return out

        return Variant(name, call, lambda n: None)

    def check(variant: Variant) -> Row:
        want, _ = reference.crop_flip(
            images.cpu(), positions[0].cpu(), views=views[0].cpu(), padding=PADDING, levels=255
        )
        got = variant.call(0)
        # On CUDA torch's own division by a number is a product with its reciprocal, an ulp off.
        exact = variant.name == "fused" or device.type == "cpu"
        if not (torch.equal(got.cpu(), want) if exact else torch.allclose(got.cpu(), want, rtol=2e-7, atol=0)):  # type: ignore[attr-defined]
            raise WrongResult(f"{variant.name}: not the pixels of the views")
        if not got.is_contiguous(memory_format=layout):  # type: ignore[attr-defined]
            raise WrongResult(f"{variant.name}: not in the memory format asked for")
        return {"checked": "bit-equal" if exact else "within 2e-07"}

    return Problem(
        shape=SIZES[size],
        bytes_min=5 * torch.Size(SIZES[size]).numel(),
        traffic="a byte read, 4 written for each pixel",
        baseline="indexing",
        names=VARIANTS,
        make=make,
        check=check,
        uncapturable=frozenset({"masks"}),
    )


def run_case(case: str, dtype_name: str, env: Row, args: argparse.Namespace) -> list[Row]:
    """Checks and times all variants of one case and prints its table; returns the rows.

    Raises:
        WrongResult: If a variant gives a wrong result.
    """
    size, channels_last = CASES[case]
    cache = int(env["cache_bytes"])  # type: ignore[call-overload]
    n_sets = 1 if args.warm else rotation_sets(5 * torch.Size(SIZES[size]).numel(), cache)
    problem = make_problem(size, channels_last, torch.device(args.device), n_sets)
    return run_problem(problem, "augment", case, dtype_name, env, args, n_sets)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status (0 timed, 1 wrong result, 2 no device)."""
    args = parse_args(
        "A training batch from stored bytes: crop, flip and conversion.",
        argv,
        cases=tuple(CASES),
        quick_cases=("cifar-128", "cifar-128-last"),
        dtypes=("uint8",),
        variants=VARIANTS,
    )
    return run("bench_augment", args, lambda case, dtype, env: run_case(case, dtype, env, args))


if __name__ == "__main__":
    sys.exit(main())
