"""Teachers: the inference network has the plain one's logits, and the cache repeats them to the bit."""

import errno
import json
import os
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from folded_cases import Branches, images, trained
from safetensors.torch import load_file
from torch import nn

from ard_fast.data import ResidentLoader, Split
from ard_fast.models import Normalised, build_model
from ard_fast.teachers import CacheWarning, InferenceNetwork, Teacher, Views, build_teacher
from ard_fast.teachers import cache as caching
from ard_fast.train import main as train
from ard_fast.training.checkpoint import save_weights

CLASSES = 5


@pytest.fixture(autouse=True)
def no_surprise(tmp_path, monkeypatch):
    """Nothing goes to the real user's cache folder, and a warning that a test does not expect fails it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)
        yield


# ---- the inference network ----------------------------------------------------------------------------------------

NETWORKS = [("resnet18-tiny", {}, 20), ("dm-wrn-28-10", {"depth": 10, "widen": 1}, 7)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "options", "norms"), NETWORKS)
def test_inference_network_has_the_plain_logits(name, options, norms, precision):
    network = trained(Normalised(build_model(name, **options), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))).eval()
    x = images(16)
    teacher = Teacher(network, inference=InferenceNetwork(network, x, precision))
    assert teacher.inference.folded == (norms, norms) and f"{norms} of {norms} batch norms" in teacher.conventions()[0]
    probe = x.clone().requires_grad_()
    logits, attacked, expected = teacher(x), teacher.attacked(probe), network(probe)
    assert logits.dtype == attacked.dtype == torch.float32 and torch.equal(attacked.detach(), logits)
    exact = precision == "fp32"
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(
        logits, expected.detach(), rtol=1e-4 if exact else 0, atol=(1e-5 if exact else 0.05) * largest
    )
    assert not logits.requires_grad and not logits.is_inference()  # may be saved for a backward pass


def test_network_that_cannot_be_folded_is_used_as_it_is():
    network, x = trained(Branches(1)).eval(), images(16, channels=1, size=8)
    teacher = Teacher(network, inference=InferenceNetwork(network, x))
    assert "not folded: it cannot be traced" in teacher.conventions()[0] and teacher.attacked is network
    with torch.no_grad():
        torch.testing.assert_close(teacher(x), network(x), rtol=1e-5, atol=1e-6)


def test_bfloat16_teacher_that_cannot_be_folded_gives_float32_logits():
    network, x = trained(Branches(1)).eval(), images(16, channels=1, size=8)
    logits = InferenceNetwork(network, x, "bf16")(x)
    assert not torch.equal(logits, logits.bfloat16().float())  # more digits than bfloat16 has
    with torch.no_grad():
        torch.testing.assert_close(logits, network(x), rtol=0, atol=0.05 * float(network(x).abs().max()))


@pytest.mark.parametrize("name", ["digits-teacher", "resnet18-tiny"])
def test_logits_do_not_depend_on_the_batch(name):
    """Bit for bit on a CPU, which is what makes the cache exact there; without the padding to sixteens it fails."""
    x = images(40, name)
    inference = InferenceNetwork(trained(build_model(name)).eval(), x[:16])
    whole = inference(x)
    for count in (1, 3, 15, 17, 39):
        chosen = torch.randperm(40, generator=torch.Generator().manual_seed(count))[:count]
        assert torch.equal(inference(x[chosen]), whole[chosen]), count


# ---- the cache ----------------------------------------------------------------------------------------------------


def network(seed=0):
    torch.manual_seed(seed)
    return trained(build_model("digits-teacher", CLASSES), seed).eval()


def split(count=70):
    """Images with ids that have gaps, as when a part is held out."""
    generator = torch.Generator().manual_seed(4)
    pixels = torch.randint(0, 17, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Split(pixels, torch.zeros(count, dtype=torch.int64), 2 * torch.arange(count) + 3)


def teacher_of(cache, net=None, data=None, *, padding=1, flip=True, levels=16, **settings):
    views = Views(data or split(), levels=levels, padding=padding, flip=flip)
    return build_teacher(net or network(), views, cache=cache, **settings)


def batches(epochs, padding=1, flip=True, seed=0, device="cpu"):
    loader = ResidentLoader(
        split(), device=torch.device(device), levels=16, seed=seed, batch_size=32, padding=padding, flip=flip
    )
    for epoch in range(epochs):
        yield from loader.batches(epoch)  # the last batch has 6 images


def expect_exact(teacher, epochs=3, net=None, seed=0, padding=1, flip=True):
    """The logits are those of the teacher without a cache; returns the share that came from it."""
    plain = teacher_of("off", net, padding=padding, flip=flip)
    for batch in batches(epochs, padding, flip, seed):
        assert torch.equal(teacher.clean(batch), plain.clean(batch))
    return teacher.report().get("cache_hits")


def fill(folder, net=None, epochs=3):
    """A file that a run has left."""
    teacher = teacher_of(folder, net)
    for batch in batches(epochs):
        teacher.clean(batch)
    teacher.cache.save(at_least=0.0)
    return teacher.cache.path


@pytest.mark.parametrize("where", ["auto", "folder"])
@pytest.mark.parametrize(("padding", "flip"), [(1, True), (1, False), (0, False)])
def test_cache_changes_no_logits_and_a_later_run_finds_them(tmp_path, where, padding, flip):
    cache = tmp_path / "cache" if where == "folder" else where
    first = teacher_of(cache, padding=padding, flip=flip)
    computed, inference = [], first.inference
    first.cache = first.open_cache()
    first.cache.network = lambda x: computed.append(len(x)) or inference(x)
    hits = expect_exact(first, 12, padding=padding, flip=flip)
    assert hits > (0.9 if padding == 0 else 0.2)
    assert sum(computed) == round((1 - hits) * 12 * 70) == int(first.cache.known.sum())  # each view once
    first.cache.save(at_least=0.0)
    second = expect_exact(teacher_of(cache, padding=padding, flip=flip), 4, seed=1, padding=padding, flip=flip)
    assert (second > hits) == (where == "folder")
    assert not (tmp_path / "user").exists()  # too small for a file that nobody asked for


@pytest.mark.parametrize("value", [1e6, -1e6, float("nan"), 1 / 3])
def test_float16_returns_on_a_miss_what_it_returns_on_a_hit(value):
    teacher = teacher_of("auto", cache_dtype="fp16")
    teacher.open_cache().network = lambda x: torch.full((len(x), CLASSES), value)
    first, again = (teacher.clean(next(batches(1))) for _ in range(2))
    expected = torch.tensor(value).clamp(-65504, 65504).half().float()
    assert torch.equal(first.nan_to_num(7.0), again.nan_to_num(7.0))
    assert torch.equal(first.nan_to_num(7.0), expected.nan_to_num(7.0).expand_as(first))


def test_everything_that_decides_the_logits_decides_the_file(tmp_path):
    other_weights = network()
    other_weights.classifier[2].bias.data[0] += 1e-7
    other_pixel = split()
    other_pixel.images[3, 0, 0, 0] ^= 1
    other_ids = replace(split(), ids=split().ids.flip(0))
    changes = [
        {},
        {"net": other_weights},
        {"data": other_pixel},
        {"data": other_ids},
        {"padding": 2},
        {"flip": False},
        {"levels": 15},
        {"precision": "bf16"},
        {"cache_dtype": "fp16"},
        {"layout": torch.contiguous_format},
    ]
    files = [teacher_of(tmp_path, **change).open_cache().path for change in changes]
    assert len(set(files)) == len(files)
    assert teacher_of(tmp_path).open_cache().path == files[0]  # the same again, from other objects


def test_auto_writes_larger_tables_to_the_users_folder_and_keeps_none_beyond_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "_IN_MEMORY", 1000)
    first = teacher_of("auto")
    expect_exact(first)
    first.cache.save()
    assert [path.suffix for path in (tmp_path / "user" / "ard-fast" / "teacher-logits").glob("*.npz")] == [".npz"]
    assert expect_exact(teacher_of("auto")) == 1.0
    monkeypatch.setattr(caching, "_MEMORY_SHARE", 0.0)
    with pytest.warns(CacheWarning, match="teacher_cache: not used: .* more than half of the machine's memory"):
        assert expect_exact(teacher_of("auto")) is None


def test_a_table_is_written_again_when_an_eighth_of_it_is_new(tmp_path):
    teacher = teacher_of(tmp_path)
    teacher.open_cache().save()
    assert list(tmp_path.iterdir()) == []  # nothing is known
    expect_exact(teacher, 1)
    teacher.cache.save()
    before = teacher.cache.path.stat().st_mtime_ns
    teacher.cache.save()
    assert teacher.cache.path.stat().st_mtime_ns == before
    expect_exact(teacher, 2)
    teacher.cache.save()
    assert teacher.cache.path.stat().st_mtime_ns > before


def damaged(content):
    """Bytes of a file that must not be used, by what happened to it."""
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    return {"cut": content[: len(content) // 2], "flipped": bytes(flipped), "text": b"import os", "empty": b""}


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty"])
def test_a_damaged_file_is_reported_and_replaced(tmp_path, damage):
    path = fill(tmp_path)
    path.write_bytes(damaged(path.read_bytes())[damage])
    teacher = teacher_of(tmp_path)
    with pytest.warns(CacheWarning, match=rf"{path} is not used and will be replaced") as caught:
        expect_exact(teacher)
    assert len(caught) == 1
    teacher.cache.save()
    assert expect_exact(teacher_of(tmp_path)) == 1.0  # and is whole again


def rewrite(path, **changes):
    with np.load(path) as file:
        content = {**file, **changes}
    with open(path, "wb") as file:
        np.savez(file, **content)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("key", "belongs to another teacher or other images"),
        ("logits", "does not hold this teacher's logits"),
        ("view", "does not hold this teacher's logits"),
        ("rows", "holds logits"),
        ("object", "allow_pickle"),
    ],
)
def test_a_file_of_another_teacher_or_other_views_is_reported_and_not_used(tmp_path, change, why):
    path, theirs = fill(tmp_path / "mine"), fill(tmp_path / "theirs", network(7))
    with np.load(theirs) as file, np.load(path) as mine:
        other, rows = file["values"], mine["rows"]
    changes = {
        "key": {"key": np.array("another")},
        "logits": {"values": other},  # the code of the network has changed, say
        "view": {"rows": rows ^ 1},  # the mirrored views
        "rows": {"rows": rows - rows.max()},
        "object": {"values": np.array([print], dtype=object)},
    }
    rewrite(path, **changes[change])
    with pytest.warns(CacheWarning, match=f"will be replaced .*{why}"):
        expect_exact(teacher_of(tmp_path / "mine"))


@pytest.mark.parametrize("failure", ["full disk", "no folder"])
def test_a_file_that_cannot_be_written_is_reported_once(tmp_path, monkeypatch, failure):
    if failure == "full disk":

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "replace", full)
    else:
        (tmp_path / "file").touch()
    teacher = teacher_of(tmp_path / "file" / "below" if failure == "no folder" else tmp_path)
    expect_exact(teacher)
    with pytest.warns(
        CacheWarning, match="teacher_cache: cannot write .*: later runs compute|teacher_cache: cannot"
    ) as caught:
        teacher.cache.save()
        teacher.cache.save()
    assert len(caught) == 1 and expect_exact(teacher) == 1.0


def test_a_later_run_finds_what_the_first_one_saved(tmp_path):
    save_weights(tmp_path / "t.safetensors", network(), name="digits-teacher", num_classes=CLASSES, in_channels=1)
    arrays = split(), split(20)
    content = {f"{kind}_{part}": value for part, each in zip(("train", "test"), arrays, strict=True)
               for kind, value in (("x", each.images), ("y", torch.arange(len(each)) % CLASSES))}  # fmt: skip
    np.savez(tmp_path / "data.npz", **content)
    arguments = ["--method", "kd", "--dataset", "npz", "--data-dir", str(tmp_path / "data.npz"), "--val-size", "10"]
    arguments += ["--student", "digits-student", "--teacher", str(tmp_path / "t.safetensors"), "--epochs", "1"]
    arguments += ["--val-steps", "1", "--teacher-cache", str(tmp_path / "cache")]
    hits, weights = [], []
    for run in ("first", "second"):
        assert train([*arguments, "--out", str(tmp_path / run)]) == 0
        hits.append(json.loads((tmp_path / run / "metrics.jsonl").read_text())["teacher_cache_hits"])
        weights.append(load_file(tmp_path / run / "last.safetensors"))
    assert hits == [0.0, 1.0]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_without_views_or_a_cache_the_network_is_asked(tmp_path):
    net, batch = network(), next(batches(1))
    teacher, plain = teacher_of(tmp_path / "cache"), Teacher(net)
    bare = replace(batch, views=None)
    assert torch.equal(teacher.clean(bare), teacher(batch.x))
    assert teacher.report() == {} and not (tmp_path / "cache").exists()
    with torch.no_grad():
        assert torch.equal(plain.clean(batch), net(batch.x))
    assert plain.conventions() == [] and plain.network is net


def test_logits_that_depend_on_the_batch_are_not_kept():
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Flatten(), nn.Linear(4 * 6 * 6, CLASSES)).eval()
    teacher = teacher_of("auto", net, padding=0, flip=False)
    for batch in batches(2, padding=0, flip=False):  # each image twice, among others
        torch.testing.assert_close(teacher.clean(batch), net(batch.x))


def test_on_the_device(device, tmp_path):
    """On a GPU, whose kernels may differ between batch sizes, equal up to rounding; a hit repeats a miss exactly."""
    net = network().to(device)
    plain, cached = teacher_of("off", net), teacher_of(tmp_path, net)
    for batch in batches(2, device=device):
        first = cached.clean(batch)
        torch.testing.assert_close(first, plain.clean(batch), rtol=1e-4, atol=1e-5)
        assert torch.equal(cached.clean(batch), first)
    cached.cache.save()
    assert torch.equal(teacher_of(tmp_path, net).clean(batch), first)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache_dtype": "float16"}, "unknown teacher_cache_dtype 'float16'; did you mean 'fp16'"),
        ({"precision": "fp64"}, "teacher_precision: expected one of fp32, bf16, got 'fp64'"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        teacher_of("auto", **settings)
