"""What the labels of a data set mean."""

from __future__ import annotations

_NAMES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


def class_names(dataset: str, num_classes: int) -> tuple[str, ...]:
    """A name for each label; its number where the classes have no names."""
    return _NAMES.get(dataset) or tuple(map(str, range(num_classes)))
