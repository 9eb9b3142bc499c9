"""CIFAR and MNIST from the published files: every layout, the held-out images, damaged and hostile files."""

import gzip
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from cifar_files import SETS, fake_cifar
from mnist_files import fake_mnist

from ard_fast.data import load_dataset
from ard_fast.data.official import CIFAR10_CLASSES, CIFAR100_CLASSES
from ard_fast.data.official import IDX_FILES as FILES

IMAGES, LABELS = FILES[:2]


def load(data_dir, name="cifar10", val_size=20, **settings):
    return load_dataset(name, data_dir=data_dir, val_size=val_size, **settings)


def made(name, root, layout):
    """Files of a data set; (training images [N, pixels], labels, test images, labels) as written."""
    if name in SETS:
        *train, test = fake_cifar(root, 40 if name == "cifar10" else 200, layout, name=name).values()
        return *(np.concatenate(parts) for parts in zip(*train, strict=True)), *test
    content = fake_mnist(root / layout.removesuffix(".gz"), packed=layout.endswith(".gz"))
    arrays = [content[file] for file in FILES]
    return arrays[0].reshape(60, -1), arrays[1], arrays[2].reshape(60, -1), arrays[3]


@pytest.mark.parametrize(
    ("name", "layout", "shape", "classes"),
    [
        ("cifar10", "bin", (3, 32, 32), 10),
        ("cifar10", "py", (3, 32, 32), 10),
        ("cifar100", "bin", (3, 32, 32), 100),
        ("cifar100", "py", (3, 32, 32), 100),
        ("mnist", "MNIST/raw", (1, 28, 28), 10),
        ("mnist", "mnist.gz", (1, 28, 28), 10),
        ("mnist", ".", (1, 28, 28), 10),
        ("fashion-mnist", "FashionMNIST/raw.gz", (1, 28, 28), 10),
    ],
)
def test_the_written_pixels_and_labels_come_back(tmp_path, name, layout, shape, classes):
    images, labels, test_images, test_labels = made(name, tmp_path, layout)
    data = load(tmp_path, name, val_size=2 * classes if classes == 10 else 100)
    assert data.name == name and data.image_shape == shape and data.levels == 255
    assert data.num_classes == len(data.class_names) == classes
    assert sorted([*data.train.ids.tolist(), *data.val.ids.tolist()]) == list(range(len(labels)))
    assert len(set(torch.bincount(data.val.labels).tolist())) == 1  # as many of each class
    for split in (data.train, data.val):
        assert np.array_equal(split.images.numpy().reshape(len(split), -1), images[split.ids.numpy()])
        assert np.array_equal(split.labels.numpy(), labels[split.ids.numpy()])
    assert np.array_equal(data.test.images.numpy().reshape(len(data.test), -1), test_images)
    assert np.array_equal(data.test.labels.numpy(), test_labels)
    assert data.test.images.dtype == torch.uint8 and data.test.labels.dtype == torch.int64


def test_class_names_are_in_the_official_order():
    assert len(set(CIFAR100_CLASSES)) == 100 and list(CIFAR100_CLASSES) == sorted(CIFAR100_CLASSES)
    assert [CIFAR100_CLASSES[k] for k in (0, 49, 99)] == ["apple", "mountain", "worm"]
    assert len(CIFAR10_CLASSES) == 10 and CIFAR10_CLASSES[3] == "cat"


def test_the_folder_of_a_layout_may_be_named_and_data_sets_lie_side_by_side(tmp_path):
    fake_cifar(tmp_path, layout="py")
    assert len(load(tmp_path / "cifar-10-batches-py").train) == 180
    contents = {"mnist": fake_mnist(tmp_path / "MNIST/raw", seed=1)}
    contents["fashion-mnist"] = fake_mnist(tmp_path / "FashionMNIST/raw", seed=2)
    for name, last in (("mnist", "9"), ("fashion-mnist", "Ankle boot")):
        data = load(tmp_path, name)
        assert np.array_equal(data.test.images[:, 0].numpy(), contents[name][FILES[2]]) and data.class_names[9] == last


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_one_split_needs_its_own_files_only(tmp_path, name):
    made(name, tmp_path, "bin" if name == "cifar10" else ".")
    for path in list(tmp_path.rglob("*data_batch_*")) + [tmp_path / file for file in FILES[:2]]:
        path.unlink(missing_ok=True)
    data = load_dataset(name, data_dir=tmp_path, only="test")
    assert (len(data.train), len(data.val)) == (0, 0) and len(data.test) in (40, 60)
    with pytest.raises(FileNotFoundError, match=r"missing|no train-images"):
        load(tmp_path, name)


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("cifar10", {"data_dir": None}, ValueError, "data_dir: cifar10 needs --data-dir, the folder that holds cifar-"),
        ("mnist", {"data_dir": None}, ValueError, "data_dir: mnist needs --data-dir, the folder that holds MNIST/raw/"),
        (
            "cifar10",
            {"data_dir": "nowhere"},
            FileNotFoundError,
            "no cifar-10-batches-bin/ or .*no such folder.*--downl",
        ),
        (
            "cifar100",
            {"data_dir": "empty"},
            FileNotFoundError,
            "cifar-100-python/ in .*folder exists.*CIFAR-100 archive",
        ),
        ("mnist", {"data_dir": "empty"}, FileNotFoundError, "no train-images-idx3-ubyte .*folder exists.*MNIST/raw"),
        ("cifar10", {"val_size": 9}, ValueError, "val_size: expected 10 to 190 for 200 training images, got 9"),
        ("cifar10", {"val_size": 191}, ValueError, "val_size: expected 10 to 190 for 200 training images, got 191"),
        ("cifar10", {"only": "tset"}, ValueError, "only: unknown split 'tset'; did you mean 'test'"),
    ],
)
def test_what_is_missing_or_wrong_is_reported(tmp_path, monkeypatch, name, settings, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    fake_cifar(tmp_path)
    with pytest.raises(error, match=message):
        load_dataset(name, **{"data_dir": tmp_path, **settings})


# ---- damaged and hostile files ------------------------------------------------------------------------------------


class Malicious:
    """Calls `os.mkdir("ran")` when plain pickle loads it."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def batch(**changes):
    """A python batch of two images."""
    return pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 7], **changes}, protocol=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a CIFAR batch"),
        (b"not a pickle", "not a CIFAR batch"),
        (batch()[:-1], "not a CIFAR batch"),
        (batch()[:3000], "not a CIFAR batch"),
        (pickle.dumps([1, 2], 2), r"expected b'data' as uint8 \[N, 3072\], got NoneType"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.float32)}, 2), "an array of 'f4', expected uint8"),
        (pickle.dumps({b"data": np.zeros((2, 100), np.uint8)}, 2), r"got uint8 \[2, 100\]"),
        (pickle.dumps({b"data": np.zeros((3, 3072), np.uint8), b"labels": [1, 2]}, 2), "a list of 3, got list of 2"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 10]}, 2), r"whole numbers 0\.\.9"),
        (pickle.dumps({b"data": Malicious(), b"labels": []}, 2), r"refused to load (posix|nt)\.mkdir"),
        (pickle.dumps(Malicious(), 5), "refused to load"),
        (b"cnumpy\n_reconstruct\n(cnumpy\nload\ntR.", r"refused to load numpy\.load"),
        (b"c_codecs\nencode\n(Vab\nVzip\ntR.", "refused to encode as 'zip'"),
    ],
)
def test_damaged_and_hostile_pickles_are_reported_and_run_nothing(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    fake_cifar(tmp_path, layout="py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").write_bytes(content)
    with pytest.raises(ValueError, match="data_batch_4.*" + message):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_pickles_of_either_python_and_numpy_are_read(tmp_path):
    """The published files were written by Python 2, whose strings are bytes; newer NumPy calls its parts otherwise."""
    content = fake_cifar(tmp_path, layout="py")
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    images, labels = content["test_batch"]
    fortran = pickle.dumps({b"data": np.asfortranarray(images), b"labels": labels.tolist()}, 4)
    for raw in (
        fortran,
        pickle.dumps({b"data": images, b"labels": labels.tolist()}, 2).replace(b"numpy._core", b"numpy.core"),
    ):
        path.write_bytes(raw)
        assert np.array_equal(load(tmp_path).test.images.numpy().reshape(40, -1), images)


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("cifar10", "data_batch_2.bin", lambda raw: raw[:-1], "122919 bytes is not a positive multiple of 3073"),
        ("cifar10", "data_batch_2.bin", lambda raw: b"", "0 bytes"),
        ("cifar10", "data_batch_2.bin", lambda raw: b"\x0a" + raw[1:], r"labels must be 0\.\.9, found 10"),
        ("cifar100", "test.bin", lambda raw: b"\0d" + raw[2:], r"0\.\.99, found 100; this is not a CIFAR-100 file"),
    ],
)
def test_damaged_binary_files_are_reported(tmp_path, name, file, change, message):
    made(name, tmp_path, "bin")
    (path,) = tmp_path.rglob(file)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{file}: .*{message}"):
        load(tmp_path, name, val_size=100)


def header(*sizes):
    return bytes((0, 0, 8, len(sizes))) + struct.pack(f">{len(sizes)}I", *sizes)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (IMAGES, b"", "expected it to begin with 00000803, got nothing"),
        (IMAGES, header(60, 28, 28)[:9], "not a whole IDX file"),
        (LABELS, header(60, 28, 28), "expected it to begin with 00000801, got 00000803"),
        (IMAGES, header(0, 28, 28), r"expected N x 28 x 28 with N above 0, got \[0, 28, 28\]"),
        (IMAGES, header(60, 32, 32) + bytes(60 * 1024), r"got \[60, 32, 32\]"),
        (IMAGES, header(60, 28, 28) + bytes(60 * 784 - 1), "its header promises 47040 bytes, it holds 47039"),
        (IMAGES, header(60, 28, 28) + bytes(60 * 784 + 1), "its header promises 47040 bytes, it holds 47041"),
        (IMAGES, header(59, 28, 28) + bytes(59 * 784), "59 images, but .*labels.* has 60 labels"),
        (LABELS, header(60) + bytes(59) + b"\x0a", r"labels must be 0\.\.9, found 10"),
    ],
)
def test_idx_files_that_lie_are_reported(tmp_path, file, content, message, packed):
    fake_mnist(tmp_path, packed=packed)
    path = tmp_path / (file + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path, "mnist")
    assert str(path) in str(caught.value)


def test_a_packed_file_cut_short_and_a_missing_one_are_reported(tmp_path):
    fake_mnist(tmp_path, packed=True)
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{path}: not a whole IDX file"):
        load(tmp_path, "mnist")
    (tmp_path / f"{LABELS}.gz").unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=r"not a whole IDX|train-labels-idx1-ubyte \(or \.gz\)"):
        load(tmp_path, "mnist")
