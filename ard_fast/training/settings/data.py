"""Which images of the data set are used, and how they are augmented."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast.training.options import option


@dataclass(frozen=True)
class DataSettings:
    """Splits and augmentation."""

    download: bool = option(
        False, "fetch what is missing of cifar10, cifar100, mnist or fashion-mnist into --data-dir, checksummed", "data"
    )
    image_size: int | None = option(
        None, "folder: scale the shorter side to this and take the middle; none: the images have one size", "data"
    )
    image_cache: str | None = option(
        None, "folder: where decoded images are kept; none: .ard_fast_cache in --data-dir", "data"
    )
    val_size: int | None = option(
        None,
        "images held out of the training files (the digits' split is fixed, npz and folder may bring one); none: 1000, "
        "at most a tenth of them",
        "data",
    )
    subset: int | None = option(None, "train on N of the training images only, of every class its share", "data")
    test_subset: int | None = option(None, "evaluate on N of the test images only, of every class its share", "data")
    crop_padding: int = option(4, "random crop from the image with this border of zeros; 0: none", "data")
    flip: bool = option(True, "random horizontal flip", "data")
