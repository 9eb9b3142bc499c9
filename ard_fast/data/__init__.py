"""Data sets that live on the device as uint8, and the batches drawn from them."""

from ard_fast.data.batches import Batch, EpochPlan, make_batch
from ard_fast.data.loader import Loader, ResidentLoader
from ard_fast.data.registry import DATASETS, load_dataset
from ard_fast.data.splits import Dataset, Split

__all__ = [
    "DATASETS",
    "Batch",
    "Dataset",
    "EpochPlan",
    "Loader",
    "ResidentLoader",
    "Split",
    "load_dataset",
    "make_batch",
]
