"""Kernels started by name, on two CUDA devices that the host emulator plays: tests/on_fake_device.

In a process of its own, because the fake devices stay in it for good.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parent


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA of its own")
def test_operators_on_the_fake_devices(tmp_path: Path) -> None:
    files = sorted(str(path) for path in (TESTS / "on_fake_device").glob("check_*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "fake_device", "-p", "no:cacheprovider", *files]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "ARD_FAST_KERNEL_CACHE": str(tmp_path), "PYTEST_ADDOPTS": ""}
    run = subprocess.run(command, text=True, capture_output=True, cwd=TESTS.parent, env=environment)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-4000:]
