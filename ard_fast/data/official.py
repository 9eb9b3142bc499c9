"""Where the known data sets are published, and their checksums.

SHA-256 sums and sizes as TensorFlow Datasets records them; the CIFAR authors publish MD5 sums of the same archives.
The binary versions of CIFAR are taken, which need no unpickling.
"""

from __future__ import annotations

from pathlib import Path

from ard_fast._files import exclusive
from ard_fast.data import cifar, mnist
from ard_fast.data.download import Source, fetch, unpack

_CIFAR = "https://www.cs.toronto.edu/~kriz/"
CIFAR_ARCHIVES = {
    "cifar10": Source(
        (f"{_CIFAR}cifar-10-binary.tar.gz",),
        170_052_171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    "cifar100": Source(
        (f"{_CIFAR}cifar-100-binary.tar.gz",),
        168_513_733,
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
}

# The first home of MNIST answers no longer; these two mirrors hold the same files.
_MNIST = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
_FASHION = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)


def _idx_files(bases: tuple[str, ...], *sums: tuple[int, str]) -> tuple[Source, ...]:
    return tuple(
        Source(tuple(f"{base}{name}.gz" for base in bases), size, sha256)
        for name, (size, sha256) in zip(mnist.FILES, sums, strict=True)
    )


IDX_FILES = {
    "mnist": _idx_files(
        _MNIST,
        (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
    "fashion-mnist": _idx_files(
        _FASHION,
        (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
}

DOWNLOADABLE = (*CIFAR_ARCHIVES, *IDX_FILES)


def provide(name: str, data_dir: Path) -> None:
    """See to it that the files of a data set are in `data_dir`: what is there stays, what is missing is downloaded.

    Several processes may ask at once; one of them downloads.

    Args:
        name: one of `DOWNLOADABLE`.
        data_dir: made if need be.

    Raises:
        DownloadError: a file could not be had.
        ValueError: a file is there under the name of a published one and is another.
    """
    if name in _CIFAR_VARIANTS and data_dir.name in (_CIFAR_VARIANTS[name].bin_dir, _CIFAR_VARIANTS[name].py_dir):
        data_dir = data_dir.parent
    if _is_there(name, data_dir):
        return
    data_dir.mkdir(parents=True, exist_ok=True)
    with exclusive(data_dir / ".ard_fast_download.lock"):
        if _is_there(name, data_dir):  # another process was first
            return
        if name in IDX_FILES:
            folder = _idx_folder(name, data_dir)
            for source in IDX_FILES[name]:
                if not (folder / source.name.removesuffix(".gz")).is_file():
                    fetch(source, folder)
        else:
            variant, source = _CIFAR_VARIANTS[name], CIFAR_ARCHIVES[name]
            given = (data_dir / source.name).is_file()
            archive = fetch(source, data_dir)
            unpack(archive, data_dir / variant.bin_dir, [f"{file}.bin" for file in (*variant.train, variant.test)])
            if not given:
                archive.unlink()


_CIFAR_VARIANTS = {variant.name: variant for variant in (cifar.CIFAR10, cifar.CIFAR100)}
_IDX_VARIANTS = {variant.name: variant for variant in (mnist.MNIST, mnist.FASHION_MNIST)}


def _is_there(name: str, data_dir: Path) -> bool:
    if name in _CIFAR_VARIANTS:
        return cifar.find_layout(_CIFAR_VARIANTS[name], data_dir) is not None
    folder = _idx_folder(name, data_dir)
    return all((folder / file).is_file() or (folder / f"{file}.gz").is_file() for file in mnist.FILES)


def _idx_folder(name: str, data_dir: Path) -> Path:
    """The variant's own folder: files right in `data_dir` may be of either of the two and do not count."""
    variant = _IDX_VARIANTS[name]
    named = next((f for f in variant.folders[:-1] if mnist.holds_files(data_dir / f)), variant.folders[0])
    return data_dir / named
