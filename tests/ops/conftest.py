"""The devices that the operators run on: the CPU, an emulated GPU and CUDA.

`device` of an emulated GPU is the CPU, on which the operators run the GPU's code meanwhile (`emulated_gpu.py`).
--gpu sm_80,sm_90 chooses the generations, --gpu-seed N draws other modes of the hardware for each test.
"""

from collections.abc import Iterator

import emulated_gpu
import pytest
import torch

NVCC = emulated_gpu.nvcc()
CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
)


def pytest_configure(config: pytest.Config) -> None:
    """Code is compiled for the generations that are asked for, too."""
    asked = {int(gpu.removeprefix("sm_")) for gpu in config.getoption("--gpu").split(",")}
    emulated_gpu.GENERATIONS[:] = sorted({*emulated_gpu.GENERATIONS, *asked})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Without nvcc there is no emulated GPU: test_kernels.py skips and says so. A module may do without: EMULATED."""
    if "device" in metafunc.fixturenames:
        emulated = NVCC is not None and getattr(metafunc.module, "EMULATED", True)
        gpus = metafunc.config.getoption("--gpu").split(",") if emulated else []
        metafunc.parametrize("device", ["cpu", *gpus, CUDA], indirect=True)


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
