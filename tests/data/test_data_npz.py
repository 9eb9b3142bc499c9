"""`.npz` files: layouts, labels, and files that are damaged or lie."""

import io
import os
import struct
import tracemalloc
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


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("labels", [np.uint8, np.int32, np.int64, np.uint64, ">i4"])
@pytest.mark.parametrize(
    ("shape", "image_shape"),
    [((6, 5), (1, 6, 5)), ((6, 5, 3), (3, 6, 5)), ((3, 6, 5), (3, 6, 5)), ((6, 5, 1), (1, 6, 5)), ((1, 6, 5),) * 2],
)
def test_layouts_and_label_types(tmp_path, shape, image_shape, labels, compressed):
    content = {name: value.astype(labels) if name[0] == "y" else value for name, value in arrays(shape=shape).items()}
    data = load(save(tmp_path, content, compressed))
    assert data.image_shape == image_shape and data.num_classes == 3 and data.levels == 255
    assert data.class_names == ("0", "1", "2")
    assert (len(data.train), len(data.val), len(data.test)) == (18, 6, 24)
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


def test_fortran_order_is_read(tmp_path):
    content = arrays(shape=(6, 5, 3))
    content["x_train"] = np.asfortranarray(content["x_train"])
    data = load(save(tmp_path, content))
    expected = content["x_train"].transpose(0, 3, 1, 2)[data.train.ids.numpy()]
    assert np.array_equal(data.train.images.numpy(), expected)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"data_dir: npz needs --data-dir, the path of an \.npz file"):
        load_dataset("npz")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load(tmp_path / "none.npz")
    save(tmp_path, arrays())
    with pytest.raises(FileNotFoundError, match=r"it is a folder with data\.npz"):
        load(tmp_path)


small = np.zeros(24, int)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "x_test is missing; the file holds x_train, y_test, y_train"),
        ({"y_train": None}, "y_train is missing"),
        ({"x_val": np.zeros((3, 6, 6), np.uint8)}, "y_val is missing"),
        ({"x_train": np.zeros((24, 6, 6), np.float32)}, "x_train: expected uint8 images, 0 to 255, got float32"),
        ({"x_train": np.zeros((24, 36), np.uint8)}, r"x_train: expected \[N, H, W\], .*got \[24, 36\]"),
        ({"x_train": np.zeros((24, 3, 6, 3), np.uint8)}, "x_train must be .*both ends could be the channels"),
        ({"x_train": np.zeros((24, 1, 6, 3), np.uint8)}, "x_train must be .*both ends could be the channels"),
        ({"x_train": np.zeros((24, 4, 6, 6), np.uint8)}, "x_train must be .*neither end has 1 or 3 channels"),
        ({"x_train": np.zeros((0, 6, 6), np.uint8)}, "x_train: expected at least one image"),
        ({"x_train": np.zeros((24, 0, 6), np.uint8)}, "x_train: expected at least one image of at least one pixel"),
        ({"x_test": np.zeros((24, 7, 6), np.uint8)}, r"images of one shape .*'test': \(1, 7, 6\)"),
        ({"x_test": np.zeros((24, 6, 6, 3), np.uint8)}, r"images of one shape .*'test': \(3, 6, 6\)"),
        ({"y_train": small + 0.0}, "y_train: expected whole-numbered labels, got float64"),
        ({"y_train": small == 0}, "y_train: expected whole-numbered labels, got bool"),
        ({"y_train": np.eye(24, dtype=int)}, r"y_train: expected one label an image, \[N\], got \[24, 24\]"),
        ({"y_train": np.arange(23) % 3}, r"y_train must hold one label for each of the 24 images .*got \[23\]"),
        ({"y_train": np.arange(24) % 3 - 1}, "y_train must hold labels from 0 on, found -1"),
        ({"y_train": np.full(24, 2**64 - 1, np.uint64)}, "y_train must hold labels from 0 on, found -1"),
        ({"y_train": np.arange(24) % 3 + 1}, "y_train must hold every class from 0 to the highest, 3; class 0 is"),
        ({"y_train": np.arange(24) % 3 * 10**12}, "every class from 0 to the highest, 2000000000000; class 1 is"),
        ({"y_train": small}, "at least 2 classes"),
        ({"y_test": np.arange(24) % 4}, "y_test holds class 3, y_train only 0 to 2"),
        ({"y_test": small - 1}, "y_test must hold labels from 0 on, found -1"),
    ],
)
def test_arrays_that_do_not_fit_are_said(tmp_path, changes, message):
    path = save(tmp_path, arrays(**changes))
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_val_size_must_leave_images_on_both_sides(tmp_path):
    with pytest.raises(ValueError, match="val_size: expected 3 to 21 for 24 training images, got 1000"):
        load_dataset("npz", data_dir=save(tmp_path, arrays()), val_size=1000)


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


def test_labels_of_one_split_are_held_against_the_training_labels(tmp_path):
    path = save(tmp_path, arrays(y_test=np.arange(24) % 4))
    with pytest.raises(ValueError, match="y_test holds class 3, y_train only 0 to 2"):
        load_dataset("npz", data_dir=path, only="test")
    with pytest.raises(ValueError, match="only: unknown split 'tset'; did you mean 'test'"):
        load_dataset("npz", data_dir=path, only="tset")


# ---- Hostile files ------------------------------------------------------------------------------------------------


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def npy(array=None, *, shape=None, descr="|u1", content=b"", version=(1, 0)):
    """The bytes of an .npy file: of an array, or with a header that says what it likes."""
    if array is not None:
        file = io.BytesIO()
        np.save(file, array, allow_pickle=True)
        return file.getvalue()
    text = (f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}\n").encode("latin1")
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text + content


def write_zip(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def with_member(path, name, content, **changes):
    members = {f"{key}.npy": npy(value) for key, value in arrays().items()}
    return write_zip(path / "data.npz", {**members, f"{name}.npy": content}.items(), **changes)


@pytest.mark.parametrize("name", ["x_train", "y_train"])
def test_pickled_objects_are_refused_and_not_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"{name}: expected .*got object"):
        load(with_member(tmp_path, name, npy(np.array([Malicious()] * 24))))
    assert os.listdir() == ["data.npz"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(shape="(1000000000000, 32, 32)"), "x_train: its header promises 1024000000000000 bytes, the file has 0"),
        (npy(shape="(9223372036854775807, 9223372036854775807, 3)"), "x_train: its header promises 2552"),
        (npy(shape="(24, 6, -6)", content=bytes(864)), "x_train: expected at least one image"),
        (npy(shape="(24, 6, 6)", content=bytes(863)), "promises 864 bytes, the file has 863"),
        (npy(shape="(24, 6, 6)", content=bytes(865)), "promises 864 bytes, the file has 865"),
        (npy(shape="(24, 6.0, 6)", content=bytes(864)), "not a whole .npz file .*shape"),
        (npy(shape="__import__('os').mkdir('ran')"), "not a whole .npz file"),
        (npy(shape="(" * 2000), "not a whole .npz file"),
        (npy(shape="(24, 6, 6)" + " " * 20000, content=bytes(864)), "not a whole .npz file .*large"),
        (npy(shape="(24, 6, 6)", descr="nonsense"), "not a whole .npz file .*descr"),
        (npy(shape="(24, 6, 6)", content=bytes(864), version=(9, 0)), r"unknown \.npy version \(9, 0\)"),
        (b"", "not a whole .npz file"),
        (b"\x93NUMPY\x01\x00\xff", "not a whole .npz file"),
        (b"not numpy's", "not a whole .npz file .*magic"),
    ],
)
def test_headers_that_lie_cost_nothing(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = with_member(tmp_path, "x_train", content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value) and os.listdir() == ["data.npz"]


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    count = 1 << 14
    content = npy(shape=f"({count}, 128, 128)", content=bytes(count << 14))  # 256 MiB in 260 kB
    path = with_member(tmp_path, "x_train", content)
    assert path.stat().st_size < 1 << 20
    del content
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"would unpack to 268.*images do not pack that well"):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_members_whose_sizes_lie_are_said(tmp_path):
    """The central directory says what the reader believes; the packed data hold something else."""
    path = with_member(tmp_path, "x_train", npy(arrays()["x_train"]))
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo("x_train.npy").file_size
    place = whole.rindex(b"x_train.npy") - 46 + 24  # its unpacked size in the central directory
    assert struct.unpack_from("<I", whole, place)[0] == size
    for lie in (0, 1, size - 1, size + 1, 2**31):
        path.write_bytes(whole[:place] + struct.pack("<I", lie) + whole[place + 4 :])
        with pytest.raises(ValueError, match=r"data\.npz: "):
            load(path)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_name_held_twice_is_refused(tmp_path):
    members = [(f"{key}.npy", npy(value)) for key, value in arrays().items()]
    path = write_zip(tmp_path / "data.npz", [*members, members[0]])
    with pytest.raises(ValueError, match="x_train is in the file 2 times"):
        load(path)


def test_other_packings_are_refused(tmp_path):
    path = with_member(tmp_path, "x_train", npy(arrays()["x_train"]), method=zipfile.ZIP_LZMA)
    with pytest.raises(ValueError, match="packed by method 14, which NumPy does not write"):
        load(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_cut_short_anywhere_is_said(tmp_path, compressed):
    path = save(tmp_path, arrays(), compressed)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), len(whole) // 60), *range(len(whole) - 30, len(whole))]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"data\.npz: not a whole \.npz file"):
            load(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_random_damage_gives_an_error_or_nothing_worse(tmp_path, compressed):
    path = save(tmp_path, arrays(), compressed)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for trial in range(400):
        damaged = bytearray(whole)
        for _ in range(trial % 3 + 1):
            damaged[rng.integers(len(whole))] ^= rng.integers(1, 256)
        path.write_bytes(damaged)
        try:
            assert load(path).image_shape == (1, 6, 6)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 300
