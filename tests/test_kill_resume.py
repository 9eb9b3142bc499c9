"""kill -9 at random moments, in short; scripts/kill_resume.py is the long form."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "extra"),
    [("ard", []), ("mtard", []), ("fast-ard", []), ("fair-ard", ["--averaging", "ema"])],
)
def test_a_run_killed_at_random_moments_ends_in_the_same_bits(tmp_path, method, extra):
    command = [sys.executable, str(ROOT / "scripts/kill_resume.py"), "--method", method, "--kills", "3"]
    command += ["--out", str(tmp_path), "--", "--subset", "256", "--epochs", "3", "--teacher-epochs", "2", *extra]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{method}: 3 kills" in done.stdout and "every run ended in the same bits" in done.stdout
