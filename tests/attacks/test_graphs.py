"""Capture and replay of a function, on a double of CUDA graphs."""

import subprocess
import sys
import threading
import warnings

import pytest
import torch
from tape_graphs import TapeGraphs
from torch import nn

from ard_fast.attacks.graphs import GraphedFunction, GraphWarning, network_modes, network_tensors


def doubled(inputs):
    return inputs["x"] * 2.0


def graphed(function=doubled, **changes):
    tape = TapeGraphs()
    return GraphedFunction(function, name="a test", backend=tape, **changes), tape


def numbers(*shape):
    return torch.randn(*shape)


def test_first_calls_eager_then_one_capture_then_replays():
    function, tape = graphed(warm_up=2)
    for call in range(5):
        x = numbers(3)
        assert torch.equal(function({"x": x}), x * 2.0)
        assert (tape.warmed_up, len(tape.tapes), tape.replays) == (min(call + 1, 2), int(call >= 2), max(call - 1, 0))
    assert (function.graphs, function.replays) == (1, 3)


def test_a_replay_runs_no_python_and_keeps_the_numbers_of_the_capture():
    calls, factor = [], 3.0

    def function(inputs):
        calls.append(None)
        return inputs["x"] * factor

    run, _ = graphed(function, warm_up=1)
    for _ in range(2):
        run({"x": numbers(3)})
    factor = 5.0
    x = numbers(3)
    assert torch.equal(run({"x": x}), x * 3.0)
    assert len(calls) == 2


def test_a_result_stays_until_the_next_call():
    run, _ = graphed(warm_up=1)
    run({"x": numbers(3)})
    first = run({"x": torch.ones(3)})
    kept = first.clone()
    second = run({"x": torch.zeros(3)})
    assert second is first
    assert torch.equal(kept, torch.full((3,), 2.0))
    assert torch.equal(first, torch.zeros(3))


def test_capture_has_no_effect_of_its_own():
    total, drawn = torch.zeros(3), []

    def function(inputs):
        total.add_(inputs["x"])
        return torch.rand(3)

    run, _ = graphed(function, warm_up=1, fixed=lambda: [total])
    torch.manual_seed(0)
    for _ in range(4):
        drawn.append(run({"x": torch.ones(3)}).clone())
    torch.manual_seed(0)
    assert torch.equal(total, torch.full((3,), 4.0))
    assert all(torch.equal(torch.rand(3), each) for each in drawn)


@pytest.mark.parametrize(
    "other",
    [
        numbers(4),
        numbers(3).double(),
        numbers(3, 2).t()[0],
        numbers(1, 3)[0].requires_grad_(),
    ],
    ids=["shape", "dtype", "stride", "requires_grad"],
)
def test_each_kind_of_input_is_captured_for_itself(other):
    run, tape = graphed(warm_up=1)
    for _ in range(2):
        run({"x": numbers(3)})
    for _ in range(2):
        got = run({"x": other})
        assert torch.equal(got, other * 2.0) and not got.requires_grad
    assert len(tape.tapes) == (1 if other.requires_grad else 2)


def test_key_and_modes_tell_calls_apart():
    linear = nn.Linear(3, 3)
    run, tape = graphed(lambda inputs: linear(inputs["x"]), warm_up=1)

    def twice(count, key=()):
        for _ in range(2):
            result = run({"x": numbers(2, 3)}, key)
        assert len(tape.tapes) == count
        return result

    with torch.no_grad():
        twice(1)
        twice(2, key="other")
        twice(2, key="other")
        with torch.autocast("cpu", torch.bfloat16):
            assert twice(3).dtype == torch.bfloat16
        twice(3)
    twice(4)
    with torch.inference_mode():
        twice(5)
    assert run.graphs == run.most


def test_the_kind_used_longest_ago_goes():
    run, tape = graphed(warm_up=1, most=2)
    for size in (1, 1, 2, 2, 1, 3, 3):
        run({"x": numbers(size)})
    assert (run.graphs, len(tape.tapes), tape.warmed_up) == (2, 3, 3)
    run({"x": numbers(1)})
    assert (len(tape.tapes), tape.warmed_up) == (3, 3)
    run({"x": numbers(2)})
    assert tape.warmed_up == 4


def test_casts_kept_by_autocast_are_made_anew_in_each_replay():
    linear = nn.Linear(3, 3)
    run, _ = graphed(lambda inputs: linear(inputs["x"]), warm_up=1, fixed=linear.parameters)
    x = numbers(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            linear(x)
            run({"x": x})
            with torch.no_grad():
                linear.weight.mul_(2.0)
            torch.clear_autocast_cache()
            assert torch.equal(run({"x": x}), linear(x))


def test_casts_of_the_capture_are_nobody_elses():
    linear = nn.Linear(3, 3)
    run, _ = graphed(lambda inputs: linear(inputs["x"]), warm_up=1, fixed=linear.parameters)
    x = numbers(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            run({"x": x})
        with torch.no_grad():
            linear.weight.mul_(2.0)
        got = linear(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(got, linear(x))


def test_inputs_are_data_whatever_the_callers_modes():
    def function(inputs):
        with torch.inference_mode(False), torch.enable_grad():
            assert not inputs["x"].requires_grad and inputs["x"].is_leaf
            weight = torch.ones(3, requires_grad=True)
            return torch.autograd.grad((weight * inputs["x"]).sum(), weight)[0]

    run, _ = graphed(function, warm_up=1)
    for mode in (torch.inference_mode, torch.enable_grad):
        for _ in range(3):
            with mode():
                x = numbers(3).requires_grad_(mode is torch.enable_grad)
                assert torch.equal(run({"x": x}), x)
    assert run.replays == 4


def test_each_thread_warms_up_before_it_captures():
    run, tape = graphed(warm_up=2)
    x = numbers(3)

    def in_a_thread():
        thread = threading.Thread(target=run, args=({"x": x},))
        thread.start()
        thread.join()

    run({"x": x})
    in_a_thread()
    run({"x": x})
    in_a_thread()
    assert (tape.warmed_up, len(tape.tapes)) == (4, 0)
    for _ in range(2):
        assert torch.equal(run({"x": x}), x * 2.0)
    assert (tape.warmed_up, len(tape.tapes)) == (4, 1)


def test_weights_updated_in_place_need_no_capture_and_moved_ones_do():
    linear = nn.Linear(3, 3)
    run, tape = graphed(lambda inputs: linear(inputs["x"]), warm_up=1, fixed=linear.parameters)
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
    assert run.graphs == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda inputs: inputs["x"] * inputs["x"].sum().item(),
        lambda inputs: inputs["x"] * float(torch.equal(inputs["x"], inputs["x"])),
        lambda inputs: inputs["x"][inputs["x"] > 0],
        lambda inputs: inputs["x"].nonzero(),
        lambda inputs: inputs["x"] if inputs["x"].sum() > 0 else -inputs["x"],
        lambda inputs: inputs["x"].to("meta"),
        lambda inputs: inputs["x"] + torch.tensor([1.0, 2.0, 3.0]),
        lambda inputs: torch.repeat_interleave(inputs["x"].abs().long()),
    ],
    ids=["item", "equal", "mask", "nonzero", "if", "device", "tensor", "repeat"],
)
def test_a_function_that_waits_runs_eagerly_after_one_warning(function):
    run, tape = graphed(function, warm_up=1)
    x = numbers(3)
    run({"x": x})
    with pytest.warns(
        GraphWarning, match="a test runs without a CUDA graph: its capture failed with NotCapturable"
    ) as caught:
        run({"x": x})
    assert len(caught) == 1 and caught[0].filename == __file__
    assert run.failed.startswith("its capture failed with NotCapturable: ")
    assert not tape.tapes and run.graphs == 0


@pytest.mark.filterwarnings("error")
def test_after_a_failed_capture_results_are_right():
    weight = torch.ones(3)

    def function(inputs):
        weight.add_(inputs["x"])
        return weight * inputs["x"]

    run, tape = graphed(function, warm_up=1)
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


def test_errors_of_eager_calls_pass_through():
    def function(inputs):
        if len(inputs["x"]) == 2:
            raise KeyError("two")
        return inputs["x"] + 0.0

    run, tape = graphed(function, warm_up=1)
    with pytest.raises(KeyError, match="two"):
        run({"x": numbers(2)})
    for _ in range(2):
        run({"x": numbers(3)})
    assert len(tape.tapes) == 1


def test_eager_calls_that_raise_do_not_count():
    def function(inputs):
        if len(tape.tapes) == 0 and fail:
            raise KeyError("not now")
        return inputs["x"] + 0.0

    fail = True
    run, tape = graphed(function, warm_up=1)
    for _ in range(3):
        with pytest.raises(KeyError):
            run({"x": numbers(3)})
    fail = False
    for _ in range(2):
        run({"x": numbers(3)})
    assert len(tape.tapes) == 1 and run.failed is None


def test_an_error_of_the_function_during_capture_is_that_error():
    def function(inputs):
        if stop:
            raise KeyError("stop")
        return inputs["x"] + 0.0

    stop = False
    run, _ = graphed(function, warm_up=1)
    run({"x": numbers(3)})
    stop = True
    with warnings.catch_warnings(), pytest.raises(KeyError):
        warnings.simplefilter("error", GraphWarning)
        run({"x": numbers(3)})
    stop = False
    for _ in range(3):
        run({"x": numbers(3)})
    assert run.failed is None and run.replays == 2


def test_state_made_by_the_first_call_is_no_failure():
    state = []

    def function(inputs):
        if not state:
            state.append(torch.zeros(3))
        state[0] += inputs["x"]
        return state[0].clone()

    run, tape = graphed(function, warm_up=1, fixed=lambda: state)
    for call in range(4):
        assert torch.equal(run({"x": torch.ones(3)}), torch.full((3,), call + 1.0))
    assert (tape.warmed_up, run.replays, run.failed) == (2, 2, None)


def test_a_function_that_replaces_fixed_tensors_runs_eagerly():
    state = [torch.zeros(3)]

    def function(inputs):
        state[0] = state[0] + inputs["x"]
        return state[0]

    run, tape = graphed(function, warm_up=3, fixed=lambda: state)
    run({"x": torch.ones(3)})
    with pytest.warns(GraphWarning, match="tensors that are fixed in new places, at each call") as caught:
        run({"x": torch.ones(3)})
    assert caught[0].filename == __file__
    assert torch.equal(run({"x": torch.ones(3)}), torch.full((3,), 3.0))
    assert not tape.tapes and run.replays == 0


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

    run, _ = graphed(function, warm_up=1, fixed=lambda: [*linear.parameters(), memory])
    for _ in range(3):
        x = numbers(2, 3)
        expected = [result.clone() for result in function({"x": x})]
        kept = memory.clone()
        for got, right in zip(run({"x": x}), expected, strict=True):
            assert torch.equal(got, right)
        assert torch.equal(memory, kept)
    assert run.replays == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda inputs: inputs["x"] * inputs["x"].sum().item(),
        lambda inputs: nn.functional.one_hot(inputs["x"]),
        lambda inputs: torch.where(inputs["x"])[0],  # nonzero inside, which it does not say
    ],
    ids=["item", "one_hot", "where"],
)
def test_waits_in_inference_mode_are_refused(function):
    run, _ = graphed(function, warm_up=1)
    x = torch.arange(3)
    with torch.inference_mode():
        run({"x": x})
        with pytest.warns(GraphWarning, match="reads values from the device"):
            run({"x": x})
        assert torch.equal(run({"x": x}), function({"x": x}))


@pytest.mark.parametrize(
    "function",
    [
        lambda inputs: torch.repeat_interleave(inputs["x"], torch.full((3,), 2), output_size=6),
        lambda inputs: inputs["x"][inputs["x"].argsort()],
        lambda inputs: torch.where(inputs["x"] > 0, inputs["x"], 0.0),
        lambda inputs: inputs["x"].clone().index_put_((inputs["x"].argsort(),), inputs["x"]),
    ],
    ids=["repeat", "index", "where", "index_put"],
)
def test_what_waits_for_nothing_is_captured(function):
    run, _ = graphed(function, warm_up=1)
    for _ in range(3):
        x = numbers(3)
        assert torch.equal(run({"x": x}), function({"x": x}))
    assert run.replays == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_capture_that_cuda_ends_leaves_the_device_usable():
    """In a process of its own, which has no graphs afterwards."""
    script = """
import warnings
import torch
from ard_fast.attacks.graphs import CudaGraphs, GraphedFunction, GraphWarning

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


def test_an_interrupt_during_capture_is_no_failure_of_it():
    run, tape = graphed(warm_up=1)
    run({"x": numbers(3)})
    tape.fail = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run({"x": numbers(3)})
    tape.fail = None
    x = numbers(3)
    assert torch.equal(run({"x": x}), x * 2.0)
    assert run.failed is None and len(tape.tapes) == 1


def test_a_graph_keeps_what_it_reads():
    offset = torch.ones(3)
    run, tape = graphed(lambda inputs: inputs["x"] + offset, warm_up=1)
    for _ in range(2):
        run({"x": numbers(3)})
    (read,) = tape.tapes[0].reads_beyond(run._kinds[next(iter(run._kinds))].inputs.values())
    assert read.data_ptr() == offset.data_ptr()
    offset = torch.zeros(3)
    x = numbers(3)
    assert torch.equal(run({"x": x}), x + 1.0)


def test_one_within_another_is_part_of_it():
    inner, tape = graphed(warm_up=1)
    outer = GraphedFunction(lambda inputs: inner(inputs) + 1.0, name="outer", backend=tape, warm_up=1)
    for _ in range(4):
        x = numbers(3)
        assert torch.equal(outer({"x": x}), x * 2.0 + 1.0)
    assert len(tape.tapes) == 1


def test_a_training_step_is_the_same_by_replay():
    def train(graph):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step(inputs):
            optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(nn.functional.dropout(model(inputs["x"])), inputs["y"])
            loss.backward()
            optimizer.step()
            return loss.detach()

        run = step
        if graph:
            run, tape = graphed(step, warm_up=2, fixed=lambda: [*model.parameters(), *model.buffers()])
        losses = [run({"x": torch.rand(8, 3, 8, 8), "y": torch.randint(5, (8,))}).clone() for _ in range(6)]
        if graph:
            assert tape.replays == 4 and len(tape.tapes) == 1
        return [*losses, *model.state_dict().values()]

    for eager, replayed in zip(train(False), train(True), strict=True):
        assert torch.equal(eager, replayed)


@pytest.mark.parametrize(
    ("inputs", "got"),
    [({}, r"\[\]"), ({"x": numbers(1), "y": numbers(1).to("meta")}, r"\['cpu', 'meta'\]")],
    ids=["none", "devices"],
)
def test_inputs_are_of_one_device(inputs, got):
    run, _ = graphed()
    with pytest.raises(ValueError, match=f"inputs must be at least one tensor, all of one device, got {got}"):
        run(inputs)


@pytest.mark.parametrize("name", ["warm_up", "most"])
def test_numbers_are_checked(name):
    with pytest.raises(ValueError, match=f"{name} must be an int of at least 1, got 0"):
        GraphedFunction(doubled, name="a test", **{name: 0})


def test_no_graph_on_the_cpu():
    run = GraphedFunction(doubled, name="a test", warm_up=1)
    for _ in range(3):
        x = numbers(3)
        assert torch.equal(run({"x": x}), x * 2.0)
    assert run.graphs == 0


def test_what_a_network_holds():
    shared = nn.Linear(2, 2, bias=False)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), shared, nn.Sequential(shared, nn.Dropout()))
    network[1].eval()
    expected = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
    found = network_tensors(network)
    assert len(found) == len(expected) and {id(tensor) for tensor in found} == expected
    assert sorted(network_modes(network)) == sorted(module.training for module in network.modules())
