"""Capture and replay of a function, on CUDA graphs that are recorded on the CPU."""

import subprocess
import sys

import pytest
import torch
from tape_graphs import TapeGraphs
from torch import nn

from ard_fast.attacks.cuda_graph import MOST_GRAPHS, GraphedFunction, GraphWarning


def doubled(inputs):
    return inputs["x"] * 2.0


def graphed(function=doubled, warm_up=1, **changes):
    tape = TapeGraphs()
    return GraphedFunction(function, name="a test", backend=tape, warm_up=warm_up, **changes), tape


def numbers(*shape):
    return torch.randn(*shape)


def test_first_calls_are_eager_then_one_capture_then_replays_of_new_inputs():
    function, tape = graphed(warm_up=2)
    for call in range(5):
        x = numbers(3)
        result = function({"x": x})
        assert torch.equal(result, x * 2.0)
        assert (tape.warmed_up, len(tape.tapes), tape.replays) == (min(call + 1, 2), int(call >= 2), max(call - 1, 0))
    assert (function.graphs, function.replays) == (1, 3)
    assert function({"x": torch.zeros(3)}) is result and torch.equal(result, torch.zeros(3))  # the graph's memory


def test_a_capture_has_no_effect_of_its_own():
    total, drawn = torch.zeros(3), []

    def function(inputs):
        total.add_(inputs["x"])
        return torch.rand(3)

    run, _ = graphed(function, fixed=lambda: [total])
    torch.manual_seed(0)
    for _ in range(4):
        drawn.append(run({"x": torch.ones(3)}).clone())
    torch.manual_seed(0)
    assert torch.equal(total, torch.full((3,), 4.0))
    assert all(torch.equal(torch.rand(3), each) for each in drawn)


def test_shape_dtype_stride_key_and_modes_tell_calls_apart():
    linear = nn.Linear(3, 3)
    run, tape = graphed(lambda inputs: linear(inputs["x"].float()))

    def twice(count, x, key=()):
        for _ in range(2):
            assert torch.equal(run({"x": x}, key), linear(x.float()))
        assert len(tape.tapes) == count

    x = numbers(2, 3)
    with torch.no_grad():
        twice(1, x)
        twice(1, x.clone().requires_grad_())
        twice(2, numbers(4, 3))
        twice(3, x.double())
        twice(4, numbers(3, 2).t())
        twice(5, x, key="other")
        with torch.autocast("cpu", torch.bfloat16):
            twice(6, x)
        twice(7, x)  # of all but the last four the graphs are gone
    twice(8, x)
    assert run.graphs == MOST_GRAPHS


def test_casts_kept_by_autocast_are_neither_read_by_a_replay_nor_left_by_a_capture():
    linear = nn.Linear(3, 3)
    run, _ = graphed(lambda inputs: linear(inputs["x"]), fixed=linear.parameters)
    x = numbers(2, 3)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            linear(x)
            run({"x": x})
        with torch.no_grad():
            linear.weight.mul_(2.0)
        with torch.autocast("cpu", torch.bfloat16):
            got = run({"x": x}).clone()
            assert torch.equal(got, linear(x))


def test_inputs_are_data_whatever_the_callers_modes():
    def function(inputs):
        with torch.inference_mode(False), torch.enable_grad():
            assert not inputs["x"].requires_grad and inputs["x"].is_leaf
            weight = torch.ones(3, requires_grad=True)
            return torch.autograd.grad((weight * inputs["x"]).sum(), weight)[0]

    run, _ = graphed(function)
    for mode in (torch.inference_mode, torch.enable_grad):
        for _ in range(3):
            with mode():
                x = numbers(3).requires_grad_(mode is torch.enable_grad)
                assert torch.equal(run({"x": x}), x)
    assert run.replays == 4


def test_weights_updated_in_place_need_no_capture_and_moved_ones_do():
    linear = nn.Linear(3, 3)
    run, tape = graphed(lambda inputs: linear(inputs["x"]), fixed=linear.parameters)
    x = numbers(2, 3)

    def check(captures):
        assert torch.equal(run({"x": x}), linear(x))
        assert len(tape.tapes) == captures

    check(0)
    check(1)
    with torch.no_grad():
        linear.weight.add_(1.0)
    check(1)
    linear.load_state_dict({"weight": numbers(3, 3), "bias": numbers(3)})
    check(1)
    linear.weight.data = numbers(3, 3)
    check(2)
    linear.bias = nn.Parameter(numbers(3))
    check(3)


WAITING = {
    "item": lambda x: x * x.sum().item(),
    "equal": lambda x: x * float(torch.equal(x, x)),
    "mask": lambda x: x[x > 0],
    "if": lambda x: x if x.sum() > 0 else -x,
    "device": lambda x: x.to("meta"),
    "python data": lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
    "repeat": lambda x: torch.repeat_interleave(x.abs().long()),
    "where": lambda x: torch.where(x > 0)[0],  # nonzero inside, which in inference mode does not pass by
}


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("name", WAITING)
def test_what_waits_for_the_device_runs_eagerly_after_one_warning(name, mode):
    run, tape = graphed(lambda inputs: WAITING[name](inputs["x"]))
    x = numbers(3)
    with mode():
        run({"x": x})
        with pytest.warns(GraphWarning, match="a test runs without a CUDA graph: .* NotCapturable") as caught:
            run({"x": x})
        assert len(caught) == 1 and caught[0].filename == __file__
        got, expected = run({"x": x}), WAITING[name](x)
        assert got.is_meta or torch.equal(got, expected)
    assert not tape.tapes and run.graphs == 0


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.repeat_interleave(x, torch.full((3,), 2), output_size=6),
        lambda x: x[x.argsort()],
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: x.clone().index_put_((x.argsort(),), x),
    ],
    ids=["repeat", "index", "where", "index_put"],
)
def test_what_waits_for_nothing_is_captured(function):
    run, _ = graphed(lambda inputs: function(inputs["x"]))
    for _ in range(3):
        x = numbers(3)
        assert torch.equal(run({"x": x}), function(x))
    assert run.replays == 2


@pytest.mark.filterwarnings("error")
def test_after_a_failed_capture_results_are_right():
    weight = torch.ones(3)

    def function(inputs):
        weight.add_(inputs["x"])
        return weight * inputs["x"]

    run, tape = graphed(function)
    tape.fail = RuntimeError("no memory\nfor this")
    expected = torch.ones(3)
    for call in range(4):
        x = numbers(3)
        expected += x
        if call == 1:
            with pytest.warns(GraphWarning, match="RuntimeError: no memory$"):
                got = run({"x": x})
        else:
            got = run({"x": x})
        assert torch.equal(got, expected * x)


@pytest.mark.parametrize("eager_first", [True, False])
def test_an_error_of_the_function_is_that_error_and_no_failure_of_a_capture(eager_first):
    def function(inputs):
        if stop:
            raise KeyError("stop")
        return inputs["x"] + 0.0

    stop = eager_first
    run, tape = graphed(function)
    if not eager_first:
        run({"x": numbers(3)})
        stop = True
    for _ in range(3):
        with pytest.raises(KeyError, match="stop"):
            run({"x": numbers(3)})
    stop = False
    for _ in range(3):
        run({"x": numbers(3)})
    assert run.failed is None and len(tape.tapes) == 1 and run.replays == 2


def test_an_interrupt_during_a_capture_is_no_failure_of_it():
    run, tape = graphed()
    run({"x": numbers(3)})
    tape.fail = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run({"x": numbers(3)})
    tape.fail = None
    x = numbers(3)
    assert torch.equal(run({"x": x}), x * 2.0) and run.failed is None


def test_state_made_by_the_first_call_is_no_failure_but_state_moved_by_each_is():
    state = []

    def adds(inputs):
        if not state:
            state.append(torch.zeros(3))
        state[0] += inputs["x"]
        return state[0].clone()

    run, tape = graphed(adds, fixed=lambda: state)
    for call in range(4):
        assert torch.equal(run({"x": torch.ones(3)}), torch.full((3,), call + 1.0))
    assert (tape.warmed_up, run.replays, run.failed) == (2, 2, None)

    def replaces(inputs):
        state[0] = state[0] + inputs["x"]
        return state[0]

    run, tape = graphed(replaces, warm_up=3, fixed=lambda: state)
    run({"x": torch.ones(3)})
    with pytest.warns(GraphWarning, match="tensors that are fixed in new places, at each call"):
        run({"x": torch.ones(3)})
    assert torch.equal(run({"x": torch.ones(3)}), torch.full((3,), 7.0))
    assert not tape.tapes


def test_inference_mode_inside_is_captured():
    linear, memory = nn.Linear(3, 3), torch.zeros(2, 3)

    def function(inputs):
        with torch.inference_mode():
            teacher = linear(inputs["x"])
            teacher.add_(1.0)
            memory.copy_(teacher)
        x = inputs["x"].clone().requires_grad_()
        (linear(x) * teacher.clone()).sum().backward()
        return x.grad, teacher

    run, _ = graphed(function, fixed=lambda: [*linear.parameters(), memory])
    for _ in range(3):
        x = numbers(2, 3)
        expected = [result.clone() for result in function({"x": x})]
        kept = memory.clone()
        for got, right in zip(run({"x": x}), expected, strict=True):
            assert torch.equal(got, right)
        assert torch.equal(memory, kept)
    assert run.replays == 2


def test_a_graph_keeps_what_it_reads():
    offset = torch.ones(3)
    run, tape = graphed(lambda inputs: inputs["x"] + offset)
    for _ in range(2):
        run({"x": numbers(3)})
    assert any(read.data_ptr() == offset.data_ptr() for read in tape.tapes[0].outside)
    offset = torch.zeros(3)
    x = numbers(3)
    assert torch.equal(run({"x": x}), x + 1.0)


def test_one_within_another_is_part_of_it():
    inner, tape = graphed()
    outer = GraphedFunction(lambda inputs: inner(inputs) + 1.0, name="outer", backend=tape, warm_up=1)
    for _ in range(4):
        x = numbers(3)
        assert torch.equal(outer({"x": x}), x * 2.0 + 1.0)
    assert len(tape.tapes) == 1


def test_inputs_and_numbers_are_checked_and_a_cpu_has_no_graphs():
    run, _ = graphed()
    for inputs, got in (({}, r"\[\]"), ({"x": numbers(1), "y": numbers(1).to("meta")}, r"\['cpu', 'meta'\]")):
        with pytest.raises(ValueError, match=f"inputs must be at least one tensor, all of one device, got {got}"):
            run(inputs)
    with pytest.raises(ValueError, match="warm_up must be an int of at least 1, got 0"):
        GraphedFunction(doubled, name="a test", warm_up=0)
    run = GraphedFunction(doubled, name="a test", warm_up=1)
    for _ in range(3):
        run({"x": numbers(3)})
    assert run.graphs == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_memory_of_dropped_buffers_waits_for_the_stream_that_replayed():
    places = set()

    def function(inputs):
        places.add(inputs["x"].data_ptr())
        return inputs["x"] * 2.0

    run, x = GraphedFunction(function, name="a test", warm_up=1), torch.zeros(1 << 20, device="cuda")
    run({"x": x})
    with torch.cuda.stream(torch.cuda.Stream()):
        run({"x": x})
        torch.cuda._sleep(1 << 30)
    run.forget()
    assert run.replays == 1 and torch.empty_like(x).data_ptr() not in places
    torch.cuda.synchronize()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_capture_that_cuda_ends_leaves_the_device_usable():
    """In a process of its own, which has no graphs afterwards."""
    script = """
import warnings
import torch
from ard_fast.attacks.cuda_graph import CudaGraphs, GraphedFunction, GraphWarning

def function(inputs):
    noise = torch.rand_like(inputs["x"])
    if waits:
        torch.cuda.synchronize()
    return inputs["x"] + noise

def drawn(call):
    torch.manual_seed(0)
    return [call({"x": x}).clone() for _ in range(4)]

x, waits = torch.zeros(1000, device="cuda"), False
before = GraphedFunction(function, name="the one before", warm_up=1)
expected = drawn(function)
drawn(before)
assert before.replays == 3
waits = True
run = GraphedFunction(function, name="the test", warm_up=1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    got = drawn(run)
assert [warning.category for warning in caught if "CUDA graph:" in str(warning.message)] == [GraphWarning], caught
assert run.failed and not CudaGraphs().usable(x.device)
waits = False
assert torch.cuda.current_stream() == torch.cuda.default_stream()
for results in (got, drawn(run), drawn(before), drawn(function)):
    assert all(torch.equal(one, other) for one, other in zip(results, expected, strict=True))
assert before.replays == 3
torch.cuda.synchronize()
print("usable")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.endswith("usable\n"), done.stderr
