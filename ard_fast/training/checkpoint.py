"""Weights as safetensors, and the state from which a run goes on."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ard_fast._files import write_atomic
from ard_fast.models import Normalised, build_model, match_published
from ard_fast.models.registry import ROBUSTBENCH
from ard_fast.models.trial import frozen
from ard_fast.models.weights_file import cause, check_sums, digest, read_weights

BEST, LAST, STATE, CONFIG = "best.safetensors", "last.safetensors", "training_state.pt", "config.yaml"
_SCHEMA = 4  # 3: a --subset was of the first images


def save_weights(
    path: Path,
    model: nn.Module,
    *,
    name: str,
    num_classes: int,
    in_channels: int,
    class_names: Sequence[str] = (),
) -> None:
    """Write a network's parameters and buffers, with what is needed to build it again.

    Args:
        path: the file; replaced in one step.
        model: the network.
        name: its name as `ard_fast.models.build_model` takes it.
        num_classes: its number of logits.
        in_channels: the channels of its images.
        class_names: what its logits stand for, so that they can be held against those of an image folder.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    places: set[int] = set()
    for key, value in tensors.items():  # a tied weight has two names; safetensors takes no memory twice
        place = value.untyped_storage().data_ptr()
        tensors[key] = value.clone() if place in places else value
        places.add(place)
    metadata = {
        "model": name,
        "num_classes": str(num_classes),
        "in_channels": str(in_channels),
        "format": "pt",
        "sha256": digest(tensors),
    }
    if class_names:
        metadata["class_names"] = json.dumps(list(class_names))
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
            runs = sorted(file.parent.name for file in path.glob(f"*/{BEST}"))
            if runs:
                names = f"{', '.join(runs[:9])}{', ...' * (len(runs) > 9)}"
                raise FileNotFoundError(f"{argument}: {path} holds several runs; name the folder of one: {names}")
            raise FileNotFoundError(
                f"{argument}: {path} holds no {BEST}; is it the folder of a run that has validated?"
            )
        return path / BEST
    if not path.is_file():
        raise FileNotFoundError(f"{argument}: {path} is neither a network's name nor an existing folder or file")
    return path


def written_by_run(source: str | Path) -> bool:
    """Whether the weights at a path, a run's folder or a file, are those that a run has written."""
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    return (folder / CONFIG).is_file() and (path.is_dir() or path.name in (BEST, LAST))


def load_network(
    source: str | Path,
    *,
    num_classes: int,
    in_channels: int,
    model: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: str | None = None,
    argument: str = "teacher",
    model_argument: str = "teacher_model",
) -> nn.Module:
    """A trained network from a run's folder, a `.safetensors` file, a file written by `torch.save`, or a factory.

    Published state dicts fit as they are: see `ard_fast.models.match_published`. Of several in a
    file, such as weights and their average, the trained ones are taken, and a warning names the others. Pickles are
    loaded with `weights_only=True`; a file cannot name code to run: only the caller can, with `source` or `model`.

    Args:
        source: the folder or file; or `package.module:factory`, whose network is taken to be trained.
        num_classes: what the data set needs.
        in_channels: what the data set needs.
        model: the network's name as `build_model` takes it, where the file does not say; a factory (or timm network)
            is taken in any case, another name must agree with the file's.
        mean: of each channel in [0, 1] pixels, for a network that was trained on normalised images and whose file does
            not carry it; the network returned takes pixels and normalises them.
        std: likewise.
        weights: of several sets of weights in the file the one to take, by its key or wrapper: "ema".
        argument: what errors call `source`.
        model_argument: what errors call `model`; those about `mean` and `std` call them `<argument>_mean`, `_std`.

    Returns:
        The network on the CPU, in eval mode, without trainable parameters.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: another network or another number of classes, an unreadable file, or weights that are not finite.
    """
    opened = open_network(
        source,
        num_classes=num_classes,
        in_channels=in_channels,
        model=model,
        mean=mean,
        std=std,
        weights=weights,
        argument=argument,
        model_argument=model_argument,
    )
    if opened.others and weights is None:
        warnings.warn(f"{argument}: {opened.choice()}; {argument}_weights names another", stacklevel=2)
    return opened.network


class Opened(NamedTuple):
    """A network from a file or factory, and which weights it has.

    Attributes:
        network: as `load_network` returns it.
        name: of the network, as `build_model` takes it.
        file: with its weights; None where a factory made them.
        weights: the key or wrapper under which the weights were found; empty where there was none.
        others: those of other sets of weights in the file.
    """

    network: nn.Module
    name: str
    file: Path | None = None
    weights: str = ""
    others: tuple[str, ...] = ()

    def choice(self) -> str:
        """Which weights were taken of which, in words."""
        return f"the file holds {len(self.others) + 1} sets of weights: {self.weights!r} is taken, not " + " or ".join(
            map(repr, self.others)
        )


def open_network(
    source: str | Path,
    *,
    num_classes: int,
    in_channels: int,
    model: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: str | None = None,
    argument: str = "teacher",
    model_argument: str = "teacher_model",
) -> Opened:
    """As `load_network`, and what was found; without a warning."""
    if (mean is None) != (std is None):
        raise ValueError(f"{argument}_mean: mean and std go together, got mean {mean}, std {std}")
    if isinstance(source, str) and ":" in source and not Path(source).exists():
        if source.startswith("timm:"):
            raise ValueError(f"{argument}: {source} has no weights; name their file, and {source} as {model_argument}")
        network = build_model(source, num_classes, in_channels, argument=argument)
        network = normalised(network, None, mean, std, in_channels=in_channels, argument=argument, name=source)
        return Opened(frozen(network), source)
    path = find_weights(source, argument=argument)
    found = read_weights(path, argument=argument, name=weights)
    name = _network_name(found.metadata, model, path, argument=argument, model_argument=model_argument)
    for what, wanted in (("num_classes", num_classes), ("in_channels", in_channels)):
        if found.metadata.get(what, str(wanted)) != str(wanted):
            raise ValueError(f"{argument}: {path} has {what} {found.metadata[what]}, the data set needs {wanted}")
    network = build_model(name, num_classes, in_channels, argument=model_argument)
    matched = match_published(found.tensors, network, weights)
    taken = ".".join(filter(None, (found.name, matched.name)))
    others = (*found.others, *(".".join(filter(None, (found.name, other))) for other in matched.others))
    if weights is not None and weights not in (taken, found.name, matched.name, *taken.split(".")):
        sets = ", ".join(map(repr, (taken, *others))) if others else "one set of weights"
        raise ValueError(f"weights: {path} holds {sets}, not {weights!r}")
    _fill(network, matched.weights, f"{argument}: {path} does not fit {name} with {num_classes} classes")
    for key, value in network.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{argument}: {path} holds values that are not finite, in {key}")
    network = normalised(
        network, matched.normaliser, mean, std, in_channels=in_channels, argument=f"{argument}: {path}"
    )
    return Opened(frozen(network), name, path, taken, others)


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


def normalised(
    network: nn.Module,
    found: tuple[Tensor, Tensor] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    *,
    in_channels: int,
    argument: str,
    name: str = "",
) -> nn.Module:
    """The network called `name` behind the normaliser of its file or the one given, if there is one."""
    given = None if mean is None or std is None else (torch.tensor(mean).flatten(), torch.tensor(std).flatten())
    inside = name.startswith(f"{ROBUSTBENCH}:") or {"mean", "std"} <= dict(network.named_buffers(recurse=False)).keys()
    if given is not None and inside:
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


def _fill(network: nn.Module, weights: Mapping[str, Tensor], complaint: str) -> None:
    """Load a state dict.

    Raises:
        ValueError: `complaint`, followed by the first keys and shapes that do not fit, in one line.
    """
    own = network.state_dict()
    wrong = {
        f"of its {len(own)} keys missing": [key for key in own if key not in weights],
        "unexpected": [key for key in weights if key not in own],
        "of another shape (size mismatch)": [
            f"{key} {list(value.shape)}, not {list(own[key].shape)}"
            for key, value in weights.items()
            if key in own and not is_lazy(own[key]) and value.shape != own[key].shape
        ],
    }
    if any(wrong.values()):
        parts = [
            f"{len(keys)} {what}: {', '.join(keys[:3])}{', ...' * (len(keys) > 3)}"
            for what, keys in wrong.items()
            if keys
        ]
        raise ValueError(f"{complaint}: {'; '.join(parts)}")
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError) as error:  # quantised or otherwise odd tensors
        raise ValueError(f"{complaint}: {cause(error)}") from error


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
        cpu: seconds of processor time likewise, of all threads of the main process.
        rows: the lines of metrics.jsonl.
        config: the values of the configuration.
        inputs: hashes of the images and of the teachers' weights, by what they are called in messages.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    train_seconds: float = 0.0
    elapsed: float = 0.0
    cpu: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
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
        check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("schema") != _SCHEMA:
            raise ValueError("another schema")
        return TrainingState(**content)
    except Exception as error:  # a damaged file fails with almost any exception type
        reason = cause(error)
        raise DamagedRun(f"resume: {path} is not a training state of this version: {reason}") from error
