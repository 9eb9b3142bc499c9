"""Record work once as a CUDA graph and replay it without the cost of its launches."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ard_fast.functional._arguments import positive_int

__all__ = ["CudaGraphs", "GraphWarning", "GraphedFunction"]

T = TypeVar("T")
Inputs = dict[str, Tensor]
MOST_GRAPHS = 4
"""Kinds of calls of a `GraphedFunction` whose graphs are kept; beyond that the one used longest ago goes."""


class GraphWarning(RuntimeWarning):
    """Something runs without a graph and is therefore slower."""


class GraphedFunction:
    """Calls `function(inputs)`, by replaying a graph where possible.

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
        warm_up: eager calls of each kind before its capture, at least 1.
        fixed: returns the tensors that are read or written in place and outlive calls (parameters, buffers, state of an
            optimiser); when one has moved, the graph is captured anew. It is called each time.

    Attributes:
        failed: why all calls are eager, once a capture has failed, else None.
        replays: how many calls were replays.

    Raises:
        ValueError: `warm_up` is out of range.
    """

    def __init__(
        self,
        function: Callable[[Inputs], T],
        *,
        name: str,
        backend: CudaGraphs | None = None,
        warm_up: int = 3,
        fixed: Callable[[], Iterable[Tensor]] | None = None,
    ) -> None:
        self.function, self.name = function, name
        self.backend = CudaGraphs() if backend is None else backend
        self.warm_up = positive_int(warm_up, "warm_up")
        self.failed: str | None = None
        self.replays = 0
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
        devices = {tensor.device for tensor in inputs.values()}
        if len(devices) != 1:
            raise ValueError(f"inputs must be at least one tensor, all of one device, got {sorted(map(str, devices))}")
        device = devices.pop()
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            if self.failed is not None or not self.backend.usable(device):
                return self.function(dict(inputs))
            self.backend.in_order()
            layouts = tuple((name, x.shape, x.stride(), x.dtype, x.device) for name, x in inputs.items())
            kind = self._kind((key, layouts, _modes(device)), inputs)
            kind.take(inputs)
            addresses = self._addresses()
            if kind.graph is not None and kind.addresses != addresses:
                kind.result = kind.graph = None  # the result lies in the graph's memory
            if kind.graph is None:
                if kind.calls < self.warm_up:
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
        if key not in self._kinds:
            while len(self._kinds) >= MOST_GRAPHS:
                self._kinds.popitem(last=False)
            self._kinds[key] = _Kind(inputs)
        self._kinds.move_to_end(key)
        return self._kinds[key]

    def _addresses(self) -> tuple[int, ...]:
        return () if self._fixed is None else tuple([tensor.data_ptr() for tensor in self._fixed()])

    def _warm_up(self, kind: _Kind, addresses: tuple[int, ...]) -> Any:
        """An eager call. One that has moved what is fixed does not count: the first makes an optimiser's state."""
        result = self.backend.warm_up(lambda: self.function(dict(kind.inputs)))
        if self._addresses() == addresses:
            kind.calls += 1
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
        self.calls = 0
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
                if buffer.is_cuda:  # once dropped, its memory is nobody's before this stream has read it
                    buffer.record_stream(torch.cuda.current_stream(buffer.device))


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


_capturing = threading.Lock()
"""Held while a graph is captured: torch's generators and allocator know one capture at a time."""
_given_up: dict[int, Any] = {}
"""Devices without graphs for the rest of the process, and the graph whose capture CUDA ended: see `_give_up`."""


class CudaGraph(NamedTuple):
    """A captured graph and the tensors from outside that it reads or writes, which have to outlive it."""

    graph: torch.cuda.CUDAGraph
    outside: list[Tensor]


class CudaGraphs:
    """Capture and replay by torch's CUDA graphs, for one owner, whose graphs run one at a time and share a pool.

    All is done on the current device. Warm-up and capture use one side stream, so that what libraries keep for each
    stream (cuBLAS's workspace) is there when the capture begins. A capture tolerates CUDA calls of other threads, but
    they must not draw from torch's generator of the device meanwhile.
    """

    def __init__(self) -> None:
        self._streams: dict[int, torch.cuda.Stream] = {}
        self._pools: dict[int, Any] = {}
        self._last: dict[int, torch.cuda.Stream] = {}

    def usable(self, device: torch.device) -> bool:
        """Whether a graph can be captured or replayed there now: not inside another's capture."""
        return device.type == "cuda" and device.index not in _given_up and not torch.cuda.is_current_stream_capturing()

    def in_order(self) -> None:
        """Called first: this call's work begins after that of the last call, whatever its stream."""
        stream = torch.cuda.current_stream()
        last = self._last.get(stream.device_index)
        if last is not None and last != stream:
            stream.wait_stream(last)
        self._last[stream.device_index] = stream

    def warm_up(self, function: Callable[[], T]) -> T:
        """Run it on the side stream, in order with the current one: what it returns can be used there."""
        current, side = torch.cuda.current_stream(), self._side(torch.cuda.current_device())
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side):
                return function()
        finally:
            current.wait_stream(side)

    def capture(self, function: Callable[[], T]) -> tuple[Any, T]:
        """The graph of what it does, not run yet, and what it returned, which replays fill.

        Raises:
            BaseException: of the function or of CUDA; the device can be used as before, if maybe without graphs.
        """
        index = torch.cuda.current_device()
        if index not in self._pools:
            self._pools[index] = torch.cuda.graph_pool_handle()
        graph, watch = torch.cuda.CUDAGraph(), CaptureWatch()
        captured = torch.cuda.graph(
            graph, pool=self._pools[index], stream=self._side(index), capture_error_mode="thread_local"
        )
        with _capturing:
            begun = False
            try:
                # The outer context puts the stream back where the end of a capture fails before it does.
                with torch.cuda.stream(torch.cuda.current_stream()), captured:
                    begun = True
                    with watch:
                        result = function()
            except BaseException:
                if begun:
                    _give_up_unless_ended(index, graph, self._pools[index])
                raise
        return CudaGraph(graph, watch.outside), result

    def replay(self, graph: Any) -> None:
        """Run it on the current stream."""
        graph.graph.replay()

    def _side(self, index: int) -> torch.cuda.Stream:
        if index not in self._streams:
            self._streams[index] = torch.cuda.Stream(index)
        return self._streams[index]


def _give_up_unless_ended(index: int, graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """Make the device usable after a capture that CUDA, not the function, ended: without graphs from now on.

    torch leaves its generator in capture mode then, in which every later random number is an error, and its allocator
    collecting for the pool. The generator goes on in a new state of equal numbers; graphs captured before hold the old
    one and are not replayed any more. The graph is kept: the allocator may still ask it.
    """
    try:
        graph.pool()  # fails unless the capture came to a regular end
    except RuntimeError:
        _given_up[index] = graph
        generator = torch.cuda.default_generators[index]
        fresh = torch.Generator(device=torch.device("cuda", index))
        fresh.set_state(generator.get_state())
        generator.graphsafe_set_state(fresh.graphsafe_get_state())
        end_allocations = getattr(torch._C, "_cuda_endAllocateToPool", None)
        if end_allocations is not None:
            end_allocations(index, pool)


class NotCapturable(RuntimeError):
    """An operation that a graph cannot hold."""


class CaptureWatch(TorchDispatchMode):
    """Stands over a function while it is captured.

    An operation that waits for the device (a number or a shape read from it, a copy to or from another device) is
    refused before it runs: CUDA would refuse it too, but end the capture in a state that torch does not clean up.
    """

    def __init__(self) -> None:
        super().__init__()
        self._outside: dict[int, Tensor] = {}
        self._made: set[int] = set()

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Compiled functions stay compiled under the watch."""
        return True

    @property
    def outside(self) -> list[Tensor]:
        """What was read or written and not made under the watch, one tensor a storage.

        Whoever keeps the graph keeps these, so that it never reads memory that has been given to others.
        """
        return list(self._outside.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        parts = self._in_parts(func, args, kwargs)
        if parts is not NotImplemented:
            return parts
        reason = _why_not(func, args, kwargs)
        if reason is not None:
            raise NotCapturable(f"{func} {reason}")
        given = {storage_of(tensor): tensor.detach() for tensor in tensors((args, kwargs))}
        for storage in given.keys() - self._made:
            self._outside.setdefault(storage, given[storage])
        result = func(*args, **kwargs)
        self._made.update(storage_of(tensor) for tensor in tensors(result) if storage_of(tensor) not in given)
        return result

    def _in_parts(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation made of others, done as those: in inference mode they would not pass by here of themselves."""
        if not torch.is_inference_mode_enabled() or not func.has_kernel_for_dispatch_key(_COMPOSITE):
            return NotImplemented
        with self:
            return func.decompose(*args, **kwargs)


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors in a pytree."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def storage_of(tensor: Tensor) -> int:
    """What tells a tensor's memory from that of others; empty tensors have none."""
    return tensor.untyped_storage()._cdata


_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_VALUE_ON_THE_HOST = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
# Tagged for what they do with some arguments only.
_WITH_INDICES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


def _why_not(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """The reason that a graph cannot hold this call, None if it can."""
    name = func.overloadpacket.__name__
    if name in _WITH_INDICES:
        masks = any(index.dtype in (torch.bool, torch.uint8) for index in tensors(args[1]))
        return "with a mask has a result whose shape depends on values" if masks else None
    if name == "repeat_interleave" and kwargs.get("output_size") is not None:
        return None
    if any(tag in func.tags for tag in _VALUE_ON_THE_HOST):
        return "reads values from the device"
    before = after = None
    if name == "copy_":
        before, after = args[1].device, args[0].device
    elif name in ("_to_copy", "to", "to_copy") and kwargs.get("device") is not None:
        before, after = args[0].device, torch.device(kwargs["device"])
    return f"copies from {before} to {after}" if before != after else None
