"""What runs share, and their networks: built, tried on some images, refused where they do not fit the data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ard_fast._commandline import StopRequest, flag
from ard_fast._devices import AUTO
from ard_fast._typing import known
from ard_fast.data import Dataset
from ard_fast.data.batches import derive_seed
from ard_fast.evaluation.self_checks import TeacherWorth, measure_teacher
from ard_fast.methods.registry import find_method
from ard_fast.models import Normalised, build_model, find_model
from ard_fast.models.trial import TRIAL_IMAGES, Form, copied, initialise_lazily, try_network
from ard_fast.teachers.cache import CACHE_OFF, Views
from ard_fast.teachers.fingerprints import fingerprint_split, fingerprint_weights
from ard_fast.teachers.teacher import Teacher, build_teacher
from ard_fast.training.averaging import WeightAverage
from ard_fast.training.compute import ComputeConfig, resolve_compute, try_compile
from ard_fast.training.config import TrainConfig, for_method
from ard_fast.training.distributed import World

TEACHER_STEPS = 10  # at most, of the attack that teachers are measured by


@dataclass
class Environment:
    """What runs of one process share."""

    dataset: Dataset  # training images on the host, the others on `device`
    device: torch.device
    stop: StopRequest
    world: World = field(default_factory=World)
    given: dict[str, nn.Module] = field(default_factory=dict)  # teachers that are not to be trained first, by role
    worths: dict[tuple[str, float], TeacherWorth] = field(default_factory=dict)  # measured, by weights and eps

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Hashes of the images and of the given teachers' weights, by what messages call them."""
        splits = {"training": self.dataset.train, "validation": self.dataset.val, "test": self.dataset.test}
        if self.dataset.pool is not None:
            splits["extra"] = self.dataset.pool.part(len(self.dataset.train), len(self.dataset.pool))
        images = {f"{name} images": fingerprint_split(split) for name, split in splits.items()}
        return {**images, **{role: fingerprint_weights(network) for role, network in self.given.items()}}

    def measure(self, network: nn.Module, config: TrainConfig) -> TeacherWorth:
        """What a teacher is worth on the validation images under the run's attack; measured once by one process."""
        key = fingerprint_weights(network), config.eps
        if key not in self.worths:
            step_size, steps = known(config.eval_step_size), min(config.val_steps, TEACHER_STEPS)
            self.worths[key] = self.world.from_main(
                lambda: measure_teacher(
                    network.to(self.device), self.dataset, eps=config.eps, step_size=step_size, steps=steps
                )
            )
        return self.worths[key]


def check_model_fits(
    name: str,
    dataset: Dataset,
    argument: str,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> None:
    """Refuse a network that cannot take the data set's images, or a normaliser for other channels.

    Raises:
        ValueError: names the argument, the network and both sizes.
    """
    size, (channels, height, width) = find_model(name, argument=argument).image_size, dataset.image_shape
    if size is not None and (height, width) != (size, size):
        raise ValueError(f"{argument}: {name} takes {size}x{size} images, {dataset.name} has {height}x{width}")
    for part, numbers in (("mean", mean), ("std", std)):
        if numbers is not None and len(numbers) not in (1, channels):
            raise ValueError(
                f"{argument}_{part}: expected a number for each of the {channels} channels of {dataset.name}, or one "
                f"for all, got {len(numbers)}"
            )


def initial_student(config: TrainConfig, dataset: Dataset, *, beside: int = 0) -> nn.Module:
    """The student at the start: the same weights for the same seed, whatever the method. With `beside`, from 1, the
    network of that number beside it, with weights of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, 0, beside) if beside else derive_seed(config.seed, 0))
        network = build_model(config.student, dataset.num_classes, dataset.image_shape[0], argument="student")
        initialise_lazily(network, dataset.image_shape, "student")
    if config.student_mean is None:
        return network
    return Normalised(network, config.student_mean, known(config.student_std))


def fit_student(
    config: TrainConfig,
    dataset: Dataset,
    device: torch.device,
    *,
    label: str = "student",
    world: World | None = None,
    beside: int = 0,
) -> tuple[nn.Module, ComputeConfig, tuple[str, ...]]:
    """The student at the start, how the run computes with it, and what it cannot do, in words.

    Args:
        config: of the run.
        dataset: some of whose images it is tried on.
        device: where it goes.
        label: what messages call it.
        world: the processes that go by what the main one finds; None before a run, which tries torch.compile as well.
        beside: of `initial_student`.

    Raises:
        ValueError: it does not keep the contract of a network, or cannot do what was asked for; begins with `label`.
    """
    compute = resolve_compute(config, device)
    network = initial_student(config, dataset, beside=beside).to(device)

    def tried() -> Form:
        return try_network(
            network,
            first_images(dataset, device, TRIAL_IMAGES),
            num_classes=dataset.num_classes,
            label=label,
            channels_last=config.channels_last if compute.channels_last else "false",
            precision=compute.precision,
            fixed_precision=config.precision != AUTO,
            trained=True,
        )

    form = tried() if world is None else world.from_main(tried)  # one form for all processes
    for name in config.methods() if world is None else ():  # before a run: the network can be copied
        averaging = known(for_method(config, name, config.seed).averaging)
        if averaging != "off":
            WeightAverage(network, kind=averaging)
        if find_method(name).copies_student:
            copy_for_method(network, name)
    if world is None and compute.compile:
        try_compile(network, first_images(dataset, device, TRIAL_IMAGES), label)
    network = network.to(memory_format=form.layout)  # pyright: ignore[reportCallIssue]
    channels_last = form.layout == torch.channels_last
    return network, replace(compute, channels_last=channels_last, precision=form.precision), form.notes


def fit_beside(
    config: TrainConfig,
    dataset: Dataset,
    student: nn.Module,
    compute: ComputeConfig,
    world: World | None = None,
) -> dict[str, nn.Module]:
    """The networks that a method trains beside the student at the start, by role.

    Args:
        config: of the run.
        dataset: some of whose images they are tried on.
        student: whose weights are none of theirs.
        compute: how it computes, and they do.
        world: of `fit_student`.

    Raises:
        ValueError: as `fit_student`; or a network starts as the student does, or cannot have its form.
    """
    networks: dict[str, nn.Module] = {}
    form = {"channels_last": str(compute.channels_last).lower(), "precision": compute.precision}
    for number, (role, one) in enumerate(config.beside().items(), 1):
        check_model_fits(one.student, dataset, role)
        network, _, _ = fit_student(
            one.replace(**form), dataset, compute.device, label=role, world=world, beside=number
        )
        theirs, own = network.state_dict(), student.state_dict()
        if theirs.keys() == own.keys() and all(torch.equal(theirs[key], own[key]) for key in own):
            raise ValueError(f"{role}: starts with the student's own weights; name another network by {flag(role)}")
        networks[role] = network
    return networks


def copy_for_method(student: nn.Module, name: str) -> nn.Module:
    """What a method with `copies_student` gets.

    Raises:
        ValueError: the student cannot be copied.
    """
    return copied(student, "method", f"{name} keeps a copy of it")


def fit_teacher(network: nn.Module, config: TrainConfig, dataset: Dataset, device: torch.device, role: str) -> Form:
    """The form in which a teacher runs, which is put on the device; as `fit_student`."""
    compute = resolve_compute(config, device)
    form = try_network(
        network.to(device),
        first_images(dataset, device, TRIAL_IMAGES),
        num_classes=dataset.num_classes,
        label=role,
        channels_last=AUTO if compute.channels_last else "false",
        precision=compute.precision if config.parity else compute.teacher_precision,
        fixed_precision=config.teacher_precision != AUTO,
    )
    network.to(memory_format=form.layout)  # pyright: ignore[reportCallIssue]
    return form


def make_teacher(
    network: nn.Module, config: TrainConfig, dataset: Dataset, compute: ComputeConfig, role: str
) -> tuple[Teacher, tuple[str, ...]]:
    """The network as the methods ask it, and what it cannot do, in words; under parity it is asked as it is, as in the
    published codes."""
    found = fit_teacher(network, config, dataset, compute.device, role)
    alike = found.layout == compute.layout and (found.precision == "bf16") == (compute.precision == "bf16")
    form = None if alike else found
    if config.parity:
        return Teacher(network, form=form), found.notes
    teacher = build_teacher(
        network,
        Views(dataset.train, levels=dataset.levels, padding=known(config.crop_padding), flip=config.flip),
        precision=found.precision,
        cache=config.teacher_cache if config.keeps_logits() else CACHE_OFF,
        cache_dtype=config.teacher_cache_dtype,
        layout=found.layout,
        form=form,
    )
    return teacher, found.notes


def first_images(dataset: Dataset, device: torch.device, count: int) -> Tensor:
    """float32 `[count, C, H, W]`, training images in [0, 1]."""
    return dataset.train.images[:count].to(device, torch.float32) / dataset.levels


def merges_last_batch(config: TrainConfig, dataset: Dataset, world: World, device: torch.device) -> bool:
    """Whether the last images of an epoch join the batch before, since alone they would leave one image to a batch norm
    that needs several: one over `[B, C]`, or behind a pooling to 1x1 pixels.

    Raises:
        ValueError: every batch leaves such a network one image.
    """
    # How many parts of a batch have batch statistics of their own.
    parts = config.accumulate * (1 if world.synchronises(config.sync_bn, device) else world.size)
    count = len(dataset.train) if dataset.pool is None else config.batch_size  # with extra images all are whole
    size = min(config.batch_size, count)
    last = count % size
    if size >= 2 * parts and not 0 < last < 2 * parts:
        return False
    needy = [one.student for one in (config, *config.beside().values()) if _needs_two_images(one, dataset)]
    if not needy:
        return False
    if size < 2 * parts:
        images = f"{size} image{'s' * (size > 1)} in {parts} part{'s' * (parts > 1)}"
        raise ValueError(
            f"batch_size: {images} leave a part with one image, but the "
            f"batch norm of {needy[0]} needs at least two in train mode"
        )
    return True


def _needs_two_images(config: TrainConfig, dataset: Dataset) -> bool:
    network = initial_student(config, dataset).train()
    images = first_images(dataset, torch.device("cpu"), 2)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network(images)
        try:
            network(images[:1])
        except ValueError:  # torch: Expected more than 1 value per channel when training
            return True
    return False
