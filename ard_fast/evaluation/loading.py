"""The network to evaluate: from a run, a checkpoint, or a factory named by its import path."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ard_fast.data import Dataset
from ard_fast.data.splits import SPLITS
from ard_fast.models import build_model, find_model
from ard_fast.models.weights_file import read_weights
from ard_fast.training.checkpoint import Opened, find_weights, normalised, open_network


def load_model(
    source: Path | None,
    model: str | None,
    dataset: Dataset,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: str | None = None,
) -> Opened:
    """The network of a run's folder (its best checkpoint), of a checkpoint file, or of a factory.

    It is frozen and in eval mode, or as its factory left it where there is no file.

    Args:
        source: the folder, the `.safetensors` file or the file of `torch.save` (read with `weights_only=True`).
        model: `package.module:factory`, whose network is filled from `source` if there is one, or another name that
            `build_model` takes, for a checkpoint that does not say.
        dataset: the network must have its classes and channels.
        mean, std: of a network trained on normalised images, as in `ard_fast.training.checkpoint.load_network`.
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
        return Opened(normalised(network, None, mean, std, in_channels=channels, argument="model", name=model), model)
    return open_network(
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


def load_sources(given: Sequence[str], model: str | None, dataset: Dataset) -> dict[str, Opened]:
    """The networks of `--transfer-from`, by the names of their runs' folders, or as they were given.

    Args:
        given: run folders, checkpoint files that hold the network's name, or `package.module:factory`.
        model: the network whose code may run for a checkpoint that needs it.
        dataset: as in `load_model`.

    Raises:
        ValueError, FileNotFoundError: no such network, or one of other classes or channels.
    """
    folders = [Path(text).resolve().name for text in given if Path(text).is_dir()]
    found = {}
    for text in given:
        path, own = Path(text), None
        if ":" not in text or path.exists():
            name = _metadata(path, "transfer_from").get("model")
            if name is None:
                raise ValueError(
                    f"transfer_from: {text} does not say which network it is; give a run's folder, a file that a run "
                    "wrote, or package.module:factory"
                )
            own = model if name == model else None
            if wrong := other_classes(path, dataset):
                raise ValueError(f"transfer_from: {text}: {wrong}")
        folder = path.resolve().name
        found[folder if path.is_dir() and folders.count(folder) == 1 else text] = open_network(
            text,
            num_classes=dataset.num_classes,
            in_channels=dataset.image_shape[0],
            model=own,
            argument="transfer_from",
            model_argument="model",
        )
    return found


def match_classes(source: Path | None, dataset: Dataset) -> Dataset:
    """The data set with the classes of the checkpoint: their number and, for an image folder, labels by their names.

    Args:
        source: as in `load_model`.
        dataset: with `classes_known` false: its test images alone do not show all classes.

    Raises:
        ValueError: an image folder with classes that the checkpoint does not know, or with another number of classes
            and a checkpoint that has no names.
    """
    metadata = _metadata(source)
    names, said = _class_names(metadata), metadata.get("num_classes", "")
    if dataset.name == "folder":
        own = dataset.class_names
        strangers = [name for name in own if name not in names]
        if names and strangers:
            which = f"{', '.join(strangers[:5])} {'are not classes' if len(strangers) > 1 else 'is not a class'}"
            raise ValueError(
                f"data_dir: {which} of the checkpoint, which has {', '.join(names[:20])}{', ...' * (len(names) > 20)}"
            )
        if not names and said not in ("", str(len(own))):
            raise ValueError(
                f"data_dir: {len(own)} class folders, and the checkpoint has {said} classes without names: put the "
                "folder train beside them, or an empty folder for each class that is absent"
            )
        if not names:
            return dataset
        places = torch.tensor([names.index(name) for name in own])
        parts = {part: getattr(dataset, part) for part in SPLITS}
        moved = {part: dataclasses.replace(split, labels=places[split.labels]) for part, split in parts.items()}
        return dataclasses.replace(dataset, **moved, num_classes=len(names), class_names=names)
    if not said.isdecimal() or int(said) < dataset.num_classes:
        return dataset
    return dataclasses.replace(dataset, num_classes=int(said), class_names=())


def other_classes(source: Path | None, dataset: Dataset) -> str | None:
    """A warning that an image folder's classes are not named like the checkpoint's; None where there is no need."""
    names = _class_names(_metadata(source))
    if dataset.name != "folder" or not names or names == dataset.class_names:
        return None
    return (
        f"the checkpoint's classes are {', '.join(names[:20])}{', ...' * (len(names) > 20)}, the folder's "
        f"{', '.join(dataset.class_names[:20])}{', ...' * (len(dataset.class_names) > 20)}: labels follow "
        "the alphabetical order of the names, so labels may differ."
    )


def _metadata(source: Path | None, argument: str = "run") -> dict[str, str]:
    if source is None:
        return {}
    return read_weights(find_weights(source, argument=argument), argument=argument).metadata


def _class_names(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The class names that a checkpoint holds; numbers do not count as names."""
    try:
        names = json.loads(metadata.get("class_names", "[]"))
    except ValueError:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return () if names == [str(label) for label in range(len(names))] else tuple(names)
