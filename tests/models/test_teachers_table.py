"""The file of logits: what crashes, other processes, full disks and damaged files may and may not do to it."""

import errno
import os
import random
import signal
import time

import pytest
import torch

from ard_fast.teachers.table import DamagedTable, FileTable, ResidentTable, table_bytes

HEADER = b'{"a table": 1}'
SLOTS, CLASSES = 300, 7


def table(path, dtype=torch.float32, header=HEADER, slots=SLOTS):
    return FileTable(path, header, slots, CLASSES, dtype)


def rows_of(slots, dtype=torch.float32):
    """The row that belongs to each number."""
    return (slots[:, None] * 10 + torch.arange(CLASSES)).to(dtype) / 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_come_back_bit_for_bit(tmp_path, dtype):
    file = table(tmp_path / "t", dtype)
    slots = torch.randperm(SLOTS)[:90]
    values = rows_of(slots, dtype)
    values[0], values[1, 0], values[2, 0] = 0.0, float("nan"), -0.0
    assert not file.get(slots)[1].any()
    file.put(slots, values)
    for other in (file, table(tmp_path / "t", dtype)):
        found, known = other.get(slots)
        assert known.all() and found.dtype == dtype
        assert torch.equal(found.view(torch.int16), values.view(torch.int16))
        rest = torch.tensor(sorted(set(range(SLOTS)) - set(slots.tolist())))
        assert not other.get(rest)[1].any()
    assert (tmp_path / "t").stat().st_size == table_bytes(SLOTS, CLASSES, dtype)


def test_the_file_takes_room_only_for_its_rows(tmp_path):
    file = table(tmp_path / "t", slots=1_000_000)
    file.put(torch.tensor([999_999]), torch.ones(1, CLASSES))
    assert (tmp_path / "t").stat().st_blocks * 512 < 100_000 < (tmp_path / "t").stat().st_size


def test_every_torn_row_is_unknown(tmp_path):
    """A crash may leave any prefix of a row, over nothing or over an older row; none of them is ever believed."""
    file, number = table(tmp_path / "t"), torch.tensor([5])
    start, size = 4096 + 5 * 4 * (1 + CLASSES), 4 * (1 + CLASSES)
    old, new = torch.randn(1, CLASSES), torch.randn(1, CLASSES)
    file.put(number, old)
    with open(tmp_path / "t", "r+b") as raw:
        raw.seek(start)
        before = raw.read(size)
        file.put(number, new)
        raw.seek(start)
        after = raw.read(size)
        for under in (bytes(size), before):
            for cut in range(size + 1):
                raw.seek(start)
                raw.write(after[:cut] + under[cut:])
                raw.flush()
                found, known = file.get(number)
                assert not known or torch.equal(found, new) or torch.equal(found, old)
                assert known or cut < size
        raw.seek(start)
        raw.write(after)
    for bit in range(8 * size):  # and no flipped bit is overlooked
        damaged = bytearray(after)
        damaged[bit // 8] ^= 1 << bit % 8
        with open(tmp_path / "t", "r+b") as raw:
            raw.seek(start)
            raw.write(damaged)
        assert not file.get(number)[1].any(), bit


def test_a_row_in_another_rows_place_is_unknown(tmp_path):
    file = table(tmp_path / "t")
    file.put(torch.tensor([5]), torch.ones(1, CLASSES))
    size = 4 * (1 + CLASSES)
    with open(tmp_path / "t", "r+b") as raw:
        raw.seek(4096 + 5 * size)
        row = raw.read(size)
        raw.seek(4096 + 6 * size)
        raw.write(row)
    assert file.get(torch.tensor([5, 6]))[1].tolist() == [True, False]


def child(work):
    """A forked process that does `work` until it is killed or done; 0 is its status when done."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return pid


def test_kill_9_leaves_no_wrong_row(tmp_path):
    def fill():
        file, chooser = table(tmp_path / "t"), random.Random(os.getpid())
        while True:
            slots = torch.tensor(chooser.sample(range(SLOTS), 8))
            file.put(slots, rows_of(slots))

    known = torch.zeros(SLOTS, dtype=torch.bool)
    slots = torch.arange(SLOTS)
    for _ in range(20):
        pid = child(fill)
        time.sleep(random.uniform(0.0, 0.02))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        values, found = table(tmp_path / "t").get(slots)
        assert torch.equal(values[found], rows_of(slots)[found])
        assert found[known].all()  # and loses none
        known = found
    assert known.any()


def test_processes_share_a_file_without_a_lock(tmp_path):
    """Four begin it at once, write the same rows with values of their own, and read: every row is one of the four."""
    ready = time.monotonic() + 0.05

    def work(mine):
        time.sleep(max(0.0, ready - time.monotonic()))
        file, slots = table(tmp_path / "t"), torch.arange(60)
        for step in range(60):
            chosen = slots[torch.randperm(60, generator=torch.Generator().manual_seed(step))[:20]]
            file.put(chosen, rows_of(chosen) + mine)
            values, known = file.get(slots)
            offsets = (values - rows_of(slots))[known]
            whose = offsets.round()
            assert (offsets - whose).abs().max() < 1e-3 and ((whose >= 0) & (whose < 4)).all()
            assert (whose == whose[:, :1]).all()  # no row is a mixture

    processes = [child(lambda mine=mine: work(float(mine))) for mine in range(4)]
    assert [os.waitpid(pid, 0)[1] for pid in processes] == [0, 0, 0, 0]
    assert table(tmp_path / "t").get(torch.arange(60))[1].all()


@pytest.mark.parametrize(
    "damage", ["shorter", "longer", "header", "other header", "other dtype", "text", "directory", "link"]
)
def test_files_that_are_not_the_table(tmp_path, damage):
    path = tmp_path / "t"
    file = table(path)
    file.put(torch.tensor([1]), torch.ones(1, CLASSES))
    file.close()
    content = path.read_bytes()
    header, dtype, error = HEADER, torch.float32, DamagedTable
    if damage == "shorter":
        path.write_bytes(content[:-1])
    elif damage == "longer":
        path.write_bytes(content + b"\0")
    elif damage == "header":
        path.write_bytes(b"{" + content[:-1])
    elif damage == "other header":
        header = b'{"a table": 2}'
    elif damage == "other dtype":
        dtype = torch.float16
    elif damage == "text":
        path.write_text("hello")
    elif damage == "directory":
        path.unlink()
        path.mkdir()
        error = OSError
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        error = OSError
    with pytest.raises(error):
        table(path, dtype, header)


@pytest.mark.parametrize("left", ["nothing", "size"])
def test_a_crash_while_the_file_is_begun(tmp_path, left):
    path = tmp_path / "t"
    path.touch()
    if left == "size":
        os.truncate(path, table_bytes(SLOTS, CLASSES, torch.float32))
    file = table(path)
    file.put(torch.tensor([1]), torch.ones(1, CLASSES))
    assert table(path).get(torch.tensor([0, 1]))[1].tolist() == [False, True]


def test_a_file_cut_short_while_in_use_is_noticed(tmp_path):
    file = table(tmp_path / "t")
    os.truncate(tmp_path / "t", 4096)
    with pytest.raises(DamagedTable, match="was cut to 4096 bytes while in use"):
        file.get(torch.tensor([100]))


def test_a_write_that_fails_or_stops_half_way(tmp_path, monkeypatch):
    file, real = table(tmp_path / "t"), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, content, offset: real(fd, content[: len(content) // 2], offset))
    with pytest.raises(OSError, match="wrote 16 of 32 bytes"):
        file.put(torch.tensor([3]), torch.ones(1, CLASSES))
    assert not file.get(torch.tensor([3]))[1].any()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        file.put(torch.tensor([3]), torch.ones(1, CLASSES))


def test_resident_rows_know_when_all_are_there(device):
    rows = ResidentTable(6, CLASSES, torch.float16, torch.device(device))
    slots = torch.tensor([4, 1, 4], device=device)  # one twice
    rows.put(slots, rows_of(slots.cpu(), torch.float16).to(device))
    assert rows.filled == 2
    values, known = rows.get(torch.tensor([1, 2, 4], device=device))
    assert known.tolist() == [True, False, True]
    assert torch.equal(values[[0, 2]].cpu(), rows_of(torch.tensor([1, 4]), torch.float16))
    rows.put(torch.arange(6, device=device), rows_of(torch.arange(6), torch.float16).to(device))
    assert rows.filled == 6 and rows.known.all()
