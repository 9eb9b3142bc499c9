"""Where a NaN or an infinity began: the steps since the last checkpoint once more, looked at one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ard_fast.data import Batch
from ard_fast.methods import Inner, Method, StepResult
from ard_fast.teachers import Teacher


class FirstBad(Exception):
    """The first values of a step that are not finite; the message says which."""


def check(what: str, tensor: Tensor | None) -> None:
    """Raise `FirstBad` if a tensor holds a NaN or an infinity; waits for the device."""
    if tensor is None or not tensor.is_floating_point():
        return
    bad = ~tensor.isfinite()
    count = int(bad.sum())
    if count:
        value = tensor[bad][0].item()
        raise FirstBad(f"{what} ({count} of {tensor.numel()} values, the first {value})")


def check_weights(network: nn.Module, when: str) -> None:
    """Raise `FirstBad` for the first parameter or buffer that is not finite."""
    for name, tensor in network.state_dict().items():
        check(f"the student's {name} {when}", tensor)


def weights_are_finite(network: nn.Module) -> Tensor:
    """Whether every parameter and buffer is finite, bool scalar on the device; does not wait for it."""
    tensors = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
    return torch.stack([tensor.isfinite().all() for tensor in tensors]).all()


@contextmanager
def watched(method: Method, student: nn.Module, teachers: dict[str, Teacher]) -> Iterator[None]:
    """Within, every part of a method's step raises `FirstBad` as soon as it is not finite.

    In the order of a step: batch, weights, the networks' logits, adversarial images, what the teachers say, loss,
    gradient.
    """
    stage = ["the attack"]
    with ExitStack() as stack:

        def attack(network: Callable[[Tensor], Tensor], batch: Batch) -> Inner:
            stage[0] = "the attack"
            if not isinstance(network, nn.Module):  # a form of the student that none of the hooks below is on
                network = looked_at(network)
            check("the input batch", batch.x)
            check_weights(student, "before the step")
            inner = real_attack(network, batch)
            check("the adversarial images", inner.x_adv)
            check("the teacher's logits", inner.target)
            check("the clean teacher's logits", inner.clean_target)
            check("the perturbation", inner.delta)
            check("the weights of the samples", inner.weight)
            return inner

        def looked_at(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            def seen(x: Tensor) -> Tensor:
                check(f"the images the student is given in {stage[0]}", x)
                logits = network(x)
                check(f"the student's logits in {stage[0]}", logits)
                return logits

            return seen

        def loss(network: nn.Module, batch: Batch, inner: Inner) -> StepResult:
            stage[0] = "the outer loss"
            result = real_loss(network, batch, inner)
            check("the student's logits", result.logits)
            check("the loss", result.loss)
            return result

        def after_backward(batch: Batch, inner: Inner) -> None:
            for name, parameter in student.named_parameters():
                check(f"the gradient of {name}", parameter.grad)
            real_after_backward(batch, inner)

        real_attack, real_loss, real_after_backward = method.attack, method.loss, method.after_backward
        for name, replacement in (("attack", attack), ("loss", loss), ("after_backward", after_backward)):
            setattr(method, name, replacement)
            stack.callback(delattr, method, name)

        def hook(what: str) -> Callable[..., None]:
            def seen(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
                for tensor in inputs:
                    if isinstance(tensor, Tensor):
                        check(f"the images {what} is given in {stage[0]}", tensor)
                if isinstance(output, Tensor):
                    check(f"{what}'s logits in {stage[0]}", output)

            return seen

        networks = {"the student": student} | {
            f"the {role.replace('_', ' ')}": teacher.network for role, teacher in teachers.items()
        }
        for what, network in networks.items():
            stack.callback(network.register_forward_hook(hook(what)).remove)
        roles = {id(teacher): role.replace("_", " ") for role, teacher in teachers.items()}

        def logits(teacher: Teacher, x: Tensor) -> Tensor:  # a lean teacher does not ask its network
            found = real_logits(teacher, x)
            check(f"the {roles.get(id(teacher), 'teacher')}'s logits in {stage[0]}", found)
            return found

        real_logits = Teacher.__call__
        Teacher.__call__ = logits  # pyright: ignore[reportAttributeAccessIssue] - undone below
        stack.callback(setattr, Teacher, "__call__", real_logits)
        yield


class LossWatch:
    """Says soon that the loss is no longer finite, without making the host wait for the device.

    On a CPU after every step; on another device the loss is fetched now and then, and looked at once it has arrived.
    """

    EVERY = 50  # steps between two fetches

    def __init__(self) -> None:
        self.bad = False
        self._steps = 0
        self._arriving: tuple[Tensor, torch.cuda.Event] | None = None

    def look(self, loss: Tensor) -> None:
        """To be called after each step with a sum that stays not finite once it is."""
        if loss.device.type == "cpu":
            self.bad = not math.isfinite(loss)
            return
        if self._arriving is not None and self._arriving[1].query():
            self.bad, self._arriving = not math.isfinite(self._arriving[0]), None
        if self._arriving is None and self._steps % self.EVERY == 0:
            copy = torch.empty((), dtype=loss.dtype, pin_memory=True)
            copy.copy_(loss, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._arriving = (copy, event)
        self._steps += 1
