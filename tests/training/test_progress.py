"""What a person sees of a run: plain lines, the time left, TensorBoard."""

import re

import pytest
from short_runs import AT, small_and_tidy, stop_after

from ard_fast import _progress as progress
from ard_fast._progress import Progress, Whole
from ard_fast.train import main
from ard_fast.training import report

__all__ = ["small_and_tidy"]  # a fixture

ROW = {"epoch": 1, "lr": 0.1, "train_loss": 1.0, "train_acc": 50.0, "val_clean": None, "val_robust": None,
       "images_per_s": 100.0, "elapsed_s": 3.0}  # fmt: skip


def test_lines_carry_rate_and_time_left(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress(total_steps=100, done_steps=20, steps_per_epoch=50, images_per_step=64)
    for _ in range(20):  # 2 s each: a quarter of the 80 steps that this process has to do
        now[0] += 2.0
        shown.step()
    shown.epoch(ROW)
    header, *inside, line = capsys.readouterr().out.splitlines()
    assert header.split()[-1] == "left" and line.split()[-1] == "02:00"
    assert inside == ["  in epoch 1/2: step 35 of 50, 32 img/s, 02:10 left"]
    assert re.search(r"-\s+-\s+100\s+3\.0\s+02:00$", line)


def test_a_comparison_has_a_line_a_run_and_the_time_left_of_all(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    whole = Whole([("teacher", 0), ("ard", 0), ("teacher", 1), ("ard", 1)])
    for seconds in (200.0, 40.0):
        shown = Progress(total_steps=10, steps_per_epoch=5, whole=whole)
        for _ in range(9):
            now[0] += seconds / 10
            shown.step()
        shown.epoch(ROW)
        shown.warn("odd")
        now[0] += seconds / 10
        whole.finish({"clean_acc": 90.0, "pgd20_acc": 40.5, "elapsed_s": seconds})
    assert capsys.readouterr().out.splitlines() == [
        "    run           seed  clean %  PGD-20 %     time     left",
        "  1/4 teacher, seed 0: epoch 1/2, 12:20 left of all",  # 60 of 200 s, and four runs like it
        "  1/4 teacher, seed 0: epoch 2/2, 11:20 left of all",
        "  1/4 teacher, seed 0: epoch 2/2, 10:20 left of all",
        "  warning, 1/4 teacher, seed 0: odd",
        "    1/4  teacher     0    90.00     40.50    03:20    10:00",
        "  warning, 2/4 ard, seed 0: odd",
        "    2/4  ard         0    90.00     40.50    00:40    04:00",
    ]


def test_tensorboard_has_every_epoch_once_also_after_a_stop(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 7)
        assert main([*AT, "--epochs", "3", "--tensorboard", "--out", str(out)]) == 130
    assert main(["--resume", str(out)]) == 0
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert {"train_loss", "val_robust", "lr"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("val_robust")] == [1, 2, 3]


def test_a_missing_tensorboard_is_said_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    assert main([*AT, "--tensorboard", "--out", str(tmp_path / "run")]) == 2
    assert "tensorboard: the package is not installed; pip install tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
