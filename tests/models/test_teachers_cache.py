"""The cache of a teacher's logits: exact, shared, and never in the way."""

import errno
import os
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from ard_fast.data import Batch, ResidentLoader, Split
from ard_fast.models import build_model
from ard_fast.teachers import CacheWarning, LogitsCache, Teacher, Views, build_teacher
from ard_fast.teachers import build as building
from ard_fast.teachers.cache import user_folder

CLASSES = 5
PADDING, FLIP = 1, True


@pytest.fixture(autouse=True)
def no_surprise(tmp_path, monkeypatch):
    """Nothing goes to the real user's cache folder, and a warning that a test does not expect fails it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)
        yield


def network(seed=0):
    torch.manual_seed(seed)
    net = build_model("digits-teacher", CLASSES)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def split(count=70):
    """Images with ids that have gaps, as when a part is held out."""
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 17, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return Split(images, labels, 2 * torch.arange(count) + 3)


def views_of(data, padding=PADDING, flip=FLIP, levels=16):
    return Views(data, levels=levels, padding=padding, flip=flip)


def batches(data, epochs, padding=PADDING, flip=FLIP, seed=0, device="cpu"):
    loader = ResidentLoader(
        data, device=torch.device(device), levels=16, seed=seed, batch_size=32, padding=padding, flip=flip
    )
    for epoch in range(epochs):
        yield from loader.batches(epoch)  # the last batch has 6 images


class Counting:
    """Counts the images that the teacher's network computes."""

    def __init__(self, teacher):
        self.images, self._lean = 0, teacher.lean
        teacher.lean = self

    def __call__(self, x):
        self.images += len(x)
        return self._lean(x)


# ---- exact --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["auto", "folder"])
@pytest.mark.parametrize(("padding", "flip"), [(1, True), (1, False), (0, False)])
def test_a_run_with_the_cache_equals_one_without(tmp_path, where, padding, flip):
    data, net = split(), network()
    views = views_of(data, padding, flip)
    where = tmp_path / "cache" if where == "folder" else where
    plain = build_teacher(net, views, cache="off")
    cached = build_teacher(net, views, cache=where)
    counting = Counting(cached)
    for batch in batches(data, 12, padding, flip):
        found = cached.clean(batch)
        assert torch.equal(found, plain.clean(batch)) and found.dtype == torch.float32 and not found.requires_grad
    assert plain.report() == {}
    hits = cached.report()["cache_hits"]
    assert hits > (0.9 if padding == 0 else 0.2) and cached.cache.lookups == 12 * 70
    if where == "auto":
        assert counting.images == round((1 - hits) * 12 * 70)  # every image once for each view, and not once more
    # a second run, of another seed: it starts with what the first one left in the folder
    second = build_teacher(net, views, cache=where)
    for batch in batches(data, 4, padding, flip, seed=1):
        assert torch.equal(second.clean(batch), plain.clean(batch))
    assert (second.report()["cache_hits"] > hits) == (where != "auto")


@pytest.mark.parametrize("where", ["auto", "folder"])
def test_float16_returns_on_a_miss_what_it_returns_on_a_hit(tmp_path, where):
    data, net = split(), network()
    views = views_of(data)
    plain = build_teacher(net, views, cache="off")
    cached = build_teacher(net, views, cache=tmp_path if where == "folder" else where, cache_dtype="fp16")
    for batch in batches(data, 6):
        assert torch.equal(cached.clean(batch), plain.clean(batch).half().float())
    assert cached.report()["cache_hits"] > 0.1


def test_logits_beyond_float16_are_the_same_on_miss_and_hit():
    cache = LogitsCache(
        rows=2, images=2, padding=0, flip=False, num_classes=3, dtype=torch.float16, device=torch.device("cpu")
    )
    ids, views = torch.arange(2), torch.zeros(2, dtype=torch.int64)
    huge = torch.tensor([[1e6, -1e6, 1.0], [float("nan"), 0.0, 70000.0]])
    first = cache.logits(ids, views, lambda positions: huge[positions])
    again = cache.logits(ids, views, lambda positions: huge[positions])
    assert torch.equal(first.nan_to_num(), again.nan_to_num()) and first[0].tolist() == [65504.0, -65504.0, 1.0]
    assert first[1].isnan().tolist() == [True, False, False]


def test_a_table_that_is_known_entirely_is_only_looked_up():
    data = split()
    teacher = build_teacher(network(), views_of(data, 0, False))
    for batch in batches(data, 1, 0, False):
        teacher.clean(batch)
    counting = Counting(teacher)
    for batch in batches(data, 3, 0, False, seed=5):
        teacher.clean(batch)
    assert counting.images == 0 and teacher.cache.resident.filled == 70


def test_on_the_device(device, tmp_path):
    """On a GPU, whose kernels may differ between batch sizes, equal up to rounding; a hit repeats a miss exactly."""
    data, net = split(), network().to(device)
    plain = build_teacher(net, views_of(data), cache="off")
    for where in ("auto", tmp_path / "cache"):
        cached = build_teacher(net, views_of(data), cache=where)
        for batch in batches(data, 3, device=device):
            first = cached.clean(batch)
            torch.testing.assert_close(first, plain.clean(batch), rtol=1e-4, atol=1e-5)
            assert torch.equal(cached.clean(batch), first)


def test_a_loader_without_views_is_not_cached(tmp_path):
    data = split()
    teacher = build_teacher(network(), views_of(data), cache=tmp_path / "cache")
    batch = next(batches(data, 1))
    bare = Batch(batch.x, batch.y, batch.ids, batch.seed)
    assert torch.equal(teacher.clean(bare), teacher(batch.x))
    assert teacher.report() == {} and not (tmp_path / "cache").exists()


# ---- which table --------------------------------------------------------------------------------------------------


def test_everything_that_decides_the_logits_decides_the_file(tmp_path):
    data, net = split(), network()

    def file_of(net=net, data=data, **settings):
        views = {"padding": PADDING, "flip": FLIP, "levels": 16}
        views.update({key: settings.pop(key) for key in list(settings) if key in views})
        teacher = build_teacher(net, views_of(data, **views), cache=tmp_path, **settings)
        for batch in batches(data, 1, views["padding"], views["flip"]):
            teacher.clean(batch)
        return teacher.cache.path.name

    other_weights = network()
    other_weights.classifier[2].bias.data[0] += 1e-7
    other_pixel = split()
    other_pixel.images[3, 0, 0, 0] ^= 1
    other_ids = Split(data.images, data.labels, data.ids.flip(0))
    files = [
        file_of(),
        file_of(other_weights),
        file_of(network(1)),
        file_of(data=other_pixel),
        file_of(data=other_ids),
        file_of(padding=2, flip=False),
        file_of(padding=2),
        file_of(flip=False),
        file_of(levels=15),
        file_of(precision="bf16"),
        file_of(cache_dtype="fp16"),
    ]
    assert len(set(files)) == len(files)
    assert file_of(network(), split()) == files[0]  # the same again, from other objects


def test_auto_keeps_small_tables_in_memory_and_larger_ones_in_the_users_folder(tmp_path, monkeypatch):
    data, net = split(), network()
    batch = next(batches(data, 1))
    small = build_teacher(net, views_of(data))
    small.clean(batch)
    assert small.cache.path is None and not (tmp_path / "user").exists()
    monkeypatch.setattr(building, "_IN_MEMORY", 1000)
    large = build_teacher(net, views_of(data))
    large.clean(batch)
    assert large.cache.path.parent == tmp_path / "user" / "ard-fast" / "teacher-logits" == user_folder()
    assert large.cache.path.is_file()
    monkeypatch.setattr(building, "_free_bytes", lambda folder: 1000)
    none = build_teacher(net, views_of(data))
    with pytest.warns(CacheWarning, match="teacher_cache: not used: .* more than half of what is free"):
        assert torch.equal(none.clean(batch), none(batch.x))
    assert none.cache is None


def test_settings_that_are_refused():
    with pytest.raises(ValueError, match="unknown teacher_cache_dtype 'float16'; did you mean 'fp16'"):
        build_teacher(network(), views_of(split()), cache_dtype="float16")
    with pytest.raises(ValueError, match="teacher_precision: expected one of fp32, bf16"):
        build_teacher(network(), views_of(split()), precision="fp64")


# ---- never in the way ---------------------------------------------------------------------------------------------


def fill(folder, net=None, epochs=3):
    """A table that a run has left; its file."""
    data = split()
    teacher = build_teacher(net or network(), views_of(data), cache=folder)
    for batch in batches(data, epochs):
        teacher.clean(batch)
    return teacher.cache.path


def expect_equal(teacher, epochs=3):
    """The logits are those of the teacher without a cache."""
    data = split()
    plain = build_teacher(network(), views_of(data), cache="off")
    for batch in batches(data, epochs):
        assert torch.equal(teacher.clean(batch), plain.clean(batch))


def again(folder):
    return build_teacher(network(), views_of(split()), cache=folder)


@pytest.mark.parametrize("damage", ["cut", "text", "header", "empty folder"])
def test_a_damaged_file_is_begun_anew(tmp_path, damage):
    path = fill(tmp_path)
    content = path.read_bytes()
    damaged = {"cut": content[: len(content) // 2], "text": b"import os", "header": b"\x80\x04" + content[2:]}
    if damage == "empty folder":
        path.unlink()
        expect_equal(again(tmp_path))
        return
    path.write_bytes(damaged[damage])
    teacher = again(tmp_path)
    with pytest.warns(CacheWarning, match="it is begun anew") as caught:
        expect_equal(teacher)
    assert len(caught) == 1 and path.stat().st_size == len(content)
    expect_equal(again(tmp_path), 1)  # and is whole again


def test_damaged_rows_are_computed_again(tmp_path):
    path = fill(tmp_path)
    content = bytearray(path.read_bytes())
    for position in range(4096, len(content), 40):
        content[position] ^= 0x55
    path.write_bytes(content)
    teacher = again(tmp_path)
    expect_equal(teacher)


def test_a_table_of_another_teacher_under_this_ones_name_is_noticed(tmp_path):
    """Every checksum is right, only the logits are not: forged, or computed by code that has changed since."""
    mine, theirs = fill(tmp_path / "mine"), fill(tmp_path / "theirs", network(7))
    content = theirs.read_bytes()
    mine.write_bytes(mine.read_bytes()[:4096] + content[4096:])
    teacher = again(tmp_path / "mine")
    with pytest.warns(CacheWarning, match="does not hold this teacher's logits: it is begun anew") as caught:
        expect_equal(teacher)
    assert len(caught) == 1
    expect_equal(again(tmp_path / "mine"))


def test_a_full_disk(tmp_path, monkeypatch):
    path = fill(tmp_path, epochs=1)
    filled = path.stat().st_size
    teacher = again(tmp_path)
    real = os.pwrite
    left = [300]

    def nearly_full(file, content, offset):
        if left[0] < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= len(content)
        return real(file, content, offset)

    monkeypatch.setattr(os, "pwrite", nearly_full)
    with pytest.warns(
        CacheWarning, match=r"cannot be written .*No space left.*: what is in it is still used"
    ) as caught:
        expect_equal(teacher, 5)
    assert len(caught) == 1 and teacher.report()["cache_hits"] > 0.1
    monkeypatch.undo()
    assert path.stat().st_size == filled
    expect_equal(again(tmp_path))


FULL_TMPFS = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
import torch
import test_teachers_cache as cases
from ard_fast.teachers import CacheWarning, build_teacher
data = cases.split(400)
plain = build_teacher(cases.network(), cases.views_of(data, 4), cache="off")
cached = build_teacher(cases.network(), cases.views_of(data, 4), cache=sys.argv[2])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", CacheWarning)
    for batch in cases.batches(data, 4, 4):
        assert torch.equal(cached.clean(batch), plain.clean(batch))
assert ["No space left" in str(warning.message) for warning in caught] == [True], caught
print("went on")
"""


def test_a_real_full_disk(tmp_path):
    """A tmpfs of 64 KiB: there even reading what was never written needs room, if it is read through a memory map."""
    (tmp_path / "small").mkdir()
    private = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=64k tmpfs {tmp_path}/small"
    if shutil.which("unshare") is None or subprocess.run([*private, mount], capture_output=True).returncode:
        pytest.skip("no private mounts here")
    (tmp_path / "run.py").write_text(FULL_TMPFS)
    tests = os.path.dirname(os.path.abspath(__file__))
    run = f"{mount} && {sys.executable} {tmp_path}/run.py {tests} {tmp_path}/small"
    done = subprocess.run([*private, run], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "went on" in done.stdout, done.stderr


def test_no_room_to_begin_the_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.warns(CacheWarning, match="cannot be used .*No space left.*: the run goes on without it") as caught:
        expect_equal(again(tmp_path))
    assert len(caught) == 1


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(CacheWarning, match="cannot be used .*: the run goes on without it") as caught:
        expect_equal(again(tmp_path / "file" / "below"))
    assert len(caught) == 1


@pytest.mark.parametrize("way", ["cut", "deleted"])
def test_a_file_that_is_lost_while_in_use(tmp_path, way):
    path = fill(tmp_path)
    teacher = again(tmp_path)
    teacher.clean(next(batches(split(), 1)))
    if way == "deleted":  # the open file stays
        path.unlink()
        expect_equal(teacher)
    else:
        os.truncate(path, 5000)
        with pytest.warns(CacheWarning, match="was cut to 5000 bytes while in use: the run goes on without it"):
            expect_equal(teacher)


def test_two_runs_at_once(tmp_path):
    one, other = again(tmp_path), again(tmp_path)
    data = split()
    plain = build_teacher(network(), views_of(data), cache="off")
    for first, second in zip(batches(data, 4), batches(data, 4, seed=3), strict=True):
        assert torch.equal(one.clean(first), plain.clean(first))
        assert torch.equal(other.clean(second), plain.clean(second))
    both = one.report()["cache_hits"] + other.report()["cache_hits"]
    alone = again(tmp_path / "alone")
    expect_equal(alone, 4)
    assert both > 2 * alone.report()["cache_hits"]  # each reads what the other has written


def test_without_a_lean_form_or_a_cache_it_is_the_network_itself():
    net, batch = network(), next(batches(split(), 1))
    teacher = Teacher(net)
    with torch.no_grad():
        assert torch.equal(teacher.clean(batch), net(batch.x))
    assert teacher.conventions() == [] and teacher.network is net
    assert "batch norms folded" in again("off").conventions()[0]
