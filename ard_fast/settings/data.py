"""Which images of the data set are used, and how they are augmented."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast.options import option


@dataclass(frozen=True)
class DataSettings:
    """Splits and augmentation."""

    val_size: int = option(1000, "images held out of CIFAR-10's training files (the digits' split is fixed)", "data")
    subset: int | None = option(None, "train on the first N training images only", "data")
    test_subset: int | None = option(None, "evaluate on the first N test images only", "data")
    crop_padding: int = option(4, "random crop from the image with this border of zeros; 0: none", "data")
    flip: bool = option(True, "random horizontal flip", "data")
