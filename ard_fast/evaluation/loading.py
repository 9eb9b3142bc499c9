"""The network to evaluate: from a run, a checkpoint, or a factory named by its import path."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

from torch import nn

from ard_fast.checkpoint import find_weights, load_network, read_weights
from ard_fast.data import Dataset
from ard_fast.models import build_model, find_model


class Loaded(NamedTuple):
    """A network on the CPU, and where it came from.

    Attributes:
        network: in eval mode and frozen, or as its factory left it where there is no file.
        name: for people.
        weights: the file, or None where the factory made them.
        sha256: of that file.
    """

    network: nn.Module
    name: str
    weights: Path | None
    sha256: str | None


def load_model(source: Path | None, model: str | None, dataset: Dataset) -> Loaded:
    """The network of a run's folder (its best checkpoint), of a checkpoint file, or of a factory.

    Args:
        source: the folder, the `.safetensors` file or the file of `torch.save` (read with `weights_only=True`).
        model: `package.module:factory`, whose network is filled from `source` if there is one, or another name that
            `build_model` takes, for a checkpoint that does not say.
        dataset: whose classes and channels the network must fit.

    Raises:
        ValueError, FileNotFoundError: names the argument and what is wrong with it.
    """
    weights = find_weights(source, argument="run") if source is not None else None
    classes, channels = dataset.num_classes, dataset.image_shape[0]
    if weights is None:
        if model is None or ":" not in model or model.startswith("timm:"):
            find_model(model or "", argument="model")
            raise ValueError(f"run: the network {model} needs a checkpoint: a run's folder or a file")
        return Loaded(build_model(model, classes, channels, argument="model"), model, None, None)
    network = load_network(
        weights, num_classes=classes, in_channels=channels, model=model, argument="run", model_argument="model"
    )
    name = model or read_weights(weights, argument="run")[1]["model"]
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return Loaded(network, name, weights, digest)


def with_classes_of(source: Path | None, dataset: Dataset) -> Dataset:
    """A data set whose labels say only how many classes it has at least, with as many as the checkpoint says.

    Args:
        source: as in `load_model`.
        dataset: with `classes_known` false.
    """
    if source is None:
        return dataset
    said = read_weights(find_weights(source, argument="run"), argument="run")[1].get("num_classes", "")
    if not said.isdecimal() or int(said) < dataset.num_classes:
        return dataset
    return dataclasses.replace(dataset, num_classes=int(said), class_names=())
