"""Runs of `python -m ard_fast.train` that take a second: few digits, few steps, no plots; and what they left."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ard_fast.data import Dataset, load_dataset
from ard_fast.models import build_model
from ard_fast.training import runs, trainer
from ard_fast.training.checkpoint import save_weights
from ard_fast.training.run_folder import RunFolder

CLEAN = ["--subset", "96", "--batch-size", "32", "--val-steps", "1"]  # 3 steps an epoch
TINY = [*CLEAN, "--steps", "2"]
AT = ["--method", "at", *TINY]
VAL, TEST = 41, 50  # odd: two processes evaluate different numbers of images


def short_digits(name: str, **settings: Any) -> Dataset:
    """Every data set as it is, except for the digits: few validation and test images."""
    data = load_dataset(name, **settings)
    if name != "digits":
        return data
    short = {"val": data.val.take(torch.arange(VAL)), "test": data.test.take(torch.arange(TEST))}
    return dataclasses.replace(data, **short)


@pytest.fixture(autouse=True)
def small_and_tidy(monkeypatch):
    """Few validation and test images, no plots."""
    monkeypatch.setattr(runs, "load_dataset", short_digits)
    for name in ("write_run_report", "draw_examples"):
        monkeypatch.setattr(trainer, name, lambda *args, **settings: False)


def stop_after(monkeypatch, steps, method="step"):
    """Request a stop once `steps` training steps (or "epoch" lines) of this process are done."""
    done = 0
    requests = []
    request, progress = runs.StopRequest, trainer.Progress
    real_enter, real = request.__enter__, getattr(progress, method)

    def enter(self):
        requests.append(self)
        return real_enter(self)

    def counted(self, *args, **kwargs):
        nonlocal done
        done += 1
        if done == steps:
            requests[-1].requested = True
        return real(self, *args, **kwargs)

    monkeypatch.setattr(request, "__enter__", enter)
    monkeypatch.setattr(progress, method, counted)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times and hits of caches, which are this process's."""
    rows = RunFolder(folder).metrics()
    work = ("images_per_s", "elapsed_s", "cpu_s")
    return [{key: row[key] for key in row if key not in work and not key.endswith("_hits")} for row in rows]


def same_weights(a: Path, b: Path) -> bool:
    """Whether two files hold the same tensors."""
    one, other = load_file(a), load_file(b)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def assert_same_run(one: Path, other: Path) -> None:
    """To the bit: weights and metrics."""
    for name in ("best.safetensors", "last.safetensors"):
        assert same_weights(one / name, other / name), name
    assert metrics(one) == metrics(other)


def save_teacher(path: Path, name: str = "digits-teacher", num_classes: int = 10) -> nn.Module:
    """An untrained network in a file."""
    torch.manual_seed(0)
    model = build_model(name, num_classes)
    save_weights(path, model, name=name, num_classes=num_classes, in_channels=1)
    return model
