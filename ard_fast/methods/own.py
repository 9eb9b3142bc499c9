"""Methods that are not in the package: a subclass of `Method`, or a bare loss, named by `package.module:NAME`."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ard_fast._devices import autocast
from ard_fast._names import find_object
from ard_fast._typing import known
from ard_fast.data.batches import Batch
from ard_fast.methods.base import Inner, Method, Network, PGDMethod, StepResult
from ard_fast.models.trial import reason, untouched

if TYPE_CHECKING:
    from ard_fast.teachers.teacher import Teacher

PARAMETERS = ("student", "teacher", "x", "x_adv", "y")
_FORM = "loss(student, teacher, x, x_adv, y), of which it may leave out teacher, x and y"


@dataclass(eq=False, repr=False, kw_only=True)
class CustomLoss(PGDMethod):
    """A bare function as the outer loss; x' attacks CE(S(x'), y) by PGD.

    Attributes:
        function: called with those of `PARAMETERS` that it names. `student` and `teacher` map images to float32 logits;
            x and x_adv are float32 `[B, C, H, W]` in [0, 1], y is int64 `[B]`. It returns a scalar, a mean over the
            batch.
        parameters: those that it names.
    """

    function: ClassVar[Callable[..., Any]]
    parameters: ClassVar[tuple[str, ...]]
    asks_at_x = False  # whether the teacher is asked at the clean images, which a cache knows

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        x_adv, asked = known(inner.x_adv), []

        def ask_student(images: Tensor) -> Tensor:
            asked.append((images, student(images)))
            return asked[-1][1]

        def ask_teacher(images: Tensor) -> Tensor:
            if images is not batch.x:
                return self.teacher(images)
            self.asks_at_x = True
            return self.teacher.clean(batch)

        values = {"student": ask_student, "teacher": ask_teacher, "x": batch.x, "x_adv": x_adv, "y": batch.y}
        loss = self.function(**{name: values[name] for name in self.parameters})
        # For the training accuracy: at x' where the student was called with it, else at the last images.
        logits = next((logits for images, logits in asked if images is x_adv), asked[-1][1] if asked else x_adv)
        return StepResult(loss, logits[-len(batch.y) :])

    def clean_teachers(self) -> tuple[Teacher, ...]:
        return (self.teacher,) if self.asks_at_x else ()

    def conventions(self) -> list[str]:
        said = _first_line(self.function) if inspect.isfunction(self.function) else ""
        return [f"custom loss {self.name}{said and f': {said}'}", "x' attacks CE(S(x'), y)"]


def find_own(path: str, argument: str = "method") -> type[Method]:
    """The method of a path `package.module:NAME`: the class itself, or one made around a bare loss.

    Raises:
        ValueError: no such module or name, or it is neither.
    """
    found = find_object(path, argument, "NAME")
    if not isinstance(found, type):
        return _around(found, path, argument)
    if not issubclass(found, Method):
        raise ValueError(f"{argument}: {path} is a class; expected a subclass of ard_fast.methods.Method or {_FORM}")
    if inspect.isabstract(found):
        raise ValueError(f"{argument}: {path} does not define {', '.join(sorted(found.__abstractmethods__))}")
    return found


def _around(function: Any, path: str, argument: str) -> type[CustomLoss]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{argument}: {path} is {type(function).__name__}; expected {_FORM}") from error
    names = tuple(one.name for one in parameters if one.name in PARAMETERS)
    others = [str(one) for one in parameters if one.name not in PARAMETERS and one.default is one.empty]
    if others or not {"student", "x_adv"} <= {*names} or any(one.kind is one.POSITIONAL_ONLY for one in parameters):
        raise ValueError(f"{argument}: {path} takes ({', '.join(map(str, parameters))}); expected {_FORM}")
    about = {"name": path, "function": staticmethod(function), "parameters": names}
    return type("CustomLoss", (CustomLoss,), {**about, "teachers": ("teacher",) if "teacher" in names else ()})


def describe_method(path: str, method: Method) -> list[str]:
    """A method's conventions; of a class of one's own, that it is one, and its own conventions only."""
    if ":" not in path or isinstance(method, CustomLoss):
        return method.conventions()
    kind = type(method)
    base = next(one.__name__ for one in kind.__mro__ if one.__module__.startswith("ard_fast."))
    said = _first_line(kind)
    inherited = kind.conventions.__module__.startswith("ard_fast.")
    return [
        f"custom method {path} on top of {base}{said and f': {said}'}",
        *([] if inherited else method.conventions()),
    ]


def try_method(method: Method, student: nn.Module, batch: Batch, *, precision: str, label: str) -> None:
    """Take the loss and its gradient once, on a few images; the student is left as it was.

    Args:
        method: an instance that is thrown away.
        student: in its place.
        batch: on the same device.
        precision: of the training step.
        label: how messages begin.

    Raises:
        ValueError: it fails, or gives no finite scalar with a gradient for the student; one line.
    """
    with untouched(student):
        student.train()
        try:
            with autocast(precision, batch.x.device):
                inner = method.attack(student, batch)
                result = method.loss(lambda x: student(x).float(), batch, inner)
        except Exception as error:  # somebody else's code
            raise ValueError(f"{label} fails{_place(error, method)} ({reason(error)})") from error
        if not isinstance(result, tuple) or len(result) != 2:
            raise ValueError(f"{label}: expected StepResult(loss, logits), got {type(result).__name__}")
        loss, logits = result
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            got = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"{label}: the loss must be a scalar tensor, a mean over the batch, got {got}")
        if not loss.isfinite():
            raise ValueError(f"{label}: the loss is {loss.item()} on {len(batch.y)} training images")
        weights = [weight for weight in student.parameters() if weight.requires_grad]
        gradients = torch.autograd.grad(loss, weights, allow_unused=True) if loss.requires_grad else []
        if not any(gradient is not None and gradient.any() for gradient in gradients):
            raise ValueError(f"{label}: the loss has no gradient for the student's weights; is it made of its logits?")
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(batch.y):
            raise ValueError(f"{label}: the student must be asked for the logits of all {len(batch.y)} images at once")
        method.after_backward(batch, inner)
        method.after_update(student)


def _first_line(owner: Any) -> str:
    """Of the docstring; not the one that `dataclass` makes."""
    doc = inspect.cleandoc(owner.__doc__ or "")
    return "" if doc.startswith(f"{owner.__name__}(") else doc.partition("\n")[0]


def _place(error: Exception, method: Method) -> str:
    """The line of the user's module at which it failed."""
    code = inspect.unwrap(method.function) if isinstance(method, CustomLoss) else type(method)
    module = inspect.getmodule(code)
    frames = [
        one for one in traceback.extract_tb(error.__traceback__) if one.filename == getattr(module, "__file__", "")
    ]
    return f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
