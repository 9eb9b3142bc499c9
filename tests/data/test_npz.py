"""`.npz` files: layouts, labels, and files that are damaged or hostile."""

import os
import zipfile

import numpy as np
import pytest
import torch

from ard_fast.data import load_dataset


def arrays(count=24, shape=(6, 6), classes=3, **changes):
    rng = np.random.default_rng(0)
    made = {}
    for part in ("train", "test"):
        made[f"x_{part}"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        made[f"y_{part}"] = np.arange(count) % classes
    made.update(changes)
    return {name: value for name, value in made.items() if value is not None}


def save(tmp_path, content, compressed=False):
    path = tmp_path / "data.npz"
    (np.savez_compressed if compressed else np.savez)(path, **content)
    return path


def load(path):
    return load_dataset("npz", data_dir=path, val_size=6)


@pytest.mark.parametrize(
    ("shape", "image_shape", "labels", "compressed"),
    [
        ((6, 5), (1, 6, 5), np.uint8, False),
        ((6, 5, 3), (3, 6, 5), np.int32, True),
        ((3, 6, 5), (3, 6, 5), np.uint64, False),
        ((6, 5, 1), (1, 6, 5), ">i4", False),
        ((1, 6, 5), (1, 6, 5), np.int64, False),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_layouts_and_label_types(tmp_path, shape, image_shape, labels, compressed, order):
    content = {name: np.asarray(value, order=order) for name, value in arrays(shape=shape).items()}
    content = {name: value.astype(labels) if name[0] == "y" else value for name, value in content.items()}
    data = load(save(tmp_path, content, compressed))
    assert data.image_shape == image_shape and data.num_classes == 3 and data.levels == 255
    assert data.class_names == ("0", "1", "2")
    assert (len(data.train), len(data.val), len(data.test)) == (18, 6, 24)
    assert sorted([*data.train.ids.tolist(), *data.val.ids.tolist()]) == list(range(24))
    for split, part in ((data.train, "train"), (data.val, "train"), (data.test, "test")):
        expected = content[f"x_{part}"][split.ids.numpy()]
        if expected.ndim == 4 and shape[2] == image_shape[0]:
            expected = expected.transpose(0, 3, 1, 2)
        assert np.array_equal(split.images.numpy(), expected.reshape(-1, *image_shape))
        assert split.images.is_contiguous() and split.labels.dtype == torch.int64
        assert np.array_equal(split.labels.numpy(), content[f"y_{part}"][split.ids.numpy()])


def test_validation_images_of_the_file_are_taken(tmp_path):
    extra = arrays(count=9)
    data = load(save(tmp_path, arrays(x_val=extra["x_train"], y_val=extra["y_train"])))
    assert (len(data.train), len(data.val)) == (24, 9)
    assert np.array_equal(data.val.images[:, 0].numpy(), extra["x_train"])


@pytest.mark.parametrize(("count", "held_out"), [(9, 3), (240, 24), (12_000, 999)])
def test_a_tenth_of_a_small_set_is_held_out(tmp_path, count, held_out):
    data = load_dataset("npz", data_dir=save(tmp_path, arrays(count=count, shape=(2, 2))))
    assert (len(data.train), len(data.val)) == (count - held_out, held_out)


@pytest.mark.parametrize(
    ("kept", "only", "counts", "known"),
    [
        (("x_test", "y_test"), "test", (0, 0, 24), False),
        (("x_test", "y_test", "y_train"), "test", (0, 0, 24), True),
        (("x_val", "y_val"), "val", (0, 24, 0), False),
        (("x_train", "y_train"), "val", (0, 3, 0), True),
        (("x_train", "y_train"), "train", (21, 0, 0), True),
    ],
)
def test_one_split_needs_its_own_arrays_only(tmp_path, kept, only, counts, known):
    content = arrays(x_val=arrays()["x_test"], y_val=arrays()["y_test"])
    path = save(tmp_path, {name: content[name] for name in kept})
    data = load_dataset("npz", data_dir=path, only=only)
    assert (len(data.train), len(data.val), len(data.test)) == counts
    assert (data.num_classes, data.classes_known, data.image_shape) == (3, known, (1, 6, 6))
    with pytest.raises(ValueError, match=r"x_\w+ is missing; the file holds"):
        load_dataset("npz", data_dir=path)


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(ValueError, match=r"data_dir: npz needs --data-dir, the path of an \.npz file"):
        load_dataset("npz")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load(tmp_path / "none.npz")
    save(tmp_path, arrays())
    with pytest.raises(FileNotFoundError, match=r"it is a folder with data\.npz"):
        load(tmp_path)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("ran",)


small = np.zeros(24, int)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "x_test is missing; the file holds x_train, y_test, y_train"),
        ({"x_val": np.zeros((3, 6, 6), np.uint8)}, "y_val is missing"),
        ({"x_train": np.zeros((24, 6, 6), np.float32)}, "x_train: expected uint8 images, 0 to 255, got float32"),
        ({"x_train": np.zeros((24, 36), np.uint8)}, r"x_train: expected \[N, H, W\], .*got uint8 \[24, 36\]"),
        ({"x_train": np.zeros((24, 3, 6, 3), np.uint8)}, "x_train must be .*both ends could be the channels"),
        ({"x_train": np.zeros((24, 4, 6, 6), np.uint8)}, "x_train must be .*neither end has 1 or 3 channels"),
        ({"x_train": np.zeros((0, 6, 6), np.uint8)}, "x_train: expected at least one image"),
        ({"x_test": np.zeros((24, 7, 6), np.uint8)}, r"images of one shape .*'test': \(1, 7, 6\)"),
        ({"y_train": small == 0}, "y_train: expected whole-numbered labels, got bool"),
        ({"y_train": np.eye(24, dtype=int)}, r"y_train: expected one label an image, \[N\], got int64 \[24, 24\]"),
        ({"y_train": np.arange(23) % 3}, r"y_train must hold one label for each of the 24 images .*got \[23\]"),
        ({"y_train": np.arange(24) % 3 - 1}, "y_train must hold labels from 0 on, found -1"),
        ({"y_train": np.full(24, 2**64 - 1, np.uint64)}, "y_train must hold labels from 0 on, found -1"),
        ({"y_train": np.arange(24) % 3 + 1}, "y_train must hold every class from 0 to the highest, 3; class 0 is"),
        ({"y_train": small}, "at least 2 classes"),
        ({"y_test": np.arange(24) % 4}, "y_test holds class 3, y_train only 0 to 2"),
        ({"x_train": np.array([Malicious()], object)}, "not a whole .npz file .*allow_pickle"),
    ],
)
def test_arrays_that_do_not_fit_are_reported(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, arrays(**changes))
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value) and os.listdir() == ["data.npz"]


def test_settings_are_held_against_the_file(tmp_path):
    path = save(tmp_path, arrays(y_test=np.arange(24) % 4))
    with pytest.raises(ValueError, match="y_test holds class 3, y_train only 0 to 2"):
        load_dataset("npz", data_dir=path, only="test")
    with pytest.raises(ValueError, match="val_size: expected 3 to 21 for 24 training images, got 1000"):
        load_dataset("npz", data_dir=save(tmp_path, arrays()), val_size=1000)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "header"])
@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files_are_reported(tmp_path, damage, compressed):
    path = save(tmp_path, arrays(), compressed)
    whole = path.read_bytes()
    if damage == "header":  # it claims more images than there are
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        members["x_train.npy"] = members["x_train.npy"].replace(b"(24, 6, 6)", b"(99, 6, 6)")
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        middle = len(whole) // 4
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        path.write_bytes({"empty": b"", "text": b"hello", "cut": whole[: len(whole) // 2], "flipped": flipped}[damage])
    with pytest.raises(ValueError, match=rf"{path}: not a whole \.npz file \(") as raised:
        load(path)
    assert "unsafely" not in str(raised.value)  # NumPy's advice for what it takes for a pickle
