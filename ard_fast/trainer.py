"""One run: a student, a method, a folder."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ard_fast.attacks import PGD
from ard_fast.checkpoint import TrainingState, load_network, load_state, save_state, save_weights
from ard_fast.config import TrainConfig, to_yaml
from ard_fast.data import Batch, Dataset, make_loader
from ard_fast.data.batches import derive_seed
from ard_fast.evaluation import EVALUATION_SEED, PGD20_STEPS, Accuracy, evaluate
from ard_fast.interrupts import Interrupted, StopRequest
from ard_fast.methods import METHODS, Inner, MethodContext, StepResult, build_method
from ard_fast.models import Normalised, build_model, count_parameters, find_model
from ard_fast.progress import Progress
from ard_fast.report import write_run_report
from ard_fast.runfolder import RunFolder
from ard_fast.schedules import learning_rate, relative_rate
from ard_fast.teachers import Teacher
from ard_fast.weights import AdversarialWeightPerturbation, WeightAverage

Numbers = Sequence[float]


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint was kept."""


@dataclass
class Environment:
    """What runs of one process share."""

    dataset: Dataset  # training images on the host, the others on `device`
    device: torch.device
    stop: StopRequest


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
    if config.student_mean is None:
        return network
    return Normalised(network, config.student_mean, config.student_std)


class Trainer:
    """Trains, validates, keeps the best and the last checkpoint, and evaluates the best one on the test images.

    Args:
        config: of a single method (not a comparison).
        folder: where the run's files go; made by `run`.
        env: data set, device and stop request.
        teachers: networks by role ("teacher", "clean_teacher"), from `load_network`.
    """

    def __init__(
        self, config: TrainConfig, folder: RunFolder, env: Environment, teachers: Mapping[str, nn.Module] | None = None
    ) -> None:
        self.config, self.folder, self.env = config, folder, env
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        context = MethodContext(
            num_classes=env.dataset.num_classes,
            epochs=config.passes(),
            train_size=len(env.dataset.train),
            device=env.device,
            relative_rate=partial(relative_rate, config),
            teachers={
                role: Teacher(network.to(env.device, memory_format=self.layout))
                for role, network in (teachers or {}).items()
            },
        )
        self.method = build_method(config.method, config, context)
        self.student = initial_network(config, env.dataset).to(env.device, memory_format=self.layout)
        self.optimizer = torch.optim.SGD(
            self.student.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
        self.awp = self._weight_perturbation()
        self.average = self._weight_average()
        self.state = TrainingState()
        self.loader = make_loader(
            env.dataset.train,
            device=env.device,
            resident=config.resident,
            levels=env.dataset.levels,
            seed=config.seed,
            batch_size=config.batch_size,
            padding=config.crop_padding,
            flip=config.flip,
            layout=self.layout,
        )
        self._started = time.perf_counter()  # or the last save

    def _weight_perturbation(self) -> AdversarialWeightPerturbation | None:
        config = self.config
        if not config.awp_gamma:
            return None
        first_epoch = int(config.awp_warmup_share * config.passes())
        return AdversarialWeightPerturbation(self.student, gamma=config.awp_gamma, first_epoch=first_epoch)

    def _weight_average(self) -> WeightAverage | None:
        config = self.config
        if config.averaging == "none":
            return None
        first_epoch = int(config.averaging_start_share * config.passes())
        return WeightAverage(self.student, kind=config.averaging, decay=config.ema_decay, first_epoch=first_epoch)

    @property
    def network(self) -> nn.Module:
        """What is validated, kept and tested: the student, or the average of its weights."""
        return self.student if self.average is None else self.average.network

    # ---- the run ----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end and return the summary; a folder that was started before goes on exactly where it stopped.

        Raises:
            ValueError: the folder was started with another configuration.
            Interrupted: a stop was requested; the checkpoint was written.
            NonFiniteLoss: training diverged.
        """
        if self.folder.config_file.exists():
            self._restore()
        else:
            self.folder.start(self.config)
        steps, passes = self.loader.steps, self.config.passes()
        progress = Progress(steps * passes, steps * self.state.epoch + self.state.step)
        try:
            while self.state.epoch < passes:
                self._train_epoch(progress)
                self._finish_epoch(progress)
        finally:
            progress.close()
        return self._finish()

    def describe(self) -> list[str]:
        """The run's conventions in words."""
        config, dataset, spec = self.config, self.env.dataset, METHODS[self.config.method]
        teachers = "".join(f" <- {role.replace('_', ' ')} {getattr(config, role)}" for role in spec.teachers)
        crop = f"crop pad {config.crop_padding}" if config.crop_padding else "no crop"
        lines = [
            f"{config.method}: {config.student} ({count_parameters(self.student):,} parameters){teachers} "
            f"on {dataset.name} ({len(dataset.train)} train, {len(dataset.val)} validation, {len(dataset.test)} test)",
            *self.method.conventions(),
        ]
        if spec.attacks:
            steps = "" if config.steps is None else f"{config.steps} steps of "
            start = {None: "", True: ", start clamped", False: ", start not clamped"}[config.clamp_start]
            lines.append(
                f"attack L-inf, eps {config.eps:.5g}, {steps}{config.step_size:.5g} (pixels in [0, 1], no "
                f"normalisation){start}{'' if config.attack_bn is None else f', batch norm: {config.attack_bn}'}"
            )
        if config.parity:
            lines += [f"parity: {quirk.text}" for quirk in spec.quirks] or ["parity: no quirks of this method's code"]
        lines.append(
            f"SGD lr {config.lr:g} ({config.schedule}), momentum {config.momentum:g}, weight decay "
            f"{config.weight_decay:g} on all parameters, batch {config.batch_size}, {crop}, "
            f"{'flip' if config.flip else 'no flip'}, seed {config.seed}, {self.env.device}"
        )
        if self.awp is not None:
            lines.append(
                f"adversarial weight perturbation: gamma {config.awp_gamma:g}, from epoch {self.awp.first_epoch + 1}"
            )
        if self.average is not None:
            decay = f" decay {config.ema_decay:g}" if config.averaging == "ema" else ""
            lines.append(
                f"weights averaged: {config.averaging}{decay}, from epoch {self.average.first_epoch + 1}; validation, "
                "checkpoints and test are of the average"
            )
        lines.append(
            f"evaluation: L-inf PGD-{PGD20_STEPS} on CE, eps {config.eps:.5g}, step {config.eval_step_size:.5g}, "
            f"uniform start, eval mode; best epoch by PGD-{config.val_steps} on the validation images"
        )
        return lines

    # ---- training ---------------------------------------------------------------------------------------------

    def _train_epoch(self, progress: Progress) -> None:
        """Train the current epoch from the current step on. The host waits for the device at its end and to save."""
        config, state, steps = self.config, self.state, self.loader.steps
        loss_sum = torch.tensor(state.loss_sum, dtype=torch.float64, device=self.env.device)
        correct = torch.tensor(state.correct, dtype=torch.int64, device=self.env.device)
        self.student.train()
        self.method.begin_epoch(state.epoch)
        started = time.perf_counter()
        for batch in self.loader.batches(state.epoch, state.step):
            if self.env.stop.requested:
                break
            result = self._update(batch)
            loss_sum += result.loss.detach() * len(batch.y)
            correct += (result.logits.detach().argmax(1) == batch.y).sum()
            state.step += 1
            progress.step()
            if self._save_is_due() and state.step < steps:
                state.loss_sum, state.correct = loss_sum.item(), correct.item()
                state.train_seconds += time.perf_counter() - started
                self._save()
                started = time.perf_counter()
        state.loss_sum, state.correct = loss_sum.item(), correct.item()  # waits for the device
        state.train_seconds += time.perf_counter() - started
        if not math.isfinite(state.loss_sum):
            raise NonFiniteLoss(
                f"{config.method}: the loss became {state.loss_sum} in epoch {state.epoch + 1} at learning rate "
                f"{self._learning_rate(0.0):g}; {self._kept()}. A smaller --lr usually helps."
            )
        if state.step < steps:
            self._stop()

    def _update(self, batch: Batch) -> StepResult:
        """The student's updates on one batch; the last one's outcome."""
        for replay in range(self.method.replays):
            done = (self.state.step + replay / self.method.replays) / self.loader.steps
            for group in self.optimizer.param_groups:
                group["lr"] = self._learning_rate(done)
            inner = self.method.attack(self.student, batch)
            if self.awp is not None:
                self.awp.perturb(self.state.epoch, [partial(self._outer_loss, batch, inner)])
            result = self.method.loss(self.student, batch, inner)
            self.optimizer.zero_grad(set_to_none=True)
            result.loss.backward()
            self.method.after_backward(batch, inner)
            self.optimizer.step()
            if self.awp is not None:
                self.awp.restore()
            if self.average is not None:
                self.average.after_update(self.state.epoch)
        return result

    def _outer_loss(self, batch: Batch, inner: Inner) -> Tensor:
        return self.method.loss(self.student, batch, inner).loss

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
            if accuracy.robust > state.best_robust:
                state.best_robust, state.best_epoch = accuracy.robust, epoch
                self._save_weights(self.folder.best)
        row.update(self.method.end_epoch())  # after the validation, in which a run may stop and from which it goes on
        row["images_per_s"] = self._images_per_s(epoch)
        row["elapsed_s"] = self._elapsed()
        state.epoch, state.step, state.loss_sum, state.correct = epoch, 0, 0.0, 0
        self.folder.add_metrics(row)
        self._save()
        progress.epoch(row, last=epoch == config.passes())

    def _finish(self) -> dict[str, Any]:
        """Evaluate the best and the last checkpoint on the test images; write plot, report and summary."""
        config, dataset = self.config, self.env.dataset
        best = load_network(
            self.folder.best,
            num_classes=dataset.num_classes,
            in_channels=dataset.image_shape[0],
            model=config.student,
            argument="best",
            model_argument="student",
        )
        best = best.to(self.env.device, memory_format=self.layout)
        test = self._evaluate(best, dataset.test, PGD20_STEPS)
        test_last = self._evaluate(self.network, dataset.test, PGD20_STEPS)
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
        }
        write_run_report(self.folder, summary, self.describe(), test_last, self.state.best_epoch)
        self.folder.write_summary(summary)
        print(
            f"  test: clean {test.clean:.2f} %, PGD-{PGD20_STEPS} {test.robust:.2f} % (best, epoch "
            f"{self.state.best_epoch}); last epoch {test_last.clean:.2f} / {test_last.robust:.2f} %",
            flush=True,
        )
        return summary

    def _evaluate(self, network: nn.Module, split: Any, steps: int) -> Accuracy:
        attack = PGD(eps=self.config.eps, step_size=self.config.eval_step_size, steps=steps, bn="eval")
        return evaluate(
            network,
            split,
            levels=self.env.dataset.levels,
            attack=attack,
            seed=EVALUATION_SEED,
            batch_size=self.config.eval_batch_size,
            channels_last=self.config.channels_last,
            between_batches=self._stop_if_requested,
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
        )

    def _save(self) -> None:
        self.state.elapsed = self._elapsed()
        self._started = time.perf_counter()
        self.state.model = self.student.state_dict()
        self.state.optimizer = self.optimizer.state_dict()
        self.state.method = self.method.state_dict()
        self.state.average = {} if self.average is None else self.average.state_dict()
        save_state(self.folder.state, self.state)
        self._save_weights(self.folder.last)

    def _save_is_due(self) -> bool:
        every = self.config.save_every_seconds
        return every is not None and time.perf_counter() - self._started >= every

    def _restore(self) -> None:
        if to_yaml(self.folder.config()) != to_yaml(self.config):
            raise ValueError(f"resume: {self.folder.path} was started with another configuration")
        if not self.folder.state.is_file():  # stopped before its first checkpoint: from the start
            self.folder.rewrite_metrics([])
            return
        self.state = load_state(self.folder.state)
        self.student.load_state_dict(self.state.model)
        self.optimizer.load_state_dict(self.state.optimizer)
        self.method.load_state_dict(self.state.method)
        if self.average is not None:
            self.average.load_state_dict(self.state.average)
        self.folder.rewrite_metrics(row for row in self.folder.metrics() if row["epoch"] <= self.state.epoch)

    def _stop_if_requested(self) -> None:
        if self.env.stop.requested:
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
