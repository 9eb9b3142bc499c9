"""What of a training step is a CUDA graph: nothing, the attack, or all of its device work."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ard_fast._typing import known
from ard_fast.attacks import GraphedPGD
from ard_fast.attacks.base import GradientAttack
from ard_fast.attacks.cuda_graph import CudaGraphs, GraphedFunction, GraphWarning
from ard_fast.attacks.model_mode import network_tensors
from ard_fast.data import Batch
from ard_fast.methods.base import Method
from ard_fast.teachers.teacher import Teacher
from ard_fast.training.distributed import World

if TYPE_CHECKING:
    from ard_fast.training.step import Decisions, Update

_PATIENCE = 3  # changes of a method's plain values within epochs, which a phase of its training does not make
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_OPAQUE = (Tensor, nn.Module, type, Teacher)


class GraphChoice(NamedTuple):
    """What `--graph` comes to.

    Attributes:
        mode: "off", "attack" or "iteration".
        why: in words.
    """

    mode: str
    why: str

    def describe(self) -> str:
        """A line for people."""
        what = {
            "off": "no CUDA graph",
            "attack": "the attack is one CUDA graph",
            "iteration": "the whole step is one CUDA graph, but for smaller batches and the first steps of a phase",
        }[self.mode]
        return f"{what} ({self.why})"


def check_graph(wanted: str, device: torch.device, world: World) -> None:
    """Refuse what no method can have captured.

    Raises:
        ValueError: a graph on a CPU, or one of the whole step with several processes.
    """
    if wanted in ("attack", "iteration") and device.type != "cuda":
        raise ValueError(f"graph: expected auto or off on device {device}, which has no CUDA graphs, got {wanted!r}")
    if wanted == "iteration" and world.size > 1:
        raise ValueError(
            f"graph: iteration needs a run of one process, got {world.size}: gradients travel in the middle of a step"
        )


def choose_graph(wanted: str, device: torch.device, method: Method, world: World, *, sync_bn: bool) -> GraphChoice:
    """What is captured in a run.

    "auto" is the whole step on CUDA with one process; with several the attack, where it exchanges nothing, since the
    gradients travel in the middle of a step; nothing on a CPU.

    Raises:
        ValueError: what is wanted cannot be captured.
    """
    check_graph(wanted, device, world)
    if wanted == "off":
        return GraphChoice("off", "as asked")
    if device.type != "cuda":
        return GraphChoice("off", "the device is not a GPU")
    if world.size == 1 and wanted != "attack":
        return GraphChoice("iteration", "one process")
    obstacle = _why_no_attack(method, world, sync_bn)
    if obstacle is None:
        return GraphChoice("attack", "as asked" if wanted == "attack" else f"{world.size} processes")
    if wanted == "attack":
        raise ValueError(f"graph: the attack of method {method.name} cannot be captured: {obstacle}")
    return GraphChoice("off", f"{world.size} processes, and {obstacle}")


def _why_no_attack(method: Method, world: World, sync_bn: bool) -> str | None:
    attack = getattr(method, "inner_attack", None)
    if not isinstance(attack, GradientAttack):
        return "it has no attack apart from its update"
    if attack.why_eager is not None:
        return attack.why_eager
    if world.size > 1 and sync_bn and attack.bn != "eval":
        return "its batch norm exchanges statistics between the processes"
    return None


def came_to(choice: GraphChoice, graphed: GraphedUpdate | None, method: Method, *, over: bool) -> GraphChoice:
    """What a choice has come to: another one where a capture failed or, when the run is `over`, where none was made."""
    attack = getattr(method, "inner_attack", None)
    reasons: list[str] = []
    for mode, graph in (("iteration", graphed), ("attack", attack)):
        if not isinstance(graph, GraphedUpdate | GraphedPGD):
            continue
        if graph.failed is not None:
            reasons.append(graph.failed)
        elif graph.replays:
            return GraphChoice(mode, "; ".join(reasons)) if reasons else choice
    if not reasons and not over:
        return choice
    return GraphChoice("off", "; ".join(reasons) or "too few whole batches: the first three of a phase are eager")


def graph_attack(method: Method, backend: CudaGraphs | None = None) -> bool:
    """Let a method's attack be replayed as a graph; whether that is possible."""
    attack = getattr(method, "inner_attack", None)
    if not isinstance(attack, GradientAttack) or attack.why_eager is not None:
        return False
    setattr(method, "inner_attack", GraphedPGD(attack, backend=backend))  # noqa: B010 - only some methods have one
    return True


class GraphedUpdate:
    """Called like the update itself, and the same to the bit, by replay of a graph wherever that can be.

    One graph holds a whole step: attack, teacher, loss, gradient, optimiser, average, over all micro-batches and
    batch repeats. The batch is copied in; so are the logits of teachers that have a cache, since which rows are known
    is decided on the host. Rates and decays are read from the device; whatever else the host decides (`Decisions`, the
    plain values in the method's attributes) selects the graph: a phase that has begun gets a graph of its own, after a
    few eager steps.

    Steps of another size than a whole batch are eager, as is every step once a capture has failed, or once the method
    has turned out to change its plain values from step to step, which a replay would not do; each is said once, by a
    `GraphWarning`.

    Args:
        update: made with `capturable`; its world has one process.
        batch_size: images of a whole step.
        backend: None takes CUDA graphs.
        fallback: called once when all further steps are going to be eager.
    """

    def __init__(
        self,
        update: Update,
        batch_size: int,
        *,
        backend: CudaGraphs | None = None,
        fallback: Callable[[], object] | None = None,
    ) -> None:
        self.update, self.batch_size, self._fallback = update, batch_size, fallback
        self._graphed = GraphedFunction(self._run, name="the training step", backend=backend, fixed=self._fixed)
        self._now: tuple[list[Batch], Decisions] | None = None
        self._before: tuple[int, tuple[tuple[str, Hashable], ...]] | None = None
        self._changes = 0
        self._unsteady: str | None = None

    @property
    def replays(self) -> int:
        """How many steps were replays."""
        return self._graphed.replays

    @property
    def failed(self) -> str | None:
        """Why all further steps are eager, once they are."""
        return self._unsteady or self._graphed.failed

    def __call__(self, parts: list[Batch], *, epoch: int, rates: Sequence[float]) -> Tensor:
        """As `Update`; the result stays until the next call."""
        if self.failed is not None and self._fallback is not None:
            self._fallback()
            self._fallback = None
        if self.failed is not None or not self._is_whole(parts):
            return self.update(parts, epoch=epoch, rates=rates)
        values = self._look(epoch)
        if self._unsteady is not None:
            return self.update(parts, epoch=epoch, rates=rates)
        parts = [self._with_teacher_logits(batch) for batch in parts]
        self._now = parts, self.update.decide(epoch, rates)
        return self._graphed(_tensors(parts), (self._now[1], values))

    def forget(self) -> None:
        """Give back the graphs and their memory; further steps warm up and capture anew."""
        self._graphed.forget()

    def _run(self, inputs: dict[str, Tensor]) -> Tensor:
        """The device's part of the present step, on the graph's own buffers."""
        parts, decisions = known(self._now)
        return self.update.run([_in_buffers(batch, index, inputs) for index, batch in enumerate(parts)], decisions)

    def _is_whole(self, parts: list[Batch]) -> bool:
        size = parts[0].global_size
        return (sum(batch.count for batch in parts) if size is None else size) == self.batch_size

    def _with_teacher_logits(self, batch: Batch) -> Batch:
        """The batch with the logits of teachers that have a cache: a graph cannot look them up."""
        cached = [teacher for teacher in self.update.method.clean_teachers() if teacher.open_cache() is not None]
        return replace(batch, teacher_logits={teacher: teacher.clean(batch) for teacher in cached})

    def _look(self, epoch: int) -> tuple[tuple[str, Hashable], ...]:
        """The method's plain values; notices when it changes them from step to step."""
        method, before = self.update.method, self._before
        values = host_values(method)
        self._before = epoch, values
        if before is not None and before[0] == epoch and before[1] != values:
            self._changes += 1
            if self._changes >= _PATIENCE:
                self._graphed.forget()
                names = ", ".join(sorted({name for name, _ in {*before[1]} ^ {*values}}))
                self._unsteady = (
                    f"method {method.name} changes {names} from step to step, which a graph cannot; keep it in a "
                    "tensor that is written in place"
                )
                warnings.warn(
                    f"the training step runs without a CUDA graph: {self._unsteady}", GraphWarning, stacklevel=4
                )
        return values

    def _fixed(self) -> Iterator[Tensor]:
        """What the graph reads and writes in place."""
        update = self.update
        yield from network_tensors(*update.networks.values())
        for state in update.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))
        yield from update.method.state_dict().values()
        yield from (value for value in vars(update.method).values() if isinstance(value, Tensor))


_TENSORS = ("x", "y", "ids", "seed")


def _tensors(parts: list[Batch]) -> dict[str, Tensor]:
    """The tensors of a step by name."""
    found = {}
    for index, batch in enumerate(parts):
        found.update({f"{index} {name}": getattr(batch, name) for name in _TENSORS})
        found.update(
            {f"{index} teacher {number}": logits for number, logits in enumerate(batch.teacher_logits.values())}
        )
    return found


def _in_buffers(batch: Batch, index: int, inputs: dict[str, Tensor]) -> Batch:
    """The micro-batch `index` of the same tensors in a graph's buffers, without views: no cache is asked."""
    teacher_logits = {each: inputs[f"{index} teacher {number}"] for number, each in enumerate(batch.teacher_logits)}
    tensors = {name: inputs[f"{index} {name}"] for name in _TENSORS}
    return replace(batch, views=None, teacher_logits=teacher_logits, **tensors)


def host_values(owner: Any) -> tuple[tuple[str, Hashable], ...]:
    """Numbers, strings and None in the attributes of an object and of the objects in them, in tuples and lists too.

    Tensors, modules and teachers are no plain values and are not looked into.

    Returns:
        Pairs of a dotted name and a value that tells its type apart too (1, 1.0 and True are different work).
    """
    found: list[tuple[str, Hashable]] = []
    for name, value in vars(owner).items():
        plain = _plain(value)
        if plain is not None:
            found.append((name, plain))
        elif not isinstance(value, _OPAQUE):
            inner = ((f"{name}.{key}", _plain(part)) for key, part in getattr(value, "__dict__", {}).items())
            found += [(key, part) for key, part in inner if part is not None]
    return tuple(found)


def _plain(value: Any) -> Hashable | None:
    """The value as part of a key; None where it is something else."""
    if isinstance(value, float):
        return float, repr(value)  # a NaN is equal to itself here
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, (tuple, list)):
        parts = tuple(_plain(part) for part in value)
        return None if None in parts else (type(value), parts)
    return None
