"""The settings of a run, by subject. Each field is a YAML key and, with dashes, a command-line flag.

A new setting needs nothing but its line here: flag, help, YAML key and checks are made from it.
"""

from __future__ import annotations

import reprlib
import typing
from collections.abc import Mapping
from textwrap import shorten
from types import NoneType
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from ard_fast._commandline import number
from ard_fast._devices import AUTO, PRECISIONS
from ard_fast._names import unknown
from ard_fast.data import DATASETS
from ard_fast.data.loader import RESIDENT
from ard_fast.methods.registry import METHODS
from ard_fast.models import MODELS
from ard_fast.teachers.cache import CACHE_AUTO, CACHE_DTYPES
from ard_fast.teachers.inference import PRECISIONS as TEACHER_PRECISIONS
from ard_fast.training.averaging import AVERAGINGS

COMPARE = "compare"  # not a method: teacher, then every method of `compare_methods`, for every seed
SWITCH = (AUTO, "true", "false")
GRAPHS = (AUTO, "off", "attack", "iteration")
SCHEDULES = ("multistep", "ard", "cosine", "cyclic", "constant")


S = TypeVar("S", bound="FlagModel")
_WANTED: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_LISTS: dict[type, str] = {int: "a list of whole numbers", float: "a list of numbers", str: "a list of names"}
_PIXELS = "in units of pixels in [0, 1] (8/255, not 8)"
_SHARE = "a share of the epochs"
_WEIGHT = "the weight of the distillation term"


def choice(default: Any, names: tuple[str, ...], description: str) -> Any:
    """A field that takes one of these names, or a list of them."""
    return Field(default, description=description, json_schema_extra={"choices": list(names)})


def measured(default: Any, unit: str, description: str, *, lt: float | None = None) -> Any:
    """A field from 0 to 1, or to below `lt`, with what its numbers stand for."""
    le = 1 if lt is None else None
    return Field(default, ge=0, le=le, lt=lt, description=description, json_schema_extra={"unit": unit})


class FlagModel(BaseModel):
    """Base of the groups below; pydantic checks types, ranges and names when one is made.

    Numbers may be given as text and as fractions (8/255), lists with commas (3,5), None as `none`, truth as true or
    false. A broken number is never cut to a whole one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    group: ClassVar[str] = ""

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        kind, is_list, may_be_none = value_type(field)
        if value is None or (value == "none" and may_be_none):
            return None
        if is_list:
            parts = [part for part in value.split(",") if part] if isinstance(value, str) else value
            return [_read_one(part, kind) for part in parts] if isinstance(parts, (list, tuple)) else parts
        if isinstance(value, bool) and "true" in choices(field):
            return str(value).lower()
        return _read_one(value, kind)

    @field_validator("*")
    @classmethod
    def _check_name(cls, value: Any, info: ValidationInfo) -> Any:
        names = choices(cls.model_fields[str(info.field_name)])
        for part in value if isinstance(value, tuple) else (value,):
            if names and part is not None and part not in names:
                raise ValueError(unknown("value", part, names))
        return value


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The names that a field takes; empty where it takes others."""
    return tuple(extra(field).get("choices", ()))


def value_type(field: FieldInfo) -> tuple[type, bool, bool]:
    """The type of a field's value or of its parts, whether it is a list, and whether it may be None."""
    kind: Any = field.annotation
    may_be_none = NoneType in typing.get_args(kind)
    if may_be_none:
        kind = typing.get_args(kind)[0]
    is_list = typing.get_origin(kind) is tuple
    return (typing.get_args(kind)[0] if is_list else kind), is_list, may_be_none


def checked(kind: type[S], values: Mapping[Any, Any], source: str | None = None) -> S:
    """A model of settings from values of some of its fields; pydantic's errors become one line.

    Args:
        kind: the model.
        values: texts of flags, what a YAML file holds, or values of the fields' own types.
        source: named in errors.

    Raises:
        ValueError: an unknown key (with the nearest known one), or a value of the wrong type, name or range.
    """
    values = {str(key): value for key, value in values.items()}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        text = _one_line(kind, values, error)
    raise ValueError(f"{source}: {text}" if source else text)


def _one_line(kind: type[FlagModel], values: Mapping[str, Any], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name, what = str(first["loc"][0]), first["type"]
    if what == "extra_forbidden":
        return unknown("key", shorten(name, 80), kind.model_fields)
    if what == "value_error":
        return f"{name}: {first.get('ctx', {}).get('error')}"
    field = kind.model_fields[name]
    if what == "finite_number":
        return f"{name}: expected a finite number, got {first['input']}"
    if what.startswith(("greater_than", "less_than")):
        unit = extra(field).get("unit")
        return f"{name}: expected {_range(field)}{f', {unit}' if unit else ''}, got {first['input']!r}"
    of, is_list, _ = value_type(field)
    return f"{name}: expected {(_LISTS if is_list else _WANTED)[of]}, got {reprlib.repr(values[name])}"


def _range(field: FieldInfo) -> str:
    """For example `at least 1`, or `0 to below 1`."""
    limits = {
        key: getattr(item, key) for item in field.metadata for key in ("ge", "gt", "le", "lt") if hasattr(item, key)
    }
    if "le" in limits or "lt" in limits:
        return f"{limits['ge']} to {limits['le']}" if "le" in limits else f"{limits['ge']} to below {limits['lt']}"
    return f"at least {limits['ge']}" if "ge" in limits else f"more than {limits['gt']}"


def extra(field: FieldInfo) -> dict[str, Any]:
    """What a field says of itself beside pydantic's own: choices, unit, metavar."""
    return typing.cast("dict[str, Any]", field.json_schema_extra or {})


def _read_one(value: Any, kind: type) -> Any:
    """What pydantic is to look at: it alone would take true for 1, 1 for true and 3.0 for 3."""
    no_truth = kind is bool and not isinstance(value, (bool, str))
    if no_truth or (kind is not bool and isinstance(value, bool)) or (kind is int and isinstance(value, float)):
        raise PydanticCustomError("wrong_type", "of another type")
    if kind is float and isinstance(value, str):
        return number(value)
    return int(value) if kind is int and isinstance(value, str) and value.strip("- ").isdecimal() else value


# ---- the fields ----------------------------------------------------------------------------------------------------


class WhatSettings(FlagModel):
    """What is trained: method, data set and seeds."""

    group = "what"
    method: str = choice(
        COMPARE, (*METHODS, COMPARE), "what to train; compare: a teacher, then each of --compare-methods"
    )
    parity: bool = Field(False, description="reproduce the quirks of the method's published code, printed by name")
    dataset: str = choice("digits", DATASETS, "images to train on")
    data_dir: str | None = Field(
        None, description="folder of the CIFAR or MNIST files, the .npz file, or the folder with train/ and test/"
    )
    seed: int = Field(0, ge=0, description="decides weights, data order and attacks")
    compare_methods: tuple[str, ...] = choice(("at", "ard"), tuple(METHODS), "methods of a comparison, as at --method")
    compare_seeds: int = Field(3, ge=1, description="seeds of a comparison: seed, seed + 1, ...")


class NetworkSettings(FlagModel):
    """Names, files and normalisers of the networks. Images are pixels in [0, 1] outside them, always."""

    group = "networks"
    student: str = Field(
        "mobilenetv2", description=f"network to train: {', '.join(MODELS)}, timm:NAME or package.module:factory"
    )
    student_mean: tuple[float, ...] | None = Field(
        None, description="channel means of pixels in [0, 1], subtracted inside the network"
    )
    student_std: tuple[float, ...] | None = Field(None, description="channel standard deviations, likewise")
    teacher: str | None = Field(
        None, description="a network's name (trained first), a run's folder, a checkpoint, or package.module:factory"
    )
    teacher_model: str | None = Field(None, description="network of a checkpoint file that does not name it")
    teacher_mean: tuple[float, ...] | None = Field(None, description="as --student-mean")
    teacher_std: tuple[float, ...] | None = Field(None, description="as --student-std")
    teacher_weights: str | None = Field(None, description="which weights of a checkpoint file with several, e.g. ema")
    clean_teacher: str | None = Field(
        None, description="second teacher of mtard and iad-ii; a network's name: trained first, on clean images"
    )
    clean_teacher_model: str | None = Field(None, description="as --teacher-model")
    clean_teacher_mean: tuple[float, ...] | None = Field(None, description="as --student-mean")
    clean_teacher_std: tuple[float, ...] | None = Field(None, description="as --student-std")
    clean_teacher_weights: str | None = Field(None, description="as --teacher-weights")


class AttackSettings(FlagModel):
    """The training attack. None stands for the method's own constant; a method without the setting refuses it."""

    group = "attack"
    eps: float = measured(8 / 255, _PIXELS, "radius of the L-infinity ball, pixels in [0, 1]; may be written 8/255")
    step_size: float | None = measured(None, _PIXELS, "step of the attack; default: eps times the method's ratio")
    steps: int | None = Field(None, ge=1, description="steps of the attack")
    clamp_start: bool | None = Field(None, description="clamp the attack's start to [0, 1]; published codes do not")
    attack_bn: str | None = choice(
        None, ("train", "train_frozen", "eval"), "batch norm in the attack; train updates the running statistics"
    )
    noise_ratio: float | None = Field(None, ge=0, description="n-fgsm: half-width of the start's noise in eps")
    replays: int | None = Field(None, ge=1, description="free, fast-ard: updates on each batch (batch repeats, m)")
    delta_gradient: str | None = choice(
        None, ("ce", "kd"), "fast-ard: loss that the perturbation ascends, cross-entropy or distillation"
    )


class LossSettings(FlagModel):
    """The loss. None stands for the method's own constant; a method without the setting refuses it."""

    group = "loss"
    alpha: float | None = measured(None, _WEIGHT, "weight of the adversarial distillation term; 1 - alpha: the other")
    alpha2: float | None = measured(None, _WEIGHT, "iad-ii: weight of the standard teacher")
    beta: float | None = Field(None, ge=0, description="trades, mart: weight of the divergence")
    temperature: float | None = Field(None, gt=0, description="softmax temperature of teacher and student")
    reduction: str | None = choice(
        None, ("mean", "batchmean"), "of the KL: mean divides by batch x classes (the ARD code), batchmean by batch"
    )
    begin_share: float | None = measured(
        None, _SHARE, "iad-i, iad-ii, adaiad: share of the epochs before the student's own term begins"
    )
    trust_power: float | None = Field(
        None, ge=0, description="iad-i, iad-ii, adaiad: exponent of the teacher's probability"
    )
    trust_teacher: bool | None = Field(
        None, description="iad-i, adaiad: weigh the teacher's term by its trust, as the formula; the codes do not"
    )
    balance_rate: float | None = Field(
        None, ge=0, description="learning rate of mtard's weights, of absld's temperatures"
    )
    temperature_product: bool | None = Field(
        None, description="absld: divide by the product of a class's two temperatures, as published"
    )
    fairness_power: float | None = Field(None, ge=0, description="fair-ard: exponent of the class weights")
    igdm_weight: float | None = Field(
        None, ge=0, description="igdm, saad: weight of the gradient matching at the last epoch"
    )
    entropy_scale: float | None = Field(None, ge=0, description="saad: scale of the weights by the teacher's entropy")
    clean_branch: bool | None = Field(
        None, description="the student's clean forward even at weight 0, as published codes (moves batch norm)"
    )
    repeat_clean: bool | None = Field(None, description="trades: the clean forward twice, as published")


class OptimiserSettings(FlagModel):
    """SGD, its schedule and the length of training."""

    group = "optimiser"
    epochs: int = Field(200, ge=1, description="passes over the training images, batch repeats counted")
    batch_size: int = Field(128, ge=1, description="images a step, over all processes and micro-batches")
    accumulate: int = Field(1, ge=1, description="micro-batches a step, whose gradients add up; saves memory")
    lr: float | None = Field(None, gt=0, description="learning rate at the start; default: the method's")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    nesterov: bool = Field(False, description="Nesterov's form of the momentum")
    weight_decay: float = Field(2e-4, ge=0, description="weight decay, on every parameter")
    schedule: str | None = choice(
        None, SCHEDULES, "ard: as multistep, but only the first drop acts, as published; cyclic: up to lr and down"
    )
    milestones: tuple[int, ...] | None = Field(
        None, description="epochs at which the learning rate drops; default: 1/2 and 3/4 of the epochs"
    )
    lr_factor: float = Field(0.1, gt=0, description="what a milestone multiplies the learning rate by")


class WeightSettings(FlagModel):
    """What any method's training may do to the weights besides updating them."""

    group = "weights"
    awp_gamma: float = Field(
        0.0,
        ge=0,
        description="adversarial weight perturbation, relative to the weights' norms (0.005 to 0.01); 0: none",
    )
    awp_warmup_share: float = measured(0.05, _SHARE, "share of the epochs before it begins")
    averaging: str = choice(
        "none", tuple(dict.fromkeys(("none", *AVERAGINGS))), "validate, keep and test an average of the weights"
    )
    ema_decay: float = Field(0.999, ge=0, lt=1, description="decay of ema; less in the first updates")
    averaging_start_share: float = measured(0.5, _SHARE, "share of the epochs before the averaging begins", lt=1)


class TeacherSettings(FlagModel):
    """How teachers are trained and asked."""

    group = "teacher"
    teacher_method: str = choice("at", tuple(METHODS), "method that trains a teacher given by name")
    teacher_epochs: int | None = Field(None, ge=1, description="epochs of such a teacher; default: as --epochs")
    teacher_lr: float | None = Field(None, gt=0, description="learning rate of such a teacher; default: its method's")
    teacher_precision: str = choice(
        AUTO, (AUTO, *TEACHER_PRECISIONS), "arithmetic of the teacher; auto: bf16 where the training step is, else fp32"
    )
    teacher_cache: str = Field(
        CACHE_AUTO,
        description="teacher logits of clean images: off, auto (in memory if few, else on disk), or a folder",
    )
    teacher_cache_dtype: str = choice("fp32", CACHE_DTYPES, "fp16 halves that table and rounds the logits")


class EvaluationSettings(FlagModel):
    """The attacks that select the best epoch and that test it."""

    group = "evaluation"
    eval_step_size: float | None = measured(None, _PIXELS, "step of the evaluation attacks; default: eps/4")
    val_steps: int = Field(10, ge=1, description="steps of the attack on the validation images, which select the epoch")
    val_every: int = Field(1, ge=1, description="epochs between two validations")
    eval_batch_size: int = Field(500, ge=1, description="images a batch in evaluations")


class DataSettings(FlagModel):
    """Splits and augmentation."""

    group = "data"
    download: bool = Field(False, description="fetch missing CIFAR or MNIST files into --data-dir, checksummed")
    image_size: int | None = Field(
        None, description="folder: scale the shorter side to this, take the middle; none: all have one size"
    )
    image_cache: str | None = Field(
        None, description="folder: where decoded images are kept; none: .ard_fast_cache in --data-dir"
    )
    val_size: int | None = Field(
        None, description="images held out of the training files; none: 1000, at most a tenth of them"
    )
    subset: int | None = Field(None, ge=1, description="train on N of the training images, of every class its share")
    test_subset: int | None = Field(None, ge=1, description="evaluate on N of the test images, likewise")
    crop_padding: int = Field(4, ge=0, description="random crop from the image with this border of zeros; 0: none")
    flip: bool = Field(True, description="random horizontal flip")


class ComputeSettings(FlagModel):
    """Where and how a run computes: nothing here is meant to change its result beyond rounding."""

    group = "compute"
    device: str = Field(AUTO, description="cpu, cuda, cuda:N, or auto: cuda where there is one")
    sync_bn: bool = Field(True, description="several GPUs: batch norm over the whole batch, as one process has it")
    precision: str = choice(
        AUTO, PRECISIONS, "arithmetic of the training step; auto: bf16 on GPUs that have it, else fp32"
    )
    channels_last: str = choice(AUTO, SWITCH, "channels-last layout; auto: where the network runs in it")
    fold: str = choice(AUTO, SWITCH, "attacks in eval mode use the student with batch norm folded; auto: true")
    graph: str = choice(AUTO, GRAPHS, "CUDA graph of the whole step, of the attack only, or off; changes time only")
    compile: bool = Field(False, description="torch.compile the student's forward")
    threads: int = Field(0, ge=0, description="CPU threads; 0: OMP_NUM_THREADS, else the physical cores")
    resident: str = choice(
        "auto", RESIDENT, "training images on the device; auto: if they take half of its free memory"
    )


class OutputSettings(FlagModel):
    """What a run writes beside its results."""

    group = "output"
    save_every_seconds: float | None = Field(
        None, ge=0, description="checkpoint inside an epoch when the last one is this old; none: after epochs only"
    )
    tensorboard: bool = Field(False, description="write the metrics for TensorBoard too, to the run's folder")
