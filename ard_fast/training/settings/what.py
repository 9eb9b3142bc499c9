"""What is trained."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast.data import DATASETS
from ard_fast.methods import METHODS
from ard_fast.training.options import option

COMPARE = "compare"  # not a method: teacher, then every method of `compare_methods`, for every seed


@dataclass(frozen=True)
class WhatSettings:
    """Method, data set and seeds."""

    method: str = option(
        COMPARE, "what to train; compare: a teacher, then each of --compare-methods", "what", (*METHODS, COMPARE)
    )
    parity: bool = option(
        False, "reproduce the quirks of the method's published code; they are printed by name", "what"
    )
    dataset: str = option("digits", "images to train on", "what", DATASETS)
    data_dir: str | None = option(
        None,
        "where the images are: the folder with the CIFAR or MNIST files, the .npz file, or the folder with train/ and "
        "test/; not needed for the digits",
        "what",
    )
    seed: int = option(0, "decides weights, data order and attacks", "what")
    compare_methods: tuple[str, ...] = option(("at", "ard"), "methods of a comparison, comma-separated", "what")
    compare_seeds: int = option(3, "seeds of a comparison: seed, seed + 1, ...", "what")
