"""A graph backend for tests on the CPU, as strict as a CUDA graph.

What a captured function does is written down operation by operation, with the tensors it works on, and a replay does
exactly that again in the same memory: numbers are those of the capture, Python does not run, and what was not an
operation does not happen. A capture leaves no effect, as on CUDA, where it does no work: whatever it wrote is put back,
the state of the generator too, and memory made in it is filled with NaN until a replay writes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ard_fast.attacks.graphs.watch import CaptureWatch, NotCapturable, storage_of, tensors

T = TypeVar("T")

_UNDEFINED = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_")


@dataclass
class Call:
    """One operation: what it was called with and what it returned, as tensors of the tape's own on the same memory."""

    function: Any
    args: tuple
    kwargs: dict
    made: list[tuple[int, Tensor]]
    """The results that it wrote to new memory, by their place among all results."""

    def again(self) -> None:
        """Do it again, into the same memory."""
        result = list(tensors(self.function(*self.args, **self.kwargs)))
        for place, memory in self.made:
            memory.copy_(result[place])


class Tape(CaptureWatch):
    """A captured function.

    Attributes:
        calls: the operations, in order.
        replays: how often it was run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.replays = 0
        self._before: list[tuple[Tensor, Tensor]] = []
        self._memory: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten.lift_fresh.default:
            raise NotCapturable("a tensor made of Python data is a copy from the host; torch.full would not be")
        parts = self._in_parts(func, args, kwargs or {})
        if parts is not NotImplemented:
            return parts
        known = {storage_of(tensor) for tensor in tensors((args, kwargs))}
        own = _aliases((args, kwargs or {}))
        result = super().__torch_dispatch__(func, types, args, kwargs)
        made = [
            (place, tensor.detach()) for place, tensor in enumerate(tensors(result)) if storage_of(tensor) not in known
        ]
        if func.overloadpacket.__name__ not in _UNDEFINED:
            self.calls.append(Call(func, *own, made))
        self._memory += [tensor for _, tensor in made]
        return result

    def _see(self, tensor: Tensor) -> None:
        new = storage_of(tensor) not in self._made and storage_of(tensor) not in self._outside
        super()._see(tensor)
        if new and tensor.untyped_storage().nbytes():
            whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            self._before.append((whole, whole.clone()))

    def undo(self) -> None:
        """Put back what the capture wrote outside, and spoil what it made."""
        for memory, before in self._before:
            memory.copy_(before)
        self._before.clear()
        for memory in self._memory:
            if memory.is_floating_point():
                memory.fill_(float("nan"))

    def replay(self) -> None:
        """Run it."""
        self.replays += 1
        with torch.inference_mode():  # allows for writing to what was made in it and to what was not
            for call in self.calls:
                call.again()

    def reads_beyond(self, held: Iterable[Tensor]) -> list[Tensor]:
        """What it reads or writes that is neither its own nor among the given tensors."""
        allowed = {storage_of(tensor) for tensor in held}
        return [tensor for tensor in self.outside if storage_of(tensor) not in allowed]


class TapeGraphs:
    """See the module.

    Attributes:
        tapes: all that were captured, in order.
        warmed_up: how many calls ran eagerly.
        fail: raised by the next captures, if not None.
    """

    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.warmed_up = 0
        self.fail: BaseException | None = None
        self._capturing_in: int | None = None

    def usable(self, device: torch.device) -> bool:
        return self._capturing_in != threading.get_ident()

    def in_order(self) -> None:
        pass

    def warm_up(self, function: Callable[[], T]) -> T:
        self.warmed_up += 1
        return function()

    def capture(self, function: Callable[[], T]) -> tuple[Tape, T]:
        tape, random = Tape(), torch.get_rng_state()
        self._capturing_in = threading.get_ident()
        try:
            with tape:
                result = function()
                if self.fail is not None:
                    raise self.fail
        finally:
            self._capturing_in = None
            with torch.inference_mode():
                tape.undo()
            torch.set_rng_state(random)
        self.tapes.append(tape)
        return tape, result

    def replay(self, graph: Tape) -> None:
        graph.replay()

    @property
    def replays(self) -> int:
        """How many there were of all graphs."""
        return sum(tape.replays for tape in self.tapes)


def _aliases(tree: Any) -> Any:
    """The same tree with tensors on the same memory that hold no autograd graph and keep their shape."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach(), tree)
