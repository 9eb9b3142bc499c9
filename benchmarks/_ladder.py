"""The iteration's gains, one after the other: each rung is the one before it with one thing changed.

Up to `folded` a rung is the published iteration in plain torch with that much of it changed. `fused` is the package's
own trainer, which has all that was before and its kernels; what follows are its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from _published import Part, PublishedIteration, Recipe, distillation, published_pgd, uniform_noise
from _training_case import PADDING, TrainingCase
from torch import Tensor

from ard_fast._devices import training_arithmetic
from ard_fast.data import Batch
from ard_fast.folding import FoldedNetwork
from ard_fast.teachers import InferenceNetwork, Teacher, Views, build_teacher
from ard_fast.training.compute import resolve_compute
from ard_fast.training.config import TrainConfig, resolve
from ard_fast.training.distributed import World
from ard_fast.training.fitting import Environment
from ard_fast.training.interrupts import StopRequest
from ard_fast.training.run_folder import RunFolder
from ard_fast.training.trainer import Trainer


@dataclass(frozen=True)
class Changes:
    """What a rung in plain torch changes of the published iteration; see `RUNGS`."""

    channels_last: bool = False
    teacher: str = "plain"
    bf16: bool = False
    attack_bn: str = "train"
    folded: bool = False


class LeanerIteration(PublishedIteration):
    """The published iteration without its clean branch, and with `changes`.

    Args:
        case: networks and images.
        recipe: constants.
        changes: what else is changed.
    """

    def __init__(self, case: TrainingCase, recipe: Recipe, changes: Changes) -> None:
        layout = torch.channels_last if changes.channels_last else torch.contiguous_format
        network = case.teacher(layout)
        super().__init__(
            case.student(layout),
            network,
            case.batches(layout),
            recipe,
            attack_bn=changes.attack_bn,
            clean_branch=False,
        )
        self.bf16, self.device = changes.bf16, case.device
        self.asked = lean_teacher(case, network, changes.teacher, "bf16" if changes.bf16 else "fp32")
        know_all(self.asked, case)
        self.folded: FoldedNetwork | None = None
        if changes.folded:
            dtype = torch.bfloat16 if changes.bf16 else torch.float32
            self.folded = FoldedNetwork(self.student, sample(case), dtype=dtype)

    def teacher(self, batch: Batch) -> Tensor:
        return self.asked.clean(batch)

    def precision(self) -> Any:
        """What the student's forward passes run in."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def network(self, x: Tensor) -> Tensor:
        """The student's logits `[B, C]`, float32."""
        with self.precision():
            logits = self.student(x)
        return logits.float()

    def attack(self, batch: Batch) -> Tensor:
        noise = uniform_noise(batch.x, self.recipe.eps) if self.noise is None else self.noise(batch)
        self.student.train(self.attack_bn == "train")
        x_adv = published_pgd(self.attacked(), batch.x, batch.y, self.recipe, noise)
        self.student.train()
        return x_adv

    def attacked(self) -> Callable[[Tensor], Tensor]:
        """What the attack sees of the student; made anew from its weights where it is folded."""
        if self.folded is None:
            return self.network
        self.folded.refresh()
        return self.folded

    def update(self, batch: Batch) -> Tensor:
        self.optimizer.zero_grad()
        loss = distillation(self.network(self.attacked_images(batch)), self.teacher(batch), self.recipe)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def sample(case: TrainingCase) -> Tensor:
    """Images on which a changed form of a network is compared with it when it is made."""
    return case.data.train.images[:16].to(case.device, torch.float32) / case.data.levels


def lean_teacher(case: TrainingCase, network: torch.nn.Module, form: str, precision: str) -> Teacher:
    """The teacher in a form: "plain", "lean", or lean and "cached"."""
    train, levels = case.data.train, case.data.levels
    if form == "plain":
        return Teacher(network)
    if form == "lean":
        return Teacher(network, inference=InferenceNetwork(network, sample(case), precision))
    views = Views(train, levels=levels, padding=PADDING.get(case.pair.dataset, 4), flip=case.pair.dataset != "digits")
    return build_teacher(network, views, precision=precision)


def know_all(teacher: Teacher, case: TrainingCase) -> None:
    """Let the teacher's table, if it keeps one, have all that it is going to be asked: no miss is timed by chance."""
    if teacher.open_cache() is not None:
        for batch in case.batches():
            teacher.clean(batch)


class TrainerIteration:
    """An iteration of `python -m ard_fast.train --method ard`, by its trainer, from the loader to the update.

    Args:
        case: networks and images.
        recipe: constants; what it says of the method is what the run is configured with.
        flags: the run's settings beside.
    """

    def __init__(self, case: TrainingCase, recipe: Recipe, flags: Mapping[str, Any]) -> None:
        self.config = trainer_config(case, recipe, flags)
        env = Environment(case.data.evaluated_on(case.device), case.device, StopRequest(), World())
        machine = resolve_compute(self.config, case.device)
        self.arithmetic = partial(training_arithmetic, machine.precision, case.device)
        self.trainer = Trainer(self.config, RunFolder("unused"), env, {"teacher": case.teacher(machine.layout)})
        self.student = self.trainer.student
        self.student.load_state_dict(case.student().state_dict())
        self.student.train()
        self.trainer.method.begin_epoch(0)
        know_all(self.trainer.teachers["teacher"], case)
        self.steps = self._again_and_again()
        self.rate = recipe.lr
        self.x_adv: Tensor | None = None
        self.outer_at: Tensor | None = None

    def _again_and_again(self) -> Iterator[list[Batch]]:
        while True:  # the same epoch, so that its views are those that the teacher's cache knows
            for batch in self.trainer.loader.batches(0):
                yield [batch]

    @property
    def replays(self) -> int:
        """How many steps were replays of a CUDA graph."""
        return 0 if self.trainer.graphed is None else self.trainer.graphed.replays

    def start_at(self, noise: object) -> None:
        """The package's attack always starts where the batch's seed says."""

    def parts(self) -> list[Part]:
        """What is what of an iteration, the rest is the update; nothing where it is replayed."""
        if self.replays:
            return []
        method, attacked = self.trainer.method, self.trainer.update.attacked
        refresh = [(attacked, "refresh", "attack")] if hasattr(attacked, "refresh") else []
        return [
            (self, "step", "data"),
            (method, "attack", "attack"),
            *refresh,
            (method.teacher, "clean", "teacher"),
        ]

    def step(self) -> list[Batch]:
        """The batch of the next step, alone in a list."""
        return next(self.steps)

    def __call__(self) -> Tensor:
        with self.arithmetic():
            parts = self.step()
            update = self.trainer.graphed or self.trainer.update
            return update(parts, epoch=0, rates=[self.rate])[0] / parts[0].count

    @contextmanager
    def observed(self) -> Iterator[None]:
        """While this lasts, `x_adv` and `outer_at` are as those of the published iteration."""
        method = self.trainer.method
        attack = method.attack

        def observing(*args: Any, **kwargs: Any) -> Any:
            inner = attack(*args, **kwargs)
            self.x_adv = inner.x_adv
            return inner if self.outer_at is None else replace(inner, x_adv=self.outer_at)

        method.attack = observing
        try:
            yield
        finally:
            del method.attack


def trainer_config(case: TrainingCase, recipe: Recipe, flags: Mapping[str, Any]) -> TrainConfig:
    """The configuration of a run with the recipe's constants."""
    return resolve(
        {
            "method": "ard",
            "dataset": case.pair.dataset,
            **({} if case.pair.dataset == "digits" else {"data_dir": "unused"}),
            "student": case.pair.student,
            "teacher": case.pair.teacher,
            "batch_size": case.batch,
            "device": str(case.device),
            "seed": case.seed,
            "eps": recipe.eps,
            "step_size": recipe.step_size,
            "steps": recipe.steps,
            "alpha": recipe.alpha,
            "temperature": recipe.temperature,
            "lr": recipe.lr,
            "momentum": recipe.momentum,
            "weight_decay": recipe.weight_decay,
            **flags,
        }
    )
