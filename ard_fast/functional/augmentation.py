"""Batches of pixels from stored bytes: the random crop, flip and cutout of training."""

from __future__ import annotations

from torch import Tensor

from ard_fast.functional import _ops
from ard_fast.functional._arguments import Array, flag, int_between, optional_tensor, seed_tensor, tensor


def crop_flip(
    images: Array,
    positions: Array,
    *,
    padding: int,
    levels: int,
    seed: int | Array | None = None,
    ids: Array | None = None,
    flip: bool = True,
    channels_last: bool = False,
    views: Array | None = None,
    cropshift: int = 0,
    cutout: int = 0,
) -> tuple[Tensor, Tensor]:
    """Take images from a stored set, crop them at random from a border of zeros, flip half of them, scale to [0, 1].

    One kernel from bytes to float32: no padded copy of the images, no index tensors. The draw comes from Philox4x32-10
    keyed by (seed, id of the image): the same on CPU and CUDA, and for a given id whatever batch the image is in. Row
    and column of the crop are uniform on 0 ... 2 * padding (off by less than 2^-32 each, see csrc/images/crop_flip.h).

    A view of an image is one number, `view = (row * (2 * padding + 1) + column) * 2 + flip`, with row and column of the
    crop inside the padded image. Without padding and flips it is 0, the image itself. With cropshift or cutout views
    are too many to be counted: a view is then a number below 2^62 from which all of it is drawn.

    Args:
        images: uint8 `[N, C, H, W]`, contiguous; never copied.
        positions: int64 `[B]`, which images.
        padding: zeros on all four sides before the crop, 0 to 32,767.
        levels: the uint8 value that stands for 1.0, 1 to 255.
        seed: an int, an int64 tensor with one element on the device of `images` (read when the kernel runs), or None to
            draw one from torch's generator of that device.
        ids: int64 `[N]`, what identifies each image; None takes its position.
        flip: flip about half of the images left to right.
        channels_last: the memory format of the pixels.
        views: int64 `[B]`, the views to take instead of drawing any, 0 to `2 * (2 * padding + 1)**2 - 1`; they say
            whether to flip. Neither `seed` nor `ids` may be given with them.
        cropshift: instead of `padding`, CropShift (Li, Spratling; ICLR 2023): cut rows and columns away at random from
            both sides, together 0 to this many, and put what is left at a random place on zeros; below height and
            width.
        cutout: side of a square that is set to zero, as many pixels as lie in the image (DeVries, Taylor 2017, who set
            the mean of the data set); its middle is any pixel. At most height and width.

    Returns:
        `(x, view)`, float32 `[B, C, H, W]` with the bits of `pixels.to(torch.float32) / levels`, and int64 `[B]`.

    Raises:
        ValueError: a number is out of range, or views come with a seed or ids.
        RuntimeError: shapes, dtypes, devices or layouts do not fit; the message names the argument. A position or view
            that does not exist raises on the CPU; on CUDA the image is NaN and its view -1.
    """
    padding = int_between(padding, "padding", 0, 2**15 - 1)
    levels = int_between(levels, "levels", 1, 255)
    flip, channels_last = flag(flip, "flip"), flag(channels_last, "channels_last")
    cropshift, cutout = int_between(cropshift, "cropshift", 0, 2**31 - 1), int_between(cutout, "cutout", 0, 2**31 - 1)
    images, positions = tensor(images, "images"), tensor(positions, "positions")
    ids, views = optional_tensor(ids, "ids"), optional_tensor(views, "views")
    if views is None:
        seed = seed_tensor(seed, images.device)
    elif seed is not None or ids is not None:
        raise ValueError(f"views: with them nothing is drawn, so {'ids' if seed is None else 'seed'} must not be given")
    return _ops.crop_flip(images, positions, seed, ids, views, padding, flip, levels, channels_last, cropshift, cutout)
