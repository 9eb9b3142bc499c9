"""One run: a student, a method, a folder."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, closing
from functools import partial
from itertools import count, islice
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ard_fast._commandline import Interrupted
from ard_fast._devices import training_arithmetic
from ard_fast._progress import Progress, Whole
from ard_fast._typing import known
from ard_fast.attacks import PGD
from ard_fast.attacks.cuda_graph import GraphWarning
from ard_fast.data import Batch, make_loader
from ard_fast.evaluation.measure import PGD20_STEPS, Accuracy, evaluate
from ard_fast.evaluation.results import EVALUATION_SEED
from ard_fast.evaluation.self_checks import describe_teacher
from ard_fast.methods.base import MethodContext
from ard_fast.methods.registry import build_method
from ard_fast.teachers.fingerprints import fingerprint_weights
from ard_fast.teachers.teacher import Teacher
from ard_fast.training.averaging import WeightAverage
from ard_fast.training.checkpoint import DamagedRun, TrainingState, load_network, load_state, save_state, save_weights
from ard_fast.training.conventions import collapse_warnings, describe_run, late_warnings, teacher_warnings
from ard_fast.training.fitting import (
    Environment,
    copy_for_method,
    first_images,
    fit_beside,
    fit_student,
    make_teacher,
    merges_last_batch,
)
from ard_fast.training.graph import GraphedUpdate, came_to, choose_graph, graph_attack
from ard_fast.training.nonfinite import FirstBad, LossWatch, NonFiniteLoss, check_weights, weights_are_finite
from ard_fast.training.optimiser import learning_rate, relative_rate
from ard_fast.training.report import Board, draw_examples, write_run_report
from ard_fast.training.step import Update

if TYPE_CHECKING:
    from ard_fast.training.config import TrainConfig
    from ard_fast.training.run_folder import RunFolder

_SAMPLE = 16  # images on which the form of the student that is attacked is checked


class Trainer:
    """Trains, validates, keeps the best and the last checkpoint, and evaluates the best one on the test images.

    Several processes (`env.world`) share the images of each step and of each evaluation; the first one writes.

    Args:
        config: of a single method (not a comparison).
        folder: where the run's files go; it has the configuration.
        env: data set, device and stop request.
        teachers: networks by role ("teacher", "clean_teacher"), from `load_network`.
        whole: the runs that this one is one of; they print its line.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        env: Environment,
        teachers: Mapping[str, nn.Module] | None = None,
        whole: Whole | None = None,
    ) -> None:
        self.whole = whole
        self.config, self.folder, self.env, self.world = config, folder, env, env.world
        self.student, self.compute, notes = fit_student(config, env.dataset, env.device, world=env.world)
        beside = fit_beside(config, env.dataset, self.student, self.compute, env.world)
        self.notes, self.networks = list(notes), dict(teachers or {})
        self.worths = {role: env.measure(network, config) for role, network in self.networks.items()}
        self.doubts = teacher_warnings(config, self.worths, env.dataset.num_classes)
        self.teachers: dict[str, Teacher] = {}
        for role, network in self.networks.items():
            self.teachers[role], notes = make_teacher(network, config, env.dataset, self.compute, role)
            self.notes += notes
        if self.world.synchronises(config.sync_bn, env.device):
            convert = nn.SyncBatchNorm.convert_sync_batchnorm
            self.student, beside = convert(self.student), {role: convert(each) for role, each in beside.items()}
        context = MethodContext(
            num_classes=env.dataset.num_classes,
            epochs=config.passes(),
            device=env.device,
            relative_rate=partial(relative_rate, config),
            teachers=self.teachers,
            networks=beside,
            processes=self.world.size,
            all_reduce=self.world.sum_over_images,
            all_min=self.world.all_min,
            copy_student=partial(copy_for_method, self.student, config.method),
        )
        self.method = build_method(config.method, config, context)
        self.average: WeightAverage | None = None
        if config.averaging != "off":
            first = config.averaging_epoch()
            decay = known(config.ema_decay)
            self.average = WeightAverage(self.student, kind=known(config.averaging), decay=decay, first_epoch=first)
        sample = first_images(env.dataset, env.device, _SAMPLE)
        self.update = Update(config, self.student, self.method, self.world, self.compute, self.average, sample=sample)
        self.chosen_graph = choose_graph(config.graph, env.device, self.method, self.world, sync_bn=config.sync_bn)
        self.graph = self.chosen_graph  # and what it has come to
        self.graphed: GraphedUpdate | None = None
        if self.graph.mode == "iteration":
            fallback = partial(graph_attack, self.method) if config.graph == "auto" else None
            self.graphed = GraphedUpdate(self.update, config.batch_size, fallback=fallback)
        elif self.graph.mode == "attack":
            graph_attack(self.method)
        self.ungraphed: list[str] = []  # why what was to be a graph is none
        self.state = TrainingState()
        self.board: Board | None = None
        self.merges_last = merges_last_batch(config, env.dataset, self.world, env.device)
        self.loader = make_loader(
            env.dataset.pool or env.dataset.train,
            device=env.device,
            resident=config.resident,
            levels=env.dataset.levels,
            seed=config.seed,
            batch_size=config.batch_size,
            padding=known(config.crop_padding),
            flip=config.flip,
            cropshift=config.cropshift or 0,
            cutout=config.cutout,
            layout=self.compute.layout,
            shard=(self.world.rank, self.world.size),
            accumulate=config.accumulate,
            merge_last=self.merges_last,
            extra=0 if env.dataset.pool is None else len(env.dataset.pool) - len(env.dataset.train),
            extra_fraction=config.extra_fraction or 0.0,
        )
        self._started = time.perf_counter(), time.process_time()  # or the last save

    @property
    def network(self) -> nn.Module:
        """What is validated, kept and tested: the student, or the average of its weights."""
        return self.student if self.average is None else self.average.network

    # ---- the run ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the end; a folder that was started before goes on exactly where it stopped.

        Raises:
            DamagedRun: the folder was started with other images or another teacher, or its state cannot be used.
            Interrupted: a stop was requested; the checkpoint was written.
            NonFiniteLoss: training diverged.
        """
        inputs = self.world.from_main(self._inputs)
        state = self.world.from_main(lambda: self.folder.state_to_resume(self.config, inputs))
        if state is not None:  # the run's other files are made from it again
            self.load(state)
            self.world.from_main(self._write_weights)
        self.state.inputs = inputs
        steps, passes = self.loader.steps, self.config.passes()
        done = steps * self.state.epoch + self.state.step
        images, whole = self.config.batch_size, self.whole
        with closing(
            Progress(steps * passes, done, steps_per_epoch=steps, images_per_step=images, whole=whole)
        ) as shown:
            self._train(shown)
            if done < steps * passes:
                self._look_at_graph(shown, over=True)
            self._finish(shown)

    def _train(self, progress: Progress) -> None:
        if self.config.tensorboard and self.world.is_main:
            self.board = Board(self.folder.board, self.state.rows)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", GraphWarning)  # `_look_at_graph` says it
                while self.state.epoch < self.config.passes():
                    with self._arithmetic():
                        self._train_epoch(progress)
                    self._finish_epoch(progress)
        finally:
            self._save_teacher_logits(at_least=0.0)
            if self.graphed is not None:
                self.graphed.forget()  # the test images need memory, too
            if self.board is not None:
                self.board.close()

    def _look_at_graph(self, progress: Progress, *, over: bool) -> None:
        """Say once why what was to be a CUDA graph is none, and keep it for report and summary."""
        if self.chosen_graph.mode == "off":
            return
        before, self.graph = self.graph, came_to(self.chosen_graph, self.graphed, self.method, over=over)
        if self.graph != before:
            self.ungraphed = [f"graph: {self.graph.describe()}"]
            if self.graph.why != before.why:
                progress.warn(self.ungraphed[0])

    def describe(self) -> list[str]:
        """The run's conventions in words."""
        graph = [] if self.env.device.type == "cpu" and self.chosen_graph.mode == "off" else [self.graph.describe()]
        computing = [*self.update.describe(), *graph, *self.notes]
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
        worths = ((role, getattr(self.config, role), describe_teacher(worth)) for role, worth in self.worths.items())
        lines += [f"{role.replace('_', ' ')} {source}: {worth}" for role, source, worth in worths]
        return lines

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """Of training; evaluation has its own."""
        return training_arithmetic(self.compute.precision, self.compute.device)

    # ---- training ---------------------------------------------------------------------------------------------

    def _train_epoch(self, progress: Progress) -> None:
        """Train the current epoch from the current step on. The host waits for the device at its end and to save."""
        state, steps = self.state, self.loader.steps
        # Loss summed over the images, and how many were classified right: of this process, until they are collected.
        sums = torch.zeros(2, dtype=torch.float64, device=self.env.device)
        if self.world.is_main:
            sums += torch.tensor([state.loss_sum, state.correct], dtype=torch.float64, device=self.env.device)
        self.update.set_train_mode()
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
        if not math.isfinite(state.loss_sum) or not weights_are_finite(*self.update.networks.values()):
            what = f"loss became {state.loss_sum}" if not math.isfinite(state.loss_sum) else "weights became not finite"
            kept = f"the checkpoint of the epoch before is kept in {self.folder.path}"
            raise NonFiniteLoss(
                f"{self.config.method}: the {what} in epoch {state.epoch + 1} at learning rate "
                f"{self.rates()[-1]:g}; {self._origin()}; "
                f"{kept if self.folder.last.is_file() else 'no epoch was finished'}. A smaller --lr usually helps."
            )
        state.correct = int(correct)

    def _origin(self) -> str:
        """Where it began to be not finite, in words, from the steps since the last checkpoint once more."""
        if self.world.size > 1:
            return "a run of one process would say where it began"
        config = self.config.replace(graph="off")  # a replayed step cannot look at its terms
        again = Trainer(config, self.folder, self.env, self.networks)
        if self.folder.state.is_file():
            again.load(load_state(self.folder.state))
        return again.find_origin(self.state.step)

    def find_origin(self, steps: int) -> str:
        """Train this epoch up to a step, every term of every step looked at; the first that is not finite."""
        state = self.state
        self.update.set_train_mode()
        self.method.begin_epoch(state.epoch)
        self.update.checked = True
        with self._arithmetic():
            for parts in islice(self._steps(), steps - state.step):
                try:
                    check_weights(self.update.networks, "before the step")
                    self.update(parts, epoch=state.epoch, rates=self.rates())
                except FirstBad as found:
                    return f"it began in step {state.step + 1} of {self.loader.steps} with {found}"
                state.step += 1
        return "it did not come back when the steps were done once more"

    def rates(self) -> list[float]:
        """The learning rate of each of the present step's updates."""
        step, steps, repeats = self.state.step, self.loader.steps, self.method.replays
        return [self._learning_rate((step + repeat / repeats) / steps) for repeat in range(repeats)]

    def _save_teacher_logits(self, **settings: float) -> None:
        """Keep the tables of teacher logits for later runs, where they have files; see `LogitsCache.save`."""
        for teacher in self.teachers.values() if self.world.is_main else ():
            if teacher.cache is not None:
                teacher.cache.save(**settings)

    def _learning_rate(self, done: float) -> float:
        """The learning rate when the share `done` of the current pass is over."""
        return learning_rate(self.config, (self.state.epoch + done) * self.method.replays)

    def _finish_epoch(self, progress: Progress) -> None:
        """Validate, keep checkpoints, write the epoch's line."""
        config, state, count = self.config, self.state, self.loader.count
        epoch = state.epoch + 1
        self._look_at_graph(progress, over=False)
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
            accuracy = self._evaluate(self.network, self.env.dataset.val, config.val_steps, progress, "validation")
            row["val_clean"], row["val_robust"] = accuracy
            score = getattr(accuracy, self.method.selects_by)
            if score > state.best_score:
                state.best_score, state.best_epoch = score, epoch
        row.update(self.method.end_epoch())  # after the validation, in which a run may stop and from which it goes on
        for role, teacher in self.teachers.items():
            row.update({f"{role}_{name}": value for name, value in teacher.report().items()})
        row["images_per_s"] = self._images_per_s(epoch)
        row["elapsed_s"], row["cpu_s"] = self._elapsed()
        state.epoch, state.step, state.loss_sum, state.correct = epoch, 0, 0.0, 0
        state.rows.append(row)
        self._save()
        self._save_teacher_logits()
        self.world.from_main(lambda: self.folder.add_metrics(row))
        if self.board is not None:
            self.board.add(row)
        progress.epoch(row)
        for warning in late_warnings(config, state.rows, self.env.dataset.val.labels, self.env.dataset.num_classes):
            progress.warn(warning)

    def _finish(self, progress: Progress) -> None:
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
        best = self.world.from_main(load_best).to(self.env.device, memory_format=self.compute.layout)  # pyright: ignore[reportCallIssue]
        test = self._evaluate(best, dataset.test, PGD20_STEPS, progress, "test, best checkpoint")
        test_last = self._evaluate(self.network, dataset.test, PGD20_STEPS, progress, "test, last epoch")
        warn = partial(collapse_warnings, config, labels=dataset.test.labels, num_classes=dataset.num_classes)
        collapse = warn("best checkpoint", test) or warn("last epoch", test_last)
        summary = {
            "method": config.method,
            "dataset": config.dataset,
            "student": config.student,
            "teacher": config.teacher if "teacher" in self.method.teachers else None,
            "seed": config.seed,
            "epochs": config.epochs,
            "clean_acc": test.clean,
            "pgd20_acc": test.robust,
            "images_per_s": self._images_per_s(config.passes()),
            "elapsed_s": self._elapsed()[0],
            "teachers": {
                role: {"clean_acc": worth.clean, f"pgd{worth.steps}_acc": worth.robust, "images": worth.images}
                for role, worth in self.worths.items()
            },
            "graph": self.graph.describe(),
            "warnings": [*self.doubts, *self.ungraphed, *collapse],
        }
        self.world.from_main(lambda: self._report(best, summary, test_last))
        if self.whole is None:
            progress.say(
                f"  test: clean {test.clean:.2f} %, PGD-{PGD20_STEPS} {test.robust:.2f} % (best, epoch "
                f"{self.state.best_epoch}); last epoch {test_last.clean:.2f} / {test_last.robust:.2f} %"
            )
        for warning in collapse:
            progress.warn(warning)

    def _report(self, best: nn.Module, summary: dict[str, Any], test_last: Accuracy) -> None:
        shown = draw_examples(
            self.folder.pictures_file,
            best,
            self.env.dataset,
            self._attack(PGD20_STEPS),
            eps=self.config.eps,
            channels_last=self.compute.channels_last,
        )
        write_run_report(self.folder, summary, self.describe(), test_last, self.state.best_epoch, pictures=shown)
        self.folder.write_summary(summary)

    def _evaluate(self, network: nn.Module, split: Any, steps: int, progress: Progress, what: str) -> Accuracy:
        """Accuracy on a split, under PGD of that many steps; `what` is shown meanwhile."""
        share, batches = math.ceil(len(split) / self.world.size), count()

        def before_batch() -> None:
            self._stop_if_requested()
            progress.evaluating(what, min(next(batches) * self.config.eval_batch_size, share), share)

        return evaluate(
            network,
            split,
            levels=self.env.dataset.levels,
            attack=self._attack(steps),
            seed=EVALUATION_SEED,
            batch_size=self.config.eval_batch_size,
            channels_last=self.compute.channels_last,
            between_batches=before_batch,
            shard=(self.world.rank, self.world.size),
            all_reduce=self.world.all_reduce,
        )

    def _attack(self, steps: int) -> PGD:
        """Of validation and test."""
        return PGD(eps=self.config.eps, step_size=known(self.config.eval_step_size), steps=steps, bn="eval")

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def _save(self) -> None:
        self.state.elapsed, self.state.cpu = self._elapsed()
        self._started = time.perf_counter(), time.process_time()
        self.state.model = self.student.state_dict()
        self.state.optimizer = self.update.optimizer.state_dict()
        self.state.method = self.method.state_dict()
        self.state.average = {} if self.average is None else self.average.state_dict()
        self.state.config = vars(self.config)
        self.world.from_main(self._write_state)  # the others wait until the files are there

    def _write_state(self) -> None:
        save_state(self.folder.state, self.state)
        self._write_weights()

    def _write_weights(self) -> None:
        """The files that follow from the state. A run killed between the two writes them when it goes on."""
        dataset = self.env.dataset
        for path in (self.folder.last, self.folder.best) if self.state.is_best else (self.folder.last,):
            save_weights(
                path,
                self.network,
                name=self.config.student,
                num_classes=dataset.num_classes,
                in_channels=dataset.image_shape[0],
                class_names=dataset.class_names,
            )

    def _save_is_due(self) -> bool:
        every = self.config.save_every_seconds
        return every is not None and time.perf_counter() - self._started[0] >= every

    def _inputs(self) -> dict[str, str]:
        """What the run learns from, by which it is known wherever it lies when the run goes on."""
        teachers = {role: fingerprint_weights(network) for role, network in self.networks.items()}
        return {**self.env.fingerprints, **teachers}

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

    # ---- time -------------------------------------------------------------------------------------------------

    def _elapsed(self) -> tuple[float, float]:
        """Seconds of the run so far: on the wall's clock, and of the processor."""
        wall, cpu = self._started
        return self.state.elapsed + time.perf_counter() - wall, self.state.cpu + time.process_time() - cpu

    def _images_per_s(self, epochs: int) -> float:
        return epochs * self.loader.count / max(self.state.train_seconds, 1e-9)
