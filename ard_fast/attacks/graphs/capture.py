"""A function of tensors that is captured after a few calls and replayed from then on."""

from __future__ import annotations

import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ard_fast.attacks.graphs.cuda import CudaGraphs
from ard_fast.functional._arguments import positive_int

T = TypeVar("T")
Inputs = dict[str, Tensor]


class GraphWarning(RuntimeWarning):
    """Something runs without a graph, and so slower than it could."""


class GraphBackend(Protocol):
    """What captures and replays: `CudaGraphs`, or a double of it in tests. All is done on the current device."""

    def usable(self, device: torch.device) -> bool:
        """Whether a graph can be captured or replayed there now."""
        ...

    def in_order(self) -> None:
        """Order what follows after the work of the last call."""

    def warm_up(self, function: Callable[[], T]) -> T:
        """Run the function for real, as near as can be to how it is captured."""
        ...

    def capture(self, function: Callable[[], T]) -> tuple[Any, T]:
        """The graph of what the function does, not run yet, and what it returned, which replays fill.

        What was begun is undone when it raises.
        """
        ...

    def replay(self, graph: Any) -> None:
        """Run a graph."""


class GraphedFunction:
    """Calls `function(inputs)`, by replay of a graph where that can be.

    Inputs are copied into buffers of the graph's own. The first calls of a kind run eagerly, in those buffers and with
    real results: nothing runs for warming up only, so there is nothing to undo. The next is captured and replayed. What
    tells calls apart: shape, layout and dtype of the inputs, the state of autocast, of gradients and of the precision
    of float32 arithmetic, and `key`. What else the function depends on that is not in tensors must be in `key`; numbers
    become part of the graph.

    The function must not wait for the device and must not depend on whether its tensors are new at each call. A capture
    runs its Python code without doing any of its work: what the host counts there, it counts once more. If the capture
    fails, there is one `GraphWarning`, and all further calls are eager. Not for several threads at once.

    Args:
        function: takes a dict of tensors; returns a pytree of tensors.
        name: of what it does, for warnings.
        backend: None takes a new `CudaGraphs`. Give several functions one backend if they never run at once and each
            result is used before the next call of any of them: they share memory.
        warm_up: eager calls of each kind before its capture, in the thread that captures; at least 1.
        fixed: returns the tensors that are read or written in place and outlive calls (parameters, buffers, state of an
            optimiser); when one has moved, the graph is captured anew. It is called each time.
        most: kinds of calls whose graphs are kept; beyond that the one used longest ago goes.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        function: Callable[[Inputs], T],
        *,
        name: str,
        backend: GraphBackend | None = None,
        warm_up: int = 3,
        fixed: Callable[[], Iterable[Tensor]] | None = None,
        most: int = 4,
    ) -> None:
        self.function, self.name = function, name
        self.backend: GraphBackend = CudaGraphs() if backend is None else backend
        self.warm_up = positive_int(warm_up, "warm_up")
        self.most = positive_int(most, "most")
        self.failed: str | None = None
        """Why all calls are eager, once a capture has failed."""
        self.replays = 0
        """How many calls were replays."""
        self._fixed = fixed
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()

    def __call__(self, inputs: Mapping[str, Tensor], key: Hashable = ()) -> Any:
        """What the function returns; after a replay in the graph's memory, where it stays until the next call.

        Args:
            inputs: at least one tensor, all of one device. Taken as data: gradients do not flow to them.
            key: what else the function depends on.

        Raises:
            ValueError: no inputs, or on several devices.
            Exception: of the function, where it runs eagerly.
        """
        device = _device_of(inputs)
        with _current(device):
            if self.failed is not None or not self.backend.usable(device):
                return self.function(dict(inputs))
            self.backend.in_order()
            kind = self._kind((key, _layouts(inputs), _modes(device)), inputs)
            kind.take(inputs)
            addresses = self._addresses()
            if kind.graph is not None and kind.addresses != addresses:
                kind.forget()
            if kind.graph is None:
                if kind.calls[threading.get_ident()] < self.warm_up:
                    return self._warm_up(kind, addresses)
                reason = self._capture(kind, addresses)
                if reason is not None:
                    self.forget()
                    result = self.function(dict(inputs))  # raises what was no fault of the capture
                    self._fail(reason)
                    return result
            self.backend.replay(kind.graph)
            self.replays += 1
            return kind.result

    def forget(self) -> None:
        """Drop all graphs and their memory; the next calls warm up and capture anew."""
        self._kinds.clear()

    @property
    def graphs(self) -> int:
        """How many graphs are held."""
        return sum(kind.graph is not None for kind in self._kinds.values())

    def _kind(self, key: Hashable, inputs: Mapping[str, Tensor]) -> _Kind:
        kind = self._kinds.get(key)
        if kind is None:
            while len(self._kinds) >= self.most:
                self._kinds.popitem(last=False)
            kind = self._kinds[key] = _Kind(inputs)
        self._kinds.move_to_end(key)
        return kind

    def _addresses(self) -> tuple[int, ...]:
        return () if self._fixed is None else tuple([tensor.data_ptr() for tensor in self._fixed()])

    def _warm_up(self, kind: _Kind, addresses: tuple[int, ...]) -> Any:
        """An eager call. One that has moved what is fixed does not count: the first makes an optimiser's state."""
        result = self.backend.warm_up(lambda: self.function(dict(kind.inputs)))
        if self._addresses() == addresses:
            kind.calls[threading.get_ident()] += 1
        elif kind.moved:
            self._fail("it puts tensors that are fixed in new places, at each call", stacklevel=4)
        else:
            kind.moved = True
        return result

    def _capture(self, kind: _Kind, addresses: tuple[int, ...]) -> str | None:
        """None, or why it failed."""
        # Casts of parameters that autocast has kept from before would be constants of the graph, and those that it
        # keeps from the capture would be read later out of the graph's memory.
        torch.clear_autocast_cache()
        try:
            kind.graph, kind.result = self.backend.capture(lambda: self.function(dict(kind.inputs)))
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            return f"its capture failed with {type(error).__name__}: {reason}"
        finally:
            torch.clear_autocast_cache()
        if self._addresses() != addresses:
            return "its capture put tensors that are fixed in new places"
        kind.addresses = addresses
        return None

    def _fail(self, reason: str, stacklevel: int = 3) -> None:
        self.failed = reason
        self.forget()
        warnings.warn(f"{self.name} runs without a CUDA graph: {reason}", GraphWarning, stacklevel=stacklevel)


class _Kind:
    """The buffers of one kind of call and, once there is one, its graph."""

    def __init__(self, inputs: Mapping[str, Tensor]) -> None:
        with torch.inference_mode(False):  # autograd cannot save inference tensors
            self.inputs = {name: torch.empty_like(tensor, requires_grad=False) for name, tensor in inputs.items()}
        # By thread: what libraries find out by trial (cuDNN's benchmark) they keep for each.
        self.calls: Counter[int] = Counter()
        self.moved = False
        self.addresses: tuple[int, ...] = ()
        self.graph: Any = None
        self.result: Any = None

    def take(self, inputs: Mapping[str, Tensor]) -> None:
        """Copy the inputs of a call."""
        with torch.no_grad():
            for name, buffer in self.inputs.items():
                if inputs[name] is not buffer:
                    buffer.copy_(inputs[name])

    def forget(self) -> None:
        """Drop the graph; the next call captures another."""
        # The results lie in the memory of the graph.
        self.result = None
        self.graph = None


def _device_of(inputs: Mapping[str, Tensor]) -> torch.device:
    devices = {tensor.device for tensor in inputs.values()}
    if len(devices) != 1:
        raise ValueError(f"inputs must be at least one tensor, all of one device, got {sorted(map(str, devices))}")
    return devices.pop()


def _current(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _layouts(inputs: Mapping[str, Tensor]) -> Hashable:
    return tuple((name, x.shape, x.stride(), x.dtype, x.device) for name, x in inputs.items())


def _modes(device: torch.device) -> Hashable:
    """The global state that decides what operations a function does."""
    cudnn: Any = torch.backends.cudnn
    return (
        torch.is_autocast_enabled(device.type),
        torch.get_autocast_dtype(device.type),
        torch.is_autocast_cache_enabled(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cuda.matmul.fp32_precision,
        cudnn.conv.fp32_precision,
    )
