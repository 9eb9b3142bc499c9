"""The configuration of a run: one dataclass, from which the command line, the YAML file and the printout are made."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any

import yaml

from ard_fast.data import DATASETS
from ard_fast.models import MODELS
from ard_fast.names import unknown

METHODS = ("at", "kd", "ard")
COMPARE = "compare"  # not a method: teacher, then every method of `compare_methods`, for every seed


def _opt(default: Any, help: str, group: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": help, "group": group, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run's result. Names are the YAML keys and, with dashes, the command-line flags.

    Pixels are in [0, 1], so `eps` and the step sizes are too. `alpha` is the weight of the distillation term.
    """

    method: str = _opt(
        COMPARE, "what to train; compare: a teacher, then each of --compare-methods", "what", (*METHODS, COMPARE)
    )
    dataset: str = _opt("digits", "images to train on", "what", DATASETS)
    data_dir: str | None = _opt(None, "folder with cifar-10-batches-bin or cifar-10-batches-py", "what")
    student: str = _opt("mobilenetv2", "network to train", "what", tuple(MODELS))
    teacher: str | None = _opt(
        None, "a network's name (trained first, adversarially), a run's folder, or a checkpoint file", "what"
    )
    teacher_model: str | None = _opt(None, "the network of a checkpoint file that does not say", "what", tuple(MODELS))
    seed: int = _opt(0, "decides weights, data order and attacks", "what")
    compare_methods: tuple[str, ...] = _opt(("at", "ard"), "methods of a comparison, comma-separated", "what")
    compare_seeds: int = _opt(3, "seeds of a comparison: seed, seed + 1, ...", "what")

    epochs: int = _opt(200, "passes over the training images", "optimiser")
    batch_size: int = _opt(128, "images a step", "optimiser")
    lr: float = _opt(0.1, "learning rate of SGD at the start", "optimiser")
    at_lr: float | None = _opt(None, "learning rate for method at, where another one than lr suits it", "optimiser")
    momentum: float = _opt(0.9, "momentum of SGD (no Nesterov)", "optimiser")
    weight_decay: float = _opt(2e-4, "weight decay, on every parameter", "optimiser")
    schedule: str = _opt(
        "multistep",
        "multistep: x lr_factor at each milestone; ard: as published, where every drop after the first is a no-op; "
        "cosine: to zero; constant",
        "optimiser",
        ("multistep", "ard", "cosine", "constant"),
    )
    milestones: tuple[int, ...] | None = _opt(
        None, "epochs at which the rate drops, comma-separated; default 1/2 and 3/4 of the epochs", "optimiser"
    )
    lr_factor: float = _opt(0.1, "what a milestone multiplies the learning rate by", "optimiser")
    teacher_epochs: int | None = _opt(None, "epochs of a teacher trained first; default as epochs", "optimiser")
    teacher_lr: float | None = _opt(None, "learning rate of a teacher trained first; default as at_lr", "optimiser")

    alpha: float = _opt(1.0, "weight of the distillation term; 1 - alpha weighs the clean cross-entropy", "loss")
    temperature: float = _opt(30.0, "softmax temperature of teacher and student in the distillation term", "loss")
    reduction: str = _opt(
        "mean",
        "of the KL: mean divides by batch x classes (the ARD code), batchmean by batch",
        "loss",
        ("mean", "batchmean"),
    )
    eps: float = _opt(8 / 255, "radius of the L-infinity ball; may be written 8/255", "attack")
    step_size: float = _opt(2 / 255, "step of the training attack", "attack")
    steps: int = _opt(10, "steps of the training attack", "attack")
    clamp_start: bool = _opt(
        True, "clamp the attack's random start to [0, 1]; the ARD code does not (each later iterate is)", "attack"
    )
    attack_bn: str = _opt(
        "train",
        "batch norm inside the training attack: train (batch statistics, running ones updated, as the ARD code), "
        "train_frozen (not updated), eval",
        "attack",
        ("train", "train_frozen", "eval"),
    )
    eval_step_size: float = _opt(2 / 255, "step of the evaluation attacks (PGD-20 on the test images)", "evaluation")
    val_steps: int = _opt(10, "steps of the attack on the validation images that selects the best epoch", "evaluation")
    val_every: int = _opt(1, "epochs between two validations", "evaluation")
    eval_batch_size: int = _opt(500, "images a batch in evaluations", "evaluation")

    val_size: int = _opt(1000, "images held out of CIFAR-10's training files (the digits' split is fixed)", "data")
    subset: int | None = _opt(None, "train on the first N training images only", "data")
    test_subset: int | None = _opt(None, "evaluate on the first N test images only", "data")
    crop_padding: int = _opt(4, "random crop from the image with this border of zeros; 0: none", "data")
    flip: bool = _opt(True, "random horizontal flip", "data")

    device: str = _opt("cpu", "cpu, cuda or cuda:N", "machine")
    channels_last: bool = _opt(False, "keep images and weights in channels-last layout", "machine")
    threads: int = _opt(0, "CPU threads of torch; 0: torch's own choice", "machine")

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def milestone_epochs(self) -> tuple[int, ...]:
        """The epochs at which the rate drops."""
        return (self.epochs // 2, self.epochs * 3 // 4) if self.milestones is None else self.milestones


# What suits a data set, on top of the dataclass's own defaults.
DATASET_DEFAULTS: dict[str, dict[str, Any]] = {
    # Tuned on the validation split; benchmarks/NOTES.md says what was tried.
    "digits": {
        "student": "digits-student",
        "teacher": "digits-teacher",
        "epochs": 15,
        "teacher_epochs": 25,
        "batch_size": 64,
        "lr": 0.5,
        "at_lr": 0.05,
        "temperature": 3.0,
        "schedule": "cosine",
        "eps": 0.2,
        "step_size": 0.05,
        "eval_step_size": 0.05,
        "steps": 7,
        "crop_padding": 0,
        "flip": False,
        "threads": 1,  # networks this small only lose time to more
    },
}

# Section 1.2 of our notes on the paper: the constants of its official code.
PRESETS: dict[str, dict[str, Any]] = {
    "ard-paper": {
        "method": "ard",
        "dataset": "cifar10",
        "student": "mobilenetv2",
        "epochs": 200,
        "batch_size": 128,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 2e-4,
        "schedule": "ard",
        "milestones": (100, 150),
        "lr_factor": 0.1,
        "alpha": 1.0,
        "temperature": 30.0,
        "reduction": "mean",
        "eps": 8 / 255,
        "step_size": 2 / 255,
        "steps": 10,
        "clamp_start": False,
        "attack_bn": "train",
        "eval_step_size": 2 / 255,
        "crop_padding": 4,
        "flip": True,
    },
}

_FIELDS = {item.name: item for item in dataclasses.fields(TrainConfig)}
_TYPES = typing.get_type_hints(TrainConfig)


def flag(name: str) -> str:
    """The command-line flag of a field: `data_dir` -> `--data-dir`."""
    return "--" + name.replace("_", "-")


def fields_by_group() -> dict[str, list[dataclasses.Field]]:
    """The fields under their headings, in the order of the dataclass."""
    groups: dict[str, list[dataclasses.Field]] = {}
    for item in _FIELDS.values():
        groups.setdefault(item.metadata["group"], []).append(item)
    return groups


def parse_value(name: str, value: Any) -> Any:
    """A field's value from a flag's text or from YAML, with its type checked.

    Raises:
        ValueError: names the field, what it takes and what it got.
    """
    kind = _TYPES[name]
    if isinstance(kind, UnionType):  # X | None
        if value is None or value == "none":
            return None
        kind = next(arg for arg in typing.get_args(kind) if arg is not type(None))
    try:
        if typing.get_origin(kind) is tuple:
            element = typing.get_args(kind)[0]
            items = [part for part in value.split(",") if part] if isinstance(value, str) else list(value)
            return tuple(_scalar(element, item) for item in items)
        return _scalar(kind, value)
    except (TypeError, ValueError, ZeroDivisionError):
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, "a list")
        raise ValueError(f"{name}: expected {wanted}, got {value!r}") from None


def _scalar(kind: type, value: Any) -> Any:
    if kind is bool:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if isinstance(value, bool):
            return value
        raise ValueError
    if value is None or isinstance(value, (bool, list, dict)):
        raise ValueError
    if kind is float:
        if isinstance(value, str) and value.count("/") == 1:  # 8/255
            numerator, denominator = value.split("/")
            return float(numerator) / float(denominator)
        return float(value)
    if kind is int:
        if isinstance(value, float):
            raise ValueError
        return int(value)
    if not isinstance(value, str):
        raise ValueError
    return value


def parse_mapping(mapping: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Typed values of a mapping whose keys are field names.

    Args:
        mapping: for example what a YAML file holds.
        source: named in errors.

    Raises:
        ValueError: an unknown key (with the nearest known one) or a value of the wrong type.
    """
    for key in mapping:
        if key not in _FIELDS:
            raise ValueError(f"{source}: {unknown('key', str(key), _FIELDS)}")
    return {key: parse_value(key, value) for key, value in mapping.items()}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The typed values of a YAML file, for example the `config.yaml` of a run."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"config: no such file: {path}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"config: {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"config: {path} must hold `key: value` lines, got {type(content).__name__}")
    return parse_mapping(content, str(path))


def to_yaml(config: TrainConfig) -> str:
    """The resolved configuration; `read_yaml` gives the same configuration back."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}
    return yaml.safe_dump(values, sort_keys=False)


# A layer that gives the key on the left, and not those on the right, sets these too: `--eps 0.2` alone takes its steps
# with it, `--lr` alone goes for every network of the run.
_FOLLOWERS: dict[str, dict[str, Any]] = {
    "eps": {"step_size": lambda eps: eps / 4, "eval_step_size": lambda eps: eps / 4},
    "lr": {"at_lr": lambda _: None, "teacher_lr": lambda _: None},
    "at_lr": {"teacher_lr": lambda _: None},
    "epochs": {"teacher_epochs": lambda _: None, "milestones": lambda _: None},
}


def resolve(
    flags: Mapping[str, Any], *, file: Mapping[str, Any] | None = None, preset: str | None = None
) -> TrainConfig:
    """The configuration of a run: defaults, then those of the data set, then the preset, the file, the flags.

    Raises:
        ValueError: an unknown preset or a configuration that cannot run.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(unknown("preset", preset, PRESETS))
    layers = [PRESETS[preset] if preset else {}, file or {}, flags]
    dataset = next((layer["dataset"] for layer in reversed(layers) if "dataset" in layer), TrainConfig.dataset)
    values: dict[str, Any] = {}
    for layer in (DATASET_DEFAULTS.get(dataset, {}), *layers):
        for key, followers in _FOLLOWERS.items():
            if key in layer:
                values.update({name: follow(layer[key]) for name, follow in followers.items()})
        values.update(layer)
    config = TrainConfig(**values)
    if config.method == "at" and config.at_lr is not None:
        config = config.replace(lr=config.at_lr, at_lr=None)
    validate(config)
    return config


def validate(config: TrainConfig) -> None:
    """Refuse a configuration that cannot run, before any work is done.

    Raises:
        ValueError: names the field, what it takes and what it got.
    """
    for item in _FIELDS.values():
        choices, value = item.metadata["choices"], getattr(config, item.name)
        if choices and value is not None and value not in choices:
            raise ValueError(f"{item.name}: {unknown('value', str(value), choices)}")

    def require(name: str, good: bool, wanted: str) -> None:
        if not good:
            raise ValueError(f"{name}: expected {wanted}, got {getattr(config, name)!r}")

    for item in _FIELDS.values():
        value = getattr(config, item.name)
        if isinstance(value, float):
            require(item.name, math.isfinite(value), "a finite number")
    for name in ("epochs", "batch_size", "eval_batch_size", "val_every", "compare_seeds", "steps", "val_steps"):
        require(name, getattr(config, name) >= 1, "at least 1")
    for name in ("teacher_epochs", "subset", "test_subset"):
        require(name, getattr(config, name) is None or getattr(config, name) >= 1, "at least 1")
    for name in ("lr", "at_lr", "teacher_lr", "lr_factor", "temperature"):
        require(name, getattr(config, name) is None or getattr(config, name) > 0, "more than 0")
    for name in ("crop_padding", "threads", "seed", "weight_decay"):
        require(name, getattr(config, name) >= 0, "at least 0")
    for name in ("eps", "step_size", "eval_step_size"):
        require(name, 0 <= getattr(config, name) <= 1, "0 to 1, in units of pixels in [0, 1] (8/255, not 8)")
    require("momentum", 0 <= config.momentum < 1, "0 to below 1")
    require("alpha", 0 <= config.alpha <= 1, "0 to 1, the weight of the distillation term")
    milestones = config.milestone_epochs()
    require("milestones", list(milestones) == sorted(milestones), "increasing epochs")
    if config.device != "cpu" and config.device.split(":")[0] != "cuda":
        raise ValueError(f"device: expected cpu, cuda or cuda:N, got {config.device!r}")
    if config.dataset == "cifar10" and config.data_dir is None:
        raise ValueError(
            "data_dir: cifar10 needs --data-dir, the folder that holds cifar-10-batches-bin or cifar-10-batches-py"
        )
    for method in config.compare_methods if config.method == COMPARE else (config.method,):
        if method not in METHODS:
            raise ValueError(f"compare_methods: {unknown('method', method, METHODS)}")
        if method in ("kd", "ard") and config.teacher is None:
            raise ValueError(
                f"teacher: method {method} needs --teacher: a network's name (trained first, adversarially), "
                "the folder of a finished run, or a checkpoint file"
            )
