"""The devices that the operators run on: the CPU, CUDA where there is a GPU, and on request an emulated GPU.

`pytest tests/ops --gpu sm_90` runs what a GPU runs, and nothing else, on an emulated one (`emulated_gpu.py`): the tests
that have a device, which is then the CPU, whose operators run the GPU's code meanwhile, and `test_kernels.py`.
--gpu sm_80,sm_120 names other generations, --gpu-seed N draws other modes of the hardware for each test.
"""

from collections.abc import Iterator
from pathlib import Path

import emulated_gpu
import pytest
import torch

KERNELS = "test_kernels.py"
DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]


def asked_gpus(config: pytest.Config) -> list[str]:
    """Generations of the emulated GPU, such as sm_90."""
    return [gpu for gpu in config.getoption("--gpu").split(",") if gpu]


def pytest_configure(config: pytest.Config) -> None:
    """Code is compiled for the generations that are asked for, too."""
    asked = {int(gpu.removeprefix("sm_")) for gpu in asked_gpus(config)}
    if asked and emulated_gpu.nvcc() is None:
        raise pytest.UsageError("--gpu needs nvcc: a CUDA toolkit, or pip install nvidia-cuda-nvcc")
    emulated_gpu.GENERATIONS[:] = sorted({*emulated_gpu.GENERATIONS, *asked})


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The kernels are tested on an emulated GPU alone."""
    return True if collection_path.name == KERNELS and not asked_gpus(config) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module whose tests never reach a kernel says EMULATED = False."""
    if "device" in metafunc.fixturenames:
        emulated = getattr(metafunc.module, "EMULATED", True)
        metafunc.parametrize("device", (asked_gpus(metafunc.config) if emulated else []) or DEVICES, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What the devices at hand can run; with --gpu, what an emulated one can."""

    def runs(item: pytest.Item) -> bool:
        if asked_gpus(config):
            return item.path.name == KERNELS or _device_of(item).startswith("sm_")
        return item.get_closest_marker("gpu") is None or torch.cuda.is_available()

    here = [item for item in items if Path(__file__).parent in item.path.parents]
    others = [item for item in here if not runs(item)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in set(others)]


def _device_of(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    return "" if callspec is None else str(callspec.params.get("device", ""))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Each device that the operators run on."""
    if not request.param.startswith("sm_"):
        yield torch.device(request.param)
        return
    mode = emulated_gpu.Mode.drawn(request.node.nodeid, request.config.getoption("--gpu-seed"))
    with emulated_gpu.active(int(request.param.removeprefix("sm_")), mode):
        yield torch.device("cpu")


@pytest.fixture
def on_cpu(request: pytest.FixtureRequest) -> bool:
    """Whether `device` runs the CPU's operators."""
    return request.node.callspec.params["device"] == "cpu"
