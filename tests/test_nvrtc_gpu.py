"""The kernels that NVRTC compiles on a GPU: the bits of those that nvcc compiled, streams, graphs, the disk cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ard_fast import _cuda_part
from ard_fast._load import load
from ard_fast.nvrtc import store

TESTS = Path(__file__).resolve().parent
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def run(out: Path, kernels: str, kept: Path) -> dict:
    """nvrtc_results.py with these kernels, in a process of its own."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, _cuda_part.VARIABLE: kernels, store.VARIABLE: str(kept)}
    command = [sys.executable, str(TESTS / "nvrtc_results.py"), str(out)]
    done = subprocess.run(command, text=True, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr[-8000:]
    return json.loads(done.stdout.splitlines()[-1])


# The first run compiles every kernel: minutes on one core.
@pytest.mark.timeout(1200)
def test_bits_of_nvcc_cold_and_warm(tmp_path: Path) -> None:
    cold = run(tmp_path / "cold.pt", "nvrtc", tmp_path / "kept")
    assert cold["backend"] == "nvrtc"
    assert cold["ready"] > 100
    assert cold["same_on_stream"] and cold["same_in_graph"]
    assert cold["same_on_second_device"] in (True, None)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").glob("*.cubin")}
    assert len(kept) >= cold["ready"]
    run(tmp_path / "warm.pt", "nvrtc", tmp_path / "kept")  # what is compiled again is written again
    assert kept == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").glob("*.cubin")}
    cold_results, warm_results = torch.load(tmp_path / "cold.pt"), torch.load(tmp_path / "warm.pt")
    assert all(a.equal(b) for a, b in zip(cold_results, warm_results, strict=True))
    if _cuda_part.module_file(load().c_path.parent, "_C_cuda") is None:
        pytest.skip("no kernels of nvcc to compare with")
    compiled = run(tmp_path / "compiled.pt", "compiled", tmp_path / "unused")
    assert compiled["backend"] == "compiled"
    for number, (a, b) in enumerate(zip(cold_results, torch.load(tmp_path / "compiled.pt"), strict=True)):
        assert a.equal(b) or (a.isnan() == b.isnan()).all(), number
        assert a[~a.isnan()].equal(b[~b.isnan()]), number
