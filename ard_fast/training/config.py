"""The configuration of a run: from defaults, presets, files and flags to a `TrainConfig` that can run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml

from ard_fast._commandline import checked, flag
from ard_fast._devices import check_device_name, resolve_device
from ard_fast._names import unknown
from ard_fast._typing import known
from ard_fast.data import check_arguments
from ard_fast.methods.registry import EMA_METHODS, EMA_RECIPE, METHODS, find_method, method_label, plain_method
from ard_fast.models import MODELS, find_model
from ard_fast.teachers.cache import CACHE_AUTO, CACHE_OFF
from ard_fast.training.defaults import DATASET_DEFAULTS, EVERY_METHOD, METHOD_ON_DATASET, PRESET_ON_CIFAR10
from ard_fast.training.settings import (
    COMPARE,
    RAMPED,
    ROLES,
    STEPPED,
    AttackSettings,
    ComputeSettings,
    DataSettings,
    EvaluationSettings,
    LossSettings,
    NetworkSettings,
    OptimiserSettings,
    OutputSettings,
    TeacherSettings,
    WeightSettings,
    WhatSettings,
)


class TrainConfig(
    OutputSettings,
    ComputeSettings,
    DataSettings,
    EvaluationSettings,
    TeacherSettings,
    WeightSettings,
    OptimiserSettings,
    LossSettings,
    AttackSettings,
    NetworkSettings,
    WhatSettings,
):
    """Everything that decides a run's result. Names are the YAML keys and, with dashes, the command-line flags."""

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy with some fields changed; `validate` checks them."""
        return self.model_copy(update=changes)

    def methods(self) -> tuple[str, ...]:
        """Of the run, or of each run of a comparison."""
        return self.compare_methods if self.method == COMPARE else (self.method,)

    def milestone_epochs(self) -> tuple[int, ...]:
        """The epochs at which the learning rate drops."""
        if self.milestones is not None:
            return self.milestones
        return max(self.epochs // 2, 1), max(self.epochs * 3 // 4, 1)

    def passes(self) -> int:
        """Passes over the training images: a method that updates m times on each batch makes epochs / m of them."""
        return -(-self.epochs // (self.replays or 1))

    def keeps_logits(self) -> bool:
        """Whether teacher logits of clean images are kept: images have few enough views, and are seen often enough."""
        return self.extra_data is None and not self.cropshift and not self.cutout

    def beside(self) -> dict[str, TrainConfig]:
        """The networks that its methods train beside the student, by role: the configuration with each as the student.

        One that no setting names is like the student.
        """
        roles = dict.fromkeys(role for name in self.methods() for role in find_method(name).networks)
        return {role: self.replace(student=getattr(self, role, None) or self.student) for role in roles}

    def awp_epoch(self) -> int:
        """The first epoch, from 0, whose updates are taken at perturbed weights."""
        return int(self.awp_warmup_share * self.passes())

    def averaging_epoch(self) -> int:
        """The first epoch, from 0, whose weights go into the average."""
        return int(known(self.averaging_start_share) * self.passes())


PATHS = ("data_dir", "image_cache", "extra_data", *ROLES, "teacher_cache")
PLACES = (*PATHS, "device", "threads")
"""Where a run finds its inputs and where it computes, which may change while it is stopped."""
# Settings that a method has or has not.
METHOD_FIELDS = tuple(name for part in (AttackSettings, LossSettings) for name in part.model_fields if name != "eps")

PRESETS: dict[str, dict[str, Any]] = {
    **{f"{name}-paper": {**PRESET_ON_CIFAR10, "method": name, **method.paper} for name, method in METHODS.items()},
    **{name: {"method": name} for name in EMA_METHODS},  # `complete` knows their recipe, here and in a comparison
}
"""For each method NAME-paper, the training recipe of its paper on CIFAR-10 without the quirks of the published code,
and NAME-ema, which adds `EMA_RECIPE` to what suits the data set."""


def parse(mapping: Mapping[Any, Any], source: str | None = None) -> dict[str, Any]:
    """Typed values of a mapping whose keys are field names: flags' texts, or what a YAML file holds.

    Args:
        mapping: only the keys that were given.
        source: named in errors.

    Raises:
        ValueError: an unknown key (with the nearest known one), or a value of the wrong type, name or range.
    """
    config = checked(TrainConfig, mapping, source)
    return {str(key): getattr(config, str(key)) for key in mapping}


class _UniqueKeys(yaml.SafeLoader):
    """Plain YAML whose keys may not be repeated, where PyYAML would keep the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The typed values of a YAML file, for example the `config.yaml` of a run. Nothing in it is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not plain YAML, a key that is unknown or there twice, or a value of the wrong type, name or range.
    """
    return parse(load_yaml(path), str(path))


def load_yaml(path: str | Path) -> dict[Any, Any]:
    """What a YAML file of `key: value` lines holds, values unchecked. Raises as `read_yaml`."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"config: no such file: {path}")
    try:
        found = yaml.load(Path(path).read_bytes(), Loader=_UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or number that does not exist
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        text = f"line {mark.line + 1}: {problem}" if mark and problem else " ".join(str(error).split())
        raise ValueError(f"config: {path} is not YAML: {text}") from error
    if not isinstance(found, dict):
        raise ValueError(f"config: {path} must hold `key: value` lines, got {type(found).__name__}")
    return found


def to_yaml(config: TrainConfig) -> str:
    """The resolved configuration; `read_yaml` gives the same configuration back."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}
    return yaml.safe_dump(values, sort_keys=False)


def is_path(name: str, value: str | None) -> bool:
    """Whether the value of a field of `PATHS` names a file or folder: not a network by its name, nor off or auto."""
    if value is None or (name == "teacher_cache" and value in (CACHE_AUTO, CACHE_OFF)):
        return False
    return name not in ROLES or not (value in MODELS or (":" in value and not Path(value).exists()))


def identity(config: TrainConfig) -> dict[str, Any]:
    """What makes a run the one it is: its settings without `PLACES`. A teacher that is named as a network belongs to
    it; one from a file is known by its weights."""
    places = {name: getattr(config, name) for name in PLACES}
    kept = {name: value for name, value in places.items() if name in ROLES and not is_path(name, value)}
    return {**vars(config), **dict.fromkeys(PLACES), **kept}


# A layer that gives the key on the left, and not those on the right, unsets these: `--eps 0.2` alone takes its steps
# with it.
_FOLLOWERS = {
    "eps": ("step_size", "eval_step_size"),
    "epochs": ("teacher_epochs", "milestones"),
    "optimiser": ("lr", "teacher_lr", "momentum"),
    "cropshift": ("crop_padding",),
}


def resolve(
    flags: Mapping[str, Any],
    *,
    file: Mapping[str, Any] | None = None,
    preset: str | None = None,
    needs_inputs: bool = True,
) -> TrainConfig:
    """The configuration of a run: defaults, then those of the data set, then the preset, the file, the flags.

    Args:
        flags, file: typed values, see `parse`.
        preset: a key of `PRESETS`.
        needs_inputs: see `validate`.

    Raises:
        ValueError: an unknown preset or a configuration that cannot run.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(unknown("preset", preset, PRESETS))
    recipe = PRESETS[preset]["method"] if preset in EMA_METHODS else None
    for layer in (file or {}, flags):
        if recipe is not None and layer.get("method", recipe) != recipe:
            raise ValueError(f"preset: {preset} is a method, expected no other beside it, got {layer['method']}")
    layers = [_written_out(layer) for layer in (PRESETS[preset] if preset else {}, file or {}, flags)]
    given = {key: value for layer in layers for key, value in layer.items()}
    dataset = given.get("dataset", TrainConfig.model_fields["dataset"].default)
    if dataset == "digits" and given.get("data_dir") is not None:
        raise ValueError(
            f"data_dir: expected none for digits, which come with scikit-learn, got {given['data_dir']}; name the data "
            "set of these files with --dataset"
        )
    values: dict[str, Any] = {}
    for layer in (DATASET_DEFAULTS.get(dataset, {}), *layers):
        for key, followers in _FOLLOWERS.items():
            if layer.get(key) is not None:
                values.update(dict.fromkeys(followers))
        values.update(layer)
    config = checked(TrainConfig, values)
    methods = config.methods()
    for key in METHOD_FIELDS:
        if getattr(config, key) is not None and not any(has_setting(find_method(name), key) for name in methods):
            known = ", ".join(sorted(find_method(methods[0]).defaults())) or "none"
            raise ValueError(f"{key}: method {', '.join(methods)} has no such setting; it has {known}")
    config = complete(config).replace(device=resolve_device(config.device))
    validate(config, needs_inputs=needs_inputs)
    _refuse_unused(layers[-1], config)
    return config


def _refuse_unused(flags: Mapping[str, Any], config: TrainConfig) -> None:
    """Refuse settings that were typed and would change nothing; a preset or a file may hold them."""
    runs = [for_method(config, name, config.seed) for name in config.methods()]
    schedules = [run.schedule for run in runs]
    if flags.get("milestones") is not None and not {*schedules} & {*STEPPED}:
        raise ValueError(
            f"milestones: a setting of schedules {' and '.join(STEPPED)}, not of {schedules[0]}, got "
            f"{config.milestones}"
        )
    if flags.get("parity") and not any(run.parity for run in runs):
        raise ValueError(f"parity: method {runs[0].method} is no published code's, expected false")
    if flags.get("ema_decay") is not None and all(run.averaging != "ema" for run in runs):
        raise ValueError(
            f"ema_decay: a setting of averaging ema, not of {runs[0].averaging}, got {flags['ema_decay']:g}; ema sets "
            "both"
        )
    if flags.get("peer") is not None and not config.beside():
        raise ValueError(f"peer: method {', '.join(config.methods())} trains none, got {config.peer}")
    for role in ROLES:
        if flags.get(role) is not None and config.method != COMPARE and role not in find_method(config.method).teachers:
            raise ValueError(f"{role}: method {config.method} has none, got {flags[role]}")


def _written_out(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    """A layer with what `ema` is short for in its place."""
    decay = layer.get("ema")
    if decay is None:
        return layer
    meant = {"averaging": "ema", "ema_decay": decay, "averaging_start_share": 0.0}
    for name in meant:
        if name in layer:
            raise ValueError(f"ema: short for {', '.join(meant)}; expected none of these beside it, got {name} too")
    return {**layer, **meant, "ema": None}


def complete(config: TrainConfig) -> TrainConfig:
    """Fill in what was left to the method: its constants, tuned to the data set where ours are; parity's quirks.

    What the method does not have becomes None. A comparison is completed one method at a time (`for_method`).
    """
    values: dict[str, Any] = {}
    if config.eval_step_size is None:
        values["eval_step_size"] = config.eps / 4
    if config.crop_padding is None:
        values["crop_padding"] = 0 if config.cropshift else 4
    if config.extra_fraction is None and config.extra_data is not None:
        values["extra_fraction"] = 0.7
    if config.momentum is None and config.optimiser == "sgd":
        values["momentum"] = 0.9
    if config.method == COMPARE:
        return config.replace(**values)
    spec, plain = find_method(config.method), plain_method(config.method)
    recipe = {} if plain == config.method else EMA_RECIPE
    on_dataset = METHOD_ON_DATASET.get(config.dataset, {})
    tuned = {**on_dataset.get(EVERY_METHOD, {}), **on_dataset.get(plain, {}), **recipe}
    if recipe:
        tuned.update(on_dataset.get(config.method, {}))
    defaults = {**spec.defaults(), **{key: value for key, value in tuned.items() if key in spec.defaults()}}
    if recipe:
        values["parity"] = False  # it is nobody's published code
    elif config.parity:
        for quirk in spec.quirks:
            defaults.update(quirk.settings)
    if spec.attacks:
        defaults.setdefault("step_size", config.eps * spec.step_ratio)
    for key in METHOD_FIELDS:
        given = getattr(config, key) if has_setting(spec, key) else None
        values[key] = defaults.get(key) if given is None else given
    if config.schedule is None:
        values["schedule"] = defaults.get("schedule", tuned.get("schedule", "multistep"))
    if config.lr is None:
        values["lr"] = tuned.get("lr", spec.paper.get("lr", 0.1)) if config.optimiser == "sgd" else 1e-3
    if config.weight_decay is None:
        values["weight_decay"] = tuned.get("weight_decay", 2e-4)
    if config.averaging is None:
        values["averaging"] = "ema" if recipe else "off"
    if config.ema_decay is None:
        values["ema_decay"] = tuned.get("ema", 0.999)
    if config.averaging_start_share is None:
        values["averaging_start_share"] = 0.0 if recipe else 0.5
    run = config.replace(**values)
    return run if config.label_smoothing is not None else _smoothed_where_it_counts(run)


def has_setting(spec: Any, key: str) -> bool:
    """Whether a method reads one of `METHOD_FIELDS`."""
    return key in spec.defaults() or (key == "step_size" and spec.attacks)


def for_method(config: TrainConfig, method: str, seed: int) -> TrainConfig:
    """The configuration of one run of a comparison, whose labels are smoothed where its loss has a cross-entropy."""
    return _smoothed_where_it_counts(complete(config.replace(method=method, seed=seed)))


def _smoothed_where_it_counts(run: TrainConfig) -> TrainConfig:
    return run if _smooths(run) or not run.label_smoothing else run.replace(label_smoothing=0.0)


def _smooths(run: TrainConfig) -> bool:
    """Whether label smoothing changes the loss of a single method's run."""
    return bool(run.label_smoothing) and (run.alpha is None or run.alpha + (run.alpha2 or 0.0) < 1.0)


def for_teacher(config: TrainConfig, role: str) -> TrainConfig:
    """The configuration that trains the network named by `config.teacher` or `config.clean_teacher`.

    Args:
        config: of the run that needs it.
        role: "teacher", trained by `teacher_method`, or "clean_teacher", trained on clean images.
    """
    method = config.teacher_method if role == "teacher" else "natural"
    # What the student has by its own method, as its schedule, is none of the teacher's.
    own = complete(config.replace(schedule=None, weight_decay=None))
    kept = {key: value for key in ("schedule", "weight_decay") if (value := getattr(config, key)) != getattr(own, key)}
    return complete(
        config.replace(
            **{**dict.fromkeys((*METHOD_FIELDS, "schedule", "weight_decay")), "steps": config.steps, **kept},
            method=method,
            parity=False,
            student=getattr(config, role),
            student_mean=getattr(config, f"{role}_mean"),
            student_std=getattr(config, f"{role}_std"),
            **{f"{other}{part}": None for other in ROLES for part in ("", "_model", "_mean", "_std", "_weights")},
            epochs=config.teacher_epochs or config.epochs,
            milestones=None if config.teacher_epochs else config.milestones,
            lr=config.teacher_lr,
            teacher_lr=None,
            teacher_epochs=None,
            awp_gamma=0.0,
            averaging=None,
            ema_decay=None,
            averaging_start_share=None,
        )
    )


def validate(config: TrainConfig, *, methods: bool = True, needs_inputs: bool = True) -> None:
    """Refuse a configuration that cannot run, before any work is done.

    Args:
        config: resolved.
        methods: look at the methods, too; the module of one of the user's own is imported for that.
        needs_inputs: refuse one that does not say where its images and teachers are.

    Raises:
        ValueError: names the field, what it takes and what it got.
    """
    checked(TrainConfig, vars(config))
    for name in ("student", "peer", *(f"{role}_model" for role in ROLES)):
        value = getattr(config, name)
        if value is not None and (methods or ":" not in value):  # a run that is only read has its code not run
            find_model(value, argument=name)
    for network in ("student", *ROLES):
        mean, std = (getattr(config, f"{network}_{part}") for part in ("mean", "std"))
        if (mean is None) != (std is None):
            raise ValueError(f"{network}_mean: mean and std go together, got mean {mean}, std {std}")
        if std is not None and min(std) <= 0:
            raise ValueError(f"{network}_std: expected numbers above 0, got {std}")
    for role in ROLES:
        weights = getattr(config, f"{role}_weights")
        if weights is not None and not is_path(role, getattr(config, role)):
            raise ValueError(f"{role}_weights: expected none, unless {role} is a checkpoint file, got {weights!r}")
    if len({method_label(name) for name in config.compare_methods}) < len(config.compare_methods):
        raise ValueError(f"compare_methods: expected each method once, got {', '.join(config.compare_methods)}")
    milestones = config.milestone_epochs()
    if list(milestones) != sorted(milestones) or min(milestones, default=0) < 0:
        raise ValueError(f"milestones: expected increasing epochs, got {milestones}")
    for name, unset in (("momentum", None), ("nesterov", False)):
        if config.optimiser != "sgd" and getattr(config, name) != unset:
            raise ValueError(
                f"{name}: a setting of optimiser sgd, not of {config.optimiser}, got {getattr(config, name)}"
            )
    if config.extra_fraction is not None and config.extra_data is None:
        raise ValueError(f"extra_fraction: expected none without extra_data, got {config.extra_fraction:g}")
    if config.cropshift and config.crop_padding:
        raise ValueError(f"crop_padding: expected 0 with cropshift, which crops instead, got {config.crop_padding}")
    if not config.keeps_logits() and is_path("teacher_cache", config.teacher_cache):
        raise ValueError(
            "teacher_cache: expected auto or off with extra_data, cropshift or cutout, where no logits are kept, got "
            f"{config.teacher_cache}"
        )
    if config.warmup_epochs > config.epochs:
        raise ValueError(f"warmup_epochs: expected at most {config.epochs}, the epochs, got {config.warmup_epochs:g}")
    check_device_name(config.device)
    if config.precision == "tf32" and config.device == "cpu":
        raise ValueError("precision: tf32 is an arithmetic of CUDA devices, got device cpu; fp32 and bf16 run there")
    check_arguments(
        config.dataset,
        data_dir=config.data_dir if needs_inputs else "any",
        download=config.download,
        image_size=config.image_size,
        image_cache=config.image_cache,
    )
    runs = [complete(config.replace(method=name)) for name in config.methods()] if methods else []
    for run in runs:
        _validate_method(run, needs_inputs)
    if runs and config.label_smoothing and not any(map(_smooths, runs)):
        at = next((f" at alpha {run.alpha:g}" for run in runs if run.alpha is not None), "")
        raise ValueError(
            f"label_smoothing: expected 0 for method {', '.join(config.methods())}{at}, whose loss has no "
            f"cross-entropy, got {config.label_smoothing:g}"
        )


def _validate_method(config: TrainConfig, needs_teachers: bool) -> None:
    name, method = config.method, find_method(config.method)
    for item in fields(method):
        known = item.name in ("context", *vars(config))
        if item.init and not known and item.default is item.default_factory is MISSING:
            raise ValueError(f"method: {name} has a field {item.name} that is no setting; give it a default")
    if name != plain_method(name) and config.averaging != "ema":
        raise ValueError(f"averaging: expected ema for method {name}, got {config.averaging}")
    if config.awp_gamma and "replays" in method.defaults():
        raise ValueError(
            f"awp_gamma: expected 0 for method {name}, whose single pass moves weights and images, got "
            f"{config.awp_gamma:g}: a weight perturbation needs a pass of its own"
        )
    if config.warmup_epochs and config.schedule in RAMPED:
        raise ValueError(
            f"warmup_epochs: expected 0 with schedule {config.schedule} of method {name}, which rises by itself, got "
            f"{config.warmup_epochs:g}"
        )
    for role in method.teachers:
        epochs = config.teacher_epochs or config.epochs
        if getattr(config, role) in MODELS and config.warmup_epochs > epochs:
            raise ValueError(
                f"warmup_epochs: expected at most {epochs}, the teacher_epochs, got {config.warmup_epochs:g}"
            )
    if config.accumulate > 1 and method.whole_batch:
        raise ValueError(
            f"accumulate: expected 1 for method {name}, which needs the whole batch at once, got {config.accumulate}"
        )
    for role in method.teachers if needs_teachers else ():
        if getattr(config, role) is None:
            raise ValueError(
                f"{role}: method {name} needs {flag(role)}: a network's name (trained first), the folder of a "
                "finished run, or a checkpoint file"
            )
