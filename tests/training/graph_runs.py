"""Short trainings, step by step, eager or through a graph, for the tests that compare the two."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from distillation_cases import make_teacher
from torch import Tensor

from ard_fast._commandline import StopRequest
from ard_fast.attacks.cuda_graph import CudaGraphs
from ard_fast.data import load_dataset
from ard_fast.methods import find_method
from ard_fast.training.config import resolve
from ard_fast.training.distributed import World
from ard_fast.training.fitting import Environment
from ard_fast.training.graph import GraphedUpdate
from ard_fast.training.run_folder import RunFolder
from ard_fast.training.step import Update
from ard_fast.training.trainer import Trainer

BATCH, IMAGES = 8, 52  # 6 whole batches an epoch and one of 4 images


@dataclass
class Outcome:
    """What a training leaves, and what each step said."""

    tensors: dict[str, Tensor]
    sums: list[Tensor] = field(default_factory=list)
    figures: list[dict[str, float]] = field(default_factory=list)


class Run:
    """A run of `Trainer` without files and validation.

    Args:
        name: of the method.
        backend: None for eager steps; the rates are on the device in either case.
        device: of the run.
        world: of several processes, whose group there is; then the update is the trainer's own.
        settings: of the configuration.
    """

    def __init__(
        self,
        name: str,
        *,
        backend: CudaGraphs | None = None,
        device: str = "cpu",
        world: World | None = None,
        **settings: Any,
    ) -> None:
        spec = find_method(name)
        if "steps" in spec.defaults():
            settings = {"steps": 2, **settings}
        if "replays" in spec.defaults():
            settings = {"replays": 2, "epochs": 4, **settings}
        settings = {"epochs": 2, "subset": IMAGES, "batch_size": BATCH, "schedule": "cosine", **settings}
        roles = dict.fromkeys(spec.teachers, "digits-teacher")
        self.config = config = resolve({"method": name, "dataset": "digits", "device": device, **roles, **settings})
        dataset = load_dataset("digits", subset=config.subset)
        on = torch.device(device)
        env = Environment(dataset.evaluated_on(on), on, StopRequest(), world or World())
        networks = {role: copy.deepcopy(make_teacher(seed)) for seed, role in enumerate(spec.teachers, 1)}
        self.trainer = trainer = Trainer(config, RunFolder("unused"), env, networks)
        if world is None:
            images = dataset.train.images[:4].to(device, torch.float32) / dataset.levels
            parts = config, trainer.student, trainer.method, trainer.world, trainer.compute, trainer.average
            trainer.update = Update(*parts, capturable=True, sample=images)
        self.graphed = None if backend is None else GraphedUpdate(trainer.update, config.batch_size, backend=backend)
        self.step = self.graphed or trainer.update
        self.outcome = Outcome({})

    def train(self, epochs: int | None = None) -> Outcome:
        """So many epochs, or all."""
        trainer, config = self.trainer, self.config
        for epoch in range(config.passes() if epochs is None else epochs):
            trainer.state.epoch = epoch
            trainer.student.train()
            trainer.method.begin_epoch(epoch)
            for step, parts in enumerate(trainer._steps()):
                trainer.state.step = step
                self.outcome.sums.append(self.step(parts, epoch=epoch, rates=trainer.rates()).clone())
            trainer.state.step = 0
            if trainer.average is not None:
                trainer.average.after_epoch(epoch)
            self.outcome.figures.append(trainer.method.end_epoch())
        self.outcome.tensors = self.tensors()
        return self.outcome

    def tensors(self) -> dict[str, Tensor]:
        """Weights, statistics, the optimiser's state, the method's state and the average, as they are now."""
        trainer = self.trainer
        found = {f"student {name}": value for name, value in trainer.student.state_dict().items()}
        for index, state in enumerate(trainer.update.optimizer.state.values()):
            found.update({f"{name} {index}": value for name, value in state.items()})
        found.update({f"method {name}": value for name, value in trainer.method.state_dict().items()})
        if trainer.average is not None:
            found.update({f"average {name}": value for name, value in trainer.average.state_dict().items()})
        return {name: value.clone() for name, value in found.items()}


def assert_same(one: Outcome, other: Outcome) -> None:
    """To the bit."""
    assert one.tensors.keys() == other.tensors.keys()
    for name, value in one.tensors.items():
        assert torch.equal(value, other.tensors[name]), name
    assert len(one.sums) == len(other.sums)
    for step, (value, wanted) in enumerate(zip(one.sums, other.sums, strict=True)):
        assert torch.equal(value, wanted), step
    assert one.figures == other.figures
