"""The settings of a run, by subject. Each field is a YAML key and, with dashes, a command-line flag.

A new setting needs nothing but its line here: flag, help, YAML key and checks are made from it.
"""

from __future__ import annotations

from ard_fast._commandline import FlagModel, setting
from ard_fast._devices import AUTO, PRECISIONS
from ard_fast.data import DATASETS
from ard_fast.data.loader import RESIDENT
from ard_fast.methods.registry import EMA_METHODS, METHODS
from ard_fast.models import MODELS
from ard_fast.teachers.cache import CACHE_AUTO, CACHE_DTYPES
from ard_fast.teachers.inference import PRECISIONS as TEACHER_PRECISIONS
from ard_fast.training.averaging import AVERAGINGS
from ard_fast.training.optimiser import OPTIMISERS

COMPARE = "compare"  # not a method: teacher, then every method of `compare_methods`, for every seed
OWN = "package.module:NAME"  # a method of one's own
ROLES = ("teacher", "clean_teacher")
SWITCH = (AUTO, "true", "false")
GRAPHS = (AUTO, "off", "attack", "iteration")
SCHEDULES = ("multistep", "ard", "cosine", "cyclic", "onecycle", "constant")
STEPPED = ("multistep", "ard")  # schedules with milestones
RAMPED = ("cyclic", "onecycle")  # schedules that begin with a warm-up of their own
PIXELS = "in units of pixels in [0, 1] (8/255, not 8)"
SHARE = "a fraction of the epochs"
WEIGHT = "the weight of the distillation term"


class WhatSettings(FlagModel):
    """What is trained: method, data set and seeds."""

    group = "method, data set, seeds"
    method: str = setting(
        COMPARE,
        f"training method, {OWN} for one of your own, NAME-ema for one by the recipe of --preset NAME-ema, or compare: "
        "train a teacher, then each of --compare-methods",
        choices=(*METHODS, COMPARE),
        also=EMA_METHODS,
        own=OWN,
    )
    parity: bool = setting(False, "reproduce the quirks of the method's published code; the run prints each of them")
    dataset: str = setting("digits", "data set", choices=DATASETS, own="in Python train= of ard_fast.train.run")
    data_dir: str | None = setting(
        None, "folder with the CIFAR or MNIST files, or with train/ and test/; npz: the .npz file", metavar="DIR"
    )
    seed: int = setting(0, "seed of the weights, the data order and the attacks", ge=0, lt=2**63)
    compare_methods: tuple[str, ...] = setting(
        ("at", "at-ema", "ard"),
        "methods of a comparison, comma-separated",
        choices=tuple(METHODS),
        also=EMA_METHODS,
        own=OWN,
        min_length=1,
    )
    compare_seeds: int = setting(3, "number of seeds of a comparison: seed, seed + 1, ...", ge=1)


class NetworkSettings(FlagModel):
    """Names, files and normalisers of the networks. Images are pixels in [0, 1] outside them, always."""

    group = "networks"
    student: str = setting("mobilenetv2", f"network to train: {', '.join(MODELS)}, timm:NAME or package.module:factory")
    student_mean: tuple[float, ...] | None = setting(
        None, "channel means, for pixels in [0, 1], which the network subtracts from its input"
    )
    student_std: tuple[float, ...] | None = setting(None, "channel standard deviations, by which it divides")
    peer: str | None = setting(
        None, "peeraid: network to train beside the student, with its normaliser; default: as the student"
    )
    teacher: str | None = setting(
        None,
        "name of a network (it is trained first), run folder, checkpoint file, robustbench:NAME or "
        "package.module:factory",
        metavar="NAME|PATH",
    )
    teacher_model: str | None = setting(None, "network of a checkpoint file that does not name its network")
    teacher_mean: tuple[float, ...] | None = setting(None, "as --student-mean, for the teacher")
    teacher_std: tuple[float, ...] | None = setting(None, "as --student-std, for the teacher")
    teacher_weights: str | None = setting(
        None, "which weights to load from a checkpoint file with several sets, for example ema"
    )
    clean_teacher: str | None = setting(
        None,
        "second teacher of mtard and iad-ii, as --teacher; a network given by name is trained first, on clean images",
        metavar="NAME|PATH",
    )
    clean_teacher_model: str | None = setting(None, "as --teacher-model, for the clean teacher")
    clean_teacher_mean: tuple[float, ...] | None = setting(None, "as --student-mean, for the clean teacher")
    clean_teacher_std: tuple[float, ...] | None = setting(None, "as --student-std, for the clean teacher")
    clean_teacher_weights: str | None = setting(None, "as --teacher-weights, for the clean teacher")


class AttackSettings(FlagModel):
    """The training attack. None stands for the method's own constant; a method without the setting refuses it."""

    group = "training attack"
    eps: float = setting(
        8 / 255,
        "radius of the L-infinity ball, for pixels in [0, 1]; fractions such as 8/255 are accepted",
        ge=0,
        le=1,
        unit=PIXELS,
    )
    step_size: float | None = setting(
        None, "step size of the attack; default: eps times the method's ratio", ge=0, le=1, unit=PIXELS
    )
    steps: int | None = setting(None, "number of steps of the attack", ge=1)
    clamp_start: bool | None = setting(
        None, "clamp the starting point of the attack to [0, 1]; the published code does not"
    )
    attack_bn: str | None = setting(
        None,
        "batch-norm mode of the student under attack; train also updates the running statistics",
        choices=("train", "train_frozen", "eval"),
    )
    noise_ratio: float | None = setting(None, "n-fgsm: half-width of the uniform starting noise, in units of eps", ge=0)
    replays: int | None = setting(None, "free, fast-ard: updates on each batch (batch repeats, m)", ge=1)
    clamp_delta: bool | None = setting(
        None,
        "free, fast-ard: clamp the perturbation to where images stay in [0, 1]; false: only their sum, as free "
        "training's first code",
    )
    delta_gradient: str | None = setting(
        None,
        "fast-ard: loss that the perturbation maximises, cross-entropy or distillation",
        choices=("ce", "kd"),
    )


class LossSettings(FlagModel):
    """The loss. None stands for the method's own constant; a method without the setting refuses it."""

    group = "loss"
    alpha: float | None = setting(
        None,
        "weight of the adversarial distillation term; the other term has weight 1 - alpha",
        ge=0,
        le=1,
        unit=WEIGHT,
    )
    alpha2: float | None = setting(None, "iad-ii: weight of the clean teacher's term", ge=0, le=1, unit=WEIGHT)
    beta: float | None = setting(None, "trades, mart: weight of the KL divergence", ge=0)
    temperature: float | None = setting(None, "softmax temperature of teacher and student", gt=0)
    reduction: str | None = setting(
        None,
        "how the KL divergence is averaged: mean divides by batch x classes (as the ARD code does), batchmean by batch",
        choices=("mean", "batchmean"),
    )
    begin_share: float | None = setting(
        None,
        "iad-i, iad-ii, adaiad: fraction of the epochs before the student's own term is added",
        ge=0,
        le=1,
        unit=SHARE,
    )
    trust_power: float | None = setting(
        None, "iad-i, iad-ii, adaiad: exponent of the teacher's probability of the label", ge=0
    )
    trust_teacher: bool | None = setting(
        None,
        "iad-i, adaiad: weight the teacher's term by that probability, as in the formula; the published code does not",
    )
    balance_rate: float | None = setting(
        None, "mtard: learning rate of the loss weights; absld: of the class temperatures", ge=0
    )
    temperature_product: bool | None = setting(
        None, "absld: divide logits by the product of a class's two temperatures, as the published code does"
    )
    fairness_power: float | None = setting(None, "fair-ard: exponent of the class weights", ge=0)
    igdm_weight: float | None = setting(
        None, "igdm, saad: weight of the gradient-matching term in the last epoch", ge=0
    )
    entropy_scale: float | None = setting(
        None, "saad: factor of the sample weights, which come from the teacher's entropy", ge=0
    )
    mean_teacher_decay: float | None = setting(
        None, "adr: decay of the average of the student's weights that softens the labels", ge=0, lt=1
    )
    first_temperature: float | None = setting(None, "adr: temperature of the soft labels in the first epoch", gt=0)
    last_temperature: float | None = setting(None, "adr: the same in the last epoch", gt=0)
    first_soft_share: float | None = setting(
        None, "adr: largest share of the soft labels in the first epoch; the rest is the label", ge=0, le=1
    )
    last_soft_share: float | None = setting(None, "adr: the same in the last epoch", ge=0, le=1)
    mse_weight: float | None = setting(
        None, "ikl, ikl-rslad: weight of the weighted squares of logit differences", ge=0
    )
    kl_weight: float | None = setting(None, "ikl, ikl-rslad: weight of the KL, without gradient to its reference", ge=0)
    class_mean_temperature: float | None = setting(
        None, "ikl, ikl-rslad: temperature of the softmax whose class means are the weights", gt=0
    )
    label_weight: float | None = setting(None, "peeraid: weight of the student's cross-entropy", ge=0)
    peer_weight: float | None = setting(None, "peeraid: weight of the peer's logits as the student's target", ge=0)
    self_weight: float | None = setting(
        None, "peeraid: weight of the student's logits at the clean images as its target", ge=0
    )
    feedback_weight: float | None = setting(None, "peeraid: weight of the student's logits as the peer's target", ge=0)
    joint_loss: bool | None = setting(
        None, "peeraid: let the peer's loss move the student, too, as in the published code"
    )
    label_smoothing: float | None = setting(
        None,
        "label smoothing of the loss's cross-entropy: share of each label spread over all classes; attacks use hard "
        "labels",
        ge=0,
        lt=1,
    )
    clean_branch: bool | None = setting(
        None,
        "run the student on clean images even if that term has weight 0, as the published code does (it moves the "
        "batch-norm statistics)",
    )
    repeat_clean: bool | None = setting(
        None, "trades: run the student on the clean images twice, as the published code does"
    )


class OptimiserSettings(FlagModel):
    """The optimiser, its schedule and the length of training."""

    group = "optimiser"
    epochs: int = setting(200, "passes over the training images; a repeated batch counts each time", ge=1)
    batch_size: int = setting(128, "images per step, over all processes and micro-batches", ge=1)
    accumulate: int = setting(1, "micro-batches per step, whose gradients are accumulated; saves memory", ge=1)
    optimiser: str = setting("sgd", "optimiser; adam and adamw take torch's betas and eps", choices=tuple(OPTIMISERS))
    lr: float | None = setting(
        None, "base learning rate; default: the method's with sgd, 0.001 with adam and adamw", gt=0
    )
    momentum: float | None = setting(None, "momentum of SGD; default: 0.9", ge=0, lt=1)
    nesterov: bool = setting(False, "use Nesterov momentum")
    weight_decay: float | None = setting(
        None, "weight decay of all parameters; decoupled with adamw; default: 2e-4, of NAME-ema 5e-4", ge=0
    )
    schedule: str | None = setting(
        None,
        "learning-rate schedule; ard: multistep of which only the first drop takes effect, as in the published code; "
        "cyclic: linearly up to --lr and down again; onecycle: up to --lr in the first 30 % of the training and down, "
        "as torch's OneCycleLR, with the momentum unchanged",
        choices=SCHEDULES,
    )
    warmup_epochs: float = setting(0.0, "epochs in which the learning rate rises linearly from 0", ge=0)
    milestones: tuple[int, ...] | None = setting(
        None, "epochs at which the learning rate drops; default: 1/2 and 3/4 of the epochs"
    )
    lr_factor: float = setting(0.1, "factor of the learning rate at a milestone", gt=0)


class WeightSettings(FlagModel):
    """What any method's training may do to the weights besides updating them."""

    group = "weight perturbation and averaging"
    awp_gamma: float = setting(
        0.0,
        "size of the adversarial weight perturbation (AWP) relative to the norm of the weights, usually 0.005 to 0.01; "
        "0: off",
        ge=0,
    )
    awp_warmup_share: float = setting(0.05, "fraction of the epochs before AWP starts", ge=0, le=1, unit=SHARE)
    ema: float | None = setting(
        None,
        "exponential moving average (EMA) of the weights with this decay, usually 0.999 to 0.9995: short for "
        "--averaging ema --ema-decay EMA --averaging-start-share 0",
        ge=0,
        lt=1,
    )
    averaging: str | None = setting(
        None,
        "average of the weights, which is then what is validated, saved and tested; default: off, of NAME-ema ema",
        choices=AVERAGINGS,
    )
    ema_decay: float | None = setting(
        None, "decay of ema; smaller during the first updates; default: 0.999, of NAME-ema 0.9995", ge=0, lt=1
    )
    averaging_start_share: float | None = setting(
        None,
        "fraction of the epochs before averaging starts; default: 0.5, of NAME-ema 0",
        ge=0,
        lt=1,
        unit=SHARE,
    )


class TeacherSettings(FlagModel):
    """How teachers are trained, and how their logits are computed."""

    group = "teacher"
    teacher_method: str = setting(
        "at", "method that trains a teacher given by name", choices=tuple(METHODS), also=EMA_METHODS
    )
    teacher_epochs: int | None = setting(None, "epochs of a teacher given by name; default: --epochs", ge=1)
    teacher_lr: float | None = setting(
        None, "learning rate of a teacher given by name; default: that of its method", gt=0
    )
    teacher_precision: str = setting(
        AUTO,
        "precision of the teacher; auto: bf16 if the training step uses it, else fp32",
        choices=(AUTO, *TEACHER_PRECISIONS),
    )
    teacher_cache: str = setting(
        CACHE_AUTO,
        "cache of the teacher's logits on clean images: off, auto (in memory if small, else on disk) or a folder",
        metavar="NAME|DIR",
    )
    teacher_cache_dtype: str = setting(
        "fp32", "dtype of the cached logits; fp16 halves the cache and rounds them", choices=CACHE_DTYPES
    )


class EvaluationSettings(FlagModel):
    """The attacks that select the best epoch and that test it."""

    group = "validation and test"
    eval_step_size: float | None = setting(
        None, "step size of the evaluation attacks; default: eps/4", ge=0, le=1, unit=PIXELS
    )
    val_steps: int = setting(10, "PGD steps on the validation images, which select the best epoch", ge=1)
    val_every: int = setting(1, "validate every so many epochs", ge=1)
    eval_batch_size: int = setting(500, "images per batch in evaluations", ge=1)


class DataSettings(FlagModel):
    """Splits and augmentation."""

    group = "data and augmentation"
    download: bool = setting(False, "download missing CIFAR or MNIST files to --data-dir and verify their checksums")
    image_size: int | None = setting(
        None, "image folders: resize the shorter side to this and crop the centre; default: all images have one size"
    )
    image_cache: str | None = setting(
        None, "image folders: where decoded images are kept; default: .ard_fast_cache in --data-dir", metavar="DIR"
    )
    val_size: int | None = setting(
        None, "training images held out for validation; default: 1000, but at most a tenth of them"
    )
    subset: int | None = setting(
        None, "train on this many images only, all classes in proportion; the others: --val-size, --test-subset", ge=1
    )
    test_subset: int | None = setting(None, "test on this many images only, likewise", ge=1)
    extra_data: str | None = setting(
        None, "npz file with more training images, such as generated ones: image (uint8) and label", metavar="FILE"
    )
    extra_fraction: float | None = setting(
        None, "fraction of every batch that comes from --extra-data; default: 0.7", gt=0, lt=1
    )
    crop_padding: int | None = setting(
        None, "zero padding, in pixels, before a random crop to the original size; 0: off; default: 4", ge=0
    )
    cropshift: int | None = setting(
        None,
        "instead: CropShift (IDBH), which cuts off up to this many rows and columns and shifts the rest on zeros",
        ge=1,
    )
    flip: bool = setting(True, "flip images horizontally at random")
    cutout: int = setting(0, "side, in pixels, of a randomly placed square set to zero; 0: off", ge=0)


class ComputeSettings(FlagModel):
    """Where and how a run computes: nothing here is meant to change its result beyond rounding."""

    group = "compute"
    device: str = setting(AUTO, "cpu, cuda, cuda:N or auto: cuda if there is one")
    sync_bn: bool = setting(
        True, "several processes: batch-norm statistics over the whole batch (synchronised batch norm)"
    )
    precision: str = setting(
        AUTO, "precision of the training step; auto: bf16 on GPUs that support it, else fp32", choices=PRECISIONS
    )
    channels_last: str = setting(AUTO, "channels-last memory format; auto: if the network supports it", choices=SWITCH)
    fold: str = setting(
        AUTO, "fold the student's batch norm into its convolutions for attacks in eval mode; auto: true", choices=SWITCH
    )
    graph: str = setting(
        AUTO, "CUDA graph of the whole step (iteration), of the attack only, or off; affects speed only", choices=GRAPHS
    )
    compile: bool = setting(False, "compile the student's forward pass with torch.compile")
    threads: int = setting(0, "CPU threads; 0: OMP_NUM_THREADS, else the number of physical cores", ge=0)
    resident: str = setting(
        "auto",
        "keep the training images on the device; auto: if they fit into half of its free memory",
        choices=RESIDENT,
    )


class OutputSettings(FlagModel):
    """What a run writes beside its results."""

    group = "output"
    save_every_seconds: float | None = setting(
        None,
        "also save a checkpoint during an epoch once the last is this old; default: after epochs only",
        ge=0,
    )
    tensorboard: bool = setting(False, "also write the metrics to the run folder as TensorBoard events")
