"""Weights as safetensors, and the state from which a run goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ard_fast.files import write_atomic
from ard_fast.models import Matched, Normalised, build_model, match_published

BEST, LAST, STATE = "best.safetensors", "last.safetensors", "training_state.pt"
_SCHEMA = 4  # 3: a --subset was of the first images
# Where published files keep the state dict, in this order, and how deep at most (a hostile one may be endless).
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "net", "last")
_NESTING = 3


def save_weights(path: Path, model: nn.Module, *, name: str, num_classes: int, in_channels: int) -> None:
    """Write a network's parameters and buffers, with what is needed to build it again.

    Args:
        path: the file; replaced in one step.
        model: the network.
        name: its name as `ard_fast.models.build_model` takes it.
        num_classes: its number of logits.
        in_channels: the channels of its images.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    metadata = {
        "model": name,
        "num_classes": str(num_classes),
        "in_channels": str(in_channels),
        "format": "pt",
        "sha256": _digest(tensors),
    }
    write_atomic(path, lambda part: save_file(tensors, part, metadata=metadata))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names and values, since safetensors has no checksum of its own."""
    total = hashlib.sha256()
    for key in sorted(tensors):
        total.update(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)}".encode())
        total.update(tensors[key].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


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
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    argument: str = "teacher",
    model_argument: str = "teacher_model",
) -> nn.Module:
    """A trained network from a run's folder, a `.safetensors` file, a file written by `torch.save`, or a factory.

    Published state dicts fit as they are: see `ard_fast.models.match_published`. Pickles are loaded with
    `weights_only=True`; a file cannot name code to run: only the caller can, with `source` or `model`.

    Args:
        source: the folder or file; or `package.module:factory`, whose network is taken to be trained.
        num_classes: what the data set needs.
        in_channels: what the data set needs.
        model: the network's name as `build_model` takes it, where the file does not say; a factory (or timm network)
            is taken in any case, another name must agree with the file's.
        mean: of each channel in [0, 1] pixels, for a network that was trained on normalised images and whose file does
            not carry it; the network returned takes pixels and normalises them.
        std: likewise.
        argument: what errors call `source`.
        model_argument: what errors call `model`; those about `mean` and `std` call them `<argument>_mean`, `_std`.

    Returns:
        The network on the CPU, in eval mode, without trainable parameters.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: another network or another number of classes, an unreadable file, or weights that are not finite.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"{argument}_mean: mean and std go together, got mean {mean}, std {std}")
    if isinstance(source, str) and ":" in source and not Path(source).exists():
        if source.startswith("timm:"):
            raise ValueError(f"{argument}: {source} has no weights; name their file, and {source} as {model_argument}")
        network = build_model(source, num_classes, in_channels, argument=argument)
        return _frozen(_normalised(network, None, mean, std, in_channels=in_channels, argument=argument))
    path = find_weights(source, argument=argument)
    weights, metadata = read_weights(path, argument=argument)
    name = _network_name(metadata, model, path, argument=argument, model_argument=model_argument)
    for what, wanted in (("num_classes", num_classes), ("in_channels", in_channels)):
        if metadata.get(what, str(wanted)) != str(wanted):
            raise ValueError(f"{argument}: {path} has {what} {metadata[what]}, the data set needs {wanted}")
    network = build_model(name, num_classes, in_channels, argument=model_argument)
    complaint = f"{argument}: {path} does not fit {name} with {num_classes} classes"
    matched = fill_network(network, weights, complaint)
    for key, value in network.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{argument}: {path} holds values that are not finite, in {key}")
    return _frozen(
        _normalised(network, matched.normaliser, mean, std, in_channels=in_channels, argument=f"{argument}: {path}")
    )


def _network_name(
    metadata: Mapping[str, str], model: str | None, path: Path, *, argument: str, model_argument: str
) -> str:
    if model is not None and ":" in model:
        return model  # the caller's own code, for whatever the file was saved as
    flag = "--" + model_argument.replace("_", "-")
    name = metadata.get("model", model)
    if name is None:
        raise ValueError(f"{argument}: {path} does not say which network it is; name it with {flag}")
    if model is not None and name != model:
        raise ValueError(f"{model_argument}: {path} holds {name!r}, not {model!r}")
    if model is None and ":" in name and not name.startswith("timm:"):
        raise ValueError(f"{argument}: {path} needs the code of {name}; allow it to run with {flag} {name}")
    return name


def _normalised(
    network: nn.Module,
    found: tuple[Tensor, Tensor] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    *,
    in_channels: int,
    argument: str,
) -> nn.Module:
    """The network behind the normaliser of its file or the one given, if there is one."""
    given = None if mean is None or std is None else (torch.tensor(mean).flatten(), torch.tensor(std).flatten())
    if given is not None and {"mean", "std"} <= dict(network.named_buffers(recurse=False)).keys():
        raise ValueError(f"{argument}: the network normalises its input itself; leave mean and std out")
    pair = found or given
    if pair is None:
        return network
    for values in (*(found or ()), *(given or ())):
        if values.numel() not in (1, in_channels):
            raise ValueError(f"{argument}: expected {in_channels} numbers as mean and as std, got {values.numel()}")
    if found and given and not all(torch.allclose(a.float(), b) for a, b in zip(found, given, strict=True)):
        raise ValueError(f"{argument}: the file has a mean and std of its own: {[v.tolist() for v in found]}")
    try:
        return Normalised(network, pair[0].tolist(), pair[1].tolist())
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error


def _frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def fill_network(network: nn.Module, weights: Mapping[str, Tensor], complaint: str) -> Matched:
    """Put a state dict, published or our own, into a network: every key of both that any forward uses.

    Returns:
        What was put in, and the normaliser that the state dict carries beside it, which is left to the caller.

    Raises:
        ValueError: `complaint`, followed by the first keys and shapes that do not fit, in one line.
    """
    matched = match_published(weights, network)
    try:
        network.load_state_dict(matched.weights)
    except (RuntimeError, TypeError, ValueError) as error:  # the last two: sparse, quantised or otherwise odd tensors
        raise ValueError(f"{complaint}: {shorten(str(error), 600)}") from error
    return matched


def read_weights(path: Path, *, argument: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a weights file, as they are named there, and its metadata (empty for pickles).

    Raises:
        ValueError: unreadable, refused by `weights_only=True`, or no state dict.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                tensors, metadata = {key: file.get_tensor(key) for key in names}, file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{argument}: {path} is not a safetensors file: {error}") from error
        if metadata.get("sha256", None) not in (None, _digest(tensors)):
            raise ValueError(f"{argument}: {path} is damaged: its weights are not those that were written")
        return tensors, metadata
    try:
        if zipfile.is_zipfile(path):
            _check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or refused pickle fails with almost any exception type
        raise ValueError(f"{argument}: cannot read {path} as a state dict: {shorten(str(error), 600)}") from error
    for _ in range(_NESTING):
        inner = [
            content[key] for key in _STATE_KEYS if isinstance(content, dict) and isinstance(content.get(key), dict)
        ]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{argument}: {path} holds no state dict of tensors")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{argument}: {path} holds no state dict of tensors: {key!r} is {type(value).__name__}")
        if value.layout != torch.strided or value.is_meta or value.is_complex() or value.is_quantized:
            kind = f"{value.dtype} {value.layout} on {value.device}"
            raise ValueError(f"{argument}: {path} holds {key!r} as a tensor that no network has ({kind})")
    return content, {}


class DamagedRun(ValueError):
    """A file of a run that cannot be read, or does not belong to it."""


@dataclass
class TrainingState:
    """Where a run stands, whole: its other files are made from it again. Everything random is drawn from (seed, epoch),
    so no random state belongs to it.

    Attributes:
        epoch: the epoch being trained, from 0; `epochs` when training is over.
        step: steps done in it.
        loss_sum: of the images of this epoch's done steps.
        correct: of the same images, those classified right by the logits the student was updated on.
        best_score: the best validation accuracy so far, robust or clean as the method selects, in percent; -1 before
            the first.
        best_epoch: its epoch, from 1; 0 before the first.
        train_seconds: spent in training steps so far.
        elapsed: seconds of the run so far, evaluations included.
        rows: the lines of metrics.jsonl.
        config: the values of the configuration.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    train_seconds: float = 0.0
    elapsed: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    method: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)

    @property
    def is_best(self) -> bool:
        """Whether these are the weights of the best epoch so far."""
        return self.step == 0 and self.epoch == self.best_epoch > 0


def save_state(path: Path, state: TrainingState) -> None:
    """Write a training state in one step."""
    write_atomic(path, lambda part: torch.save({"schema": _SCHEMA, **vars(state)}, part))


def load_state(path: Path) -> TrainingState:
    """Read a training state with `weights_only=True`, its checksums compared.

    Raises:
        FileNotFoundError: no such file.
        DamagedRun: not a training state of this version, or not as it was written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"resume: {path} is missing; there is nothing to go on from")
    try:
        _check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("schema") != _SCHEMA:
            raise ValueError("another schema")
        _check_fields(content)
        return TrainingState(**content)
    except Exception as error:  # a damaged file fails with almost any exception type
        reason = shorten(str(error), 300) or type(error).__name__
        raise DamagedRun(f"resume: {path} is not a training state of this version: {reason}") from error


def _check_sums(path: Path) -> None:
    """torch.save writes checksums; torch.load does not read them."""
    with zipfile.ZipFile(path) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("compressed, as torch.save never writes")
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"damaged: the checksum of {damaged} is wrong")


def _check_fields(content: dict[str, Any]) -> None:
    kinds = {"int": int, "float": (int, float), "list": list, "dict": dict}
    fields = {item.name: kinds[str(item.type).split("[")[0]] for item in dataclasses.fields(TrainingState)}
    if content.keys() != fields.keys():
        raise ValueError(f"its keys differ: {', '.join(map(str, sorted(content.keys() ^ fields.keys(), key=str)))}")
    for name, kind in fields.items():
        value = content[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name} is {type(value).__name__}")
        if isinstance(value, (int, float)) and not -1 <= value < math.inf:
            raise ValueError(f"{name} is {value}")
