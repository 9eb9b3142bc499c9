"""What torch expects of an operator: opcheck, meta and fake tensors, modes such as autocast, threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from op_cases import CASES, assert_same_bits, call, prepared, tensors
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map_only

from ard_fast import functional as F

every_case = pytest.mark.parametrize("case", CASES)


def described(values):
    return [(t.shape, t.dtype, t.stride() if t.numel() else None) for t in values]


@every_case
def test_opcheck(case, device):
    """Schema, fake tensors, no autograd behind the operator's back, and tracing with static and dynamic shapes."""
    op, arguments = prepared(case, device)
    torch.library.opcheck(op, arguments)


def test_every_operator_has_a_case():
    names = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("ard_fast::")}
    assert names - {"ard_fast::simd_level"} == {CASES[case]("cpu")[0]._schema.name for case in CASES}


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


def test_under_autocast(device):
    """Logits come out of autocast in bfloat16; the loss takes them as they are and is float32."""
    layer = torch.nn.Linear(8, 5, device=device)
    x, teacher = torch.randn(4, 8, device=device), torch.randn(4, 5, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        logits = layer(x)
        loss = F.kl_distill_loss(logits, teacher)
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    loss.backward()
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.abs().max() > 0
