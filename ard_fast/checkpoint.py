"""Weights as safetensors, and the state from which a run goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ard_fast.files import write_atomic
from ard_fast.models import build_model

BEST, LAST, STATE = "best.safetensors", "last.safetensors", "training_state.pt"
_SCHEMA = 2


def save_weights(path: Path, model: nn.Module, *, name: str, num_classes: int, in_channels: int) -> None:
    """Write a network's parameters and buffers, with what is needed to build it again.

    Args:
        path: the file; replaced in one step.
        model: the network.
        name: its name in `ard_fast.models.MODELS`.
        num_classes: its number of logits.
        in_channels: the channels of its images.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    metadata = {"model": name, "num_classes": str(num_classes), "in_channels": str(in_channels), "format": "pt"}
    write_atomic(path, lambda part: save_file(tensors, part, metadata=metadata))


def find_weights(source: str | Path, *, argument: str = "teacher") -> Path:
    """The weights file of a run's folder (its best checkpoint), or the file itself.

    Args:
        source: the folder or file.
        argument: what errors call it.

    Raises:
        FileNotFoundError: neither is there.
    """
    path = Path(source)
    if path.is_dir():
        if not (path / BEST).is_file():
            raise FileNotFoundError(
                f"{argument}: {path} holds no {BEST}; is it the folder of a run that has validated?"
            )
        return path / BEST
    if not path.is_file():
        raise FileNotFoundError(f"{argument}: {path} is neither a network's name nor an existing folder or file")
    return path


def load_network(
    source: str | Path,
    *,
    num_classes: int,
    in_channels: int,
    model: str | None = None,
    argument: str = "teacher",
    model_argument: str = "teacher_model",
) -> nn.Module:
    """A trained network from a run's folder, a `.safetensors` file, or a file written by `torch.save`.

    `module.` prefixes (DataParallel) and the unused `sub_block1.` of TRADES WideResNets are dropped. Pickles are
    loaded with `weights_only=True`.

    Args:
        source: the folder or file.
        num_classes: what the data set needs.
        in_channels: what the data set needs.
        model: the network's name, where the file does not say; must agree where it does.
        argument: what errors call `source`.
        model_argument: what errors call `model`.

    Returns:
        The network on the CPU, in eval mode, without trainable parameters.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: another network or another number of classes, or an unreadable file.
    """
    path = find_weights(source, argument=argument)
    weights, metadata = read_weights(path, argument=argument)
    name = metadata.get("model", model)
    if name is None:
        flag = "--" + model_argument.replace("_", "-")
        raise ValueError(f"{argument}: {path} does not say which network it is; name it with {flag}")
    if model is not None and name != model:
        raise ValueError(f"{model_argument}: {path} holds {name!r}, not {model!r}")
    for what, wanted in (("num_classes", num_classes), ("in_channels", in_channels)):
        if int(metadata.get(what, wanted)) != wanted:
            raise ValueError(f"{argument}: {path} has {what} {metadata[what]}, the data set needs {wanted}")
    network = build_model(name, num_classes, in_channels)
    weights = {key: value for key, value in weights.items() if not key.startswith("sub_block1.")}
    fill_network(network, weights, f"{argument}: {path} does not fit {name} with {num_classes} classes")
    return network.eval().requires_grad_(False)


def fill_network(network: nn.Module, weights: dict[str, Tensor], complaint: str) -> None:
    """Put a state dict into a network, every key of both.

    Raises:
        ValueError: `complaint`, followed by the first keys and shapes that do not fit, in one line.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{complaint}: {shorten(str(error), 600)}") from error


def read_weights(path: Path, *, argument: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a weights file, without `module.` prefixes, and its metadata (empty for pickles).

    Raises:
        ValueError: unreadable, refused by `weights_only=True`, or no state dict.
    """
    weights, metadata = _read_file(path, argument)
    return {key.removeprefix("module."): value for key, value in weights.items()}, metadata


def _read_file(path: Path, argument: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                return {key: file.get_tensor(key) for key in names}, file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"{argument}: {path} is not a safetensors file: {error}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or refused pickle fails with almost any exception type
        raise ValueError(f"{argument}: cannot read {path} as a state dict: {shorten(str(error), 600)}") from error
    for key in ("state_dict", "model", "net"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{argument}: {path} holds no state dict of tensors")
    return content, {}


class DamagedState(ValueError):
    """A training state that cannot be read."""


@dataclass
class TrainingState:
    """Where a run stands. Everything random is drawn from (seed, epoch), so no random state belongs to it.

    Attributes:
        epoch: the epoch being trained, from 0; `epochs` when training is over.
        step: steps done in it.
        loss_sum: of the images of this epoch's done steps.
        correct: of the same images, those classified right by the logits the student was updated on.
        best_robust: the best robust validation accuracy so far, in percent; -1 before the first.
        best_epoch: its epoch, from 1; 0 before the first.
        train_seconds: spent in training steps so far.
        elapsed: seconds of the run so far, evaluations included.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    best_robust: float = -1.0
    best_epoch: int = 0
    train_seconds: float = 0.0
    elapsed: float = 0.0
    model: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    method: dict[str, Tensor] = field(default_factory=dict)


def save_state(path: Path, state: TrainingState) -> None:
    """Write a training state in one step."""
    write_atomic(path, lambda part: torch.save({"schema": _SCHEMA, **vars(state)}, part))


def load_state(path: Path) -> TrainingState:
    """Read a training state with `weights_only=True`.

    Raises:
        FileNotFoundError: no such file.
        DamagedState: not a training state of this version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"resume: {path} is missing; there is nothing to go on from")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("schema") != _SCHEMA:
            raise ValueError("another schema")
        return TrainingState(**content)
    except Exception as error:  # a damaged file fails with almost any exception type
        raise DamagedState(f"resume: {path} is not a training state of this version: {error}") from error
