"""A teacher on a stream of its own while the student is attacked: it is joined before it is read."""

import pytest
import torch
from graph_runs import Run, assert_same
from two_streams import SIDE, TwoStreams

from ard_fast.methods import METHODS
from ard_fast.teachers import TeacherAlongside

ALONGSIDE = ["kd", "ard", "fast-ard", "fgsm-ard", "iad-i", "mtard", "fair-ard"]


def beside(run, streams):
    """The run with its teachers on the other one of two streams."""
    method = run.trainer.method
    assert method.teacher_alongside
    run.trainer.update._alongside = TeacherAlongside(method.clean_teachers(), torch.device("cpu"), streams=streams)
    return run


def test_these_are_all():
    assert set(ALONGSIDE) == {
        name for name in METHODS if (method := Run(name).trainer.method).teacher_alongside and method.clean_teachers()
    }


@pytest.mark.parametrize("name", ALONGSIDE)
def test_the_loss_waits_for_the_teacher(name):
    streams = TwoStreams()
    run = beside(Run(name, teacher_cache="off", epochs=2), streams)
    with streams:
        found = run.train(epochs=1)
    assert not streams.faults and streams.clock[SIDE][SIDE] > 0
    assert_same(found, Run(name, teacher_cache="off", epochs=2).train(epochs=1))


def test_without_the_wait_it_would_be_a_race(monkeypatch):
    monkeypatch.setattr(TeacherAlongside, "join", lambda self: None)
    streams = TwoStreams()
    with streams:
        beside(Run("ard", teacher_cache="off"), streams).train(epochs=1)
    assert any("does not wait" in fault for fault in streams.faults)


def test_teachers_with_a_cache_stay_where_they_are():
    streams = TwoStreams()
    with streams:
        beside(Run("ard"), streams).train(epochs=1)
    assert streams.clock[SIDE][SIDE] == 0


def test_micro_batches_bring_what_they_know():
    run = Run("ard", teacher_cache="off", accumulate=2)
    (teacher,) = run.trainer.method.clean_teachers()
    streams, (first, second) = TwoStreams(), next(run.trainer._steps())
    alongside = TeacherAlongside([teacher], torch.device("cpu"), streams=streams)
    with streams:
        parts = alongside.begin([first, second])
        alongside.join()
        again = alongside.begin(parts)
        alongside.join()
        for batch, plain, once_more in zip(parts, (first, second), again, strict=True):
            assert torch.equal(batch.taught[teacher], teacher.clean(plain))
            assert once_more.taught[teacher] is batch.taught[teacher]
    assert not streams.faults
