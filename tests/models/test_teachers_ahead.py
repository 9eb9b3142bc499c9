"""Logits ahead: the same bits, nothing asked for too early, and an order that holds on an asynchronous device."""

from itertools import islice

import pytest
import torch
from two_streams import MAIN, SIDE, TwoStreams

from ard_fast.data import ResidentLoader, Split, StreamedLoader
from ard_fast.models import build_model
from ard_fast.teachers import CacheWarning, TeacherAhead, Views, build_teacher

CLASSES, ACCUMULATE = 5, 2
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_surprise(tmp_path, monkeypatch):
    """Nothing goes to the real user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


def data():
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 17, (50, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Split(images, torch.randint(0, CLASSES, (50,), generator=generator), 2 * torch.arange(50) + 3)


def teacher_of(split, device=CPU, cache="auto", seed=0):
    torch.manual_seed(seed)
    network = build_model("digits-teacher", CLASSES).eval().to(device)
    return build_teacher(network, Views(split, levels=16, padding=1, flip=True), cache=cache)


def loader_of(split, kind=ResidentLoader, device=CPU, **changes):
    settings = {"levels": 16, "seed": 0, "batch_size": 16, "padding": 1, "flip": True, "accumulate": ACCUMULATE}
    return kind(split, device=device, **{**settings, **changes})


def steps_of(loader, epoch, first_step=0):
    batches = loader.batches(epoch, first_step)
    return iter(lambda: list(islice(batches, loader.accumulate)), [])


class Training:
    """Steps that use all of a batch, and once more what is left of the batch before."""

    def __init__(self, teachers, device=CPU):
        self.teachers, self.total, self.kept, self.bits = teachers, torch.zeros((), device=device), None, []

    def step(self, parts):
        for batch in parts:
            logits = [teacher.clean(batch) for teacher in self.teachers]
            self.total += sum(x.square().sum() for x in logits) + batch.x.sum() + (batch.y + batch.ids + batch.seed)[0]
            if self.kept is not None:
                self.total += self.kept.x[0].sum() + self.kept.views[0]
            self.kept = batch
            self.bits += [x.clone() for x in logits]

    def equals(self, other):
        assert len(self.bits) == len(other.bits)
        return self.total == other.total and all(map(torch.equal, self.bits, other.bits))


def train(loader, teachers, ahead, epochs=3, training=None):
    training = training or Training(teachers, loader.device)
    for epoch in range(epochs):
        for parts in ahead.steps(steps_of(loader, epoch)):
            training.step(parts)
    return training


@pytest.mark.parametrize("kind", [ResidentLoader, StreamedLoader])
@pytest.mark.parametrize("cache", ["auto", "folder", "off"])
@pytest.mark.parametrize("two", [False, True])
def test_the_same_bits_as_without(tmp_path, device, kind, cache, two):
    split, seeds = data(), (0, 1) if two else (0,)
    loader, place = loader_of(split, kind, device), tmp_path if cache == "folder" else None
    asked = [teacher_of(split, device, place / "a" if place else cache, seed) for seed in seeds]
    cached = [teacher_of(split, device, place / "b" if place else cache, seed) for seed in seeds]
    expected = train(loader, asked, TeacherAhead([], device))
    ahead = TeacherAhead(cached, device)
    assert train(loader, cached, ahead).equals(expected)
    if cache != "off":
        for teacher in cached:
            assert teacher.cache.lookups == 3 * 50  # each image once an epoch: nothing was looked up again by the step
    if device.type == "cuda":
        assert all(batch.taught for batch in next(ahead.steps(steps_of(loader, 9)))) == (cache != "off")


def run_beside(epochs=3, kind=ResidentLoader):
    """A run on two streams that are watched, and after each step how far its stream had come."""
    split = data()
    teachers = [teacher_of(split, seed=seed) for seed in (0, 1)]
    loader, streams = loader_of(split, kind), TwoStreams()
    for teacher in teachers:
        teacher.open_cache()  # which waits, once
    ahead, training, after, handed = TeacherAhead(teachers, CPU, streams=streams), Training(teachers), [0], []
    with streams:
        for epoch in range(epochs):
            for parts in ahead.steps(steps_of(loader, epoch)):
                handed.append((streams.known[MAIN], dict(streams.clock[SIDE])))
                training.step(parts)
                after.append(streams.clock[MAIN][MAIN])
            training.total += 0 * teachers[0].cache.resident.values.sum()  # what comes after an epoch may use all of it
    return streams, training, after, handed


@pytest.mark.parametrize("kind", [ResidentLoader, StreamedLoader])
def test_the_order_holds_whatever_the_device_delays(kind):
    streams, training, _, _ = run_beside(kind=kind)
    assert not streams.faults, set(streams.faults)
    assert {stream for stream, _ in streams.waits} == {SIDE}  # the host waits for nothing else
    assert any(name == "aten::nonzero" for _, name in streams.waits)
    split = data()
    plain = [teacher_of(split, cache="off", seed=seed) for seed in (0, 1)]
    assert training.equals(train(loader_of(split), plain, TeacherAhead([], CPU)))


def test_a_step_is_made_beside_the_one_before_and_no_more_than_three_are_under_way():
    _, _, after, handed = run_beside(epochs=1)
    for step, (known, side) in enumerate(handed):
        if step >= 1:
            assert side[MAIN] <= after[step - 1] < after[step]  # made without the step before having ended
        if step >= 3:
            assert known >= after[step - 2]
    assert len(handed) == 4


def test_without_waits_of_lookups_no_more_than_three_steps_are_under_way():
    """As when the last row becomes known in the middle of an epoch: nothing else would hold the host back."""
    split, streams = data(), TwoStreams()
    teacher, loader, after = teacher_of(split), loader_of(split, batch_size=5), [0]
    with streams:
        steps, training = TeacherAhead([teacher], CPU, streams=streams).steps(steps_of(loader, 0)), Training([teacher])
        teacher.cache.resident.filled = teacher.cache._entries
        streams.known[MAIN] = 0  # opening the cache waited
        for step, parts in enumerate(steps):
            training.step(parts)
            after.append(streams.clock[MAIN][MAIN])
            assert step < 3 or streams.known[MAIN] >= after[step - 2]
    assert len(after) == 11 and not any(stream == SIDE for stream, _ in streams.waits)


FAULTS = {
    "wait": "does not wait",  # neither stream waits for the other
    "lend": "not lent",
}


@pytest.mark.parametrize("method", FAULTS)
def test_the_watch_sees_what_is_left_out(monkeypatch, method):
    monkeypatch.setattr(TwoStreams, method, lambda self, mark: None)
    streams, _, _, _ = run_beside()
    assert any(FAULTS[method] in fault for fault in streams.faults)


def test_waits_of_the_main_stream_are_seen():
    """The same steps without looking ahead wait for the stream of the training: the reason for all this."""
    split, streams = data(), TwoStreams()
    teacher = teacher_of(split)
    with streams:
        for parts in steps_of(loader_of(split), 0):
            Training([teacher]).step(parts)
    assert (MAIN, "aten::nonzero") in streams.waits


def test_stopped_and_gone_on_inside_an_epoch():
    split = data()
    loader = loader_of(split)
    expected = train(loader, [teacher_of(split)], TeacherAhead([], CPU), epochs=1)
    for streams in (None, TwoStreams()):
        for stop in range(loader.steps + 1):
            teacher, training, asked = teacher_of(split), None, []
            for first, last in ((0, stop), (stop, loader.steps)):
                training = training or Training([teacher])
                training.teachers = [teacher]
                batches = TeacherAhead([teacher], CPU, streams=streams).steps(
                    iter(_counted(steps_of(loader, 0, first), asked))
                )
                for _ in range(first, last):
                    training.step(next(batches))
                if last < loader.steps:
                    assert len(asked) == stop  # nothing was made before it was asked for
                    next(batches)  # the trainer takes a step before it looks whether to stop
                batches.close()
                teacher = teacher_of(split)  # another process
            assert training.equals(expected)


def _counted(steps, asked):
    for parts in steps:
        asked.append(parts)
        yield parts


@pytest.mark.parametrize("streams", [None, TwoStreams()])
def test_a_complete_table_is_looked_up_where_one_is(streams):
    split = data()
    teacher = build_teacher(teacher_of(split).network, Views(split, levels=16, padding=0, flip=False))
    loader = loader_of(split, padding=0, flip=False)
    ahead = TeacherAhead([teacher], CPU, streams=streams)
    list(ahead.steps(steps_of(loader, 0)))
    assert teacher.cache.complete
    if streams is not None:
        streams.beside = None  # asked for no more
    for parts in ahead.steps(steps_of(loader, 1)):
        assert [list(batch.taught) for batch in parts] == [[teacher]] * ACCUMULATE


def test_without_a_cache_it_is_the_same_iterator():
    split = data()
    steps = steps_of(loader_of(split), 0)
    assert TeacherAhead([teacher_of(split, cache="off")], CPU, streams=TwoStreams()).steps(steps) is steps
    assert TeacherAhead([], CPU).steps(steps) is steps


@pytest.mark.parametrize("streams", [None, TwoStreams()])
def test_errors_and_the_end_reach_both_sides(streams):
    teacher, closed = teacher_of(data()), []

    def source(fail):
        try:
            yield from steps_of(loader_of(data()), 0)
            if fail:
                raise OSError("the disk is gone")
        finally:
            closed.append(fail)

    ahead = TeacherAhead([teacher], CPU, streams=streams)
    with pytest.raises(OSError, match="the disk is gone"):
        list(ahead.steps(source(True)))
    asked = source(False)
    steps = ahead.steps(asked)
    next(steps)
    steps.close()
    assert closed == [True, False]  # although somebody still holds it
    assert streams is None or streams.now == MAIN


def test_after_an_error_the_table_may_be_used_on_the_main_stream():
    streams, teacher = TwoStreams(), teacher_of(data())

    def source():
        for parts in steps_of(loader_of(data()), 0):
            yield [parts[0], None]  # the second part fails when the first one's rows have been kept

    with streams:
        with pytest.raises(AttributeError):
            list(TeacherAhead([teacher], CPU, streams=streams).steps(source()))
        assert teacher.cache.resident.known.sum() > 0
    assert not streams.faults, set(streams.faults)


def test_a_cache_that_cannot_be_used_is_said_once_and_nothing_else_changes(tmp_path):
    (tmp_path / "file").write_text("")
    split = data()
    plain, teacher = teacher_of(split, cache="off"), teacher_of(split, cache=tmp_path / "file" / "folder")
    with pytest.warns(CacheWarning, match="cannot be used") as said:
        found = train(loader_of(split), [teacher], TeacherAhead([teacher], CPU, streams=TwoStreams()))
    assert len(said) == 1 and found.equals(train(loader_of(split), [plain], TeacherAhead([], CPU)))
