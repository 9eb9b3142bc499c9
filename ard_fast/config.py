"""The configuration of a run: one dataclass, from which the command line, the YAML file and the printout are made."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

import yaml

from ard_fast.data import DATASETS
from ard_fast.defaults import DATASET_DEFAULTS, EVERY_METHOD, METHOD_ON_DATASET, presets
from ard_fast.methods import METHODS, MethodSettings, find_method
from ard_fast.models import MODELS
from ard_fast.names import unknown
from ard_fast.options import option

COMPARE = "compare"  # not a method: teacher, then every method of `compare_methods`, for every seed


@dataclass(frozen=True)
class TrainConfig(MethodSettings):
    """Everything that decides a run's result. Names are the YAML keys and, with dashes, the command-line flags."""

    method: str = option(
        COMPARE, "what to train; compare: a teacher, then each of --compare-methods", "what", (*METHODS, COMPARE)
    )
    parity: bool = option(
        False, "reproduce the quirks of the method's published code; they are printed by name", "what"
    )
    dataset: str = option("digits", "images to train on", "what", DATASETS)
    data_dir: str | None = option(None, "folder with cifar-10-batches-bin or cifar-10-batches-py", "what")
    student: str = option("mobilenetv2", "network to train", "what", tuple(MODELS))
    teacher: str | None = option(
        None, "a network's name (trained first, by --teacher-method), a run's folder, or a checkpoint file", "what"
    )
    teacher_model: str | None = option(
        None, "the network of a checkpoint file that does not say", "what", tuple(MODELS)
    )
    clean_teacher: str | None = option(
        None, "mtard, iad-ii: the second teacher, likewise; a network named here is trained on clean images", "what"
    )
    clean_teacher_model: str | None = option(None, "as teacher_model, for clean_teacher", "what", tuple(MODELS))
    seed: int = option(0, "decides weights, data order and attacks", "what")
    compare_methods: tuple[str, ...] = option(("at", "ard"), "methods of a comparison, comma-separated", "what")
    compare_seeds: int = option(3, "seeds of a comparison: seed, seed + 1, ...", "what")

    epochs: int = option(200, "passes over the training images, replays counted", "optimiser")
    batch_size: int = option(128, "images a step", "optimiser")
    lr: float | None = option(None, "learning rate of SGD at the start; default the method's", "optimiser")
    momentum: float = option(0.9, "momentum of SGD", "optimiser")
    nesterov: bool = option(False, "Nesterov's form of the momentum", "optimiser")
    weight_decay: float = option(2e-4, "weight decay, on every parameter", "optimiser")
    schedule: str = option(
        "multistep",
        "multistep: x lr_factor at each milestone; ard: as published, where every drop after the first is a no-op; "
        "cosine: to zero; cyclic: up to lr at half, down to zero; constant",
        "optimiser",
        ("multistep", "ard", "cosine", "cyclic", "constant"),
    )
    milestones: tuple[int, ...] | None = option(
        None, "epochs at which the rate drops, comma-separated; default 1/2 and 3/4 of the epochs", "optimiser"
    )
    lr_factor: float = option(0.1, "what a milestone multiplies the learning rate by", "optimiser")
    teacher_method: str = option("at", "how a teacher given by name is trained", "optimiser", tuple(METHODS))
    teacher_epochs: int | None = option(None, "epochs of a teacher trained first; default as epochs", "optimiser")
    teacher_lr: float | None = option(None, "learning rate of such a teacher; default its method's", "optimiser")

    eval_step_size: float | None = option(
        None, "step of the evaluation attacks (PGD-20 on the test images); default eps/4", "evaluation"
    )
    val_steps: int = option(
        10, "steps of the attack on the validation images that selects the best epoch", "evaluation"
    )
    val_every: int = option(1, "epochs between two validations", "evaluation")
    eval_batch_size: int = option(500, "images a batch in evaluations", "evaluation")

    val_size: int = option(1000, "images held out of CIFAR-10's training files (the digits' split is fixed)", "data")
    subset: int | None = option(None, "train on the first N training images only", "data")
    test_subset: int | None = option(None, "evaluate on the first N test images only", "data")
    crop_padding: int = option(4, "random crop from the image with this border of zeros; 0: none", "data")
    flip: bool = option(True, "random horizontal flip", "data")

    device: str = option("cpu", "cpu, cuda or cuda:N", "machine")
    channels_last: bool = option(False, "keep images and weights in channels-last layout", "machine")
    threads: int = option(0, "CPU threads of torch; 0: torch's own choice", "machine")

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def milestone_epochs(self) -> tuple[int, ...]:
        """The epochs at which the rate drops."""
        return (self.epochs // 2, self.epochs * 3 // 4) if self.milestones is None else self.milestones

    def passes(self) -> int:
        """Passes over the training images: a method that updates m times on each batch makes epochs / m of them."""
        return -(-self.epochs // (self.replays or 1))


_METHOD_FIELDS = tuple(item.name for item in dataclasses.fields(MethodSettings) if item.name != "eps")

PRESETS = presets()

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


# A layer that gives the key on the left, and not those on the right, unsets these: `--eps 0.2` alone takes its steps
# with it.
_FOLLOWERS = {
    "eps": ("step_size", "eval_step_size"),
    "epochs": ("teacher_epochs", "milestones"),
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
                values.update(dict.fromkeys(followers))
        values.update(layer)
    config = TrainConfig(**values)
    validate_names(config)
    methods = config.compare_methods if config.method == COMPARE else (config.method,)
    for key in _METHOD_FIELDS:
        if getattr(config, key) is not None and not any(_has(find_method(name), key) for name in methods):
            known = sorted(set(METHODS[methods[0]].defaults))
            raise ValueError(f"{key}: method {', '.join(methods)} has no such setting; it has {', '.join(known)}")
    config = complete(config)
    validate(config)
    return config


def complete(config: TrainConfig) -> TrainConfig:
    """Fill in what was left to the method: its constants, tuned to the data set where ours are; parity's quirks.

    What the method does not have becomes None. A comparison is completed one method at a time (`for_method`).
    """
    values: dict[str, Any] = {}
    if config.eval_step_size is None:
        values["eval_step_size"] = config.eps / 4
    if config.method == COMPARE:
        return config.replace(**values)
    spec = find_method(config.method)
    on_dataset = METHOD_ON_DATASET.get(config.dataset, {})
    tuned = {**on_dataset.get(EVERY_METHOD, {}), **on_dataset.get(config.method, {})}
    defaults = {**spec.defaults, **{key: value for key, value in tuned.items() if key in spec.defaults}}
    if config.parity:
        for quirk in spec.quirks:
            defaults.update(quirk.settings)
    if spec.attacks:
        defaults.setdefault("step_size", config.eps * spec.step_ratio)
    for key in _METHOD_FIELDS:
        given = getattr(config, key) if _has(spec, key) else None
        values[key] = defaults.get(key) if given is None else given
    if config.parity and "schedule" in defaults:
        values["schedule"] = defaults["schedule"]
    if config.lr is None:
        values["lr"] = tuned.get("lr", spec.paper.get("lr", 0.1))
    return config.replace(**values)


def _has(spec: Any, key: str) -> bool:
    return key in spec.defaults or (key == "step_size" and spec.attacks)


def for_method(config: TrainConfig, method: str, seed: int) -> TrainConfig:
    """The configuration of one run of a comparison."""
    return complete(config.replace(method=method, seed=seed))


def for_teacher(config: TrainConfig, role: str) -> TrainConfig:
    """The configuration that trains the network named by `config.teacher` or `config.clean_teacher`.

    Args:
        config: of the run that needs it.
        role: "teacher", trained by `teacher_method`, or "clean_teacher", trained on clean images.
    """
    method = config.teacher_method if role == "teacher" else "natural"
    return complete(
        config.replace(
            **{**dict.fromkeys(_METHOD_FIELDS), "steps": config.steps},
            method=method,
            parity=False,
            student=getattr(config, role),
            teacher=None,
            clean_teacher=None,
            epochs=config.teacher_epochs or config.epochs,
            milestones=None if config.teacher_epochs else config.milestones,
            lr=config.teacher_lr,
            teacher_lr=None,
            teacher_epochs=None,
        )
    )


def validate_names(config: TrainConfig) -> None:
    """Refuse names that do not exist.

    Raises:
        ValueError: names the field, what it takes and what it got.
    """
    for item in _FIELDS.values():
        choices, value = item.metadata["choices"], getattr(config, item.name)
        if choices and value is not None and value not in choices:
            raise ValueError(f"{item.name}: {unknown('value', str(value), choices)}")
    for method in config.compare_methods:
        if method not in METHODS:
            raise ValueError(f"compare_methods: {unknown('method', method, METHODS)}")


def validate(config: TrainConfig) -> None:
    """Refuse a configuration that cannot run, before any work is done.

    Raises:
        ValueError: names the field, what it takes and what it got.
    """
    validate_names(config)

    def require(name: str, good: bool, wanted: str) -> None:
        if not good:
            raise ValueError(f"{name}: expected {wanted}, got {getattr(config, name)!r}")

    for item in _FIELDS.values():
        value = getattr(config, item.name)
        if isinstance(value, float):
            require(item.name, math.isfinite(value), "a finite number")

    def each(names: str, good: Any, wanted: str) -> None:
        for name in names.split():
            value = getattr(config, name)
            require(name, value is None or good(value), wanted)

    each(
        "epochs batch_size eval_batch_size val_every compare_seeds steps val_steps replays",
        lambda v: v >= 1,
        "at least 1",
    )
    each("teacher_epochs subset test_subset", lambda v: v >= 1, "at least 1")
    each("lr teacher_lr lr_factor temperature", lambda v: v > 0, "more than 0")
    each(
        "crop_padding threads seed weight_decay beta trust_power balance_rate fairness_power",
        lambda v: v >= 0,
        "at least 0",
    )
    each("igdm_weight entropy_scale noise_ratio", lambda v: v >= 0, "at least 0")
    each("eps eval_step_size", lambda v: 0 <= v <= 1, "0 to 1, in units of pixels in [0, 1] (8/255, not 8)")
    each("step_size", lambda v: 0 <= v <= 1, "0 to 1, in units of pixels in [0, 1] (8/255, not 8)")
    each("alpha alpha2", lambda v: 0 <= v <= 1, "0 to 1, the weight of the distillation term")
    each("begin_share", lambda v: 0 <= v <= 1, "0 to 1, a share of the epochs")
    require("momentum", 0 <= config.momentum < 1, "0 to below 1")
    milestones = config.milestone_epochs()
    require("milestones", list(milestones) == sorted(milestones), "increasing epochs")
    if config.device != "cpu" and config.device.split(":")[0] != "cuda":
        raise ValueError(f"device: expected cpu, cuda or cuda:N, got {config.device!r}")
    if config.dataset == "cifar10" and config.data_dir is None:
        raise ValueError(
            "data_dir: cifar10 needs --data-dir, the folder that holds cifar-10-batches-bin or cifar-10-batches-py"
        )
    for method in config.compare_methods if config.method == COMPARE else (config.method,):
        for role in METHODS[method].teachers:
            if getattr(config, role) is None:
                raise ValueError(
                    f"{role}: method {method} needs --{role.replace('_', '-')}: a network's name (trained first), "
                    "the folder of a finished run, or a checkpoint file"
                )
