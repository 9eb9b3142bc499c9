"""What the soak has found; and in short the soak itself, whose long form is scripts/soak.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ard_fast._files import InUse, alone_in
from ard_fast.data import streamed
from ard_fast.train import main

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["--method", "natural", "--epochs", "1", "--subset", "64", "--val-steps", "1", "--test-subset", "20"]


def test_one_process_at_a_time_in_a_folder(tmp_path):
    folder = tmp_path / "made" / "run"
    with alone_in(folder):
        with pytest.raises(InUse, match=f"another process is training in {folder}"), alone_in(folder):
            pass
        with alone_in(tmp_path / "other"):
            pass
    with alone_in(folder):
        pass


def test_a_second_run_in_a_folder_is_refused(tmp_path, capsys):
    with alone_in(tmp_path):
        assert main([*QUICK, "--out", str(tmp_path)]) == 2
    assert f"error: out: another process is training in {tmp_path}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_images_that_cannot_be_read_end_in_a_line(tmp_path, capsys, monkeypatch):
    def fill(*_arguments):
        raise OSError(5, "Input/output error", "images.npy")

    monkeypatch.setattr(streamed._Slot, "fill", fill)
    assert main([*QUICK, "--resident", "never", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "Input/output error: 'images.npy'" in said and f"{tmp_path} goes on from its last checkpoint" in said
    monkeypatch.undo()
    assert main(["--resume", str(tmp_path)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["nan batch", "disk full once", "logit cache", "data worker", "two runs"])
def test_soak(fault):
    command = [sys.executable, str(ROOT / "scripts" / "soak.py"), "--minutes", "0", "--only", fault]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 rounds, 1 kinds of faults, 0 wrong" in done.stdout
