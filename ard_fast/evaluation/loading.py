"""The network to evaluate: from a run, a checkpoint, or a factory named by its import path."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from ard_fast.checkpoint import find_weights, normalised, open_network
from ard_fast.data import Dataset
from ard_fast.models import build_model, find_model
from ard_fast.weights_file import read_weights


class Loaded(NamedTuple):
    """A network on the CPU, and where it came from.

    Attributes:
        network: in eval mode and frozen, or as its factory left it where there is no file.
        name: for people.
        weights: the file, or None where the factory made them.
        sha256: of that file.
        choice: which weights of the file were taken, in words, where it holds several.
    """

    network: nn.Module
    name: str
    weights: Path | None
    sha256: str | None
    choice: str | None = None


def load_model(
    source: Path | None,
    model: str | None,
    dataset: Dataset,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: str | None = None,
) -> Loaded:
    """The network of a run's folder (its best checkpoint), of a checkpoint file, or of a factory.

    Args:
        source: the folder, the `.safetensors` file or the file of `torch.save` (read with `weights_only=True`).
        model: `package.module:factory`, whose network is filled from `source` if there is one, or another name that
            `build_model` takes, for a checkpoint that does not say.
        dataset: whose classes and channels the network must fit.
        mean, std: of a network that was trained on normalised images, as in `ard_fast.checkpoint.load_network`.
        weights: which of several sets of weights in the file, likewise.

    Raises:
        ValueError, FileNotFoundError: names the argument and what is wrong with it.
    """
    file = find_weights(source, argument="run") if source is not None else None
    classes, channels = dataset.num_classes, dataset.image_shape[0]
    if file is None:
        if model is None or ":" not in model or model.startswith("timm:"):
            find_model(model or "", argument="model")
            raise ValueError(f"run: the network {model} needs a checkpoint: a run's folder or a file")
        network = build_model(model, classes, channels, argument="model")
        return Loaded(normalised(network, None, mean, std, in_channels=channels, argument="model"), model, None, None)
    opened = open_network(
        file,
        num_classes=classes,
        in_channels=channels,
        model=model,
        mean=mean,
        std=std,
        weights=weights,
        argument="run",
        model_argument="model",
    )
    choice = f"{opened.choice()} (--weights)" if opened.others else None
    return Loaded(opened.network, opened.name, file, hashlib.sha256(file.read_bytes()).hexdigest(), choice)


def with_classes_of(source: Path | None, dataset: Dataset) -> Dataset:
    """A data set whose labels say only how many classes it has at least, with as many as the checkpoint says.

    Args:
        source: as in `load_model`.
        dataset: with `classes_known` false.
    """
    if source is None:
        return dataset
    said = read_weights(find_weights(source, argument="run"), argument="run").metadata.get("num_classes", "")
    if not said.isdecimal() or int(said) < dataset.num_classes:
        return dataset
    return dataclasses.replace(dataset, num_classes=int(said), class_names=())
