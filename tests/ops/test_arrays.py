"""Arrays of other libraries in the functional API: taken over their own memory, with the results of tensors."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from op_cases import CALLS, WRITTEN, logits

from ard_fast import functional as F


class DeviceArray:
    """What is known of an array of a GPU library: DLPack, and the array interface of CUDA. Here over a CPU tensor."""

    def __init__(self, tensor, device=(1, 0), read_only=False):
        self.tensor, self.device, self.streams = tensor, device, []
        self.__cuda_array_interface__ = {"data": (tensor.data_ptr(), read_only)}

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None):  # without the later arguments of the protocol, as older libraries have it
        self.streams.append(stream)
        return self.tensor.__dlpack__()


def as_arrays(values, kind):
    make = {"numpy": torch.Tensor.numpy, "device": DeviceArray}[kind]
    return [make(value.clone()) if isinstance(value, torch.Tensor) else value for value in values]


def tensors_of(result):
    return [t for t in ([result] if isinstance(result, torch.Tensor) else result) if t is not None]


@pytest.mark.parametrize("kind", ["numpy", "device"])
@pytest.mark.parametrize("name", CALLS)
def test_arrays_give_what_tensors_give(name, kind):
    function, positional, keywords = CALLS[name]
    mine = [t.clone() for t in positional]
    expected = tensors_of(function(*mine, **keywords))
    arrays = as_arrays(positional, kind)
    keys = dict(zip(keywords, as_arrays(keywords.values(), kind), strict=True))
    for array in keys.values():
        if isinstance(array, np.ndarray):
            array.flags.writeable = False  # what is only read may be
    got = tensors_of(function(*arrays, **keys))
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert type(a) is torch.Tensor and torch.equal(a, b)
    # Written through to the array's own memory; nothing else is touched.
    for array, tensor in zip(arrays, mine, strict=True):
        held = array.tensor if kind == "device" else torch.from_numpy(array)
        assert torch.equal(held, tensor)


def test_calls_are_of_every_public_function():
    functions = set(F.__all__) - {"AttackGradient", "checkpoint_windows"}
    assert functions == {name.split()[0] for name in CALLS}


@pytest.mark.parametrize("kind", ["numpy", "device"])
@pytest.mark.parametrize(("name", "written"), [(name, w) for name, names in WRITTEN.items() for w in names])
def test_read_only_arrays_are_not_written_to(name, written, kind):
    function, positional, keywords = CALLS[name]
    arrays = as_arrays(positional, "numpy")
    index = WRITTEN[name].index(written)
    if kind == "numpy":
        arrays[index].flags.writeable = False
    else:
        arrays[index] = DeviceArray(positional[index].clone(), read_only=True)
    with pytest.raises(ValueError, match=rf"^{written} is written in place and must be writable, got a read-only"):
        function(*arrays, **keywords)


def test_arrays_of_a_gpu_are_handed_over_on_torchs_current_stream(monkeypatch):
    """Their library lets this stream wait for the work that it has queued on the array (1: the default stream)."""
    asked = []

    def current_stream(device):
        asked.append(device)
        return SimpleNamespace(cuda_stream=0 if len(asked) == 1 else 77)

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    arrays = [DeviceArray(t, device=(2, 3)) for t in (logits(), logits(1))]
    assert F.kl_distill_loss(*arrays).equal(F.kl_distill_loss(logits(), logits(1)))
    assert [str(device) for device in asked] == ["cuda:3"] * 2
    assert [array.streams[-1] for array in arrays] == [1, 77]


REFUSED = {
    "negative strides": (np.zeros((3, 6), np.float32)[::-1], "negative strides"),
    "byte order": (np.zeros((3, 6), ">f4"), "byte order"),
    "objects": (np.array([[None] * 6] * 3), "dtype object"),
    "alignment": (np.zeros(73, np.uint8)[1:].view(np.float32).reshape(3, 6), "not aligned"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arrays_that_torch_cannot_hold_are_refused_by_name(case):
    array, why = REFUSED[case]
    with pytest.raises(RuntimeError, match=rf"^teacher_logits must be an array that DLPack.*got a numpy array.*{why}"):
        F.kl_distill_loss(logits(), array)


@pytest.mark.parametrize("value", [[[0.0] * 6] * 3, None, 1.5, "logits", object()], ids=lambda v: type(v).__name__)
def test_what_is_no_array_is_refused_by_name(value):
    for name, (function, positional, keywords) in CALLS.items():
        if name == "APGDRun":
            function, positional, keywords = F.APGDRun, positional[:2], {"eps": 0.1}
        parameters = inspect.signature(function).parameters
        given = dict(zip(parameters, positional, strict=False)) | keywords
        by_keyword = [key for key in keywords if key.endswith("_logits") or (key == "labels" and "_loss" in name)]
        for key in [*list(given)[: len(positional)], *by_keyword]:
            if value is None and parameters[key].annotation.endswith("None"):
                continue
            expected = rf"^{key} must be a torch tensor or an array .*, got {type(value).__name__}$"
            with pytest.raises(TypeError, match=expected):
                function(**given | {key: value})


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALLS)
def test_cupy_arrays(name):
    cupy = pytest.importorskip("cupy")
    function, positional, keywords = CALLS[name]

    if name == "APGDRun":
        pytest.skip("its samples are taken with an index of the CPU here")

    def on_gpu(make):
        made = [make(v) if isinstance(v, torch.Tensor) else v for v in (*positional, *keywords.values())]
        return made[: len(positional)], dict(zip(keywords, made[len(positional) :], strict=True))

    mine, keys = on_gpu(torch.Tensor.cuda)
    arrays, array_keys = on_gpu(lambda t: cupy.asarray(t.numpy()))
    expected, got = tensors_of(function(*mine, **keys)), tensors_of(function(*arrays, **array_keys))
    for a, b in zip(got, expected, strict=True):
        assert a.is_cuda and torch.equal(a, b)
    for array, tensor in zip(arrays, mine, strict=True):
        assert torch.equal(torch.from_dlpack(array), tensor)
