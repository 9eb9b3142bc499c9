"""Damaged and hostile data files of every kind: an error that names the file, or images as they should be."""

import functools
import gzip
import io
import pickle
import pickletools
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_files import fake_cifar
from fuzz_files import damaged, read
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import often
from mnist_files import fake_mnist
from PIL import Image

from ard_fast.data import load_dataset
from ard_fast.data.cifar_pickle import read_pickle
from ard_fast.data.download import unpack
from ard_fast.data.image_cache import cached_images
from ard_fast.data.images import decode

pytestmark = pytest.mark.filterwarnings("ignore")  # of Pillow and zipfile, about what they meet


@functools.cache
def folder():
    """A folder of its own for each kind of file; examples overwrite one another there."""
    return Path(tempfile.mkdtemp(prefix="ard-fast-fuzz-"))


def check(dataset, shape, classes):
    for split in (dataset.train, dataset.val, dataset.test):
        assert split.images.dtype == torch.uint8 and tuple(split.images.shape[1:]) == shape
        assert len(split.images) == len(split.labels) == len(split.ids) > 0
        assert split.labels.dtype == torch.int64 and 0 <= int(split.labels.min()) <= int(split.labels.max()) < classes


# ---- CIFAR --------------------------------------------------------------------------------------------------------


@functools.cache
def cifar(layout):
    root = folder() / f"cifar-{layout}"
    fake_cifar(root, count=4, layout=layout)
    name = next((root / f"cifar-10-batches-{layout}").glob("data_batch_1*"))
    return root, name, name.read_bytes()


@pytest.mark.parametrize("layout", ["bin", "py"])
@given(data=st.data())
@often
def test_cifar_files(layout, data):
    root, path, whole = cifar(layout)
    path.write_bytes(data.draw(damaged(whole)))
    found, _ = read(lambda: load_dataset("cifar10", data_dir=root, val_size=10), "")
    if found is not None:
        check(found, (3, 32, 32), 10)


CALLS = [
    ("os", "system"), ("builtins", "eval"), ("builtins", "exec"), ("subprocess", "Popen"), ("builtins", "getattr"),
    ("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct"), ("_codecs", "encode"),
    ("numpy.core.multiarray", "scalar"), ("numpy", "load"), ("builtins", "bytearray"), ("os.path", "x\ny"),
]  # fmt: skip
OPCODES = [code for code in pickletools.opcodes if code.arg is None]


@st.composite
def programs(draw):
    """Pickles as sequences of opcodes, most of them well-formed one by one: what no flipped byte would reach."""
    number = st.sampled_from((0, 1, 2, 3, 255, 2**16, 2**31 - 1, 2**32 - 1))
    text = st.sampled_from((b"", b"a", b"latin1", b"touch executed", b"\xff" * 30))
    parts = [b"\x80\x02"]
    for _ in range(draw(st.integers(1, 25))):
        kind = draw(st.integers(0, 9))
        if kind <= 3:
            parts.append(draw(st.sampled_from(OPCODES)).code.encode("latin1"))
        elif kind == 4:
            module, name = draw(st.sampled_from(CALLS))
            parts.append(b"c" + module.encode() + b"\n" + name.encode() + b"\n")
        elif kind == 5:
            value = draw(text)
            parts.append(b"X" + len(value).to_bytes(4, "little") + value)
        elif kind == 6:
            parts.append(draw(st.sampled_from((b"q", b"h"))) + bytes([draw(st.integers(0, 3))]))
        elif kind == 7:
            parts.append(draw(st.sampled_from((b"r", b"j", b"J"))) + draw(number).to_bytes(4, "little"))
        elif kind == 8:
            parts.append(draw(st.sampled_from((b"X", b"B", b"T"))) + draw(number).to_bytes(4, "little") + draw(text))
        else:
            parts.append(
                draw(st.sampled_from((b"(", b"(lp0\n", b"}", b"]", b")", b"K\x01", b"N", b"I7\n", b"R", b"b")))
            )
    return b"".join(parts) + b"." * draw(st.booleans())


@given(programs())
@often
def test_pickles_made_of_opcodes(content):
    path = folder() / "program"
    path.write_bytes(content)
    read(lambda: read_pickle(path), path)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=9) | st.text(max_size=9)
nested = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
)


@given(nested, st.integers(0, 5))
@often
def test_harmless_pickles_come_back_or_are_refused(content, protocol):
    path = folder() / "harmless"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found, refusal = read(lambda: read_pickle(path), path)
    assert refusal is not None or repr(found) == repr(content)


# ---- MNIST --------------------------------------------------------------------------------------------------------


@functools.cache
def mnist(packed):
    root = folder() / f"mnist-{packed}"
    fake_mnist(root, count=30, packed=packed)
    return root, {path: path.read_bytes() for path in root.iterdir()}


@pytest.mark.parametrize("packed", [False, True])
@given(data=st.data())
@often
def test_idx_files(packed, data):
    root, files = mnist(packed)
    path = data.draw(st.sampled_from(sorted(files)))
    content = data.draw(damaged(files[path]))
    if packed and data.draw(st.booleans()):  # the damage inside of a whole gzip file
        content = gzip.compress(data.draw(damaged(gzip.decompress(files[path]))), 1)
    path.write_bytes(content)
    found, refusal = read(lambda: load_dataset("mnist", data_dir=root, val_size=10), "")
    path.write_bytes(files[path])
    if found is not None:
        check(found, (1, 28, 28), 10)
    else:
        assert str(root) in str(refusal) or "val_size" in str(refusal)


# ---- .npz ---------------------------------------------------------------------------------------------------------


@functools.cache
def npz(compressed):
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "test"):
        arrays[f"x_{part}"] = rng.integers(0, 256, (12, 5, 4), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(12) % 3
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


@given(damaged(npz(False), npz(True)))
@often
def test_npz_files(content):
    path = folder() / "data.npz"
    path.write_bytes(content)
    found, refusal = read(lambda: load_dataset("npz", data_dir=path, val_size=3), "")
    if found is not None:
        check(found, found.image_shape, found.num_classes)
    else:
        assert str(path) in str(refusal) or "val_size" in str(refusal)


shapes = st.lists(st.sampled_from((0, 1, 2, 3, 5, 12)), max_size=5).map(tuple)
dtypes = st.sampled_from(("u1", "i1", "i8", "u8", ">i4", "f4", "?", "c8", "U3", "S2", "M8[s]", "u1,u1", "V5"))


@given(st.dictionaries(st.sampled_from(("x_train", "y_train", "x_test", "y_test", "x_val", "y_val", "z")),
                       st.tuples(shapes, dtypes, st.booleans()), max_size=7), st.integers(-1, 13))  # fmt: skip
@often
def test_npz_files_of_any_arrays(kinds, val_size):
    path = folder() / "any.npz"
    arrays = {
        name: np.zeros(shape, dtype, order="F" if fortran else "C") for name, (shape, dtype, fortran) in kinds.items()
    }
    np.savez(path, **arrays)
    found, refusal = read(lambda: load_dataset("npz", data_dir=path, val_size=val_size), "")
    if found is not None:
        check(found, found.image_shape, found.num_classes)
    else:
        assert str(path) in str(refusal) or "val_size" in str(refusal)


# ---- images -------------------------------------------------------------------------------------------------------


@functools.cache
def picture(kind):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


KINDS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")


@given(damaged(*map(picture, KINDS)), st.sampled_from((None, 1, 8, 64)))
@often
def test_images(content, size):
    path = folder() / "x.png"
    path.write_bytes(content)
    found, _ = read(lambda: decode(path, size), path)
    if found is not None:
        assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[0] == 3
        assert size is None or found.shape == (3, size, size)


@functools.cache
def cache():
    """Decoded images, their cache on disk and its files' bytes."""
    root = folder() / "cached"
    root.mkdir()
    files = []
    for k in range(3):
        files.append(root / f"{k}.png")
        Image.fromarray(np.full((4, 4, 3), 40 * k, np.uint8)).save(files[-1])
    parts = {"train": files[:2], "test": files[2:]}
    images = cached_images(root / "cache", "key", parts, size=None)
    stored = {path: path.read_bytes() for path in sorted((root / "cache" / "key").iterdir())}
    return parts, {part: tensor.clone() for part, tensor in images.items()}, stored


@given(st.data())
@often
def test_image_caches(data):
    """Damage to its structure is noticed and made good. Its pixels have no checksum: they are mapped, not read."""
    parts, expected, stored = cache()
    where = next(iter(stored)).parent
    path = data.draw(st.sampled_from(list(stored)))
    content = data.draw(damaged(stored[path]))
    where.mkdir(exist_ok=True)
    for file, whole in stored.items():
        file.unlink(missing_ok=True)  # a mapped file must not be cut short
        file.write_bytes(content if file == path else whole)
    found, _ = read(lambda: cached_images(where.parent, where.name, parts, size=None), errors=())
    for part, images in found.items():
        assert images.shape == expected[part].shape and images.dtype == torch.uint8
    header = len(stored[path]) - expected[path.stem].numel()
    if len(content) != len(stored[path]):
        assert path.read_bytes() == stored[path], "the damage was not noticed"
    if path.read_bytes()[header:] == stored[path][header:]:
        assert all(torch.equal(images, expected[part]) for part, images in found.items())


# ---- archives -----------------------------------------------------------------------------------------------------


@functools.cache
def archive(packed=True):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz" if packed else "w") as tar:
        for name in ("a.bin", "b.bin"):
            member = tarfile.TarInfo(f"made/{name}")
            member.size = 700
            tar.addfile(member, io.BytesIO(bytes(700)))
    return file.getvalue()


@given(st.data())
@often
def test_archives(data):
    path, target = folder() / "made.tar.gz", folder() / "archives" / "made"
    content = data.draw(damaged(archive()))
    if data.draw(st.booleans()):
        content = gzip.compress(data.draw(damaged(archive(False))), 1)
    path.write_bytes(content)
    target.parent.mkdir(exist_ok=True)
    _, refusal = read(lambda: unpack(path, target, ("a.bin", "b.bin")), path)
    left = sorted(entry.name for entry in target.parent.rglob("*"))
    assert left == ([] if refusal else ["a.bin", "b.bin", "made"])
    if not refusal:
        for file in target.iterdir():
            file.unlink()
        target.rmdir()


def test_the_fence_notices_what_it_should():
    """The tests above could not fail if the fence did not hold."""
    with pytest.raises(AssertionError, match="no file may make it do"):
        read(lambda: __import__("os").system("true"))
    with pytest.raises(AssertionError, match="asked for much memory"):

        def greedy():
            try:
                return bytearray(1 << 32)
            except MemoryError as error:
                raise ValueError("x") from error

        read(greedy)
    with pytest.raises(AssertionError, match="asked for much memory"):

        def greedy_tensor():
            try:
                return torch.empty(1 << 34)
            except RuntimeError as error:
                raise ValueError("x") from error

        read(greedy_tensor)
    with pytest.raises(AssertionError, match="does not say"):
        read(lambda: int("x"), "the name")
    with pytest.raises(KeyError):
        read(lambda: {}["x"])
