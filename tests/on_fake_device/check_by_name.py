"""Operators on the fake devices: what starts kernels by name, from the call to the kernel. See fake_device.py."""

import itertools
import sys
import threading

import fake_device
import pytest
import torch
from fake_device import on_device, on_host
from op_cases import AROUND_48_KIB, CASES, apgd_arguments, mapped, mifgsm_arguments, step_arguments

import ard_fast
from ard_fast import _ops
from ard_fast._load import load

# Sums over a row are added up in another order than on the CPU.
LOSSES = {"kd_loss", "pair_loss", "attack_gradient"}
BY_NAME = sys.modules["ard_fast._C_rtc"]


@pytest.fixture(autouse=True)
def clean():
    """No launch from before, the default stream, and no kernel compiled yet."""
    for device, (header, name) in itertools.product(range(2), BY_NAME.kernels()):
        BY_NAME.store(device, header, name, 0)
    for device in range(2):
        fake_device.DRIVER.set_stream(device, 0)
    fake_device.DRIVER.forget()
    fake_device.DRIVER.take_log()


def tensors(values):
    """All tensors in arguments or results, in order."""
    if isinstance(values, torch.Tensor):
        return [values]
    return [t for v in values for t in tensors(v)] if isinstance(values, list | tuple) else []


def test_every_kernel_of_the_module_is_known_to_the_emulator():
    assert sorted(name for _, name in BY_NAME.kernels()) == fake_device.DRIVER.kernels()


def test_loaded_as_the_nvrtc_backend():
    assert load().cuda_backend == "nvrtc"
    assert load().cuda_reason == "compiled by NVRTC at first use"


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_operator_gives_what_the_cpu_gives(case, index):
    torch.manual_seed(0)
    op, arguments = CASES[case](torch.device("cpu"))
    copied = mapped(arguments, torch.Tensor.clone)
    given = mapped(copied, lambda t: on_device(t, index))
    expected, got = op(*arguments), op(*given)
    launches = fake_device.DRIVER.take_log()
    assert launches and {launch.device for launch in launches} == {index}
    results = [*tensors(got), *tensors(given)]
    assert all(t.device == torch.device("cuda", index) for t in tensors(got))
    for mine, theirs in zip(results, [*tensors(expected), *tensors(arguments)], strict=True):
        assert mine.stride() == theirs.stride()
        if op._schema.name.removeprefix("ard_fast::") in LOSSES:
            torch.testing.assert_close(on_host(mine), theirs)
        else:
            assert on_host(mine).equal(theirs)


def step(index=0, shape=(2, 3, 4, 5)):
    """A PGD step on a device; the result and what the CPU gives."""
    torch.manual_seed(0)
    x, grad = torch.rand(shape), torch.randn(shape)
    x_adv, other = x.clone(), x.clone()
    numbers = None, None, 0.1, 0.2, False, 0.0, 1.0
    _ops.pgd_linf_step_(on_device(x_adv, index), on_device(grad, index), on_device(x, index), *numbers)
    _ops.pgd_linf_step_(other, grad, x, *numbers)
    return x_adv, other


def test_launch_is_on_torchs_current_stream_of_the_tensors_device():
    fake_device.DRIVER.set_stream(0, 111)
    fake_device.DRIVER.set_stream(1, 222)
    for index, stream in ((1, 222), (0, 111)):
        mine, theirs = step(index)
        assert mine.equal(theirs)
        (launch,) = fake_device.DRIVER.take_log()
        assert (launch.device, launch.stream) == (index, stream)
        assert launch.kernel == "ard::cuda::pgd_linf_step_kernel<float, 4>"
        assert (launch.blocks, launch.threads, launch.shared, launch.cluster) == (1, 256, 0, 1)


def test_capture_refuses_what_is_not_compiled_and_takes_what_is():
    fake_device.DRIVER.set_stream(0, 7)
    fake_device.DRIVER.set_capturing(7, True)
    try:
        with pytest.raises(RuntimeError, match=r"pgd_linf_step_kernel<float, 4> for cuda:0 is not compiled.*compile_k"):
            step()
        assert fake_device.DRIVER.take_log() == []
        assert ard_fast.compile_kernels("cuda:0") == len(BY_NAME.kernels())
        mine, theirs = step()
        assert mine.equal(theirs)
    finally:
        fake_device.DRIVER.set_capturing(7, False)


def test_compile_kernels_is_for_one_device():
    ard_fast.compile_kernels(1)
    fake_device.DRIVER.set_capturing(0, True)
    try:
        step(1)
        with pytest.raises(RuntimeError, match="for cuda:0 is not compiled"):
            step(0)
    finally:
        fake_device.DRIVER.set_capturing(0, False)


def test_failed_launch_is_an_error_with_the_drivers_words():
    fake_device.DRIVER.fail_next_launch(400)
    with pytest.raises(RuntimeError, match=r"pgd_linf_step_kernel<float, 4>.*CUDA_ERROR_INVALID_HANDLE"):
        step()
    mine, theirs = step()
    assert mine.equal(theirs)


def test_failed_compilation_is_an_error_with_the_compilers_words(monkeypatch):
    def refuse(*_):
        raise ValueError("no such architecture")

    from ard_fast.nvrtc import kernels

    monkeypatch.setattr(kernels.shared(), "handle", refuse)
    with pytest.raises(RuntimeError, match=r"could not be compiled for cuda:0: ValueError: no such architecture"):
        step()
    monkeypatch.undo()
    mine, theirs = step()
    assert mine.equal(theirs)


def test_threads_that_start_one_kernel_at_once():
    """Each of them without a context of its own at first; one compilation serves them all."""
    step()
    BY_NAME.store(0, "cuda/pgd_kernels.cuh", "ard::cuda::pgd_linf_step_kernel<float, 4>", 0)
    together, results, faults = threading.Barrier(4), [], []
    torch.manual_seed(0)
    problems = [[torch.rand(2, 3, 4, 5), torch.randn(2, 3, 4, 5)] for _ in range(4)]

    def work(problem):
        try:
            x, grad = problem
            mine, theirs = x.clone(), x.clone()
            given = [on_device(t) for t in (mine, grad, x)]
            together.wait()
            for _ in range(5):
                _ops.pgd_linf_step_(*given, None, None, 0.1, 0.2, False, 0.0, 1.0)
                _ops.pgd_linf_step_(theirs, grad, x, None, None, 0.1, 0.2, False, 0.0, 1.0)
            results.append((mine, theirs))
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(problem,)) for problem in problems]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(results) == 4 and all(mine.equal(theirs) for mine, theirs in results)


@pytest.mark.parametrize(("classes", "shared"), [(3000, [24000, 24000]), (20000, [160000, 0]), (30001, [0, 0])])
def test_shared_memory_beyond_48_kib_is_asked_for(classes, shared):
    """A block a row: both rows in shared memory where the device has so much, else read again for every pass."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, classes).unbind()
    numbers = None, None, None, None, None, 4.0, 4.0, 4.0, 1.0, 0.0, 1.0, 0.0, False, True, False
    expected = _ops.kd_loss(student, teacher, *numbers)
    for index in range(2):
        got = _ops.kd_loss(on_device(student, index), on_device(teacher, index), *numbers)
        for mine, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(on_host(mine), theirs, rtol=1e-4, atol=1e-6)
    assert [launch.shared for launch in fake_device.DRIVER.take_log()] == shared


@pytest.mark.parametrize(("loss", "rows", "dtype", "classes"), AROUND_48_KIB)
def test_shared_memory_around_48_kib_together_with_the_static(loss, rows, dtype, classes):
    torch.manual_seed(0)
    arguments = [*torch.randn(2, 2, classes).to(dtype).unbind(), torch.tensor([0, classes - 1])]
    got = loss(*map(on_device, arguments))
    for mine, theirs in zip(got, loss(*arguments), strict=True):
        torch.testing.assert_close(on_host(mine), theirs, rtol=1e-2 if dtype == torch.float16 else 1e-4, atol=1e-5)
    launch = fake_device.DRIVER.take_log()[0]
    assert "_block_kernel" in launch.kernel
    assert launch.shared == rows * -(-classes * dtype.itemsize // 16) * 16


def l2_step(shape):
    return _ops.pgd_l2_step_, step_arguments(torch.device("cpu"), shape=shape)


def mifgsm_step(shape):
    return _ops.mifgsm_step_, mifgsm_arguments(torch.device("cpu"), shape=shape)


def apgd_l2_step(shape):
    return _ops.apgd_step_, apgd_arguments(torch.device("cpu"), l2=True, shape=shape)


# Images so large that a block each would leave most of the big device idle. Code for an older architecture than the
# device's has no clusters: eight blocks a sample would each take themselves for the only one.
@pytest.mark.parametrize(("code", "clusters"), [(90, True), (100, True), (80, False), (89, False)])
@pytest.mark.parametrize("side", [64, 96])
@pytest.mark.parametrize("step", [l2_step, mifgsm_step, apgd_l2_step])
def test_clusters_are_used_where_device_and_code_have_them(step, side, code, clusters):
    torch.manual_seed(0)
    op, arguments = step((3, 3, side, side))
    for index in range(2):
        fake_device.DRIVER.set_code_arch(index, code)
        mine, theirs = (mapped(arguments, torch.Tensor.clone) for _ in range(2))
        op(*mapped(mine, lambda t, index=index: on_device(t, index)))
        op(*theirs)
        torch.testing.assert_close(tensors(mine), tensors(theirs), rtol=1e-5, atol=1e-6)
        (launch,) = fake_device.DRIVER.take_log()
        assert (launch.cluster > 1) == (clusters and index == 0)


def test_empty_tensor_starts_nothing():
    mine, theirs = step(shape=(0, 3, 4, 5))
    assert mine.shape == theirs.shape
    assert fake_device.DRIVER.take_log() == []


def test_tensors_of_two_devices_are_refused():
    x = torch.rand(2, 3)
    with pytest.raises(RuntimeError, match="device"):
        _ops.pgd_linf_step_(*(on_device(x.clone(), i) for i in (0, 1, 0)), None, None, 0.1, 0.2, False, 0.0, 1.0)
    assert fake_device.DRIVER.take_log() == []
