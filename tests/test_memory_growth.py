"""Memory over many calls, in short; scripts/memory_growth.py is the long form, each function by itself."""

import mmap
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from memory_growth import everything, growth


def test_every_operator_and_function_together():
    calls = [make() for name, make in everything().items() if not name.startswith(("attacks", "adapters"))]
    found = growth(lambda: [call() for call in calls], calls=20)
    assert not found.is_leak, found


@pytest.mark.parametrize("name", ["attacks.PGD", "attacks.APGDT", "attacks.GraphedPGD(PGD)"])
def test_attacks(name):
    found = growth(everything()[name](), calls=40)
    assert not found.is_leak, found


def test_a_leak_of_small_tensors_is_seen():
    kept = []
    assert growth(lambda: kept.append(torch.zeros(1)), calls=40).is_leak


def test_a_leak_of_memory_without_an_object_is_seen():
    kept = []

    def leak() -> None:
        # From the system: what earlier tests gave back to the heap would serve for small objects.
        kept.append(mmap.mmap(-1, 200_000))
        kept[-1].write(b"x" * 200_000)

    assert growth(leak, calls=40).is_leak
