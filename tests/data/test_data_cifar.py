"""CIFAR-10 and CIFAR-100: both layouts of each, the held-out images, damaged and hostile files."""

import os
import pickle
import shutil
import struct
import subprocess

import numpy as np
import pytest
import torch
from cifar_files import CIFAR10_FILES as FILES
from cifar_files import fake_cifar, fake_cifar100

from ard_fast.data import load_dataset
from ard_fast.data.cifar import load_cifar10, load_cifar100
from ard_fast.data.names import CIFAR10_CLASSES, CIFAR100_CLASSES


@pytest.mark.parametrize("layout", ["bin", "py"])
def test_both_layouts_give_the_written_pixels(tmp_path, layout):
    content = fake_cifar(tmp_path, layout=layout)
    data = load_cifar10(tmp_path, val_size=20)
    assert (len(data.train), len(data.val), len(data.test)) == (180, 20, 40)
    assert data.test.images.shape == (40, 3, 32, 32) and data.test.images.dtype == torch.uint8
    images, labels = content["test_batch"]
    assert np.array_equal(data.test.images.numpy().reshape(40, 3072), images)
    assert np.array_equal(data.test.labels.numpy(), labels)
    everything = np.concatenate([content[name][0] for name in FILES[:5]])
    for split in (data.train, data.val):
        assert np.array_equal(split.images.numpy().reshape(len(split), 3072), everything[split.ids.numpy()])
    assert not set(data.train.ids.tolist()) & set(data.val.ids.tolist())
    assert torch.bincount(data.val.labels).tolist() == [2] * 10


def test_the_layout_folder_itself_may_be_named(tmp_path):
    fake_cifar(tmp_path, layout="py")
    assert len(load_cifar10(tmp_path / "cifar-10-batches-py", val_size=20).train) == 180


def test_layouts_agree(tmp_path):
    fake_cifar(tmp_path / "a", layout="bin")
    fake_cifar(tmp_path / "b", layout="py")
    a, b = load_cifar10(tmp_path / "a", val_size=20), load_cifar10(tmp_path / "b", val_size=20)
    assert torch.equal(a.train.images, b.train.images) and torch.equal(a.val.labels, b.val.labels)


def test_missing_data_is_said(tmp_path):
    with pytest.raises(ValueError, match="data_dir: cifar10 needs --data-dir"):
        load_dataset("cifar10")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_cifar10(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no cifar-10-batches-bin/ or cifar-10-batches-py/ in .*folder exists"):
        load_cifar10(tmp_path)
    fake_cifar(tmp_path)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3\.bin is missing"):
        load_cifar10(tmp_path, val_size=20)


@pytest.mark.parametrize("val_size", [0, 9, 191, 1000])
def test_val_size_must_leave_images_on_both_sides(tmp_path, val_size):
    fake_cifar(tmp_path)
    with pytest.raises(ValueError, match=f"val_size: expected 10 to 190 for 200 training images, got {val_size}"):
        load_cifar10(tmp_path, val_size=val_size)


def test_binary_file_cut_short_or_with_wrong_labels(tmp_path):
    fake_cifar(tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"data_batch_2\.bin: 122919 bytes is not a positive multiple of 3073"):
        load_cifar10(tmp_path, val_size=20)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="0 bytes"):
        load_cifar10(tmp_path, val_size=20)
    path.write_bytes(bytes([10]) + whole[1:])
    with pytest.raises(ValueError, match=r"labels must be 0\.\.9, found 10"):
        load_cifar10(tmp_path, val_size=20)


class Malicious:
    """Calls `function(*arguments)` when plain pickle loads it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_malicious_pickle_is_refused_and_runs_nothing(tmp_path):
    fake_cifar(tmp_path, layout="py")
    mark = tmp_path / "ran"
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(pickle.dumps({b"data": Malicious(os.mkdir, str(mark)), b"labels": []}, protocol=2))
    with pytest.raises(ValueError, match=r"data_batch_1: not a CIFAR batch \(UnpicklingError: refused to load"):
        load_cifar10(tmp_path, val_size=20)
    assert not mark.exists()
    pickle.loads(path.read_bytes())  # the file is what it claims to be: plain pickle would have run it
    assert mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a pickle", "not a CIFAR batch"),
        (pickle.dumps([1, 2], 2), r"expected b'data' as uint8 \[N, 3072\], got NoneType"),
        (pickle.dumps({b"data": np.zeros((4, 3072), np.float32)}, 2), "an array of f4, expected uint8"),
        (pickle.dumps({b"data": np.zeros((4, 100), np.uint8)}, 2), r"got uint8 \[4, 100\]"),
        (pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [1, 2]}, 2), "a list of 4, got list of 2"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 77]}, 2), r"labels must be whole"),
    ],
)
def test_damaged_python_files_are_said(tmp_path, content, message):
    fake_cifar(tmp_path, layout="py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").write_bytes(content)
    with pytest.raises(ValueError, match="data_batch_4.*" + message):
        load_cifar10(tmp_path, val_size=20)


# ---- CIFAR-100 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["bin", "py"])
def test_cifar100_has_the_fine_labels(tmp_path, layout):
    content = fake_cifar100(tmp_path, layout=layout)
    data = load_dataset("cifar100", data_dir=tmp_path, val_size=100)
    assert (len(data.train), len(data.val), len(data.test)) == (100, 100, 200)
    assert data.num_classes == len(data.class_names) == 100 and data.levels == 255
    for split in (data.train, data.val):
        images, _, fine = content["train"]
        assert np.array_equal(split.images.numpy().reshape(100, 3072), images[split.ids.numpy()])
        assert np.array_equal(split.labels.numpy(), fine[split.ids.numpy()])
    assert torch.bincount(data.val.labels).tolist() == [1] * 100
    assert np.array_equal(data.test.labels.numpy(), content["test"][2])


def test_class_names_are_in_the_official_order():
    assert len(set(CIFAR100_CLASSES)) == 100 and list(CIFAR100_CLASSES) == sorted(CIFAR100_CLASSES)
    assert [CIFAR100_CLASSES[k] for k in (0, 49, 99)] == ["apple", "mountain", "worm"]
    assert len(CIFAR10_CLASSES) == 10 and CIFAR10_CLASSES[3] == "cat"


def test_cifar100_errors_speak_of_cifar100(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no cifar-100-binary/ or cifar-100-python/ in .*CIFAR-100 archive"):
        load_cifar100(tmp_path)
    fake_cifar100(tmp_path)
    with pytest.raises(ValueError, match="val_size: expected 100 to 100 for 200 training images, got 10"):
        load_cifar100(tmp_path, val_size=10)
    path = tmp_path / "cifar-100-binary" / "test.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:1] + bytes([100]) + whole[2:])
    with pytest.raises(ValueError, match=r"test\.bin: labels must be 0\.\.99, found 100; this is not a CIFAR-100 file"):
        load_cifar100(tmp_path, val_size=100)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"test\.bin is missing; CIFAR-100 needs train, test"):
        load_cifar100(tmp_path, val_size=100)


def test_cifar10_labels_do_not_pass_for_cifar100(tmp_path):
    fake_cifar100(tmp_path, layout="py")
    content = pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 7]}, 2)
    (tmp_path / "cifar-100-python" / "train").write_bytes(content)
    with pytest.raises(ValueError, match="expected b'fine_labels' as a list of 2, got NoneType"):
        load_cifar100(tmp_path)


# ---- Hostile files ------------------------------------------------------------------------------------------------


def a_batch(**changes):
    """The dict of a small honest CIFAR-100 training file."""
    fine = [k % 100 for k in range(200)]
    names = [f"{k}.png".encode() for k in range(2000)]  # each one a tuple and a call in protocol 2
    return {b"data": np.zeros((200, 3072), np.uint8), b"fine_labels": fine, b"filenames": names, **changes}


def load_train_file(root, content):
    """`load_cifar100` where the python version's training file holds `content`."""
    fake_cifar100(root, layout="py")
    (root / "cifar-100-python" / "train").write_bytes(content)
    return load_cifar100(root, val_size=100)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, ("touch ran",)),
        (os.execv, ("/bin/touch", ["touch", "ran"])),
        (subprocess.Popen, (["touch", "ran"],)),
        (eval, ("open('ran', 'w')",)),
        (exec, ("open('ran', 'w')",)),
        (getattr, (os, "sep")),
        (__import__, ("os",)),
        (pickle.loads, (b"",)),
        (np.load, ("x.npy",)),
        (np.fromfile, ("x",)),
        (open, ("ran", "w")),
        (shutil.rmtree, (".",)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("place", ["value", "key", "label", "array"])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_no_pickle_can_call_anything(tmp_path, monkeypatch, function, arguments, place, protocol):
    monkeypatch.chdir(tmp_path)
    if function is getattr:
        arguments = (Malicious(__import__, "os"), "sep")
    bad = Malicious(function, *arguments)
    batch = {
        "value": lambda: a_batch(batch_label=bad),
        "key": lambda: {bad: 1, **a_batch()},
        "label": lambda: a_batch() | {b"fine_labels": [bad] * 200},
        "array": lambda: a_batch() | {b"data": bad},
    }[place]()
    before = sorted(os.listdir())
    with pytest.raises(ValueError, match=r"train: not a CIFAR batch .*refused to load"):
        load_train_file(tmp_path / "data", pickle.dumps(batch, protocol))
    assert sorted({*before, "data"}) == sorted(os.listdir())


def put(number):
    return b"r" + struct.pack("<I", number)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02N" + put(1 << 27) + b".", "memo number 134217728 after 2 opcodes"),
        (b"\x80\x02Np134217728\n.", "memo number 134217728 after 2 opcodes"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.", "expected 1099511627776 bytes"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.", "expected 1099511627776 bytes"),
        (b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.", "a frame of 1099511627776 bytes in a file of"),
        # Tuples in tuples as a key: left on the stack, fetched from the memo, duplicated. Hashing overflows the stack.
        (b"\x80\x02}()" + b"\x85" * 200_000 + b"Nu.", "more than 1000 tuples"),
        (b"\x80\x02})q\x000" + b"cnumpy\ndtype\nh\x00\x85q\x00R0" * 20_000 + b"(h\x00Nu.", "more than 1000 tuples"),
        (b"\x80\x04})\x940" + b"cnumpy\ndtype\nh\x00\x85q\x00R0" * 20_000 + b"(h\x00Nu.", "more than 1000 tuples"),
        (b"\x80\x02}()" + b"2\x86" * 20_000 + b"Nu.", "more than 1000 tuples"),
        # One text of 100 kB encoded a hundred times.
        (
            b"\x80\x02](X" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"q\x000"
            b"c_codecs\nencode\nq\x010X\x06\x00\x00\x00latin1q\x020" + b"h\x01h\x00h\x02\x86R" * 100 + b"e.",
            "more bytes than the file holds",
        ),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.", "refused to encode"),
        (b"\x80\x02K\x01Q.", "refused to load a persistent id"),
        (b"P1\n.", "refused to load a persistent id"),
        (b"\x80\x02\x82\x01.", "unregistered extension code 1"),
        (b"\x80\x02cnumpy\ndtype\n)R}X\x01\x00\x00\x00aK\x01sb.", "got NoneType"),
    ],
    ids=range(15),
)
def test_pickles_that_ask_for_more_than_they_hold(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"train: .*{message}"):
        load_train_file(tmp_path, content)


class State:
    """Pickles as an array with any state."""

    def __init__(self, *state):
        self.state = state

    def __reduce__(self):
        function, arguments, _ = np.zeros(0, np.uint8).__reduce__()
        return function, arguments, self.state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ((1, (10**9, 3072), np.dtype("u1"), False, b"x" * 3072), "shape does not fit its bytes"),
        ((1, (-1, -3072), np.dtype("u1"), False, b"x" * 3072), "shape does not fit its bytes"),
        ((1, (2**62, 4, 0), np.dtype("u1"), False, b"x"), "shape does not fit its bytes"),
        ((1, (1.0, 3072), np.dtype("u1"), False, b"x" * 3072), "shape does not fit its bytes"),
        ((1, (1, 3072), np.dtype("O"), False, [None] * 3072), "an array of O8, expected uint8"),
        ((1, (1, 3072), np.dtype("u1"), False, [0] * 3072), "shape does not fit its bytes"),
        ((1, (1, 3072), "u1", False, b"x" * 3072), "an array of None"),
        ((1, 3072), "an array without content"),
        ((1, (1024, 3), np.dtype("u1"), False, b"x" * 3072), r"expected b'data' as uint8 \[N, 3072\]"),
    ],
)
def test_arrays_that_are_not_what_they_say(tmp_path, state, message):
    with pytest.raises(ValueError, match=message):
        load_train_file(tmp_path, pickle.dumps(a_batch() | {b"data": State(*state)}, 2))


def test_fortran_order_and_the_newer_numpy_name_are_read(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, (200, 3072), dtype=np.uint8)
    content = pickle.dumps(a_batch() | {b"data": np.asfortranarray(data)}, 2)
    old, new = b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"
    for name in (old, new):
        loaded = load_train_file(
            tmp_path / name[6:10].decode().strip("."), content.replace(new, old).replace(old, name)
        )
        for split in (loaded.train, loaded.val):
            assert np.array_equal(split.images.numpy().reshape(-1, 3072), data[split.ids.numpy()])


def test_python_2_pickles_are_read(tmp_path):
    """As the official files are: byte strings as text opcodes."""
    content = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\xc8M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<I", 200 * 3072) + bytes(range(256)) * 2400 + b"tb"
        b"U\x0bfine_labels](" + b"".join(b"K" + bytes([k % 100]) for k in range(200)) + b"eu."
    )
    plain = pickle.loads(content, encoding="bytes")
    assert plain[b"data"].shape == (200, 3072)
    loaded = load_train_file(tmp_path, content)
    assert np.array_equal(loaded.train.images.numpy().reshape(-1, 3072), plain[b"data"][loaded.train.ids.numpy()])


@pytest.mark.parametrize("share", [0, 1e-5, 1e-4, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999])
def test_a_python_file_cut_short_anywhere_is_said(tmp_path, share):
    content = pickle.dumps(a_batch(), 2)
    with pytest.raises(ValueError, match="train: not a CIFAR batch"):
        load_train_file(tmp_path, content[: int(len(content) * share)])


def test_a_python_file_without_its_last_bytes_is_said(tmp_path):
    fake_cifar100(tmp_path, layout="py")
    content = pickle.dumps(a_batch(), 2)
    for cut in range(1, 40):
        (tmp_path / "cifar-100-python" / "train").write_bytes(content[:-cut])
        with pytest.raises(ValueError, match="train: not a CIFAR batch"):
            load_cifar100(tmp_path, val_size=100)


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # pickletools, on damaged text
@pytest.mark.parametrize("layout", ["bin", "py"])
def test_random_bytes_give_an_error_or_nothing_worse(tmp_path, layout):
    """A flipped byte may go unseen among pixels and labels, but never gives another error or another shape."""
    fake_cifar100(tmp_path, layout=layout)
    folder = tmp_path / ("cifar-100-binary" if layout == "bin" else "cifar-100-python")
    path = folder / ("train.bin" if layout == "bin" else "train")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    edges = np.r_[0:200, len(whole) - 200 : len(whole)]
    refused = 0
    for trial in range(150):
        damaged = bytearray(whole if trial % 3 else rng.bytes(1 + trial * 37))
        for place in rng.choice(edges, 4):
            if place < len(damaged):
                damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            data = load_cifar100(tmp_path, val_size=100)
            assert data.image_shape == (3, 32, 32) and len(data.train) + len(data.val) == 200
        except ValueError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused >= 50  # the random ones, at least


def test_files_larger_than_any_official_one_are_not_read(tmp_path):
    fake_cifar100(tmp_path / "a", layout="py")
    fake_cifar100(tmp_path / "b")
    for path in (tmp_path / "a" / "cifar-100-python" / "train", tmp_path / "b" / "cifar-100-binary" / "train.bin"):
        os.truncate(path, 3074 << 30)  # sparse: 3 TB that take no room
        with pytest.raises(ValueError, match=f"train.*: {3074 << 30} bytes"):
            load_cifar100(path.parent.parent)


def test_one_split_needs_its_own_files_only(tmp_path):
    fake_cifar(tmp_path)
    whole, folder = load_cifar10(tmp_path, val_size=20), tmp_path / "cifar-10-batches-bin"
    (folder / "test_batch.bin").rename(tmp_path / "test_batch.bin")
    for part in ("train", "val"):
        alone = load_cifar10(tmp_path, val_size=20, only=part)
        assert torch.equal(getattr(alone, part).ids, getattr(whole, part).ids) and len(alone.test) == 0
    for file in folder.iterdir():
        file.unlink()
    (tmp_path / "test_batch.bin").rename(folder / "test_batch.bin")
    data = load_cifar10(tmp_path, only="test")
    assert (len(data.train), len(data.val), len(data.test)) == (0, 0, 40) and data.image_shape == (3, 32, 32)
