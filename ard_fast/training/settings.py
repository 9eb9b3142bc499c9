"""The settings of a run, by subject. Each field is a YAML key and, with dashes, a command-line flag.

A new setting needs nothing but its line here: flag, help, YAML key and checks are made from it.
"""

from __future__ import annotations

from ard_fast._commandline import FlagModel, setting
from ard_fast._devices import AUTO, PRECISIONS
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
PIXELS = "in units of pixels in [0, 1] (8/255, not 8)"
SHARE = "a share of the epochs"
WEIGHT = "the weight of the distillation term"


class WhatSettings(FlagModel):
    """What is trained: method, data set and seeds."""

    group = "what"
    method: str = setting(
        COMPARE, "what to train; compare: a teacher, then each of --compare-methods", choices=(*METHODS, COMPARE)
    )
    parity: bool = setting(False, "reproduce the quirks of the method's published code, printed by name")
    dataset: str = setting("digits", "images to train on", choices=DATASETS)
    data_dir: str | None = setting(
        None, "folder of the CIFAR or MNIST files, the .npz file, or the folder with train/ and test/"
    )
    seed: int = setting(0, "decides weights, data order and attacks", ge=0, lt=2**63)
    compare_methods: tuple[str, ...] = setting(
        ("at", "ard"), "methods of a comparison, as at --method", choices=tuple(METHODS), min_length=1
    )
    compare_seeds: int = setting(3, "seeds of a comparison: seed, seed + 1, ...", ge=1)


class NetworkSettings(FlagModel):
    """Names, files and normalisers of the networks. Images are pixels in [0, 1] outside them, always."""

    group = "networks"
    student: str = setting("mobilenetv2", f"network to train: {', '.join(MODELS)}, timm:NAME or package.module:factory")
    student_mean: tuple[float, ...] | None = setting(
        None, "channel means of pixels in [0, 1], subtracted inside the network"
    )
    student_std: tuple[float, ...] | None = setting(None, "channel standard deviations, likewise")
    teacher: str | None = setting(
        None, "a network's name (trained first), a run's folder, a checkpoint, or package.module:factory"
    )
    teacher_model: str | None = setting(None, "network of a checkpoint file that does not name it")
    teacher_mean: tuple[float, ...] | None = setting(None, "as --student-mean")
    teacher_std: tuple[float, ...] | None = setting(None, "as --student-std")
    teacher_weights: str | None = setting(None, "which weights of a checkpoint file with several, e.g. ema")
    clean_teacher: str | None = setting(
        None, "second teacher of mtard and iad-ii; a network's name: trained first, on clean images"
    )
    clean_teacher_model: str | None = setting(None, "as --teacher-model")
    clean_teacher_mean: tuple[float, ...] | None = setting(None, "as --student-mean")
    clean_teacher_std: tuple[float, ...] | None = setting(None, "as --student-std")
    clean_teacher_weights: str | None = setting(None, "as --teacher-weights")


class AttackSettings(FlagModel):
    """The training attack. None stands for the method's own constant; a method without the setting refuses it."""

    group = "attack"
    eps: float = setting(
        8 / 255, "radius of the L-infinity ball, pixels in [0, 1]; may be written 8/255", ge=0, le=1, unit=PIXELS
    )
    step_size: float | None = setting(
        None, "step of the attack; default: eps times the method's ratio", ge=0, le=1, unit=PIXELS
    )
    steps: int | None = setting(None, "steps of the attack", ge=1)
    clamp_start: bool | None = setting(None, "clamp the attack's start to [0, 1]; published codes do not")
    attack_bn: str | None = setting(
        None,
        "batch norm in the attack; train updates the running statistics",
        choices=("train", "train_frozen", "eval"),
    )
    noise_ratio: float | None = setting(None, "n-fgsm: half-width of the start's noise in eps", ge=0)
    replays: int | None = setting(None, "free, fast-ard: updates on each batch (batch repeats, m)", ge=1)
    delta_gradient: str | None = setting(
        None, "fast-ard: loss that the perturbation ascends, cross-entropy or distillation", choices=("ce", "kd")
    )


class LossSettings(FlagModel):
    """The loss. None stands for the method's own constant; a method without the setting refuses it."""

    group = "loss"
    alpha: float | None = setting(
        None, "weight of the adversarial distillation term; 1 - alpha: the other", ge=0, le=1, unit=WEIGHT
    )
    alpha2: float | None = setting(None, "iad-ii: weight of the standard teacher", ge=0, le=1, unit=WEIGHT)
    beta: float | None = setting(None, "trades, mart: weight of the divergence", ge=0)
    temperature: float | None = setting(None, "softmax temperature of teacher and student", gt=0)
    reduction: str | None = setting(
        None,
        "of the KL: mean divides by batch x classes (the ARD code), batchmean by batch",
        choices=("mean", "batchmean"),
    )
    begin_share: float | None = setting(
        None, "iad-i, iad-ii, adaiad: share of the epochs before the student's own term begins", ge=0, le=1, unit=SHARE
    )
    trust_power: float | None = setting(None, "iad-i, iad-ii, adaiad: exponent of the teacher's probability", ge=0)
    trust_teacher: bool | None = setting(
        None, "iad-i, adaiad: weigh the teacher's term by its trust, as the formula; the codes do not"
    )
    balance_rate: float | None = setting(None, "learning rate of mtard's weights, of absld's temperatures", ge=0)
    temperature_product: bool | None = setting(
        None, "absld: divide by the product of a class's two temperatures, as published"
    )
    fairness_power: float | None = setting(None, "fair-ard: exponent of the class weights", ge=0)
    igdm_weight: float | None = setting(None, "igdm, saad: weight of the gradient matching at the last epoch", ge=0)
    entropy_scale: float | None = setting(None, "saad: scale of the weights by the teacher's entropy", ge=0)
    clean_branch: bool | None = setting(
        None, "the student's clean forward even at weight 0, as published codes (moves batch norm)"
    )
    repeat_clean: bool | None = setting(None, "trades: the clean forward twice, as published")


class OptimiserSettings(FlagModel):
    """SGD, its schedule and the length of training."""

    group = "optimiser"
    epochs: int = setting(200, "passes over the training images, batch repeats counted", ge=1)
    batch_size: int = setting(128, "images a step, over all processes and micro-batches", ge=1)
    accumulate: int = setting(1, "micro-batches a step, whose gradients add up; saves memory", ge=1)
    lr: float | None = setting(None, "learning rate at the start; default: the method's", gt=0)
    momentum: float = setting(0.9, "momentum of SGD", ge=0, lt=1)
    nesterov: bool = setting(False, "Nesterov's form of the momentum")
    weight_decay: float = setting(2e-4, "weight decay, on every parameter", ge=0)
    schedule: str | None = setting(
        None,
        "ard: as multistep, but only the first drop acts, as published; cyclic: up to lr and down",
        choices=SCHEDULES,
    )
    milestones: tuple[int, ...] | None = setting(
        None, "epochs at which the learning rate drops; default: 1/2 and 3/4 of the epochs"
    )
    lr_factor: float = setting(0.1, "what a milestone multiplies the learning rate by", gt=0)


class WeightSettings(FlagModel):
    """What any method's training may do to the weights besides updating them."""

    group = "weights"
    awp_gamma: float = setting(
        0.0, "adversarial weight perturbation, relative to the weights' norms (0.005 to 0.01); 0: none", ge=0
    )
    awp_warmup_share: float = setting(0.05, "share of the epochs before it begins", ge=0, le=1, unit=SHARE)
    averaging: str = setting(
        "none", "validate, keep and test an average of the weights", choices=tuple(dict.fromkeys(("none", *AVERAGINGS)))
    )
    ema_decay: float = setting(0.999, "decay of ema; less in the first updates", ge=0, lt=1)
    averaging_start_share: float = setting(
        0.5, "share of the epochs before the averaging begins", ge=0, lt=1, unit=SHARE
    )


class TeacherSettings(FlagModel):
    """How teachers are trained and asked."""

    group = "teacher"
    teacher_method: str = setting("at", "method that trains a teacher given by name", choices=tuple(METHODS))
    teacher_epochs: int | None = setting(None, "epochs of such a teacher; default: as --epochs", ge=1)
    teacher_lr: float | None = setting(None, "learning rate of such a teacher; default: its method's", gt=0)
    teacher_precision: str = setting(
        AUTO,
        "arithmetic of the teacher; auto: bf16 where the training step is, else fp32",
        choices=(AUTO, *TEACHER_PRECISIONS),
    )
    teacher_cache: str = setting(
        CACHE_AUTO, "teacher logits of clean images: off, auto (in memory if few, else on disk), or a folder"
    )
    teacher_cache_dtype: str = setting("fp32", "fp16 halves that table and rounds the logits", choices=CACHE_DTYPES)


class EvaluationSettings(FlagModel):
    """The attacks that select the best epoch and that test it."""

    group = "evaluation"
    eval_step_size: float | None = setting(
        None, "step of the evaluation attacks; default: eps/4", ge=0, le=1, unit=PIXELS
    )
    val_steps: int = setting(10, "steps of the attack on the validation images, which select the epoch", ge=1)
    val_every: int = setting(1, "epochs between two validations", ge=1)
    eval_batch_size: int = setting(500, "images a batch in evaluations", ge=1)


class DataSettings(FlagModel):
    """Splits and augmentation."""

    group = "data"
    download: bool = setting(False, "fetch missing CIFAR or MNIST files into --data-dir, checksummed")
    image_size: int | None = setting(
        None, "folder: scale the shorter side to this, take the middle; none: all have one size"
    )
    image_cache: str | None = setting(
        None, "folder: where decoded images are kept; none: .ard_fast_cache in --data-dir"
    )
    val_size: int | None = setting(None, "images held out of the training files; none: 1000, at most a tenth of them")
    subset: int | None = setting(None, "train on N of the training images, of every class its share", ge=1)
    test_subset: int | None = setting(None, "evaluate on N of the test images, likewise", ge=1)
    crop_padding: int = setting(4, "random crop from the image with this border of zeros; 0: none", ge=0)
    flip: bool = setting(True, "random horizontal flip")


class ComputeSettings(FlagModel):
    """Where and how a run computes: nothing here is meant to change its result beyond rounding."""

    group = "compute"
    device: str = setting(AUTO, "cpu, cuda, cuda:N, or auto: cuda where there is one")
    sync_bn: bool = setting(True, "several GPUs: batch norm over the whole batch, as one process has it")
    precision: str = setting(
        AUTO, "arithmetic of the training step; auto: bf16 on GPUs that have it, else fp32", choices=PRECISIONS
    )
    channels_last: str = setting(AUTO, "channels-last layout; auto: where the network runs in it", choices=SWITCH)
    fold: str = setting(AUTO, "attacks in eval mode use the student with batch norm folded; auto: true", choices=SWITCH)
    graph: str = setting(
        AUTO, "CUDA graph of the whole step, of the attack only, or off; changes time only", choices=GRAPHS
    )
    compile: bool = setting(False, "torch.compile the student's forward")
    threads: int = setting(0, "CPU threads; 0: OMP_NUM_THREADS, else the physical cores", ge=0)
    resident: str = setting(
        "auto", "training images on the device; auto: if they take half of its free memory", choices=RESIDENT
    )


class OutputSettings(FlagModel):
    """What a run writes beside its results."""

    group = "output"
    save_every_seconds: float | None = setting(
        None, "checkpoint inside an epoch when the last one is this old; none: after epochs only", ge=0
    )
    tensorboard: bool = setting(False, "write the metrics for TensorBoard too, to the run's folder")
