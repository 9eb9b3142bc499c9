"""csrc/driver, which starts kernels through the CUDA driver with declarations of its own."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def toolkit_include() -> Path | None:
    """The folder with cuda.h of $CUDA_HOME or the usual place, or None."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    found = (Path(home) / "include" for home in homes if home)
    return next((folder for folder in found if (folder / "cuda.h").is_file()), None)


def test_declarations_are_those_of_cuda_h():
    include, compiler = toolkit_include(), shutil.which("c++")
    if include is None or compiler is None:
        pytest.skip("no cuda.h or no C++ compiler")
    command = [compiler, "-std=c++17", "-fsyntax-only", f"-I{ROOT / 'csrc'}", "-isystem", str(include)]
    done = subprocess.run(
        [*command, str(ROOT / "tests/cpp/driver_declarations.cpp")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
