"""MNIST and Fashion-MNIST from IDX files: layouts, and files that are damaged or lie."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from mnist_files import fake_mnist

from ard_fast.data import load_dataset
from ard_fast.data.mnist import FILES

IMAGES, LABELS = FILES[:2]


def load(folder, name="mnist"):
    return load_dataset(name, data_dir=folder, val_size=20)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", ["MNIST/raw", "mnist", "."])
def test_the_written_pixels_come_back(tmp_path, place, packed):
    content = fake_mnist(tmp_path / place, packed=packed)
    data = load(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (40, 20, 60)
    assert data.image_shape == (1, 28, 28) and data.levels == 255 and data.num_classes == 10
    assert not set(data.train.ids.tolist()) & set(data.val.ids.tolist())
    for split in (data.train, data.val):
        assert split.images.dtype == torch.uint8
        assert np.array_equal(split.images[:, 0].numpy(), content[IMAGES][split.ids.numpy()])
        assert np.array_equal(split.labels.numpy(), content[LABELS][split.ids.numpy()])
    assert np.array_equal(data.test.images[:, 0].numpy(), content[FILES[2]])
    assert torch.bincount(data.val.labels).tolist() == [2] * 10


def test_the_two_data_sets_lie_side_by_side(tmp_path):
    digits = fake_mnist(tmp_path / "MNIST/raw", seed=1)
    clothes = fake_mnist(tmp_path / "FashionMNIST/raw", seed=2)
    for name, content in (("mnist", digits), ("fashion-mnist", clothes)):
        data = load(tmp_path, name)
        assert data.name == name and np.array_equal(data.test.images[:, 0].numpy(), content[FILES[2]])
    assert load(tmp_path, "fashion-mnist").class_names[9] == "Ankle boot"
    assert load(tmp_path).class_names[9] == "9"


def test_missing_files_are_said(tmp_path):
    with pytest.raises(ValueError, match=r"data_dir: mnist needs --data-dir, the folder that holds MNIST/raw/train-"):
        load_dataset("mnist")
    with pytest.raises(FileNotFoundError, match=r"no train-images-idx3-ubyte .*folder exists.*MNIST/raw"):
        load(tmp_path)
    fake_mnist(tmp_path)
    (tmp_path / LABELS).unlink()
    with pytest.raises(FileNotFoundError, match=r"train-labels-idx1-ubyte \(or \.gz\) is missing"):
        load(tmp_path)


def header(*sizes):
    return bytes((0, 0, 8, len(sizes))) + struct.pack(f">{len(sizes)}I", *sizes)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (IMAGES, b"", "expected it to begin with 00000803, got nothing"),
        (IMAGES, b"\0", "expected it to begin with 00000803, got 00"),
        (IMAGES, header(60, 28, 28)[:9], "cut short in its header"),
        (IMAGES, header(60), "expected it to begin with 00000803, got 00000801"),
        (LABELS, header(60, 28, 28), "expected it to begin with 00000801, got 00000803"),
        (IMAGES, bytes((0, 0, 13, 3)) + header(60, 28, 28)[4:], "got 00000d03"),
        (IMAGES, header(0, 28, 28), r"expected N x 28 x 28 with N above 0, got \[0, 28, 28\]"),
        (IMAGES, header(60, 32, 32) + bytes(60 * 1024), r"got \[60, 32, 32\]"),
        (IMAGES, header(60, 28, 28) + bytes(60 * 784 - 1), "not a whole IDX file"),
        (IMAGES, header(60, 28, 28) + bytes(60 * 784 + 1), "bytes beyond the 47040"),
        (IMAGES, header(59, 28, 28) + bytes(59 * 784), "59 images, but .*labels.* has 60 labels"),
        (IMAGES, header(2**32 - 1, 28, 28), "promises 3367254359280 bytes, more than the file can hold"),
        (LABELS, header(2**32 - 1), "promises 4294967295 bytes, more than the file can hold"),
        (LABELS, header(60) + bytes(59) + b"\x0a", r"labels must be 0\.\.9, found 10"),
    ],
)
def test_files_that_lie(tmp_path, file, content, message, packed):
    fake_mnist(tmp_path, packed=packed)
    path = tmp_path / (file + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            load(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)


def test_a_packed_file_that_unpacks_without_end_is_not_unpacked(tmp_path):
    fake_mnist(tmp_path, packed=True)
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(gzip.compress(header(60, 28, 28) + bytes(1 << 28)))  # 256 MiB in 260 kB
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="bytes beyond the 47040 that its header promises"):
            load(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_cut_short_anywhere_is_said(tmp_path, packed):
    fake_mnist(tmp_path, packed=packed)
    path = tmp_path / (IMAGES + ".gz" * packed)
    whole = path.read_bytes()
    for length in [*range(40), *range(40, len(whole), len(whole) // 50), *range(len(whole) - 12, len(whole))]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a whole IDX file"):
            load(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_random_damage_gives_an_error_or_nothing_worse(tmp_path, packed):
    fake_mnist(tmp_path, packed=packed)
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(200):
        path = tmp_path / (FILES[trial % 4] + ".gz" * packed)
        whole = path.read_bytes()
        damaged = bytearray(whole if trial % 2 else rng.bytes(trial * 5))
        if trial % 2:
            damaged[rng.integers(min(60, len(whole)))] ^= rng.integers(1, 256)
        path.write_bytes(damaged)
        try:
            assert load(tmp_path).image_shape == (1, 28, 28)
        except ValueError as error:
            refused += 1
            assert str(tmp_path) in str(error)
        path.write_bytes(whole)
    assert refused >= 100


def test_one_split_needs_its_own_files_only(tmp_path):
    fake_mnist(tmp_path)
    for name in FILES[:2]:
        (tmp_path / name).unlink()
    data = load_dataset("mnist", data_dir=tmp_path, only="test")
    assert (len(data.train), len(data.val), len(data.test)) == (0, 0, 60) and data.image_shape == (1, 28, 28)
    with pytest.raises(FileNotFoundError, match="train-images"):
        load_dataset("mnist", data_dir=tmp_path)
