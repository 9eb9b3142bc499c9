"""The known data sets from the network: what their publishers published, or nothing.

SHA-256 sums and sizes as TensorFlow Datasets records them; the CIFAR authors publish MD5 sums of the same archives.
The binary versions of CIFAR are taken, which need no unpickling.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.request
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ard_fast._files import exclusive, whole_folder, write_atomic
from ard_fast.data.official import CIFAR_SETS, IDX_FILES, IDX_SETS, find_cifar_layout, holds_idx_files

_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Source:
    """A published file.

    Attributes:
        urls: where it is, best first.
        size: bytes.
        sha256: of its content, hexadecimal.
    """

    urls: tuple[str, ...]
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.urls[0].rsplit("/", 1)[1]


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
        for name, (size, sha256) in zip(IDX_FILES, sums, strict=True)
    )


IDX_SOURCES = {
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

DOWNLOADABLE = (*CIFAR_ARCHIVES, *IDX_SOURCES)


class DownloadError(OSError):
    """A file could not be had; the message says what was tried and how to provide it by hand."""


class _Attempt(Exception):
    """Why one address did not do."""


def fetch(source: Source, folder: Path) -> Path:
    """The file in `folder`: checked if it is there, else downloaded, checked and only then given its name.

    Raises:
        DownloadError: no address gave the published file, for example because there is no network.
        ValueError: a file of this name is there but is not the published one; it is left alone.
    """
    path = folder / source.name
    if path.is_file():
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != source.sha256:
            raise ValueError(
                f"{path}: not the published file (sha256 {found}, expected {source.sha256}). Move it away, run again."
            )
        return path
    folder.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in source.urls:
        try:
            write_atomic(path, partial(_download, url, source))
        except _Attempt as failure:
            failures.append(f"{url}: {failure}")
        else:
            return path
    raise DownloadError(
        f"could not download {source.name} ({'; '.join(failures)}). Where there is a network, fetch one of these "
        f"addresses, put the file into {folder} and run again with --download, which checks it first."
    )


def _download(url: str, source: Source, part: Path) -> None:
    """Stream one address into `part`; errors of the disk are not caught here, another address would not help."""
    digest, received = hashlib.sha256(), 0
    try:
        response = urllib.request.urlopen(url, timeout=_TIMEOUT)
    except (OSError, http.client.HTTPException) as error:
        raise _Attempt(error) from error
    bar = tqdm(total=source.size, unit="B", unit_scale=True, desc=source.name, disable=None, leave=False)
    with response, bar, open(part, "wb") as file:
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _Attempt(error) from error
            if not chunk:
                break
            received += len(chunk)
            if received > source.size:
                raise _Attempt(f"sent more than the {source.size} bytes of the published file")
            digest.update(chunk)
            file.write(chunk)
            bar.update(len(chunk))
    if received < source.size:
        raise _Attempt(f"ended after {received} of {source.size} bytes")
    if digest.hexdigest() != source.sha256:
        raise _Attempt(f"not the published file (sha256 {digest.hexdigest()}, expected {source.sha256})")


def unpack(archive: Path, folder: Path, files: Sequence[str]) -> None:
    """Make `folder` from a .tar.gz file's folder of the same name, with `files` in it, whole or not at all.

    Only plain files of exactly these names are copied out, under names of ours: no link, path or other member of an
    archive can reach anything else. Call it with no other process at work on `folder`.

    Raises:
        ValueError: the archive is damaged, or a file is missing in it.
    """
    try:
        with whole_folder(folder) as part, tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                parent, _, name = member.name.rpartition("/")
                source = tar.extractfile(member) if parent == folder.name and name in files and member.isreg() else None
                if source is not None:
                    with open(part / name, "wb") as file:
                        shutil.copyfileobj(source, file, _CHUNK)
                        file.flush()
                        os.fsync(file.fileno())
            missing = [name for name in files if not (part / name).exists()]
            if missing:
                raise ValueError(f"{archive}: {', '.join(missing)} missing in it, or not as plain files")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{archive}: not a whole .tar.gz file ({error})") from error
    except OSError as error:  # a failed write does not know its file
        raise OSError(error.errno, error.strerror, error.filename or str(folder)) from error


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
    if name in CIFAR_SETS and data_dir.name in (CIFAR_SETS[name].bin_dir, CIFAR_SETS[name].py_dir):
        data_dir = data_dir.parent
    if _is_there(name, data_dir):
        return
    data_dir.mkdir(parents=True, exist_ok=True)
    with exclusive(data_dir / ".ard_fast_download.lock"):
        if _is_there(name, data_dir):  # another process was first
            return
        if name in IDX_SOURCES:
            folder = _idx_folder(name, data_dir)
            for source in IDX_SOURCES[name]:
                if not (folder / source.name.removesuffix(".gz")).is_file():
                    fetch(source, folder)
        else:
            variant, source = CIFAR_SETS[name], CIFAR_ARCHIVES[name]
            given = (data_dir / source.name).is_file()
            archive = fetch(source, data_dir)
            unpack(archive, data_dir / variant.bin_dir, [f"{file}.bin" for file in (*variant.train, variant.test)])
            if not given:
                archive.unlink()


def _is_there(name: str, data_dir: Path) -> bool:
    if name in CIFAR_SETS:
        return find_cifar_layout(CIFAR_SETS[name], data_dir) is not None
    folder = _idx_folder(name, data_dir)
    return all((folder / file).is_file() or (folder / f"{file}.gz").is_file() for file in IDX_FILES)


def _idx_folder(name: str, data_dir: Path) -> Path:
    """The variant's own folder: files right in `data_dir` may be of either of the two and do not count."""
    variant = IDX_SETS[name]
    named = next((f for f in variant.folders[:-1] if holds_idx_files(data_dir / f)), variant.folders[0])
    return data_dir / named
