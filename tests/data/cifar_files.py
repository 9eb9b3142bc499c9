"""CIFAR files with random images, in the official layouts."""

import pickle

import numpy as np

CIFAR10_FILES = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]


SETS = {  # folders of the binary and the python files, files, key of the labels, classes
    "cifar10": ("cifar-10-batches-bin", "cifar-10-batches-py", CIFAR10_FILES, b"labels", 10),
    "cifar100": ("cifar-100-binary", "cifar-100-python", ["train", "test"], b"fine_labels", 100),
}


def fake_cifar(root, count=40, layout="bin", seed=0, name="cifar10"):
    """A data set with `count` images a file; returns {file: (images [N, 3072], labels)}."""
    rng = np.random.default_rng(seed)
    bin_dir, py_dir, files, label_key, classes = SETS[name]
    folder = root / (bin_dir if layout == "bin" else py_dir)
    folder.mkdir(parents=True)
    content = {}
    for file in files:
        images = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = (np.arange(count) * (7 if classes == 100 else 1) % classes).astype(np.uint8)
        content[file] = images, labels
        coarse = labels // 5
        if layout == "bin":
            heads = [coarse[:, None]] if classes == 100 else []
            np.concatenate([*heads, labels[:, None], images], axis=1).tofile(folder / f"{file}.bin")
        else:
            names = [f"{k}.png".encode() for k in range(count)]
            batch = {
                label_key: labels.tolist(),
                b"data": images,
                b"filenames": names,
                b"coarse_labels": coarse.tolist(),
            }
            (folder / file).write_bytes(pickle.dumps(batch, protocol=2))
    return content
