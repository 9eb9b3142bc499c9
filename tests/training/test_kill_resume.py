"""A training process that is killed without warning, and what its folder is worth then."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from ard_fast.train import main

SETTINGS = ["--method", "at", "--averaging", "ema", "--epochs", "2", "--subset", "128", "--steps", "2", "--val-steps",
            "2", "--test-subset", "50", "--save-every-seconds", "0.05", "--threads", "1"]  # fmt: skip
OF_THE_PROCESS = {"images_per_s", "elapsed_s"}


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in OF_THE_PROCESS} for line in lines]


@pytest.mark.slow
def test_a_run_killed_by_sigkill_goes_on_to_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*SETTINGS, "--out", str(whole)]) == 0
    process = subprocess.Popen([sys.executable, "-m", "ard_fast.train", *SETTINGS, "--out", str(killed)])
    while not (killed / "training_state.pt").exists():
        assert process.poll() is None, "the run ended before it had saved anything"
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "summary.json").exists()
    assert main(["--resume", str(killed)]) == 0
    assert rows(whole) == rows(killed)
    for name in ("best.safetensors", "last.safetensors"):
        a, b = load_file(whole / name), load_file(killed / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
