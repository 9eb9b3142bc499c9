"""The interpreter's own tests run where it is in use: with --gpu, or under CMake, which builds it with sanitizers."""

import os
from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """They need a compiler for a minute, and no user of the package runs what they test."""
    return None if config.getoption("--gpu") or "ARD_FAST_INTERPRETER" in os.environ else True
