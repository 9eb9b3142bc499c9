"""Which CUDA kernels serve: the modules that are there, and ARD_FAST_CUDA_KERNELS."""

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from ard_fast import _cuda_part
from ard_fast.nvrtc import toolchain

NO_LIBRARY = b"not a library"


@pytest.fixture(autouse=True)
def cuda_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that says it is built for CUDA, and no choice made."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv(_cuda_part.VARIABLE, raising=False)


class ByName:
    """`_C_rtc`, as far as loading it goes."""

    resolver = None

    def set_resolver(self, resolver: object) -> None:
        self.resolver = resolver


@pytest.fixture
def loadable(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Extension modules that can be imported whatever their files hold, by the file's name."""
    modules: dict[str, object] = {}

    def import_file(name: str, path: Path) -> object:
        if path.name not in modules:
            raise ImportError(f"{path.name} is broken")
        return modules[path.name]

    monkeypatch.setattr(_cuda_part, "import_file", import_file)
    monkeypatch.setattr(toolchain, "installed", lambda: True)
    return modules


def part(folder: Path, wanted: str | None, monkeypatch: pytest.MonkeyPatch) -> _cuda_part.CudaPart:
    if wanted is not None:
        monkeypatch.setenv(_cuda_part.VARIABLE, wanted)
    return _cuda_part.load_cuda_part(folder, {"CUDA_REASON": "no nvcc", "CUDA_ARCHS": ["sm_90"]})


def test_compiled_kernels_come_first(tmp_path, monkeypatch, loadable) -> None:
    for name in ("_C_cuda.abi3.so", "_C_rtc.abi3.so"):
        (tmp_path / name).touch()
        loadable[name] = ByName()
    chosen = part(tmp_path, None, monkeypatch)
    assert chosen == _cuda_part.CudaPart(tmp_path / "_C_cuda.abi3.so", "compiled", "compiled for sm_90")
    chosen = part(tmp_path, "nvrtc", monkeypatch)
    assert (chosen.path, chosen.backend) == (tmp_path / "_C_rtc.abi3.so", "nvrtc")
    assert callable(loadable["_C_rtc.abi3.so"].resolver)
    assert part(tmp_path, "none", monkeypatch) == _cuda_part.CudaPart(None, None, "ARD_FAST_CUDA_KERNELS=none")


@pytest.mark.parametrize(
    ("archs", "said"),
    [
        (["sm_80", "sm_90"], []),
        (["sm_80", "compute_90"], []),
        (
            ["sm_80", "compute_80"],
            ["compiles the kernels from compute_80 at first use, without .* TORCH_CUDA_ARCH_LIST=9.0"],
        ),
        (["sm_80"], ["not covered: build again with TORCH_CUDA_ARCH_LIST=9.0"]),
    ],
)
def test_gpus_without_fitting_code_are_named_when_cuda_is_initialized(
    tmp_path, monkeypatch, loadable, archs, said
) -> None:
    """cuda:0 is an H100, cuda:1 an A100."""
    queued = []
    monkeypatch.setattr(torch.cuda, "_lazy_call", queued.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (8, 0)][index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: ["H100", "A100"][index])
    (tmp_path / "_C_cuda.abi3.so").touch()
    loadable["_C_cuda.abi3.so"] = ByName()
    assert _cuda_part.load_cuda_part(tmp_path, {"CUDA_ARCHS": archs}).backend == "compiled"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in queued:
            call()
    assert len(caught) == len(said)
    for warning, pattern in zip(caught, said, strict=True):
        assert re.search(r"ard_fast: cuda:0 \(H100\): .*" + pattern, str(warning.message))


def test_nvrtc_serves_where_there_are_no_compiled_ones(tmp_path, monkeypatch, loadable) -> None:
    (tmp_path / "_C_rtc.abi3.so").touch()
    loadable["_C_rtc.abi3.so"] = ByName()
    chosen = part(tmp_path, None, monkeypatch)
    assert chosen.backend == "nvrtc"
    assert chosen.reason == "compiled by NVRTC at first use; the extension was built without CUDA: no nvcc"
    (tmp_path / "_C_cuda.abi3.so").touch()
    with pytest.warns(RuntimeWarning, match="compiled CUDA kernels are off: .*_C_cuda.abi3.so is broken"):
        assert part(tmp_path, None, monkeypatch).backend == "nvrtc"


def test_what_is_asked_for_and_not_there_is_an_error(tmp_path, monkeypatch, loadable) -> None:
    with pytest.raises(ImportError, match=r"ARD_FAST_CUDA_KERNELS=compiled cannot be had: .*without CUDA: no nvcc"):
        part(tmp_path, "compiled", monkeypatch)
    with pytest.raises(ImportError, match=r"ARD_FAST_CUDA_KERNELS=nvrtc cannot be had: .*holds no _C_rtc"):
        part(tmp_path, "nvrtc", monkeypatch)
    monkeypatch.setattr(toolchain, "installed", lambda: False)
    (tmp_path / "_C_rtc.abi3.so").touch()
    with pytest.raises(ImportError, match="neither cuda-bindings nor CuPy is installed"):
        part(tmp_path, "nvrtc", monkeypatch)
    chosen = part(tmp_path, "auto", monkeypatch)
    assert (chosen.path, chosen.backend) == (None, None)
    assert "no nvcc; no NVRTC: neither" in chosen.reason
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is not a CUDA build" in part(tmp_path, "nvrtc", monkeypatch).reason


def test_unknown_value_is_an_error_on_every_torch(tmp_path, monkeypatch) -> None:
    for version in ("13.0", None):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(ImportError, match="must be one of auto, compiled, nvrtc, none, got 'cupy'"):
            part(tmp_path, "cupy", monkeypatch)


def test_file_that_is_no_library_is_reported_not_raised(tmp_path, monkeypatch) -> None:
    (tmp_path / "_C_cuda.abi3.so").write_bytes(NO_LIBRARY)
    (tmp_path / "_C_rtc.abi3.so").write_bytes(NO_LIBRARY)
    monkeypatch.setattr(toolchain, "installed", lambda: True)
    with pytest.warns(RuntimeWarning, match="CUDA kernels are off"):
        chosen = part(tmp_path, None, monkeypatch)
    assert chosen.path is None
    assert "_C_cuda.abi3.so could not be loaded" in chosen.reason
    assert "_C_rtc.abi3.so could not be loaded" in chosen.reason


def test_no_binding_of_nvrtc_is_imported_before_a_kernel_is_needed() -> None:
    """torch itself imports cuda-bindings where it is installed; that much is there anyway."""
    code = """
import sys, torch
before = set(sys.modules)
import ard_fast, ard_fast.info
print([name for name in set(sys.modules) - before if name.split(".")[0] in ("cupy", "cuda")])
"""
    out = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert out.stdout.strip() == "[]"
