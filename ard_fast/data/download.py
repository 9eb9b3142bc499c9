"""Files from the network that are what their publishers published, or none."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

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
        found = _sha256(path)
        if found != source.sha256:
            raise ValueError(
                f"{path}: not the published file (sha256 {found}, expected {source.sha256}). Move it away, run again."
            )
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{source.name}.part"
    failures = []
    try:
        for url in source.urls:
            try:
                _download(url, source, part)
            except _Attempt as failure:
                failures.append(f"{url}: {failure}")
            else:
                os.replace(part, path)
                return path
    except OSError as error:
        raise _naming(part, error) from error
    finally:
        part.unlink(missing_ok=True)
    raise DownloadError(
        f"could not download {source.name} ({'; '.join(failures)}). Where there is a network, fetch one of these "
        f"addresses, put the file into {folder} and run again with --download, which checks it first."
    )


def _naming(path: Path, error: OSError) -> OSError:
    """An error of the disk that says where: a failed write does not know its file."""
    return OSError(error.errno, error.strerror, error.filename or str(path))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


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
        file.flush()
        os.fsync(file.fileno())
    if received < source.size:
        raise _Attempt(f"ended after {received} of {source.size} bytes")
    if digest.hexdigest() != source.sha256:
        raise _Attempt(f"not the published file (sha256 {digest.hexdigest()}, expected {source.sha256})")


def unpack(archive: Path, folder: Path, files: Sequence[str]) -> None:
    """Make `folder` from a .tar.gz file's folder of the same name, with `files` in it, whole or not at all.

    Only plain files of exactly these names are copied out, under names of ours: no link, path or other member of an
    archive can reach anything else. Call it with nobody else at work on `folder`.

    Raises:
        ValueError: the archive is damaged, or a file is missing or twice in it.
    """
    wanted = {f"{folder.name}/{name}": name for name in files}
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a killed process
    part.mkdir()
    twice = None
    try:
        try:
            with tarfile.open(archive, "r|gz") as tar:
                for member in tar:
                    name = wanted.get(member.name)
                    if name is not None and member.isreg():
                        if (part / name).exists():
                            twice = member.name
                            break
                        _copy_out(tar, member, part / name)
        except OSError:
            raise
        except Exception as error:  # a damaged archive fails with almost any exception type
            raise ValueError(f"{archive}: not a whole .tar.gz file ({error})") from error
        if twice is not None:
            raise ValueError(f"{archive}: {twice} is in it twice")
        missing = [name for name in files if not (part / name).exists()]
        if missing:
            raise ValueError(f"{archive}: {', '.join(missing)} missing in it, or not as plain files")
        os.rename(part, folder)
    except OSError as error:
        raise _naming(part, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _copy_out(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None  # it is a regular file
    with open(path, "xb") as file:
        shutil.copyfileobj(source, file, _CHUNK)
        file.flush()
        os.fsync(file.fileno())
