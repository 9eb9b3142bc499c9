"""What CUDA expects of an operator: no wait for the GPU, streams, devices, CUDA graphs, and the results of the CPU."""

import math

import pytest
import torch
from op_cases import (
    AROUND_48_KIB,
    CALLS,
    CASES,
    apgd_run,
    assert_same_bits,
    call,
    mapped,
    mifgsm_arguments,
    prepared,
    step_arguments,
    tensors,
)

from ard_fast import functional as F
from ard_fast.functional import _ops

pytestmark = pytest.mark.gpu
every_case = pytest.mark.parametrize("case", CASES)


def assert_close_on_cpu(got, expected):
    """Up to the order of sums."""
    for mine, theirs in zip(got, expected, strict=True):
        small = theirs.dtype in (torch.float16, torch.bfloat16)
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-2 if small else 1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.sanitizer
@every_case
def test_every_operator_gives_what_the_cpu_gives(case):
    op, arguments = prepared(case, "cpu")
    given = mapped(arguments, torch.Tensor.cuda)
    assert_close_on_cpu([*tensors(op(*given)), *tensors(given)], [*tensors(op(*arguments)), *tensors(arguments)])


@pytest.mark.sanitizer
# Digits: a warp a sample; CIFAR in a small batch: clusters; ImageNet: eight blocks a sample; no vectors; a large batch.
@pytest.mark.parametrize(
    "shape", [(5, 1, 8, 8), (3, 3, 32, 32), (2, 3, 224, 224), (2, 3, 17, 13), (700, 1, 8, 8)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cpu_and_cuda_agree_over_whole_samples(shape, dtype):
    for op, make in ((_ops.pgd_l2_step_, step_arguments), (_ops.mifgsm_step_, mifgsm_arguments)):
        arguments = make("cpu", grad_dtype=dtype, shape=shape)
        on_cuda = [a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments]
        op(*on_cuda)
        op(*arguments)
        # The sums have another order; a float that is rounded from them may differ in its last digit.
        torch.testing.assert_close(on_cuda[0].cpu(), arguments[0], rtol=0, atol=2e-7)
        torch.testing.assert_close(on_cuda[1].cpu(), arguments[1])


@pytest.mark.sanitizer
@pytest.mark.parametrize(("loss", "rows", "dtype", "classes"), AROUND_48_KIB)
def test_rows_of_about_48_kib_give_what_the_cpu_gives(loss, rows, dtype, classes):
    torch.manual_seed(0)
    arguments = [*torch.randn(2, 2, classes).to(dtype).unbind(), torch.tensor([0, classes - 1])]
    assert_close_on_cpu(loss(*mapped(arguments, torch.Tensor.cuda)), loss(*arguments))


@pytest.mark.parametrize("name", CALLS)
def test_nothing_waits_for_the_gpu(name):
    function, positional, keywords = CALLS[name]
    positional, values = mapped(positional, torch.Tensor.cuda), mapped(list(keywords.values()), torch.Tensor.cuda)
    torch.cuda.set_sync_debug_mode("error")
    try:
        function(*positional, **dict(zip(keywords, values, strict=True)))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured_graph(work):
    """The CUDA graph of `work`, called once before on a stream of its own, and what it returns there."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    return graph, captured


@every_case
def test_every_operator_in_a_cuda_graph(case):
    """Captured on other values, which it must read at each replay."""
    expected = call(case, "cuda")
    op, arguments = prepared(case, "cuda")
    values = [t.clone() for t in tensors(arguments)]
    for tensor in tensors(arguments):
        tensor.zero_()
    graph, captured = captured_graph(lambda: op(*arguments))
    for _ in range(2):
        for tensor, value in zip(tensors(arguments), values, strict=True):
            tensor.copy_(value)
        graph.replay()
        assert_same_bits([*tensors(captured), *tensors(arguments)], expected)


def test_cuda_graph_of_a_whole_attack_and_loss():
    """Captured once, replayed on other data: the same as eager, with fresh random starts."""
    torch.manual_seed(0)
    weight = torch.randn(192, 10, device="cuda")
    x, teacher = torch.rand(4, 3, 8, 8, device="cuda"), torch.randn(4, 10, device="cuda")
    seed = torch.tensor([1], device="cuda")

    def work():
        x_adv = F.random_start(x, eps=0.1, seed=seed)
        for _ in range(3):
            probe = x_adv.detach().requires_grad_()
            loss = F.kl_distill_loss(probe.flatten(1) @ weight, teacher, reduction="sum")
            F.pgd_linf_step_(x_adv, torch.autograd.grad(loss, probe)[0], x, step_size=0.02, eps=0.1)
        return x_adv, F.ard_loss(x_adv.flatten(1) @ weight, teacher_logits=teacher)

    graph, captured = captured_graph(work)
    for value in (1, 2, 3):
        seed.fill_(value)
        x.copy_(torch.rand_like(x))
        graph.replay()
        eager = work()
        assert captured[0].equal(eager[0])
        torch.testing.assert_close(captured[1], eager[1])


def test_cuda_graph_of_restarts_over_whole_samples():
    """The steps that launch clusters are captured too, and the selection takes its losses from the replay."""
    device = torch.device("cuda")
    x, seed = torch.rand(2, 3, 64, 64, device=device), torch.tensor([1], device=device)
    grad = torch.randn_like(x)

    def work():
        best, best_loss = x.clone(), torch.full((2,), -math.inf, device=device)
        for init in ("uniform", "surface"):
            x_adv, momentum = F.random_start(x, eps=0.5, norm="l2", init=init, seed=seed), torch.zeros_like(x)
            F.pgd_l2_step_(x_adv, grad, x, step_size=0.2, eps=0.5)
            F.mifgsm_step_(x_adv, momentum, grad, x, step_size=0.01, eps=0.03)
            best_loss = F.select_best_(best, best_loss, x_adv, (x_adv * grad).flatten(1).sum(1))
        return best, best_loss

    graph, captured = captured_graph(work)
    for value in (1, 2, 3):
        seed.fill_(value)
        grad.copy_(torch.randn_like(x))
        graph.replay()
        for mine, eager in zip(captured, work(), strict=True):
            torch.testing.assert_close(mine, eager)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_cuda_graph_of_an_apgd_run(norm):
    device = torch.device("cuda")
    x = torch.rand(4, 3, 8, 8, device=device)
    start = x.clone()
    graph, captured = captured_graph(lambda: apgd_run(x, start, norm, 10))
    for _ in range(3):
        x.copy_(torch.rand_like(x))
        start.copy_(F.random_start(x, eps=0.1 if norm == "linf" else 0.01))
        graph.replay()
        for a, b in zip(captured, apgd_run(x, start, norm, 10), strict=True):
            assert a.equal(b)


@every_case
def test_every_operator_runs_on_the_current_stream(case):
    """Its arguments get their values on that stream, late: a kernel on another stream would see zeros."""
    expected = call(case, "cuda")
    op, arguments = prepared(case, "cuda")
    values = [t.clone() for t in tensors(arguments)]
    for tensor in tensors(arguments):
        tensor.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        for tensor, value in zip(tensors(arguments), values, strict=True):
            tensor.copy_(value)
        results = [*tensors(op(*arguments)), *tensors(arguments)]
    stream.synchronize()
    assert_same_bits(results, expected)


@every_case
def test_every_operator_on_several_streams_at_once(case):
    """What a launch keeps between calls (plans, attributes of kernels) is of no stream."""
    expected = call(case, "cuda")
    given = [prepared(case, "cuda") for _ in range(4)]
    torch.cuda.synchronize()
    streams, results = [torch.cuda.Stream() for _ in given], []
    for stream, (op, arguments) in zip(streams, given, strict=True):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(2_000_000)
            results.append([*tensors(op(*arguments)), *tensors(arguments)])
    torch.cuda.synchronize()
    for got in results:
        assert_same_bits(got, expected)


@every_case
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_every_operator_on_a_device_that_is_not_the_current_one(case):
    expected = call(case, "cuda:0")
    results = call(case, "cuda:1")
    assert {str(t.device) for t in results} == {"cuda:1"} and torch.cuda.current_device() == 0
    assert_same_bits([t.to("cuda:0") for t in results], expected)
    with torch.cuda.device(1):
        assert_same_bits(call(case, "cuda:0"), expected)
