"""One run: a student, a method, a folder."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from ard_fast._interrupts import Interrupted, StopRequest
from ard_fast._precision import AUTO, training_arithmetic
from ard_fast._progress import Progress
from ard_fast._typing import known
from ard_fast.attacks import PGD
from ard_fast.data import Batch, Dataset, make_loader
from ard_fast.data.batches import derive_seed
from ard_fast.evaluation.evaluator import EVALUATION_SEED, PGD20_STEPS, Accuracy, evaluate
from ard_fast.evaluation.self_checks import TeacherWorth, collapsed, describe_teacher, doubts, measure_teacher
from ard_fast.methods import METHODS, MethodContext, build_method
from ard_fast.models import MODELS, Normalised, build_model, find_model
from ard_fast.models.trial import TRIAL_IMAGES, Form, initialise_lazily, try_network
from ard_fast.teachers import Teacher, Views, build_teacher
from ard_fast.teachers.fingerprints import fingerprint_split, fingerprint_weights
from ard_fast.training.attacked_form import try_compile
from ard_fast.training.averaging import WeightAverage
from ard_fast.training.checkpoint import DamagedRun, TrainingState, load_network, load_state, save_state, save_weights
from ard_fast.training.compute import Machine, resolve_machine
from ard_fast.training.config import PLACES, ROLES, TrainConfig, identity
from ard_fast.training.conventions import describe_run
from ard_fast.training.distributed import World
from ard_fast.training.graph_choice import choose_graph, graph_attack
from ard_fast.training.graphed_update import GraphedUpdate
from ard_fast.training.nonfinite import FirstBad, LossWatch, check_weights, watched, weights_are_finite
from ard_fast.training.report import draw_examples, write_run_report
from ard_fast.training.run_folder import RunFolder
from ard_fast.training.schedules import learning_rate, relative_rate
from ard_fast.training.step import Update
from ard_fast.training.tensorboard import Board

TEACHER_STEPS = 10  # at most, of the attack that teachers are measured by
_LONG_ENOUGH = 3  # validations without success until a run that may have collapsed says so
_SAMPLE = 16  # images on which the form of the student that is attacked is checked


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint was kept."""


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
        images = {f"{name} images": fingerprint_split(split) for name, split in splits.items()}
        return {**images, **{role: fingerprint_weights(network) for role, network in self.given.items()}}

    def measure(self, network: nn.Module, config: TrainConfig) -> TeacherWorth:
        """What a teacher is worth on the validation images under the run's attack; measured once by one process."""
        return self.world.from_main(lambda: self._measure(network, config))

    def _measure(self, network: nn.Module, config: TrainConfig) -> TeacherWorth:
        key = fingerprint_weights(network), config.eps
        if key not in self.worths:
            self.worths[key] = measure_teacher(
                network.to(self.device),
                self.dataset,
                eps=config.eps,
                step_size=known(config.eval_step_size),
                steps=min(config.val_steps, TEACHER_STEPS),
            )
        return self.worths[key]


def check_inputs(before: Mapping[str, str], now: Mapping[str, str], config: TrainConfig, folder: RunFolder) -> None:
    """Refuse to go on with other images or teachers than those of the run's start.

    Args:
        before: what the training state says (`TrainingState.inputs`).
        now: the same of what was loaded, as far as it is to be compared.
        config: where that is.
        folder: of the run.

    Raises:
        DamagedRun: names the first that differs and its place.
    """
    for what, value in now.items():
        if before.get(what, value) != value:
            name, kind = (what, "weights") if what in ROLES else ("data_dir", what)
            raise DamagedRun(
                f"{name}: {getattr(config, name) or config.dataset} holds other {kind} than {folder.path} was "
                "started with"
            )


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


def initial_network(config: TrainConfig, dataset: Dataset) -> nn.Module:
    """The student at the start: the same weights for the same seed, whatever the method."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, 0))
        network = build_model(config.student, dataset.num_classes, dataset.image_shape[0], argument="student")
        initialise_lazily(network, dataset.image_shape, "student")
    if config.student_mean is None:
        return network
    return Normalised(network, config.student_mean, known(config.student_std))


def fit_student(
    config: TrainConfig, dataset: Dataset, device: torch.device, *, label: str = "student", world: World | None = None
) -> tuple[nn.Module, Machine, tuple[str, ...]]:
    """The student at the start, how the run computes with it, and what it cannot do, in words.

    Args:
        config: of the run.
        dataset: some of whose images it is tried on.
        device: where it goes.
        label: what messages call it.
        world: the processes that go by what the first one finds; None before a run, which tries torch.compile as well.

    Raises:
        ValueError: it does not keep the contract of a network, or cannot do what was asked for; begins with `label`.
    """
    machine, network = resolve_machine(config, device), initial_network(config, dataset).to(device)

    def tried() -> Form:
        return try_network(
            network,
            _first_images(dataset, device, TRIAL_IMAGES),
            num_classes=dataset.num_classes,
            label=label,
            channels_last=config.channels_last if machine.channels_last else "false",
            precision=machine.precision,
            fixed_precision=config.precision != AUTO,
            trained=True,
        )

    form = tried() if world is None else world.from_main(tried)  # one form for all processes
    if world is None and config.averaging != "none":
        WeightAverage(network, kind=config.averaging)  # there can be a second one
    if world is None and machine.compile:
        try_compile(network, _first_images(dataset, device, TRIAL_IMAGES), label)
    network = network.to(memory_format=form.layout)  # pyright: ignore[reportCallIssue]
    channels_last = form.layout == torch.channels_last
    return network, replace(machine, channels_last=channels_last, precision=form.precision), form.notes


def fit_teacher(network: nn.Module, config: TrainConfig, dataset: Dataset, device: torch.device, role: str) -> Form:
    """The form in which a teacher runs, which is put on the device; as `fit_student`."""
    machine = resolve_machine(config, device)
    precision = machine.precision if config.parity else machine.teacher_precision
    form = try_network(
        network.to(device),
        _first_images(dataset, device, TRIAL_IMAGES),
        num_classes=dataset.num_classes,
        label=role,
        channels_last=AUTO if machine.channels_last else "false",
        precision=precision,
        fixed_precision=config.teacher_precision != AUTO,
    )
    network.to(memory_format=form.layout)  # pyright: ignore[reportCallIssue]
    return form


def _first_images(dataset: Dataset, device: torch.device, count: int) -> Tensor:
    """float32 `[count, C, H, W]`, training images in [0, 1]."""
    return dataset.train.images[:count].to(device, torch.float32) / dataset.levels


def merges_last_batch(config: TrainConfig, dataset: Dataset, world: World, device: torch.device) -> bool:
    """Whether the last images of an epoch join the batch before, since alone they would leave one image to a batch norm
    that needs several: one over `[B, C]`, or behind a pooling to 1x1 pixels.

    Raises:
        ValueError: every batch leaves such a network one image.
    """
    parts = config.accumulate * (
        1 if world.synchronises(config.sync_bn, device) else world.size
    )  # that batch statistics are taken over
    count, size = len(dataset.train), min(config.batch_size, len(dataset.train))
    last = count % size
    if (size >= 2 * parts and not 0 < last < 2 * parts) or not _needs_two_images(config, dataset):
        return False
    if size < 2 * parts:
        images = f"{size} image{'s' * (size > 1)} in {parts} part{'s' * (parts > 1)}"
        raise ValueError(
            f"batch_size: {images} leave a part with one image, but the "
            f"batch norm of {config.student} needs at least two in train mode"
        )
    return True


def _needs_two_images(config: TrainConfig, dataset: Dataset) -> bool:
    network = initial_network(config, dataset).train()
    images = dataset.train.images[:2].to(torch.float32) / dataset.levels
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network(images)
        try:
            network(images[:1])
        except ValueError:  # torch: Expected more than 1 value per channel when training
            return True
    return False


class Trainer:
    """Trains, validates, keeps the best and the last checkpoint, and evaluates the best one on the test images.

    Several processes (`env.world`) share the images of each step and of each evaluation; the first one writes.

    Args:
        config: of a single method (not a comparison).
        folder: where the run's files go; made by `run`.
        env: data set, device and stop request.
        teachers: networks by role ("teacher", "clean_teacher"), from `load_network`.
    """

    def __init__(
        self, config: TrainConfig, folder: RunFolder, env: Environment, teachers: Mapping[str, nn.Module] | None = None
    ) -> None:
        self.config, self.folder, self.env, self.world = config, folder, env, env.world
        self.student, self.machine, notes = fit_student(config, env.dataset, env.device, world=env.world)
        self.notes = list(notes)
        self.networks = dict(teachers or {})
        self.worths = {role: env.measure(network, config) for role, network in self.networks.items()}
        self.teachers = {role: self._teacher(role, network) for role, network in self.networks.items()}
        context = MethodContext(
            num_classes=env.dataset.num_classes,
            epochs=config.passes(),
            train_size=len(env.dataset.train),
            device=env.device,
            relative_rate=partial(relative_rate, config),
            teachers=self.teachers,
            processes=self.world.size,
            all_reduce=self.world.sum_over_images,
            all_min=self.world.all_min,
        )
        self.method = build_method(config.method, config, context)
        if self.world.synchronises(config.sync_bn, env.device):
            self.student = nn.SyncBatchNorm.convert_sync_batchnorm(self.student)
        self.average = self._weight_average()
        sample = _first_images(env.dataset, env.device, _SAMPLE)
        self.update = Update(config, self.student, self.method, self.world, self.machine, self.average, sample=sample)
        self.graph = choose_graph(config.graph, env.device, self.method, self.world, sync_bn=config.sync_bn)
        self.graphed = self._graphed()
        self.state = TrainingState()
        self.board: Board | None = None
        self.merges_last = merges_last_batch(config, env.dataset, self.world, env.device)
        self.loader = make_loader(
            env.dataset.train,
            device=env.device,
            resident=config.resident,
            levels=env.dataset.levels,
            seed=config.seed,
            batch_size=config.batch_size,
            padding=config.crop_padding,
            flip=config.flip,
            layout=self.machine.layout,
            shard=(self.world.rank, self.world.size),
            accumulate=config.accumulate,
            merge_last=self.merges_last,
        )
        self._started = time.perf_counter()  # or the last save

    def _teacher(self, role: str, network: nn.Module) -> Teacher:
        """The network as the methods ask it; under parity the plain one, as in the published codes."""
        config, dataset, machine = self.config, self.env.dataset, self.machine
        found = fit_teacher(network, config, dataset, self.env.device, role)
        self.notes += found.notes
        alike = found.layout == machine.layout and (found.precision == "bf16") == (machine.precision == "bf16")
        form = None if alike else found
        if config.parity:
            return Teacher(network, form=form)
        return build_teacher(
            network,
            Views(dataset.train, levels=dataset.levels, padding=config.crop_padding, flip=config.flip),
            precision=found.precision,
            cache=config.teacher_cache,
            cache_dtype=config.teacher_cache_dtype,
            layout=found.layout,
            form=form,
        )

    def _weight_average(self) -> WeightAverage | None:
        config = self.config
        if config.averaging == "none":
            return None
        return WeightAverage(
            self.student, kind=config.averaging, decay=config.ema_decay, first_epoch=config.averaging_epoch()
        )

    def _graphed(self) -> GraphedUpdate | None:
        """The update as a graph, where it is one; else a graph may take the place of the method's attack."""
        if self.graph.mode == "iteration":
            fallback = partial(graph_attack, self.method) if self.config.graph == "auto" else None
            return GraphedUpdate(self.update, self.config.batch_size, fallback=fallback)
        if self.graph.mode == "attack":
            graph_attack(self.method)
        return None

    @property
    def network(self) -> nn.Module:
        """What is validated, kept and tested: the student, or the average of its weights."""
        return self.student if self.average is None else self.average.network

    # ---- the run ----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end and return the summary; a folder that was started before goes on exactly where it stopped.

        Raises:
            DamagedRun: the folder was started with another configuration, other images or another teacher.
            Interrupted: a stop was requested; the checkpoint was written.
            NonFiniteLoss: training diverged.
        """
        inputs = self.world.from_main(self._inputs)
        if self.world.from_main(self.folder.config_file.exists):
            self._restore(inputs)
        else:
            self.world.from_main(lambda: self.folder.start(self.config))
        self.state.inputs = inputs
        steps, passes = self.loader.steps, self.config.passes()
        done = steps * self.state.epoch + self.state.step
        progress = Progress(steps * passes, done, steps_per_epoch=steps, images_per_step=self.config.batch_size)
        if self.config.tensorboard and self.world.is_main:
            self.board = Board(self.folder.board, self.state.rows)
        try:
            while self.state.epoch < passes:
                with self._arithmetic():
                    self._train_epoch(progress)
                self._finish_epoch(progress)
        finally:
            self._save_teacher_logits(at_least=0.0)
            if self.graphed is not None:
                self.graphed.forget()  # the test images need memory, too
            progress.close()
            if self.board is not None:
                self.board.close()
        return self._finish()

    def describe(self) -> list[str]:
        """The run's conventions in words."""
        computing = [*self.update.describe(), self.graph.describe(), *self.notes]
        if self.world.size > 1 and not self.update.synchronised:
            computing.append("batch statistics are those of each process's own images; the running ones are averaged")
        if self.merges_last:
            last = len(self.env.dataset.train) % self.config.batch_size
            computing.append(
                f"the last {'image joins' if last == 1 else f'{last} images join'} the previous batch: batch norm "
                "cannot train on one image"
            )
        lines = describe_run(
            self.config, self.env.dataset, self.student, self.method, self.teachers, computing=computing
        )
        for role, worth in self.worths.items():
            lines.append(f"{role.replace('_', ' ')} {getattr(self.config, role)}: {describe_teacher(worth)}")
        return lines

    def doubts(self) -> list[str]:
        """Warnings about the teachers."""
        spec, found = METHODS[self.config.method], []
        for role, worth in self.worths.items():
            robust = role == "teacher" and spec.attacks and self.config.eps > 0
            source = getattr(self.config, role)
            found += doubts(
                role,
                worth,
                self.env.dataset.num_classes,
                robust=robust,
                of_run=getattr(self.config, f"{role}_mean") is None and (source in MODELS or RunFolder.trained(source)),
            )
        return found

    def _collapse(self, what: str, accuracy: Accuracy, labels: Tensor) -> list[str]:
        """A warning if the network has learned nothing."""
        wrong = collapsed(accuracy, labels, self.env.dataset.num_classes)
        if wrong is None:
            return []
        rate, temperature = known(self.config.lr), self.config.temperature
        helps = f"A smaller learning rate (--lr {rate / 10:g} instead of {rate:g})"
        if temperature is not None and self.config.reduction == "mean":  # the gradient is divided by the classes
            helps = f"A smaller --temperature (now {temperature:g}), larger --lr (now {rate:g}), --reduction batchmean"
        return [
            f"the {what} has collapsed: {wrong}. {helps}, a rate that warms up (--schedule cyclic), more epochs or a "
            "smaller --eps at first usually help"
        ]

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """Of training; evaluation has its own."""
        return training_arithmetic(self.machine.precision, self.machine.device)

    # ---- training ---------------------------------------------------------------------------------------------

    def _train_epoch(self, progress: Progress) -> None:
        """Train the current epoch from the current step on. The host waits for the device at its end and to save."""
        state, steps = self.state, self.loader.steps
        # Loss summed over the images, and how many were classified right: of this process, until they are collected.
        sums = torch.zeros(2, dtype=torch.float64, device=self.env.device)
        if self.world.is_main:
            sums += torch.tensor([state.loss_sum, state.correct], dtype=torch.float64, device=self.env.device)
        self.student.train()
        self.method.begin_epoch(state.epoch)
        started = time.perf_counter()
        watch, update = LossWatch(), self.graphed or self.update
        with closing(self._steps()) as all_parts:
            for parts in all_parts:
                stop, save, bad = self.world.any_soon(self.env.stop.requested, self._save_is_due(), watch.bad)
                if stop or bad:
                    break
                if save:
                    self._collect(sums, started)
                    self._save()
                    started = time.perf_counter()
                sums += update(parts, epoch=state.epoch, rates=self.rates())
                watch.look(sums[0])
                state.step += 1
                progress.step()
        self._collect(sums, started)
        if state.step < steps:
            self._stop()

    def _steps(self) -> Generator[list[Batch], None, None]:
        """The micro-batches of each step of the current epoch, from the current step on."""
        with closing(self.loader.batches(self.state.epoch, self.state.step)) as batches:
            while parts := list(islice(batches, self.config.accumulate)):
                yield parts

    def _collect(self, sums: Tensor, started: float) -> None:
        """Put the sums of all processes and the time since `started` into the state; waits for the device.

        Raises:
            NonFiniteLoss: in every process, when the loss of one is not finite.
        """
        state = self.state
        state.loss_sum, correct = self.world.all_reduce(sums.clone()).tolist()
        state.train_seconds += time.perf_counter() - started
        if not math.isfinite(state.loss_sum) or not weights_are_finite(self.student):
            what = f"loss became {state.loss_sum}" if not math.isfinite(state.loss_sum) else "weights became not finite"
            raise NonFiniteLoss(
                f"{self.config.method}: the {what} in epoch {state.epoch + 1} at learning rate "
                f"{self._learning_rate(0.0):g}; {self._origin()}; {self._kept()}. A smaller --lr usually helps."
            )
        state.correct = int(correct)

    def _origin(self) -> str:
        """Where it began to be not finite, in words, from the steps since the last checkpoint once more."""
        if self.world.size > 1:
            return "a run of one process would say where it began"
        config = self.config.replace(graph="off")  # a replay runs nothing that could look at its parts
        again = Trainer(config, self.folder, self.env, self.networks)
        if self.folder.state.is_file():
            again.load(load_state(self.folder.state))
        return again.find_origin(self.state.step)

    def find_origin(self, steps: int) -> str:
        """Train this epoch up to a step, every part of every step looked at; what was the first that is not finite."""
        state = self.state
        self.student.train()
        self.method.begin_epoch(state.epoch)
        parts_of_steps = islice(self._steps(), steps - state.step)
        with self._arithmetic(), watched(self.method, self.student, self.teachers):
            for parts in parts_of_steps:
                try:
                    self.update(parts, epoch=state.epoch, rates=self.rates())
                    check_weights(self.student, "after the update")
                except FirstBad as found:
                    return f"it began in step {state.step + 1} of {self.loader.steps} with {found}"
                state.step += 1
        return "it did not come back when the steps were done once more"

    def rates(self) -> list[float]:
        """The learning rate of each of the present step's updates."""
        step, steps, replays = self.state.step, self.loader.steps, self.method.replays
        return [self._learning_rate((step + replay / replays) / steps) for replay in range(replays)]

    def _save_teacher_logits(self, **settings: float) -> None:
        """Keep the tables of teacher logits for later runs, where they have files; see `LogitsCache.save`."""
        for teacher in self.teachers.values() if self.world.is_main else ():
            if teacher.cache is not None:
                teacher.cache.save(**settings)

    def _learning_rate(self, done: float) -> float:
        """The rate when the share `done` of the current pass is over."""
        return learning_rate(self.config, (self.state.epoch + done) * self.method.replays)

    def _finish_epoch(self, progress: Progress) -> None:
        """Validate, keep checkpoints, write the epoch's line."""
        config, state, count = self.config, self.state, len(self.env.dataset.train)
        epoch = state.epoch + 1
        if self.average is not None:
            self.average.after_epoch(state.epoch)
        row: dict[str, Any] = {
            "epoch": epoch,
            "lr": self._learning_rate(0.0),
            "train_loss": state.loss_sum / count,
            "train_acc": 100.0 * state.correct / count,
            "val_clean": None,
            "val_robust": None,
        }
        if epoch % config.val_every == 0 or epoch == config.passes():
            accuracy = self._evaluate(self.network, self.env.dataset.val, config.val_steps)
            row["val_clean"], row["val_robust"] = accuracy
            score = getattr(accuracy, METHODS[config.method].selects_by)
            if score > state.best_score:
                state.best_score, state.best_epoch = score, epoch
        row.update(self.method.end_epoch())  # after the validation, in which a run may stop and from which it goes on
        for role, teacher in self.teachers.items():
            row.update({f"{role}_{name}": value for name, value in teacher.report().items()})
        row["images_per_s"] = self._images_per_s(epoch)
        row["elapsed_s"] = self._elapsed()
        state.epoch, state.step, state.loss_sum, state.correct = epoch, 0, 0.0, 0
        state.rows.append(row)
        self._save()
        self._save_teacher_logits()
        self.world.from_main(lambda: self.folder.add_metrics(row))
        if self.board is not None:
            self.board.add(row)
        progress.epoch(row, last=epoch == config.passes())
        self._warn_of_collapse()

    def _warn_of_collapse(self) -> None:
        """Say so in time when the last validations found nothing learned; once, and again after a success."""
        labels = self.env.dataset.val.labels
        rows = [row for row in self.state.rows if row["val_clean"] is not None]
        found = [self._collapse("run", Accuracy(row["val_clean"], row["val_robust"]), labels) for row in rows]
        recent = found[-_LONG_ENOUGH:]
        if len(recent) == _LONG_ENOUGH and all(recent) and not (len(found) > _LONG_ENOUGH and found[-_LONG_ENOUGH - 1]):
            print(f"  warning: after {rows[-1]['epoch']} epochs {recent[-1][0]}", flush=True)

    def _finish(self) -> dict[str, Any]:
        """Evaluate the best and the last checkpoint on the test images; write plot, report and summary."""
        config, dataset = self.config, self.env.dataset
        load_best = partial(
            load_network,
            self.folder.best,
            num_classes=dataset.num_classes,
            in_channels=dataset.image_shape[0],
            model=config.student,
            argument="best",
            model_argument="student",
        )
        best = self.world.from_main(load_best).to(self.env.device, memory_format=self.machine.layout)  # pyright: ignore[reportCallIssue]
        test = self._evaluate(best, dataset.test, PGD20_STEPS)
        test_last = self._evaluate(self.network, dataset.test, PGD20_STEPS)
        labels = dataset.test.labels
        collapse = self._collapse("best checkpoint", test, labels) or self._collapse("last epoch", test_last, labels)
        summary = {
            "method": config.method,
            "dataset": config.dataset,
            "student": config.student,
            "teacher": config.teacher if "teacher" in METHODS[config.method].teachers else None,
            "seed": config.seed,
            "epochs": config.epochs,
            "clean_acc": test.clean,
            "pgd20_acc": test.robust,
            "images_per_s": self._images_per_s(config.passes()),
            "elapsed_s": self._elapsed(),
            "teachers": {
                role: {"clean_acc": worth.clean, f"pgd{worth.steps}_acc": worth.robust, "images": worth.images}
                for role, worth in self.worths.items()
            },
            "warnings": [*self.doubts(), *collapse],
        }
        self.world.from_main(lambda: self._report(best, summary, test_last))
        print(
            f"  test: clean {test.clean:.2f} %, PGD-{PGD20_STEPS} {test.robust:.2f} % (best, epoch "
            f"{self.state.best_epoch}); last epoch {test_last.clean:.2f} / {test_last.robust:.2f} %",
            flush=True,
        )
        for warning in collapse:
            print(f"  warning: {warning}", flush=True)
        return summary

    def _report(self, best: nn.Module, summary: dict[str, Any], test_last: Accuracy) -> None:
        config, dataset = self.config, self.env.dataset
        attack = PGD(eps=config.eps, step_size=known(config.eval_step_size), steps=PGD20_STEPS, bn="eval")
        shown = draw_examples(
            self.folder.pictures_file,
            best,
            dataset,
            attack,
            eps=config.eps,
            seed=EVALUATION_SEED,
            channels_last=self.machine.channels_last,
        )
        write_run_report(self.folder, summary, self.describe(), test_last, self.state.best_epoch, pictures=shown)
        self.folder.write_summary(summary)

    def _evaluate(self, network: nn.Module, split: Any, steps: int) -> Accuracy:
        attack = PGD(eps=self.config.eps, step_size=known(self.config.eval_step_size), steps=steps, bn="eval")
        return evaluate(
            network,
            split,
            levels=self.env.dataset.levels,
            attack=attack,
            seed=EVALUATION_SEED,
            batch_size=self.config.eval_batch_size,
            channels_last=self.machine.channels_last,
            between_batches=self._stop_if_requested,
            shard=(self.world.rank, self.world.size),
            all_reduce=self.world.all_reduce,
        )

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def _save_weights(self, path: Any) -> None:
        dataset = self.env.dataset
        save_weights(
            path,
            self.network,
            name=self.config.student,
            num_classes=dataset.num_classes,
            in_channels=dataset.image_shape[0],
            class_names=dataset.class_names,
        )

    def _save(self) -> None:
        self.state.elapsed = self._elapsed()
        self._started = time.perf_counter()
        self.state.model = self.student.state_dict()
        self.state.optimizer = self.update.optimizer.state_dict()
        self.state.method = self.method.state_dict()
        self.state.average = {} if self.average is None else self.average.state_dict()
        self.state.config = vars(self.config)
        self.world.from_main(self._write_checkpoint)  # nobody leaves before the files are there

    def _write_checkpoint(self) -> None:
        save_state(self.folder.state, self.state)
        self._write_weights()

    def _write_weights(self) -> None:
        """The files that follow from the state. A run killed between the two writes them when it goes on."""
        self._save_weights(self.folder.last)
        if self.state.is_best:
            self._save_weights(self.folder.best)

    def _save_is_due(self) -> bool:
        every = self.config.save_every_seconds
        return every is not None and time.perf_counter() - self._started >= every

    def _inputs(self) -> dict[str, str]:
        """What the run learns from, by which it is known wherever it lies when the run goes on."""
        teachers = {role: fingerprint_weights(network) for role, network in self.networks.items()}
        return {**self.env.fingerprints, **teachers}

    def _restore(self, inputs: Mapping[str, str]) -> None:
        """Go on from the training state, from which alone the run's other files are put right."""
        state = self.world.from_main(lambda: self._read_state(inputs))
        if state is not None:
            self.load(state)
            self.world.from_main(self._write_weights)

    def _read_state(self, inputs: Mapping[str, str]) -> TrainingState | None:
        """The state to go on from, after which the metrics have been set; None before the first checkpoint.

        Raises:
            DamagedRun: the state is missing or damaged, or of another run, or the folder was started with another
                configuration, other images or another teacher.
        """
        folder, values = self.folder, identity(self.config)
        if identity(folder.config()) != values:
            raise DamagedRun(f"resume: {folder.path} was started with another configuration")
        if not folder.state.is_file():  # stopped before its first checkpoint: from the start
            if folder.last.is_file():
                raise DamagedRun(
                    f"resume: {folder.state} is missing, without which the run cannot go on; its weights are in "
                    f"{folder.last.name}"
                )
            folder.rewrite_metrics([])
            return None
        state = load_state(folder.state)
        differing = [
            name
            for name, value in state.config.items()
            if name in values and name not in PLACES and values[name] != value
        ]
        if differing:
            raise DamagedRun(
                f"resume: config.yaml and {folder.state} are not of the same run; they differ in {', '.join(differing)}"
            )
        check_inputs(state.inputs, inputs, self.config, folder)
        folder.rewrite_metrics(state.rows)
        return state

    def load(self, state: TrainingState) -> None:
        """Put a training state into student, optimiser and method.

        Raises:
            DamagedRun: it does not fit.
        """
        self.state = state
        try:
            self.student.load_state_dict(state.model)
            self.update.optimizer.load_state_dict(state.optimizer)
            self.method.load_state_dict(state.method)
            if self.average is not None:
                self.average.load_state_dict(state.average)
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            reason = shorten(str(error), 300)
            raise DamagedRun(f"resume: {self.folder.state} does not fit the run: {reason}") from error

    def _stop_if_requested(self) -> None:
        if self.world.any_soon(self.env.stop.requested)[0]:
            self._stop()

    def _stop(self) -> None:
        self._save()
        where = f"epoch {self.state.epoch + 1}, after step {self.state.step}"
        if self.state.epoch == self.config.passes():
            where = "trained to the end, not yet evaluated"
        raise Interrupted(f"stopped: {self.folder.path} ({where}); checkpoint written")

    def _kept(self) -> str:
        kept = self.folder.last.is_file()
        return f"the checkpoint of the epoch before is kept in {self.folder.path}" if kept else "no epoch was finished"

    # ---- time -------------------------------------------------------------------------------------------------

    def _elapsed(self) -> float:
        return self.state.elapsed + time.perf_counter() - self._started

    def _images_per_s(self, epochs: int) -> float:
        return epochs * len(self.env.dataset.train) / max(self.state.train_seconds, 1e-9)
