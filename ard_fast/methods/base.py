"""The base of training methods: the inner problem, the outer loss, and what the teacher sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as tf
from torch import Tensor, nn

from ard_fast._typing import known
from ard_fast.attacks.pgd import PGD
from ard_fast.data.batches import Batch

if TYPE_CHECKING:
    from ard_fast.methods.shared import Quirk
    from ard_fast.teachers.teacher import Teacher

Network = Callable[[Tensor], Tensor]
"""Maps images `[B, ...]` to logits `[B, C]`: a module, or the function that stands for it."""


class StepResult(NamedTuple):
    """The outcome of a method on one batch, still on the device.

    Attributes:
        loss: scalar, to be differentiated: a mean over the batch.
        logits: `[B, num_classes]`, of the images the student was updated on (adversarial ones for at and ard).
    """

    loss: Tensor
    logits: Tensor


@dataclass
class Inner:
    """The result of the inner problem, passed to the outer loss.

    Nothing in it carries a gradient, except the `x_adv` of methods whose update also moves the perturbation.

    Attributes:
        x_adv: adversarial images like `batch.x`; None for methods that attack nothing.
        target: teacher logits `[B, num_classes]`, at the images that the method's teacher sees.
        clean_target: logits of the second teacher, or of the same one at other images.
        weight: float32 `[B]`, of each sample's loss.
        delta: the perturbation that a method keeps between updates; it requires grad.
        record: what `loss` leaves for `after_backward`, which is where a method changes its state: a loss may be taken
            twice in a step.
    """

    x_adv: Tensor | None = None
    target: Tensor | None = None
    clean_target: Tensor | None = None
    weight: Tensor | None = None
    delta: Tensor | None = None
    record: Tensor | None = None


def same(value: Tensor) -> Tensor:
    """The sum or the minimum over all processes, where there is one."""
    return value


def constant_rate(epoch: int) -> float:
    """The relative learning rate where nothing changes it."""
    return 1.0


@dataclass(frozen=True)
class MethodContext:
    """What a method can access of the run besides its own settings.

    Attributes:
        num_classes: C.
        epochs: passes of the whole run.
        teachers: by role, "teacher" and "clean_teacher".
        networks: by role, those that are trained beside the student: in place and layout, in train mode between calls.
        processes: of the run.
        all_reduce: sums a tensor over all processes of the run, without a host synchronisation; may work in place.
        all_min: the minimum, likewise.
        device: where the batches are, and with them the method's state.
        relative_rate: the learning rate at the beginning of an epoch (from 0) in units of `lr`, for methods whose own
            rates follow it.
        copy_student: a copy of the student as it is, in its place and layout, for methods with `copies_student`.
    """

    num_classes: int
    epochs: int
    teachers: Mapping[str, Teacher] = field(default_factory=dict)
    networks: Mapping[str, nn.Module] = field(default_factory=dict)
    processes: int = 1
    all_reduce: Callable[[Tensor], Tensor] = same
    all_min: Callable[[Tensor], Tensor] = same
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    relative_rate: Callable[[int], float] = constant_rate
    copy_student: Callable[[], nn.Module] | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class Method(ABC):
    """One training method: a dataclass whose fields are its settings, with the constants of its paper as defaults.

    It holds teachers, attack and its own state, never the student or the optimiser. For each batch the trainer calls
    `attack`, then `loss`, differentiates it, calls `after_backward`, updates the student and calls `after_update`;
    `replays` times in a row. Nothing in these may wait for the device.

    What the four compute may be recorded once and repeated for the following batches (a CUDA graph), without running
    any Python. So what changes from step to step or from epoch to epoch is either a tensor that is written in place
    (what `state_dict` gives; a rate that follows the schedule), or a plain value in an attribute (whether a term has
    begun), at whose every new value the step is recorded anew.

    Attributes:
        context: the run that it is part of.
        name: on the command line.
        summary: one line: inner problem, outer loss, source.
        teachers: the roles it needs, of "teacher" and "clean_teacher".
        networks: the roles of the networks that its loss trains beside the student, by the same optimiser; what `state`
            names, too, is kept.
        asked_clean: those of them that each step asks for their logits at the batch's own images.
        state: the attributes that must survive a stop: tensors that are written in place, and networks.
        copies_student: whether it keeps a network of its own that starts as a copy of the student.
        attacks: whether it attacks the student.
        step_ratio: the step of its attack in units of eps.
        selects_by: the validation accuracy that makes an epoch the best: "robust" or "clean".
        whole_batch: whether each batch changes the method's state, or is used twice, so that it cannot come in parts.
        paper: the rest of its paper's training recipe on CIFAR-10, for the preset `<name>-paper`.
        quirks: what `parity` switches on.
        replays: updates on each batch (batch repeats); the run then makes epochs / replays passes over the data.
        label_smoothing: of the loss's cross-entropy, as torch's; the attack's labels are not smoothed.
    """

    context: MethodContext

    name: ClassVar[str] = "custom"
    summary: ClassVar[str] = ""
    teachers: ClassVar[tuple[str, ...]] = ()
    networks: ClassVar[tuple[str, ...]] = ()
    asked_clean: ClassVar[tuple[str, ...]] = ()
    state: ClassVar[tuple[str, ...]] = ()
    copies_student: ClassVar[bool] = False
    attacks: ClassVar[bool] = False
    step_ratio: ClassVar[float] = 0.25
    selects_by: ClassVar[str] = "robust"
    whole_batch: ClassVar[bool] = False
    paper: ClassVar[Mapping[str, Any]] = {}
    quirks: ClassVar[tuple[Quirk, ...]] = ()
    replays = 1
    label_smoothing = 0.0

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Its settings with the constants of its paper, except radius and step size of the attack."""
        return {item.name: item.default for item in fields(cls) if item.init and item.default is not MISSING}

    @property
    def teacher(self) -> Teacher:
        """The teacher; for methods with two, the one that was trained adversarially."""
        return self.context.teachers["teacher"]

    @property
    def clean_teacher(self) -> Teacher:
        """The second teacher, trained on clean images."""
        return self.context.teachers["clean_teacher"]

    @abstractmethod
    def attack(self, student: Network, batch: Batch) -> Inner:
        """The inner problem for the student, which is in training mode and must be left without a trace.

        Where the attack takes it in eval mode it may be another form of the same function of the images: it is only
        called, or given to an attack, here.
        """

    @abstractmethod
    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        """The outer loss. `student` gives float32 logits and is only called here: it may be wrapped (data-parallel)."""

    def after_backward(self, batch: Batch, inner: Inner) -> None:  # noqa: B027 - most methods need none
        """Called once the loss has been differentiated, before the student's update."""

    def after_update(self, student: nn.Module) -> None:  # noqa: B027 - most methods need none
        """Called after each update with the student itself, whose new weights and statistics may be read."""

    def clean_teachers(self) -> tuple[Teacher, ...]:
        """The teachers that each step asks for their logits at the batch's own images (`Teacher.clean`)."""
        return tuple(self.context.teachers[role] for role in self.asked_clean)

    def begin_epoch(self, epoch: int) -> None:  # noqa: B027 - most methods need none
        """Called before the first batch of an epoch (from 0), and when a run goes on inside one."""

    def end_epoch(self) -> dict[str, float]:
        """Called after an epoch's last batch: updates what changes once an epoch; its figures go into the metrics."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """The state that a checkpoint needs, as tensors."""
        found: dict[str, Tensor] = {}
        for name in self.state:
            value = getattr(self, name)
            inside = value.state_dict() if isinstance(value, nn.Module) else {"": value}
            found.update({f"{name}.{key}" if key else name: tensor for key, tensor in inside.items()})
        return found

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put `state_dict`'s tensors back."""
        own = self.state_dict()
        if set(state) != set(own):
            raise ValueError(f"resume: method {self.name} keeps {self.state or 'no state'}, got {', '.join(state)}")
        for name, value in state.items():
            own[name].copy_(value)

    def conventions(self) -> list[str]:
        """The method's conventions in words, printed when a run starts."""
        return []


@dataclass(eq=False, repr=False, kw_only=True)
class AttackingMethod(Method):
    """Adversarial training with any attack: CE(S(x'), y), averaged over the batch, x' attacking the label.

    Attributes:
        eps: radius of the L-infinity ball, pixels in [0, 1].
        step_size: of the attack, likewise.
        inner_attack: made by `make_attack`.
    """

    eps: float
    step_size: float
    inner_attack: PGD = field(init=False)

    attacks = True

    def __post_init__(self) -> None:
        self.inner_attack = self.make_attack()

    @abstractmethod
    def make_attack(self) -> PGD:
        """The attack of the inner problem."""

    @property
    def relative_step(self) -> float:
        """The step in units of eps; 0 where eps is 0."""
        return self.step_size / self.eps if self.eps else 0.0

    def perturb(self, student: Network, batch: Batch, target: Any = None) -> Tensor:
        """x' by the inner attack, at labels, at target logits, or at a network (see `KLPGD`)."""
        return self.inner_attack(student, batch.x, target, seed=batch.seed, sample_ids=batch.ids)

    def attack(self, student: Network, batch: Batch) -> Inner:
        return Inner(self.perturb(student, batch, batch.y))

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits = student(known(inner.x_adv))
        return StepResult(tf.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing), logits)


@dataclass(eq=False, repr=False, kw_only=True)
class PGDMethod(AttackingMethod):
    """A method that attacks in several steps, by default on the cross-entropy from a uniform start in the ball.

    Attributes:
        steps: of the attack.
        attack_bn: batch norm inside the attack: "eval", "train" or "train_frozen".
        clamp_start: whether the start is clamped to [0, 1].
        attack_class: `PGD`, or `KLPGD` for the KL from x + 0.001 N(0, 1), the inner problem of TRADES, RSLAD and AdaAD.
        init: of the start under `PGD`: "uniform", or "normal" for x + 0.001 N(0, 1).
    """

    steps: int = 10
    attack_bn: str = "eval"
    clamp_start: bool = True

    attack_class: ClassVar[type[PGD]] = PGD
    init: ClassVar[str] = "uniform"

    def make_attack(self) -> PGD:
        return self.attack_class(
            eps=self.eps,
            step_size=self.step_size,
            steps=self.steps,
            bn=self.attack_bn,
            clamp_start=self.clamp_start,
            init=self.init,
        )
