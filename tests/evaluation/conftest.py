"""Figures are written only where a test's name says that it looks at them: a quarter of a second each."""

import pytest

from ard_fast import _figures


@pytest.fixture(autouse=True)
def few_figures(request, monkeypatch):
    if "figures" not in request.node.name:
        monkeypatch.setattr(_figures, "write_atomic", lambda path, write: None)
