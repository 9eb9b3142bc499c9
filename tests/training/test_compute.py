"""How a run computes: precision, layout, folding, compiling, threads; each seen where it takes effect."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from ard_fast._devices import (
    arithmetic,
    device_note,
    find_device,
    full_precision,
    resolve_precision,
    set_threads,
    tf32,
    training_arithmetic,
)
from ard_fast.evaluation.settings import resolve_settings
from ard_fast.functional import _load
from ard_fast.training.compute import ComputeConfig, resolve_compute
from ard_fast.training.config import read_yaml, resolve, to_yaml
from ard_fast.training.run_folder import RunFolder

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


# ---- settings -----------------------------------------------------------------------------------------------------


def test_old_configurations_hold_truth_where_there_is_a_switch_now(tmp_path):
    (tmp_path / "config.yaml").write_text("channels_last: true\n")
    assert read_yaml(tmp_path / "config.yaml") == {"channels_last": "true"}


def test_what_auto_comes_to(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda _: warnings.catch_warnings())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    config = resolve({"fold": "auto"})
    assert resolve_compute(config, CUDA) == ComputeConfig(
        CUDA, "bf16", "bf16", channels_last=True, fold=True, compile=False
    )
    on_cpu = ComputeConfig(CPU, "fp32", "fp32", channels_last=True, fold=True, compile=False)
    assert resolve_compute(config, CPU) == on_cpu
    plain = resolve({"parity": True, "fold": "auto"})
    assert resolve_compute(plain, CUDA) == ComputeConfig(
        CUDA, "fp32", "fp32", channels_last=False, fold=False, compile=False
    )
    asked = resolve({"parity": True, "precision": "bf16", "fold": "true", "channels_last": "true"})
    assert resolve_compute(asked, CPU) == ComputeConfig(
        CPU, "bf16", "bf16", channels_last=True, fold=True, compile=False
    )
    assert resolve_compute(resolve({"teacher_precision": "bf16"}), CPU).teacher_precision == "bf16"
    tf32_run = resolve_compute(resolve({"device": "cuda", "precision": "tf32"}), CUDA)
    assert (tf32_run.precision, tf32_run.teacher_precision) == ("tf32", "fp32")
    assert resolve_precision("tf32", CUDA) == "tf32"
    with pytest.raises(ValueError, match="precision: tf32 is an arithmetic of CUDA devices, got device cpu"):
        resolve({"precision": "tf32"})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert resolve_precision("auto", CUDA) == "fp32"


# A GPU that torch sees, our kernels loaded, the data set: what the default comes to, and what is said of it.
@pytest.mark.parametrize(
    ("seen", "kernels", "dataset", "device", "note"),
    [
        (True, True, "mnist", "cuda", ""),
        (True, False, "mnist", "cpu", " (torch sees a GPU, but the CUDA kernels are not loaded: no nvcc)"),
        (False, True, "mnist", "cpu", ""),
        (True, True, "digits", "cpu", ""),
    ],
)
def test_the_device_is_chosen_once_and_written_down(monkeypatch, tmp_path, seen, kernels, dataset, device, note):
    extension = SimpleNamespace(has_cuda_kernels=kernels, cuda_reason="no nvcc")
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: seen)
        patch.setattr(_load, "load", lambda: extension)
        flags = {"method": "at", "dataset": dataset, "data_dir": None if dataset == "digits" else "x"}
        config = resolve(flags)
        assert (config.device, device_note(config.device)) == (device, note)
        assert resolve({**flags, "device": "cpu"}).device == "cpu"
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert resolve({}, file=read_yaml(tmp_path / "c.yaml")) == config  # on any machine


def test_a_run_trained_on_a_gpu_is_evaluated_on_a_machine_without(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    RunFolder(tmp_path / "run").start(resolve({"method": "at", "device": "cuda"}))
    settings = resolve_settings({"run": str(tmp_path / "run")})
    assert settings.device == "cpu" and "the run was trained on cuda" in settings.device_note
    with pytest.raises(ValueError, match="cuda was asked for, and torch sees no CUDA device"):
        find_device(resolve_settings({"run": str(tmp_path / "run"), "device": "cuda"}).device)


# ---- switches of torch --------------------------------------------------------------------------------------------


def flags():
    backends = torch.backends
    operations = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
    return [operation.fp32_precision for operation in operations]


def older():
    return torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_tf32_is_put_back(precision):
    initial, before = torch.get_float32_matmul_precision(), flags()
    try:
        torch.set_float32_matmul_precision(precision)
        expected = flags(), older()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with tf32(True):
                assert arithmetic("fp32", CUDA) == "tf32"
                assert (arithmetic("bf16", CUDA), arithmetic("fp32", CPU)) == ("bf16", "fp32")
                assert set(flags()) == {"tf32"}
                assert older() == ("high", True, True)
                with full_precision():
                    assert set(flags()) == {"ieee"}
                    assert arithmetic("fp32", CUDA) == "fp32"
                    assert older() == ("highest", False, False)
                assert set(flags()) == {"tf32"}
        assert (flags(), older()) == expected
    finally:
        torch.set_float32_matmul_precision(initial)
        torch.backends.mkldnn.matmul.fp32_precision = before[3]
        torch.backends.cuda.matmul.fp32_precision = before[0]


def test_switches_of_a_run_are_put_back():
    before = torch.backends.cudnn.benchmark
    with pytest.raises(RuntimeError, match="in between"), training_arithmetic("tf32", CUDA):
        assert torch.backends.cudnn.benchmark
        assert set(flags()) == {"tf32"}
        raise RuntimeError("in between")
    assert torch.backends.cudnn.benchmark == before
    with training_arithmetic("bf16", CPU):
        assert torch.backends.cudnn.benchmark == before
        assert set(flags()) == {"ieee"}


# ---- threads ------------------------------------------------------------------------------------------------------


def test_threads(monkeypatch):
    import joblib

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(joblib, "cpu_count", lambda only_physical_cores: 3 if only_physical_cores else 6)
    set_threads(2)
    assert torch.get_num_threads() == 2
    set_threads(0)
    assert torch.get_num_threads() == 3
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    set_threads(0)
    assert torch.get_num_threads() == 1
