"""Image folders: pixels, labels and splits; the cache on disk; damaged and hostile images."""

import os
import pickle
import resource
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from ard_fast.data import folder, load_dataset
from ard_fast.data.folder import decode

CLASSES = ("cat", "dog", "newt")


def picture(seed, size=(10, 8)):
    """A random RGB image of (width, height)."""
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def save(path, pixels, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **settings)


def make_folder(root, parts=("train", "test"), count=6, size=(10, 8)):
    """`count` random PNG files a class and part; returns {path: pixels}."""
    content = {}
    for part in parts:
        for name in CLASSES:
            for k in range(count):
                path = root / part / name / f"{k}.png"
                content[path] = picture(len(content), size)
                save(path, content[path])
    return content


def load(root, **settings):
    return load_dataset("folder", data_dir=root, **{"val_size": 6, **settings})


def cache_of(root):
    """The files of the only cache there is."""
    (folder,) = [entry for entry in (root / ".ard_fast_cache").iterdir() if entry.is_dir()]
    return folder


def names(folder):
    return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []


# ---- Pixels, labels, splits ---------------------------------------------------------------------------------------


def test_pixels_labels_and_ids_follow_the_files(tmp_path):
    content = make_folder(tmp_path)
    data = load(tmp_path)
    assert data.class_names == CLASSES and data.num_classes == 3 and data.levels == 255
    assert data.image_shape == (3, 8, 10)
    assert (len(data.train), len(data.val), len(data.test)) == (12, 6, 18)
    assert torch.bincount(data.val.labels).tolist() == [2, 2, 2]
    assert not set(data.train.ids.tolist()) & set(data.val.ids.tolist())
    for split, part in ((data.train, "train"), (data.val, "train"), (data.test, "test")):
        files = sorted(path for path in content if path.relative_to(tmp_path).parts[0] == part)
        for image, label, k in zip(split.images, split.labels, split.ids, strict=True):
            assert np.array_equal(image.numpy().transpose(1, 2, 0), content[files[k]])
            assert files[k].parent.name == CLASSES[label]


@pytest.mark.parametrize(
    ("parts", "counts"), [(("train", "val", "test"), (18, 18, 18)), (("train", "val"), (12, 6, 18))]
)
def test_a_folder_val_is_for_validation_or_the_test_split(tmp_path, parts, counts):
    content = make_folder(tmp_path, parts)
    data = load(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == counts
    split = data.val if "test" in parts else data.test
    assert np.array_equal(split.images[0].numpy().transpose(1, 2, 0), content[tmp_path / "val" / "cat" / "0.png"])


def test_deeper_files_are_found_and_others_passed_over(tmp_path):
    make_folder(tmp_path)
    save(tmp_path / "train" / "cat" / "images" / "z.JPEG", picture(1), format="JPEG")
    for stray in (
        "train/cat/notes.txt",
        "train/cat/._0.png",
        "train/.hidden/0.png",
        "train/cat/.x/0.png",
        "train/a.png",
    ):
        (tmp_path / stray).parent.mkdir(exist_ok=True)
        (tmp_path / stray).write_bytes(b"not an image")
    os.symlink(tmp_path / "train", tmp_path / "train" / "dog" / "circle")
    assert len(load(tmp_path).train) == 19 - 6


def test_a_class_that_is_absent_from_test_is_fine_but_not_the_reverse(tmp_path):
    make_folder(tmp_path)
    for file in (tmp_path / "test" / "cat").iterdir():
        file.unlink()
    (tmp_path / "test" / "cat").rmdir()
    assert sorted(set(load(tmp_path).test.labels.tolist())) == [1, 2]
    save(tmp_path / "test" / "zebra" / "0.png", picture(0))
    with pytest.raises(ValueError, match="test/zebra is a class that train does not have"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda root: os.rename(root / "train", root / "Train"), FileNotFoundError, "data_dir: no folder .*/train;"),
        (lambda root: os.rename(root / "test", root / "other"), FileNotFoundError, "no folder .*/test or .*/val"),
        (lambda root: (root / "train" / "ape").mkdir(), ValueError, "class folder .*/train/ape holds no image"),
        (
            lambda root: os.rename(root / "test", root / "train/cat/x") or (root / "test").mkdir(),
            ValueError,
            "no image .*",
        ),
        (lambda root: os.symlink("gone", root / "train/cat/x.png"), ValueError, "x.png cannot be read .No such file"),
    ],
    ids=range(5),
)
def test_folders_that_do_not_fit_are_reported(tmp_path, spoil, error, message):
    make_folder(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        load(tmp_path)
    assert not (tmp_path / ".ard_fast_cache").exists()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("folder", {}, r"data_dir: folder needs --data-dir, the folder that holds train/<class>/"),
        ("digits", {"image_size": 8}, "image_size: only for dataset folder, not digits"),
        ("digits", {"image_cache": "x"}, "image_cache: only for dataset folder, not digits"),
        ("folder", {"data_dir": ".", "image_size": 0}, "image_size: expected 1 to 4096 pixels or none, got 0"),
        ("folder", {"data_dir": ".", "val_size": 99}, "val_size: expected 3 to 15 for 18 training images, got 99"),
    ],
)
def test_bad_arguments_are_reported(tmp_path, monkeypatch, name, settings, message):
    make_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_dataset(name, **settings)


# ---- Decoding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "target"), [((16, 16), 16), ((32, 16), 8), ((16, 48), 20)])
def test_scaling_is_resize_then_centre_crop(tmp_path, size, target):
    pixels = picture(0, size)
    save(tmp_path / "x.png", pixels)
    whole = Image.fromarray(pixels).resize([side * target // 16 for side in size], Image.Resampling.BILINEAR)
    left, top = ((side - target) // 2 for side in whole.size)
    expected = np.asarray(whole)[top : top + target, left : left + target]
    got = decode(tmp_path / "x.png", target).transpose(1, 2, 0)
    assert np.abs(got.astype(int) - expected).max() <= 1  # Pillow rounds its weights


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    image = Image.fromarray(picture(0)).convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    assert np.array_equal(decode(path, None).transpose(1, 2, 0), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """Black but for a white quarter at the top left: where it is to be seen, by the EXIF standard's own table."""
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "x", "JPEG", exif=exif)
    turned = orientation >= 5  # rows become columns
    right, bottom = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    for size, expected in ((None, (32, 16) if turned else (16, 32)), (8, (8, 8))):
        got = decode(tmp_path / "x", size)
        assert got.shape == (3, *expected)
        if size is None:
            height, width = expected
            quarters = got.reshape(3, 2, height // 2, 2, width // 2).mean((0, 2, 4)) > 127
            assert quarters.sum() == 1 and quarters[int(bottom), int(right)]


def test_damaged_exif_is_no_reason_to_refuse_an_image(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "x.png", exif=b"Exif\0\0XXXXXXXX")
    assert np.array_equal(decode(tmp_path / "x.png", None).transpose(1, 2, 0), picture(0))


def test_other_depths_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"x\.tif: pixels of Pillow's mode I;16, expected 8 bits a channel"):
        decode(tmp_path / "x.tif", None)


def test_images_of_several_sizes_need_image_size(tmp_path):
    make_folder(tmp_path)
    save(tmp_path / "train" / "newt" / "0.png", picture(0, (9, 8)))
    with pytest.raises(
        ValueError, match=r"0\.png: 9 x 8 pixels, where the first image has 10 x 8; --image-size brings"
    ):
        load(tmp_path)
    assert load(tmp_path, image_size=5).image_shape == (3, 5, 5)


# ---- The cache ----------------------------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch):
    """The files decoded since."""
    seen = []

    def count(path, size):
        seen.append(path)
        return decode(path, size)

    monkeypatch.setattr(folder, "decode", count)
    return seen


def test_images_are_decoded_once(tmp_path, decoded):
    content = make_folder(tmp_path)
    first = load(tmp_path, image_size=8)
    assert sorted(decoded) == sorted(content)
    second = load(tmp_path, image_size=8)
    assert len(decoded) == 36
    for a, b in ((first.train, second.train), (first.val, second.val), (first.test, second.test)):
        assert torch.equal(a.images, b.images) and torch.equal(a.ids, b.ids)
    assert names(cache_of(tmp_path)) == ["test.npy", "train.npy", "val.npy"]
    expected = np.load(cache_of(tmp_path) / "train.npy")
    assert np.array_equal(expected, first.train.images.numpy())


@pytest.mark.parametrize(
    ("parts", "only", "counts"),
    [
        (("test",), "test", (0, 0, 18)),
        (("val",), "test", (0, 0, 18)),
        (("train",), "train", (15, 0, 0)),
        (("train",), "val", (0, 3, 0)),
        (("train", "val", "test"), "val", (0, 18, 0)),
    ],
)
def test_one_split_needs_its_own_files_only(tmp_path, decoded, parts, only, counts):
    make_folder(tmp_path, parts)
    data = load_dataset("folder", data_dir=tmp_path, image_size=8, only=only)
    assert (len(data.train), len(data.val), len(data.test)) == counts and len(decoded) == sum(counts)
    assert data.class_names == CLASSES and data.image_shape == (3, 8, 8)


def test_one_split_is_taken_from_the_cache_of_all(tmp_path, decoded):
    make_folder(tmp_path)
    whole = load(tmp_path, image_size=8)
    decoded.clear()
    for part in ("train", "val", "test"):
        alone = load(tmp_path, image_size=8, only=part)
        assert torch.equal(getattr(alone, part).images, getattr(whole, part).images)
        assert torch.equal(getattr(alone, part).ids, getattr(whole, part).ids)
    assert decoded == []
    (tmp_path / "train" / "ape").mkdir()  # training would be refused, and the test images are fine
    with pytest.raises(ValueError, match=r"class folder .*/train/ape holds no image"):
        load(tmp_path, image_size=8)
    assert len(load(tmp_path, image_size=8, only="test").test) == 18 and len(decoded) == 18
    with pytest.raises(FileNotFoundError, match=r"data_dir: no folder .*test/test; expected .*test/test/<class>"):
        load(tmp_path / "test", image_size=8, only="test")


def test_images_are_mapped_and_not_read(tmp_path):
    make_folder(tmp_path)
    load(tmp_path)
    data = load(tmp_path)
    with open("/proc/self/maps") as maps:
        mapped = [line for line in maps if str(cache_of(tmp_path)) in line]
    assert len(mapped) == 3 and all(" r--" in line for line in mapped)
    assert len(data.train) == 12  # held until here


@pytest.mark.parametrize("change", ["content", "time", "name", "gone", "image_size"])
def test_any_change_makes_the_cache_again(tmp_path, decoded, change):
    make_folder(tmp_path)
    load(tmp_path, image_size=8)
    file, settings = tmp_path / "train" / "dog" / "3.png", {"image_size": 8}
    if change == "content":
        state = file.stat()
        save(file, picture(99, (20, 20)))
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    elif change == "time":
        os.utime(file, ns=(1, 1))
    elif change == "name":
        os.rename(file, file.with_name("9.png"))
    elif change == "gone":
        file.unlink()
    else:
        settings[change] = 9
    decoded.clear()
    again = load(tmp_path, **settings)
    assert len(decoded) == len(again.train) + len(again.val) + len(again.test)


class Malicious:
    """Calls `os.mkdir("ran")` when plain pickle loads it."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("damage", ["gone", "short", "header", "shape", "pickle"])
def test_a_damaged_cache_is_made_again(tmp_path, monkeypatch, decoded, damage):
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path)
    kept = load(tmp_path)
    file = cache_of(tmp_path) / "val.npy"
    whole = file.read_bytes()
    file.unlink()
    if damage == "shape":
        np.save(file, np.zeros((3, 3, 8, 10), np.uint8))
    elif damage == "pickle":
        file.write_bytes(pickle.dumps(Malicious()))
    elif damage != "gone":
        file.write_bytes({"short": whole[:-1], "header": whole.replace(b"{", b"z", 1)}[damage])
    decoded.clear()
    again = load(tmp_path)
    assert len(decoded) >= 36 and file.read_bytes() == whole and not (tmp_path / "ran").exists()
    assert torch.equal(again.train.images, kept.train.images) and torch.equal(again.test.images, kept.test.images)


def test_another_folder_may_hold_the_cache(tmp_path, decoded):
    make_folder(tmp_path / "data")
    load(tmp_path / "data", image_cache=tmp_path / "cache" / "here")
    assert names(tmp_path / "data") == ["test", "train"]
    assert len(names(tmp_path / "cache" / "here")) == 2  # the arrays and the lock
    load(tmp_path / "data", image_cache=tmp_path / "cache" / "here")
    assert len(decoded) == 38  # both times the first image also gives the size


def test_of_several_processes_one_decodes(tmp_path, decoded):
    make_folder(tmp_path)
    with ThreadPoolExecutor(4) as pool:  # the lock holds between file handles, so threads stand for processes
        loaded = list(pool.map(lambda _: load(tmp_path, image_size=8), range(4)))
    assert len(decoded) == 36
    assert all(torch.equal(data.train.images, loaded[0].train.images) for data in loaded)


def test_a_full_disk_leaves_no_cache(tmp_path, decoded):
    make_folder(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        expected = r"File too large, so the decoded images cannot be kept; --image-cache names another folder"
        with pytest.raises(OSError, match=expected):
            load(tmp_path, image_size=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert decoded == []  # said before the work, not after it
    assert [name for name in names(tmp_path / ".ard_fast_cache") if not name.endswith(".lock")] == []
    assert len(load(tmp_path, image_size=8).train) == 12


# ---- Damaged and hostile images -----------------------------------------------------------------------------------


def png(width, height, rows=b""):
    """A PNG file that claims a size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot identify it as an image"),
        (png(10, 8)[:20], "Truncated File Read"),
        (png(10, 8), "image file is truncated"),
        (png(9_000, 9_000), "9000 x 9000 pixels, more than 67108864"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 8\n(ran) (w) file\n", "cannot identify it as an image"),
        (b"P6\n100000 100000\n255\n", "pixels"),
    ],
)
def test_damaged_and_hostile_images_are_named(tmp_path, content, message):
    make_folder(tmp_path)
    bad = tmp_path / "train" / "dog" / "4.png"
    bad.write_bytes(content)
    with pytest.raises(ValueError, match=rf"data_dir: 1 images cannot be used:\n  {bad}: .*({message})"):
        load(tmp_path)
    assert [name for name in names(tmp_path / ".ard_fast_cache") if not name.endswith(".lock")] == []


def test_a_thin_image_is_not_scaled_whole(tmp_path):
    save(tmp_path / "x.png", np.full((1, 1_000_000, 3), 7, np.uint8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (decode(tmp_path / "x.png", 256) == 7).all()  # 256 x 256,000,000 if scaled before it is cropped
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18


def test_up_to_ten_damaged_images_are_named(tmp_path):
    content = make_folder(tmp_path)
    for path in content:
        path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"data_dir: 10 or more images cannot be used:") as caught:
        load(tmp_path, image_size=8)
    assert str(caught.value).count("\n") == 10
