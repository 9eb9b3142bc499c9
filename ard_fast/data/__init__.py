"""Data sets as uint8, and the batches drawn from them on the device."""

from ard_fast.data.batches import Batch, EpochPlan
from ard_fast.data.extra import add_extra
from ard_fast.data.loader import Loader, ResidentLoader, StreamedLoader, make_loader
from ard_fast.data.registry import DATASETS, check_arguments, load_dataset
from ard_fast.data.splits import Dataset, Split

__all__ = [
    "DATASETS",
    "Batch",
    "Dataset",
    "EpochPlan",
    "Loader",
    "ResidentLoader",
    "Split",
    "StreamedLoader",
    "add_extra",
    "check_arguments",
    "load_dataset",
    "make_loader",
]
