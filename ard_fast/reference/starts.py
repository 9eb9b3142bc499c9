"""What Philox decides: random starts, and the random crop and flip."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ard_fast._typing import known
from ard_fast.reference.steps import at_levels, per_sample, whole_radius


def random_start(
    x: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    init: str = "uniform",
    std: float = 0.001,
    clamp: bool = True,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int,
    sample_ids: Tensor | None = None,
    levels: int | None = None,
) -> Tensor:
    """x plus Philox noise. Uniform noise has the operator's bits; the normal quantile and the norms here are torch's,
    in float64."""
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm must be 'linf' or 'l2', got {norm!r}")
    eps = whole_radius(eps, levels)
    uniform = philox_uniform(x.shape, seed=seed, sample_ids=sample_ids).to(x.device)
    normal = torch.special.ndtri((1.0 + uniform.double()) / 2.0)
    dims = tuple(range(1, x.dim()))
    if init == "normal":
        noise = (std * normal).to(x.dtype)
    elif (init == "uniform" and norm == "linf") or x.numel() == 0:  # no pixel has no largest one
        noise = per_sample(eps, x) * uniform.to(x.dtype)
    else:
        surface = uniform / uniform.abs().amax(dims, keepdim=True)
        if norm == "l2":
            surface = normal / normal.square().sum(dims, keepdim=True).sqrt()
        radius = per_sample(eps, x)
        if init == "uniform":
            key = seed ^ 0x5DEECE66D1CE4E5B
            share = (1.0 + philox_uniform((len(x), 1), seed=key, sample_ids=sample_ids).to(x.device).double()) / 2.0
            radius = radius * per_sample((share ** (1.0 / x[0].numel())).flatten(), x)
        noise = (radius * surface).to(x.dtype)
    out = x + noise
    return at_levels(torch.clamp(out, *bounds) if clamp else out, levels)


def crop_flip(
    images: Tensor,
    positions: Tensor,
    *,
    padding: int,
    levels: int,
    seed: int | None = None,
    ids: Tensor | None = None,
    flip: bool = True,
    channels_last: bool = False,
    views: Tensor | None = None,
    cropshift: int = 0,
    cutout: int = 0,
) -> tuple[Tensor, Tensor]:
    """The views of the padded images, one after the other, divided by `levels`."""
    counted = not cropshift and not cutout
    if views is None:
        chosen = positions if ids is None else ids[positions]
        views = draw_views(chosen, seed=known(seed), padding=padding, flip=flip, counted=counted)
    height, width = images.shape[2:]
    padded = pad(images, (padding,) * 4)
    divisor = torch.full((), levels, dtype=torch.float32, device=images.device)  # of a number CUDA takes the reciprocal
    x = torch.empty((len(positions), *images.shape[1:]), device=images.device)
    for b, (position, view) in enumerate(zip(positions.tolist(), views.tolist(), strict=True)):
        if not counted:
            x[b] = _augmented(images[position], view, padding, flip, cropshift, cutout).to(torch.float32) / divisor
            continue
        row, column = divmod(view // 2, 2 * padding + 1)
        crop = padded[position, :, row : row + height, column : column + width]
        x[b] = (crop.flip(-1) if view % 2 else crop).to(torch.float32) / divisor
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format), views


def _augmented(image: Tensor, view: int, padding: int, flip: bool, cropshift: int, cutout: int) -> Tensor:
    """One uint8 image `[C, H, W]`, cropped and shifted (or cropped from a padding), flipped, with a square of zeros."""
    words = philox_bits(8, seed=view, sample_ids=torch.zeros(1, dtype=torch.int64))[0].tolist()
    draw = lambda word, most: words[word] * (most + 1) >> 32  # noqa: E731
    height, width = image.shape[1:]
    if cropshift:
        both = draw(0, cropshift)
        columns = draw(1, both)
        rows = both - columns
        top, left = draw(2, rows), draw(3, columns)
        kept = image[:, top : top + height - rows, left : left + width - columns]
        down, right = draw(4, rows), draw(5, columns)
        image = pad(kept, (right, columns - right, down, rows - down))
    else:
        row, column = draw(0, 2 * padding), draw(1, 2 * padding)
        image = pad(image, (padding,) * 4)[:, row : row + height, column : column + width]
    image = image.flip(-1) if flip and view % 2 else image.clone()
    if cutout:
        top, left = (draw(6 + i, size - 1) - cutout // 2 for i, size in enumerate((height, width)))
        image[:, max(top, 0) : max(top + cutout, 0), max(left, 0) : max(left + cutout, 0)] = 0
    return image


def draw_views(ids: Tensor, *, seed: int, padding: int, flip: bool, counted: bool = True) -> Tensor:
    """int64 `[B]`: the view of each image, from the first three words of its own Philox stream."""
    row, column, half = philox_bits(3, seed=seed, sample_ids=ids.cpu()).unbind(1)
    if not counted:
        return ((column & 0x3FFFFFFF) << 32 | row).to(ids.device)
    span = 2 * padding + 1
    crop = (row * span >> 32) * span + (column * span >> 32)
    return (2 * crop + (half >> 31) * flip).to(ids.device)


def philox_uniform(shape: torch.Size | tuple[int, ...], *, seed: int, sample_ids: Tensor | None = None) -> Tensor:
    """float32 `shape` on (-1, 1): Philox4x32-10 keyed by (seed, sample id, element), as csrc/common/philox.h."""
    batch, numel = shape[0], torch.Size(shape[1:]).numel()
    ids = torch.arange(batch) if sample_ids is None else sample_ids.cpu()
    bits = philox_bits(numel, seed=seed, sample_ids=ids)
    odd = 2 * (bits >> 9) + 1 - 2**23
    return (odd.to(torch.float32) * 2.0**-23).reshape(shape)


def philox_bits(count: int, *, seed: int, sample_ids: Tensor) -> Tensor:
    """int64 `[B, count]`, the first `count` words of 32 bits of each sample."""
    groups = (count + 3) // 4
    shape = len(sample_ids), groups
    mask = 0xFFFFFFFF
    group = torch.arange(groups).expand(shape)
    ids = sample_ids[:, None].expand(shape)
    c0, c1, c2, c3 = group & mask, (group >> 32) & mask, ids & mask, (ids >> 32) & mask
    k0, k1 = seed & mask, (seed >> 32) & mask
    for _ in range(10):
        # int64 products wrap, but their 64 bits are the unsigned ones.
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = ((p1 >> 32) & mask) ^ c1 ^ k0, p1 & mask, ((p0 >> 32) & mask) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return torch.stack((c0, c1, c2, c3), dim=2).reshape(shape[0], 4 * groups)[:, :count]
