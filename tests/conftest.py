"""Fixtures and reports that all tests share. Markers are declared in pyproject.toml."""

import gc
import os
from collections.abc import Iterator

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core, so one thread each; torch reads it when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# What imports and collection leave stays to the end: the collector need not look at it again, for 0.2 s each time.
gc.disable()

CUDA = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(params=["cpu", *CUDA])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that the operators run on: the CPU, and CUDA where there is one."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def same_bits_of_float32(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """cuDNN computes float32 convolutions in TF32 unless told otherwise, for which no tolerance here allows, and may
    add up in another order each time."""
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    from ard_fast._devices import full_precision

    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    with full_precision():
        yield


@pytest.fixture(autouse=True)
def threads_put_back() -> Iterator[None]:
    """Commands set the number of threads of the process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def few_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are written only where a test's name says that it looks at them: a quarter of a second each."""
    if "figures" not in request.node.name:
        monkeypatch.setattr("ard_fast._figures.write_atomic", lambda path, write: None)
        monkeypatch.setattr("ard_fast.evaluation.figures.PICTURES", 2)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Of the emulated GPU: tests/ops/conftest.py."""
    parser.addoption("--gpu", default="", help="run tests/ops on emulated GPUs, such as sm_90 or sm_80,sm_120")
    parser.addoption("--gpu-seed", type=int, default=0, help="draws the modes of the emulated GPU")


def pytest_report_header() -> list[str]:
    """Say what is tested: which torch, which compiled extension, and whether it fits the sources."""
    try:
        from ard_fast.functional import _load
    except ImportError as error:
        # Tests that need no extension, such as those of the build, still run; the others fail with this message.
        return [f"ard_fast cannot be imported: {error}"]
    extension = _load.load()
    lines = [f"torch {torch.__version__}, extension {extension.c_path}"]
    lines.append(f"CUDA kernels {'loaded' if extension.has_cuda_kernels else 'not loaded'}: {extension.cuda_reason}")
    if extension.stale:
        lines.append(f"STALE EXTENSION: {extension.stale}")
    return lines
