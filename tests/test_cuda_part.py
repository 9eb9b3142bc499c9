"""Whether the CUDA kernels are loaded, and what is said about GPUs that their code does not fit."""

import re
import warnings
from pathlib import Path

import pytest
import torch

from ard_fast import _cuda_part

NO_LIBRARY = b"not a library"


@pytest.fixture(autouse=True)
def cuda_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that says it is built for CUDA."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.fixture
def loadable(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Extension modules that can be imported whatever their files hold, by the file's name."""
    modules: dict[str, object] = {}

    def import_file(name: str, path: Path) -> object:
        if path.name not in modules:
            raise ImportError(f"{path.name} is broken")
        return modules[path.name]

    monkeypatch.setattr(_cuda_part, "import_file", import_file)
    return modules


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
    loadable["_C_cuda.abi3.so"] = object()
    chosen = _cuda_part.load_cuda_part(tmp_path, {"CUDA_ARCHS": archs})
    assert chosen == _cuda_part.CudaPart(tmp_path / "_C_cuda.abi3.so", f"compiled for {' '.join(archs)}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in queued:
            call()
    assert len(caught) == len(said)
    for warning, pattern in zip(caught, said, strict=True):
        assert re.search(r"ard_fast: cuda:0 \(H100\): .*" + pattern, str(warning.message))


def test_missing_kernels_have_a_reason(tmp_path, monkeypatch) -> None:
    chosen = _cuda_part.load_cuda_part(tmp_path, {"CUDA_REASON": "no nvcc"})
    assert chosen == _cuda_part.CudaPart(None, "the extension was built without CUDA: no nvcc")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is not a CUDA build" in _cuda_part.load_cuda_part(tmp_path, {}).reason


def test_file_that_is_no_library_is_reported_not_raised(tmp_path) -> None:
    (tmp_path / "_C_cuda.abi3.so").write_bytes(NO_LIBRARY)
    with pytest.warns(RuntimeWarning, match="CUDA kernels are off"):
        chosen = _cuda_part.load_cuda_part(tmp_path, {})
    assert chosen.path is None
    assert "_C_cuda.abi3.so could not be loaded" in chosen.reason
