"""What a capture asks of CUDA, in which order, and what is put right after a failure: on a double of `torch.cuda`."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from ard_fast.attacks.graphs import CudaGraphs, NotCapturable
from ard_fast.attacks.graphs import cuda as module

DEVICE = torch.device("cuda", 0)


class Stream:
    def __init__(self, cuda, name):
        self.cuda, self.name, self.device_index = cuda, name, 0

    def wait_stream(self, other):
        self.cuda.log.append(f"{self.name} waits for {other.name}")


class Generator:
    """Stuck in capture mode, as torch leaves it, until it is given another state."""

    def __init__(self, device=None):
        self.numbers, self.stuck = None, False

    def get_state(self):
        return self.numbers

    def set_state(self, numbers):
        self.numbers = numbers

    def graphsafe_get_state(self):
        return self

    def graphsafe_set_state(self, other):
        self.numbers, self.stuck = other.numbers, other.stuck


class Cuda:
    """The part of `torch.cuda` that a capture needs; `invalid` makes CUDA end captures."""

    def __init__(self):
        self.log, self.invalid, self.capturing, self.pools = [], False, None, 0
        self.main = self.current = Stream(self, "main")
        self.default_generators = [Generator()]
        self.default_generators[0].numbers = "numbers"

    def current_device(self):
        return 0

    def current_stream(self):
        return self.current

    def is_current_stream_capturing(self):
        return self.capturing is not None

    def Stream(self, index):
        return Stream(self, "side")

    def graph_pool_handle(self):
        self.pools += 1
        return (0, self.pools)

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def CUDAGraph(self):
        return Graph(self)

    def graph(self, graph, *, pool, stream, capture_error_mode):
        return Capture(self, graph, pool, stream, capture_error_mode)


class Graph:
    def __init__(self, cuda):
        self.cuda, self.whole = cuda, False

    def pool(self):
        if not self.whole:
            raise RuntimeError("without a preceding successful capture")
        return (0, 1)

    def replay(self):
        self.cuda.log.append(f"replay on {self.cuda.current.name}")


class Capture:
    """As torch's: where the end of a capture raises, the stream stays the side stream."""

    def __init__(self, cuda, graph, pool, stream, mode):
        self.cuda, self.made, self.stream, self.words = cuda, graph, stream, f"{mode} in pool {pool[1]}"

    def __enter__(self):
        self.before, self.cuda.current = self.cuda.current, self.stream
        self.cuda.capturing = self.made
        self.cuda.log.append(f"capture on {self.stream.name}, {self.words}")

    def __exit__(self, *error):
        self.cuda.capturing = None
        if self.cuda.invalid:
            self.cuda.default_generators[0].stuck = True
            raise RuntimeError("operation failed due to a previous error during capture")
        self.made.whole = True
        self.cuda.log.append("end")
        self.cuda.current = self.before


@pytest.fixture
def cuda(monkeypatch):
    made = Cuda()
    ended = made.ended = []
    private = SimpleNamespace(_cuda_endAllocateToPool=lambda index, pool: ended.append((index, pool)))
    fake = SimpleNamespace(cuda=made, Generator=Generator, device=torch.device, _C=private)
    monkeypatch.setattr(module, "torch", fake)
    monkeypatch.setattr(module, "_given_up", {})
    return made


def test_warm_up_is_on_the_side_stream_between_the_work_before_and_after(cuda):
    graphs = CudaGraphs()
    assert graphs.warm_up(lambda: cuda.log.append(f"run on {cuda.current.name}")) is None
    assert cuda.log == ["side waits for main", "run on side", "main waits for side"]
    with pytest.raises(KeyError):
        graphs.warm_up(lambda: {}["no"])
    assert cuda.log[3:] == ["side waits for main", "main waits for side"] and cuda.current is cuda.main


def test_captures_share_one_pool_and_keep_what_they_read(cuda):
    graphs, weight = CudaGraphs(), torch.ones(3)
    for factor in (1.0, 2.0):
        graph, result = graphs.capture(lambda factor=factor: (weight * factor, cuda.current.name))
        assert result[1] == "side" and [each.data_ptr() for each in graph.outside] == [weight.data_ptr()]
    graphs.replay(graph)
    assert cuda.log == [*["capture on side, thread_local in pool 1", "end"] * 2, "replay on main"]
    CudaGraphs().capture(lambda: None)
    assert cuda.log[-2] == "capture on side, thread_local in pool 2"


def test_no_graph_inside_of_a_capture_or_off_cuda(cuda):
    graphs, inside = CudaGraphs(), []
    graphs.capture(lambda: inside.append(graphs.usable(DEVICE)))
    assert inside == [False] and graphs.usable(DEVICE) and not graphs.usable(torch.device("cpu"))


def test_what_waits_is_refused_before_cuda_hears_of_it(cuda):
    graphs = CudaGraphs()
    with pytest.raises(NotCapturable, match="_local_scalar_dense"):
        graphs.capture(lambda: torch.ones(()).item())
    assert cuda.log[-1] == "end" and cuda.current is cuda.main and graphs.usable(DEVICE) and not cuda.ended
    graphs.capture(lambda: None)
    assert cuda.pools == 1


@pytest.mark.parametrize("wrong", [lambda: None, lambda: torch.ones(()).item()], ids=["cuda", "both"])
def test_after_a_capture_that_cuda_ended_the_device_goes_on_without_graphs(wrong, cuda):
    graphs = CudaGraphs()
    cuda.invalid = True
    with pytest.raises(RuntimeError, match="previous error during capture"):
        graphs.capture(wrong)
    assert cuda.current is cuda.main
    assert cuda.ended == [(0, (0, 1))]
    (generator,) = cuda.default_generators
    assert generator.numbers == "numbers" and not generator.stuck
    assert not graphs.usable(DEVICE) and not CudaGraphs().usable(DEVICE)
    assert CudaGraphs().usable(torch.device("cuda", 1))
    assert isinstance(module._given_up[0], Graph)  # torch's allocator may still ask it


def test_calls_on_another_stream_wait_for_the_last_one(cuda):
    graphs, other = CudaGraphs(), Stream(cuda, "other")
    graphs.in_order()
    graphs.in_order()
    with cuda.stream(other):
        graphs.in_order()
        graphs.in_order()
    graphs.in_order()
    assert cuda.log == ["other waits for main", "main waits for other"]
