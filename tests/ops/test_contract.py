"""What torch expects of an operator: opcheck, meta and fake tensors, modes such as autocast, threads."""

import inspect
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from op_cases import CALLS, CASES, WRITTEN, assert_same_bits, call, prepared, tensors
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map_only

from ard_fast import functional as F

EMULATED = False  # how a call reaches a kernel; what the kernels then do is in test_kernels.py
every_case = pytest.mark.parametrize("case", CASES)


def described(values):
    return [(t.shape, t.dtype, t.stride() if t.numel() else None) for t in values]


@every_case
def test_opcheck(case, device):
    """Schema, fake tensors, no autograd behind the operator's back; once an operator, tracing with dynamic shapes."""
    op, arguments = prepared(case, device)
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if next(name for name in CASES if CASES[name][0] is op) == case:
        checks.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(op, arguments, test_utils=checks)


def test_every_operator_has_a_case():
    names = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("ard_fast::")}
    assert names - {"ard_fast::simd_level"} == {CASES[case][0]._schema.name for case in CASES}


@every_case
def test_meta_and_fake_tensors(case):
    """Shapes, dtypes and strides without data, also of a GPU where there is none."""
    real = call(case, "cpu")
    meta = call(case, "meta")
    assert described(meta) == described(real) and {t.device.type for t in meta} == {"meta"}
    mode = FakeTensorMode()
    op, arguments = prepared(case, "meta")
    arguments = tree_map_only(torch.Tensor, lambda t: FakeTensor(mode, t, torch.device("cuda:1")), arguments)
    with mode:
        fake = [*tensors(op(*arguments)), *tensors(arguments)]
    assert described(fake) == described(real) and {str(t.device) for t in fake} == {"cuda:1"}


@every_case
def test_deterministic_mode(case, device):
    """Not refused, no other bits, and nothing of what a result is made from is left as it was allocated."""
    expected = call(case, device)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory  # new memory is full of NaN and largest integers
        assert_same_bits(call(case, device), expected)
    finally:
        torch.use_deterministic_algorithms(False)


@every_case
def test_autocast_and_inference_mode_change_nothing(case, device):
    expected = call(case, device)
    with torch.autocast(device.type, torch.bfloat16):
        assert_same_bits(call(case, device), expected)
    with torch.inference_mode():
        assert_same_bits(call(case, device), expected)


@pytest.mark.parametrize("name", WRITTEN)
def test_writes_are_counted(name):
    """Autograd must notice that a tensor it saved was written over: a silently wrong gradient otherwise."""
    function, positional, keywords = CALLS[name]
    tensors = [t.clone() for t in positional]
    names = list(inspect.signature(function).parameters)
    for written in WRITTEN[name]:
        saved = tensors[names.index(written)]
        product = torch.rand(saved.shape, requires_grad=True) * saved
        function(*tensors, **keywords)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.sum().backward()


def test_writes_of_auto_pgd_are_counted():
    x = torch.rand(2, 5)
    run = F.APGDRun(x, x, eps=0.1, steps=2)
    answers = torch.zeros(2), torch.ones(2, dtype=torch.bool)
    run.step(torch.ones_like(x), *answers)
    products = [torch.rand(2, 5, requires_grad=True) * t for t in (run.x_adv, run.x_best, run.x_fooled)]
    run.step(torch.ones_like(x), *answers)
    for product in products:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.sum().backward()


def test_threads_at_once(device):
    """Several Python threads in the operators, which run without the interpreter's lock: the results of one thread."""

    def all_cases(_):
        # The random generator is shared by the threads, so the arguments are made beforehand.
        return [(*tensors(op(*arguments)), *tensors(arguments)) for op, arguments in given.pop()]

    given = [[prepared(case, device) for case in CASES] for _ in range(9)]
    expected = all_cases(None)
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(all_cases, range(8)):
            for got, wanted in zip(results, expected, strict=True):
                assert_same_bits(got, wanted)
