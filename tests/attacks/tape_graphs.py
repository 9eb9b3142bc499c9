"""CUDA graphs for tests on the CPU, as strict as those of CUDA.

What a captured function does is written down operation by operation, with the tensors it works on, and a replay does
exactly that again in the same memory: numbers are those of the capture, Python does not run, and what was not an
operation does not happen. A capture leaves no effect, as on CUDA, where it does no work: whatever it wrote is put back,
the state of the generator too, and memory made in it is filled with NaN until a replay writes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ard_fast.attacks.cuda_graph import CaptureWatch, CudaGraphs, NotCapturable, storage_of, tensors

T = TypeVar("T")

_UNDEFINED = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_")


class Tape(CaptureWatch):
    """A captured function: its operations in order, with their arguments and the results they wrote to new memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, list[tuple[int, Tensor]]]] = []
        self.replays = 0
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten.lift_fresh.default:
            raise NotCapturable("a tensor made of Python data is a copy from the host; torch.full would not be")
        given = (args, kwargs or {})
        parts = self._in_parts(func, *given)
        if parts is not NotImplemented:
            return parts
        known = {storage_of(tensor): tensor for tensor in tensors(given)}
        for storage in known.keys() - self._made - self._before.keys():
            whole = torch.empty(0, dtype=torch.uint8).set_(known[storage].untyped_storage())
            self._before[storage] = whole, whole.clone()
        # On the same memory, without an autograd graph, and of a shape that stays.
        own = tree_map_only(Tensor, lambda tensor: tensor.detach(), given)
        result = super().__torch_dispatch__(func, types, *given)
        made = [(i, tensor.detach()) for i, tensor in enumerate(tensors(result)) if storage_of(tensor) not in known]
        self.calls.append((func if func.overloadpacket.__name__ not in _UNDEFINED else None, own, made))
        return result

    def undo(self) -> None:
        """Put back what the capture wrote outside, and spoil what it made."""
        for memory, before in self._before.values():
            memory.copy_(before)
        for memory in (tensor for _, _, made in self.calls for _, tensor in made if tensor.is_floating_point()):
            memory.fill_(float("nan"))


class TapeGraphs(CudaGraphs):
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
        graph.replays += 1
        with torch.inference_mode():  # allows for writing to what was made in it and to what was not
            for function, (args, kwargs), made in graph.calls:
                if function is not None:
                    result = list(tensors(function(*args, **kwargs)))
                    for place, memory in made:
                        memory.copy_(result[place])

    @property
    def replays(self) -> int:
        """How many there were of all graphs."""
        return sum(tape.replays for tape in self.tapes)
