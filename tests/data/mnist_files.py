"""IDX files with random images, as MNIST and Fashion-MNIST have them."""

import gzip
import struct

import numpy as np

from ard_fast.data.official import IDX_FILES as FILES


def idx(array):
    """The bytes of an IDX file."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def fake_mnist(folder, count=60, packed=False, seed=0):
    """The four files with random images; returns {file: array}."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    content = {}
    for name in FILES:
        labels = np.arange(count, dtype=np.uint8) % 10
        content[name] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8) if "images" in name else labels
        data = idx(content[name])
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(data, 1) if packed else data)
    return content
