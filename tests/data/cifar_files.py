"""CIFAR files with random images, in the official layouts."""

import pickle

import numpy as np

CIFAR10_FILES = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]


def _write_bin(path, records):
    np.concatenate(records, axis=1).tofile(path)


def fake_cifar(root, count=40, layout="bin", seed=0):
    """CIFAR-10 with `count` images a file; returns {file: (images [N, 3072], labels)}."""
    rng = np.random.default_rng(seed)
    folder = root / f"cifar-10-batches-{layout}"
    folder.mkdir(parents=True)
    content = {}
    for name in CIFAR10_FILES:
        images = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        content[name] = images, labels
        if layout == "bin":
            _write_bin(folder / f"{name}.bin", [labels[:, None], images])
        else:
            names = [f"{k}.png".encode() for k in range(count)]
            batch = {b"batch_label": name.encode(), b"labels": labels.tolist(), b"data": images, b"filenames": names}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return content


def fake_cifar100(root, count=200, layout="bin", seed=0):
    """CIFAR-100 with `count` training and `count` test images; returns {file: (images, coarse, fine)}."""
    rng = np.random.default_rng(seed)
    folder = root / ("cifar-100-binary" if layout == "bin" else "cifar-100-python")
    folder.mkdir(parents=True)
    content = {}
    for name in ("train", "test"):
        images = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        fine = (np.arange(count, dtype=np.uint16) * 7 % 100).astype(np.uint8)
        coarse = fine // 5
        content[name] = images, coarse, fine
        if layout == "bin":
            _write_bin(folder / f"{name}.bin", [coarse[:, None], fine[:, None], images])
        else:
            names = [f"{k}.png".encode() for k in range(count)]
            batch = {b"fine_labels": fine.tolist(), b"coarse_labels": coarse.tolist(), b"data": images}
            batch[b"filenames"] = names
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return content
