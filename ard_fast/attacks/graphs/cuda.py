"""Capture and replay by torch's CUDA graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ard_fast.attacks.graphs.watch import CaptureWatch

T = TypeVar("T")

_capturing = threading.Lock()
"""Held while a graph is captured: torch's generators and allocator know one capture at a time."""
_given_up: dict[int, Any] = {}
"""Devices without graphs for the rest of the process, and the graph whose capture CUDA ended: see `_give_up`."""


class CudaGraph(NamedTuple):
    """A captured graph and the tensors from outside that it reads or writes, which have to outlive it."""

    graph: torch.cuda.CUDAGraph
    outside: list[Tensor]


class CudaGraphs:
    """The graphs of one owner, which run one at a time: their memory is one pool.

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
        """Before anything of a call: it begins after the last call's work, on whatever stream that was."""
        stream = torch.cuda.current_stream()
        last = self._last.get(stream.device_index)
        if last is not None and last != stream:
            stream.wait_stream(last)
        self._last[stream.device_index] = stream

    def warm_up(self, function: Callable[[], T]) -> T:
        """Run it on the side stream; what it returns can be used on the current one."""
        with self._aside():
            return function()

    def capture(self, function: Callable[[], T]) -> tuple[CudaGraph, T]:
        """Capture what it does; what it returns is in the graph's memory and filled by replays.

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
                if begun and not _ended(graph):
                    _give_up(index, graph, self._pools[index])
                raise
        return CudaGraph(graph, watch.outside), result

    def replay(self, graph: CudaGraph) -> None:
        """Run it on the current stream."""
        graph.graph.replay()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """The side stream, in order with the current one before and after: memory may pass freely between them."""
        current, side = torch.cuda.current_stream(), self._side(torch.cuda.current_device())
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side):
                yield
        finally:
            current.wait_stream(side)

    def _side(self, index: int) -> torch.cuda.Stream:
        if index not in self._streams:
            self._streams[index] = torch.cuda.Stream(index)
        return self._streams[index]


def _ended(graph: torch.cuda.CUDAGraph) -> bool:
    """Whether its capture came to a regular end, if maybe of a graph that nobody wants."""
    try:
        graph.pool()
    except RuntimeError:
        return False
    return True


def _give_up(index: int, graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """Make the device usable after a capture that CUDA ended, without graphs from now on.

    torch leaves its generator in capture mode then, in which every later random number is an error, and its allocator
    collecting for the pool. The generator goes on in a new state of equal numbers; graphs captured before hold the old
    one and are not replayed any more. The graph is kept: the allocator may still ask it.
    """
    _given_up[index] = graph
    generator = torch.cuda.default_generators[index]
    fresh = torch.Generator(device=torch.device("cuda", index))
    fresh.set_state(generator.get_state())
    generator.graphsafe_set_state(fresh.graphsafe_get_state())
    end_allocations = getattr(torch._C, "_cuda_endAllocateToPool", None)
    if end_allocations is not None:
        end_allocations(index, pool)
