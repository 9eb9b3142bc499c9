"""The network to evaluate: from a run, a checkpoint, or a factory named by its import path."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import NamedTuple

from torch import nn

from ard_fast.checkpoint import fill_network, find_weights, load_network, read_weights
from ard_fast.data import Dataset
from ard_fast.models import MODELS
from ard_fast.names import nearest, unknown


class Loaded(NamedTuple):
    """A network on the CPU, and where it came from.

    Attributes:
        network: in the mode its factory left it in.
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
        model: `package.module:factory` (called without arguments, then filled from `source` if there is one), or a
            name of `ard_fast.models.MODELS` for a checkpoint that does not say.
        dataset: whose classes and channels the network must fit.

    Raises:
        ValueError, FileNotFoundError: names the argument and what is wrong with it.
    """
    weights = find_weights(source, argument="run") if source is not None else None
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights else None
    if model is not None and ":" in model:
        network = _from_factory(model)
        if weights is not None:
            tensors, _ = read_weights(weights, argument="run")
            fill_network(network, tensors, f"run: {weights} does not fit the model of {model}")
        return Loaded(network, model, weights, digest)
    if model is not None and model not in MODELS:
        raise ValueError(
            f"model: expected package.module:factory or a network's name; {unknown('name', model, MODELS)}"
        )
    if weights is None:
        raise ValueError(f"run: the network {model} needs a checkpoint: a run's folder or a file")
    network = load_network(
        weights,
        num_classes=dataset.num_classes,
        in_channels=dataset.image_shape[0],
        model=model,
        argument="run",
        model_argument="model",
    )
    _, metadata = read_weights(weights, argument="run")
    return Loaded(network, metadata.get("model", model), weights, digest)


def _from_factory(path: str) -> nn.Module:
    """What `package.module:factory` makes."""
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module may fail at import with anything
        raise ValueError(f"model: cannot import {module_name!r} ({type(error).__name__}: {error})") from error
    factory = getattr(module, attribute, None)
    if factory is None:
        near = nearest(attribute, [name for name in vars(module) if not name.startswith("_")])
        hint = f"; did you mean {module_name}:{near}?" if near else ""
        raise ValueError(f"model: {module_name!r} has no {attribute!r}{hint}")
    if isinstance(factory, nn.Module):
        return factory
    try:
        network = factory()
    except Exception as error:  # the factory is somebody else's code
        raise ValueError(f"model: {path}() failed ({type(error).__name__}: {error})") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"model: {path}() must return a torch.nn.Module, got {type(network).__name__}")
    return network
