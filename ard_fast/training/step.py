"""One training step: attack, loss, gradient, weight perturbation, optimiser, average of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ard_fast._devices import autocast
from ard_fast._typing import known
from ard_fast.attacks.model_mode import attack_mode
from ard_fast.data import Batch
from ard_fast.functional._autograd import one
from ard_fast.methods.base import Inner, Method, StepResult
from ard_fast.training.averaging import WeightAverage
from ard_fast.training.awp import AdversarialWeightPerturbation
from ard_fast.training.compute import AttackedStudent, ComputeConfig
from ard_fast.training.distributed import World
from ard_fast.training.nonfinite import check_attack, check_gradient, check_weights
from ard_fast.training.optimiser import Scalars, make_optimiser

if TYPE_CHECKING:
    from ard_fast.training.config import TrainConfig


class Decisions(NamedTuple):
    """What the host decides about a step: with other decisions the device has other work.

    Attributes:
        perturb: whether the weights are perturbed adversarially.
        average: after each of the updates, whether the average becomes the weights ("copy"), moves towards them
            ("move") or stays (None).
    """

    perturb: bool
    average: tuple[str | None, ...]


class Update:
    """A step on a batch: one update of the student, or several in methods that repeat each batch ("free").

    Args:
        config: of a single method.
        student: the network, in its place and layout.
        method: what is trained.
        world: the processes that share each batch.
        compute: precision, layout, folding and compiling.
        average: the average of its weights, if one is kept.
        capturable: whether `run` reads its numbers from the device, so that a CUDA graph can hold it; None: on CUDA.
        sample: a few images of the training set, float32 in [0, 1] on the device, on which the form of the student
            that is attacked is checked; None: the student itself is attacked.

    Attributes:
        networks: the student and those that the method trains beside it, by role.
        attacked: what the method's attack is given.
        checked: whether every term of the step is looked at, and the first that is not finite raises `FirstBad`; waits
            for the device.
    """

    def __init__(
        self,
        config: TrainConfig,
        student: nn.Module,
        method: Method,
        world: World,
        compute: ComputeConfig,
        average: WeightAverage | None,
        *,
        capturable: bool | None = None,
        sample: Tensor | None = None,
    ) -> None:
        self.student, self.method, self.world, self.compute, self.average = student, method, world, compute, average
        self.networks = {"student": student, **method.context.networks}
        self.checked = False
        self.attacked = AttackedStudent(student, compute, config.attack_bn, sample)
        self.synchronised = world.synchronises(config.sync_bn, compute.device)
        self.wrapped = world.wrap(student, compute.device)  # for the outer loss only
        self.learner: Any = torch.compile(self.wrapped) if compute.compile else self.wrapped
        capturable = compute.device.type == "cuda" if capturable is None else capturable
        weights = (weight for network in self.networks.values() for weight in network.parameters())
        self.optimizer = make_optimiser(weights, config, fused=capturable)
        self._rates = Scalars(method.replays, compute.device if capturable else None)
        self._shares = Scalars(method.replays, compute.device if capturable else None)
        self.awp: AdversarialWeightPerturbation | None = None
        if config.awp_gamma:
            self.awp = AdversarialWeightPerturbation(
                student, gamma=config.awp_gamma, first_epoch=config.awp_epoch(), average=world.average_
            )

    def __call__(self, parts: list[Batch], *, epoch: int, rates: Sequence[float]) -> Tensor:
        """Update the student on the micro-batches of one step, once for each learning rate.

        Returns:
            For the last update, the loss summed over this process's images and how many of them were classified
            right, float64 `[2]`.
        """
        return self.run(parts, self.decide(epoch, rates))

    def decide(self, epoch: int, rates: Sequence[float]) -> Decisions:
        """The host's part of a step: counts it, and hands the device the numbers that are new."""
        self._rates.write(rates)
        shares = [None if self.average is None else self.average.count_update(epoch) for _ in rates]
        self._shares.write([share or 0.0 for share in shares])
        return Decisions(
            perturb=self.awp is not None and self.awp.begun(epoch),
            average=tuple(None if share is None else "copy" if share == 1.0 else "move" for share in shares),
        )

    def run(self, parts: list[Batch], decisions: Decisions) -> Tensor:
        """The device's part of a step, the same work for the same decisions; arguments and result as of the call."""
        parts = parts[: parts[0].global_size]  # with fewer images than parts the last ones are empty in every process
        sums: Tensor | None = None
        for repeat, average in enumerate(decisions.average):
            self.optimizer.set_rate(self._rates[repeat])
            self.optimizer.zero_grad(set_to_none=True)
            self.attacked.refresh()
            attacked = [(batch, self._attack(batch)) for batch in parts]
            if self.awp is not None and decisions.perturb:
                with ExitStack() as still:  # the loss is only looked at: batch norms beside the student stay, too
                    for network in self.method.context.networks.values():
                        still.enter_context(attack_mode(network, "train_frozen"))
                    self.awp.perturb(partial(self._weighted_loss, *part) for part in attacked)
            sums = self._accumulate_gradients(attacked)
            self.optimizer.step()
            if not self.synchronised:
                self._average_running_statistics(parts)
            if self.awp is not None:
                self.awp.restore()
            if self.average is not None and average is not None:
                self.average.move(1.0 if average == "copy" else self._shares[repeat])
            self.method.after_update(self.student)
            if self.checked:
                check_weights(self.networks, "after the update")
        self.world.padding = False
        return known(sums)

    def set_train_mode(self) -> None:
        """Put all networks that are trained in train mode."""
        for network in self.networks.values():
            network.train()

    def describe(self) -> list[str]:
        """How an update computes, in words."""
        return [self.compute.describe(), *self.attacked.facts]

    def _attack(self, batch: Batch) -> Inner:
        self.world.padding = batch.is_padding
        with self._autocast():
            inner = self.method.attack(self.attacked.model, batch)
        if self.checked:
            check_attack(batch, inner)
        return inner

    def _loss(self, student: nn.Module, batch: Batch, inner: Inner) -> StepResult:
        """The outer loss of a micro-batch."""
        self.world.padding = batch.is_padding
        with self._autocast():
            return self.method.loss(lambda x: student(x).float(), batch, inner)

    def _weight(self, batch: Batch) -> float:
        """What makes the mean of its loss over the processes the loss of the whole step."""
        return batch.share * self.world.size

    def _weighted_loss(self, batch: Batch, inner: Inner) -> Tensor:
        return self._loss(self.student, batch, inner).loss * self._weight(batch)

    def _accumulate_gradients(self, attacked: list[tuple[Batch, Inner]]) -> Tensor:
        """Leave the gradient of the whole step's mean loss in the `.grad` of all networks; sums as of `__call__`."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.compute.device)
        for index, (batch, inner) in enumerate(attacked):
            # Only the last backward pass sends gradients to the other processes.
            sends = self.world.size == 1 or index == len(attacked) - 1
            with nullcontext() if sends else cast("Any", self.wrapped).no_sync():
                result = self._loss(self.learner, batch, inner)
                weight, loss = self._weight(batch), result.loss
                # Not the loss times 1: the fused losses know this 1.
                plain = weight == 1.0 and loss.dtype == torch.float32
                loss.backward(one(loss.device) if plain else torch.full_like(loss, weight))
                if self.checked:
                    check_gradient(result, self.networks)
                self.method.after_backward(batch, inner)
            sums[0] += result.loss.detach() * batch.count
            if batch.count:
                sums[1] += (result.logits.detach().argmax(1) == batch.y).sum()
        for network in self.method.context.networks.values():  # the student's are averaged by its wrapper
            self.world.average_([weight.grad for weight in network.parameters() if weight.grad is not None])
        return sums

    def _average_running_statistics(self, parts: list[Batch]) -> None:
        """Give every process the same buffers: their mean, weighted by the images each has seen in this step."""
        if self.world.size > 1:
            for network in self.networks.values():
                buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
                self.world.average_(buffers, weight=sum(batch.share for batch in parts))

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.compute.precision, self.compute.device)
