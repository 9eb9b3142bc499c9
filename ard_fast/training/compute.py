"""How a run computes on its device: precision, layout, and the form of the student that its attack is made on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ard_fast._devices import AUTO, full_precision, resolve_precision
from ard_fast.folding.network import FoldedNetwork
from ard_fast.folding.trace import Unfoldable
from ard_fast.models.trial import layout_name, reason, untouched

if TYPE_CHECKING:
    from ard_fast.training.config import TrainConfig


@dataclass(frozen=True)
class ComputeConfig:
    """What precision, layout, folding and compiling of the configuration come to on a device.

    Attributes:
        device: of networks and batches.
        precision: of the training step, "fp32", "tf32" or "bf16".
        teacher_precision: of teachers, "fp32" or "bf16".
        channels_last: whether images and weights are in that layout.
        fold: whether an attack in eval mode is made on folded weights.
        compile: whether the student's forward is compiled.
    """

    device: torch.device
    precision: str
    teacher_precision: str
    channels_last: bool
    fold: bool
    compile: bool

    @property
    def layout(self) -> torch.memory_format:
        """Of images and weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def describe(self) -> str:
        """How it computes, in words."""
        arithmetic = {
            "fp32": "float32, TF32 off",
            "tf32": "float32 with TF32",
            "bf16": "bfloat16 autocast (iterates, logits, losses and weights float32)",
        }
        compiled = ", forward compiled" if self.compile else ""
        how = f"{arithmetic[self.precision]}, {layout_name(self.layout)}{compiled}"
        return f"training step on {self.device} in {how}; evaluation in float32"


def resolve_compute(config: TrainConfig, device: torch.device) -> ComputeConfig:
    """What a configuration comes to on a device; under parity "auto" is what the published codes do.

    Raises:
        ValueError: the device cannot do what was asked for.
    """
    precision = resolve_precision(config.precision, device, plain=config.parity)
    as_student = "bf16" if precision == "bf16" else "fp32"
    return ComputeConfig(
        device,
        precision,
        as_student if config.teacher_precision == AUTO else config.teacher_precision,
        resolve_switch(config.channels_last, plain=config.parity),
        resolve_switch(config.fold, plain=config.parity),
        config.compile,
    )


def resolve_switch(name: str, *, plain: bool = False) -> bool:
    """Whether "auto", "true" or "false" stands for yes; "auto" does unless `plain`."""
    return not plain if name == AUTO else name == "true"


class AttackedStudent:
    """What a method's attack is given instead of the student.

    Args:
        student: in its place and layout.
        compute: whether to fold and to compile.
        attack_bn: of the attack; None for a method without one. Only an attack in eval mode can be made on folded
            weights.
        sample: a few float32 images in [0, 1] on the student's device, on which the folded form is checked; None: it
            is not folded.

    Attributes:
        model: maps images to logits, and may be a module, whose modes the attack then sets.
        facts: what it is, in words; empty where it is the student itself.
    """

    def __init__(
        self, student: nn.Module, compute: ComputeConfig, attack_bn: str | None, sample: Tensor | None
    ) -> None:
        self.model: Callable[[Tensor], Tensor] = student
        self.facts: list[str] = []
        self._folded: FoldedNetwork | None = None
        if compute.fold and attack_bn == "eval" and sample is not None:
            dtype = torch.bfloat16 if compute.precision == "bf16" else torch.float32
            try:
                with full_precision():
                    self._folded = FoldedNetwork(student, sample, dtype=dtype, layout=compute.layout)
            except Unfoldable as error:
                self.facts = [f"attack on the student itself, which cannot be folded: {error}"]
            else:
                self.model = self._folded
                self.facts = [f"attack on folded weights, refreshed before each update: {self._folded.facts}"]
        if compute.compile and attack_bn is not None and self._folded is None:
            self._compile(student, sample)

    def _compile(self, student: nn.Module, sample: Tensor | None) -> None:
        constant = InputGradients(student)
        try:
            if sample is not None:
                with torch.no_grad(), untouched(student):
                    constant(sample)
        except Exception as error:  # nn.DataParallel, TorchScript
            self.facts.append(f"attack on the student itself, not compiled ({reason(error)})")
        else:
            self.model = torch.compile(constant)
            self.facts.append("attack on the compiled student")

    def refresh(self) -> None:
        """Take up the student's weights and running statistics as they are now."""
        if self._folded is not None:
            self._folded.refresh()


def try_compile(network: nn.Module, x: Tensor, label: str) -> None:
    """See whether torch.compile can work here and on a network, which is left as it was, as far as is known in seconds.

    Raises:
        ValueError: it cannot; one line.
    """
    try:
        torch.compile(torch.sin)(x[:1])  # a compiler is there
        with untouched(network):
            network.train()
            torch.compile(network, backend="eager")(x)  # the network can be read
    except Exception as error:
        raise compile_error(label, error) from error


def compile_error(label: str, error: Exception) -> ValueError:
    """What is said where torch.compile fails."""
    return ValueError(f"compile: torch.compile fails for the {label} ({reason(error)}); leave --compile out")


def failed_to_compile(error: RuntimeError) -> bool:
    """Whether an error is one of torch.compile, at the first call of what it compiles."""
    return any(kind.__name__ == "TorchDynamoException" for kind in type(error).__mro__)


class InputGradients(nn.Module):
    """A network whose parameters are constants to autograd; a compiled backward pass would compute all it can."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        constants = {name: parameter.detach() for name, parameter in self.network.named_parameters()}
        return torch.func.functional_call(self.network, constants, (x,))
