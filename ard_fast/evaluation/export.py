"""Adversarial images as files: rounded to whole pixel levels inside the ball, and classified again."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ard_fast._files import write_atomic
from ard_fast.evaluation.evaluator import Evaluator
from ard_fast.functional._levels import levels_within

SAMPLES = 16  # pictures in addition to the arrays


class Export(NamedTuple):
    """Counts of the images that were written.

    Attributes:
        images: all.
        fooled: those classified correctly when clean and fooled before rounding.
        still_fooled: those of them that are still misclassified after rounding.
        largest: the largest perturbation after rounding, in the norm, pixels in [0, 1].
    """

    images: int
    fooled: int
    still_fooled: int
    largest: float


def round_into_ball(x_adv: Tensor, original: Tensor, *, levels: int, norm: str, eps: float) -> Tensor:
    """Adversarial images at whole pixel levels, never outside the ball.

    Each pixel is rounded to the nearest level. If that is outside the ball, L-inf takes the outermost level inside it,
    and L2 moves as few pixels as needed one level back, first those that rounding moved outwards most.

    Args:
        x_adv: float `[N, ...]`, inside the ball and in [0, 1] up to float32 rounding.
        original: uint8 `[N, ...]`, 0 to `levels`.
        levels: the level that stands for 1.0.
        norm: "linf" or "l2".
        eps: radius, pixels in [0, 1].

    Returns:
        uint8, like `original`.

    Raises:
        RuntimeError: a result is outside the ball.
    """
    start = original.to(torch.float64)
    wanted = (x_adv.to(torch.float64) * levels).clamp(0, levels) - start
    moved = wanted.round()
    if norm == "linf":
        most = levels_within(eps, levels)
        eps = max(eps, most / levels)  # .0313725 is 8 of 255 levels, in the attacks of 8-bit images too
        moved = moved.clamp(-most, most)
    else:
        moved = _shrink_l2(wanted.flatten(1), moved.flatten(1), levels, eps).view_as(moved)
    rounded = (start + moved).to(torch.uint8)
    size = perturbation(rounded, original, levels=levels, norm=norm)
    if len(size) and float(size.max()) > eps:
        raise RuntimeError(f"rounding left the ball: {float(size.max())} > eps {eps}")
    return rounded


def perturbation(rounded: Tensor, original: Tensor, *, levels: int, norm: str) -> Tensor:
    """The norm of each perturbation, computed from the whole levels: float64 `[N]`, pixels in [0, 1]."""
    moved = (rounded.to(torch.int64) - original.to(torch.int64)).flatten(1)
    if norm == "linf":
        return moved.abs().amax(1).to(torch.float64) / levels
    return moved.square().sum(1).to(torch.float64).sqrt() / levels


def _shrink_l2(wanted: Tensor, moved: Tensor, levels: int, eps: float) -> Tensor:
    """Move pixels one level back while the norm is above eps, first those that rounding moved outwards most."""
    while True:
        squares = moved.square().sum(1)
        excess = (squares.sqrt() / levels > eps).nonzero().squeeze(1)
        if not len(excess):
            return moved
        part = moved[excess]
        # Each pixel one level back takes 2|k| - 1 off the sum of squares.
        order = (part.abs() - wanted[excess].abs()).masked_fill(part == 0, -torch.inf).argsort(1, descending=True)
        gain = (2.0 * part.abs() - 1.0).clamp_min(0.0).gather(1, order).cumsum(1)
        needed = (squares[excess] - (eps * levels) ** 2).clamp_min(0.0)
        taken = (gain < needed.unsqueeze(1)).sum(1) + 1
        back = torch.arange(part.shape[1], device=part.device) < taken.unsqueeze(1)
        moved[excess] = part - part.sign() * torch.zeros_like(part).scatter(1, order, back.to(part.dtype))


def save_images(evaluator: Evaluator, folder: Path) -> Export:
    """Write `adversarial.npz` and `samples/*.png` of a finished evaluation.

    The arrays: `original`, `adversarial` uint8 `[N, C, H, W]`, `labels`, `ids`, `predicted`, `predicted_adversarial`
    int64 `[N]`, `fooled_by` (the name of an attack, "" for none, "clean" for misclassified clean images), and the
    scalars `levels`, `eps`, `norm`. A pixel is its level divided by `levels`. For an image that no attack fooled, the
    last attempt is stored.

    Raises:
        RuntimeError: an image left the ball on rounding.
    """
    split, levels, eps, norm = evaluator.split, evaluator.levels, evaluator.eps, evaluator.norm
    original = split.images.cpu()
    rounded = round_into_ball(evaluator.adversarial, original, levels=levels, norm=norm, eps=eps)
    before, after = (evaluator.predict(images) for images in (original, rounded))
    labels = split.labels.cpu()
    by_attack = torch.tensor([name not in (None, "clean") for name in evaluator.fooled_by], dtype=torch.bool)
    arrays = {
        "original": original.numpy(),
        "adversarial": rounded.numpy(),
        "labels": labels.numpy(),
        "ids": split.ids.cpu().numpy(),
        "predicted": before.numpy(),
        "predicted_adversarial": after.numpy(),
        "fooled_by": np.array([name or "" for name in evaluator.fooled_by]),
        "levels": np.array(levels),
        "eps": np.array(eps),
        "norm": np.array(norm),
    }

    def write(part: Path) -> None:
        with open(part, "wb") as file:  # numpy would append .npz to a file name
            np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType] - numpy's `allow_pickle` is not among them

    write_atomic(folder / "adversarial.npz", write)
    still = by_attack & (after != labels)
    _save_samples(folder / "samples", rounded, arrays, still.nonzero().squeeze(1)[:SAMPLES].tolist(), levels)
    size = perturbation(rounded, original, levels=levels, norm=norm)
    return Export(len(split), int(by_attack.sum()), int(still.sum()), float(size.max()))


def _save_samples(folder: Path, images: Tensor, arrays: dict[str, np.ndarray], chosen: list[int], levels: int) -> None:
    """A png for each image, named by its id, label and predicted class."""
    from matplotlib.image import imsave  # slow to import

    folder.mkdir(parents=True, exist_ok=True)
    for row in chosen:
        pixels = images[row].permute(1, 2, 0).numpy()
        if levels != 255:
            pixels = np.round(pixels.astype(np.float64) * 255 / levels).astype(np.uint8)
        if pixels.shape[2] == 1:
            pixels = pixels.repeat(3, axis=2)
        label, taken_for = arrays["labels"][row], arrays["predicted_adversarial"][row]
        name = f"id{arrays['ids'][row]}-label{label}-taken-for{taken_for}.png"
        write_atomic(folder / name, lambda part, pixels=pixels: imsave(part, pixels, format="png"))
