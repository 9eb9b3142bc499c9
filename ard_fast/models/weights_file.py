"""State dicts out of files that anybody wrote, and in one line why there is none."""

from __future__ import annotations

import argparse
import hashlib
import pathlib
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ard_fast.models.published import COPIES

# Where published files keep the state dict, the likeliest first; others are found too. Deeper is not looked: a hostile
# file may be endless.
_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "student", "module", "last")
_NESTING = 3
# What training scripts save beside the weights; making one runs no code of the file's choice.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float32", "float64")),
    *((np.float64(0).__reduce__()[0], f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")),
]
_MOST_NAMED = 8


class Weights(NamedTuple):
    """A state dict as a file holds it.

    Attributes:
        tensors: by their names in the file.
        metadata: of a safetensors file; empty for others.
        name: the keys under which they were found, joined by dots; empty for the file itself.
        others: other state dicts of tensors of the same shapes in the file, named likewise: averages, teachers.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    name: str = ""
    others: tuple[str, ...] = ()


def read_weights(path: Path, *, argument: str, name: str | None = None) -> Weights:
    """The state dict of a weights file: safetensors, or of `torch.save`, read with `weights_only=True`.

    A dictionary around it is looked through, three deep. Of several state dicts the one under the most usual key is
    taken, averages and teachers last.

    Args:
        path: the file.
        argument: what errors call it.
        name: takes another: its key in the file, or the keys joined by dots. Where no key is so called, the whole is
            returned, for it may be the beginning of its tensors' names.

    Raises:
        ValueError: what the file is instead, that it is damaged, or what reading it would run.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    is_torch = head.startswith((b"PK", b"\x80")) or b"ustar" in head  # zip, pickle and tar: what torch has written
    is_safetensors = not is_torch and (path.suffix == ".safetensors" or head[8:10] in (b'{"', b"{}"))
    kind = _other_kind(head)
    if kind is None and not (is_torch or is_safetensors):
        kind = f"neither a file of torch.save nor safetensors: it begins with {head[:16]!r}"
    if kind is not None:
        raise ValueError(f"{argument}: {path} is {kind}")
    try:
        if is_safetensors:
            return Weights(*_read_safetensors(path))
        content = _unpickled(path)
    except Exception as error:  # a damaged or refused file fails with almost any exception type
        raise _refusal(path, argument, error) from error
    found = dict(_state_dicts(content, (), set()))
    if not found:
        raise ValueError(f"{argument}: {path} holds no state dict of tensors{_found_instead(content)}")
    chosen = min(found, key=_rank)
    if name is not None:
        chosen = next((keys for keys in sorted(found, key=_rank) if name in (".".join(keys), *keys)), chosen)
    tensors = found[chosen]
    _check_tensors(tensors, f"{argument}: {path}")
    shapes = _shapes(tensors)
    others = tuple(".".join(keys) for keys, other in found.items() if keys != chosen and _shapes(other) == shapes)
    return Weights(tensors, {}, ".".join(chosen), others)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names and values, since safetensors has no checksum of its own."""
    total = hashlib.sha256()
    for key in sorted(tensors):
        total.update(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)}".encode())
        total.update(tensors[key].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def check_sums(path: Path) -> None:
    """Compare the checksums that torch.save writes and torch.load does not read.

    Raises:
        ValueError: one is wrong.
        zipfile.BadZipFile: no archive.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"damaged: the checksum of {damaged} is wrong")


def cause(error: Exception) -> str:
    """What an error of `torch.load` comes down to, in one line without colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    inner = re.search(r"WeightsUnpickler error: *(.+)", text)
    lines = [line.strip() for line in (inner[1] if inner else text).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


# What a file may be that is no weights file, by how it begins (in small letters), and what to do.
_OTHER_KINDS = {
    (b"version https://git-lfs",): "a Git LFS pointer, not the weights: `git lfs pull` fetches them",
    (b"<!doctype", b"<html", b"<?xml"): (
        "an HTML page, not weights: the download led to a login, a warning or an error; open it in a browser"
    ),
    (b"{",): "a JSON text, not weights: the answer of a server, or an index that names the files of the weights",
    (b"\x1f\x8b", b"bzh", b"\xfd7zxz", b"7z\xbc\xaf", b"rar!"): "a packed archive: unpack it first",
    (b"\x89hdf",): "an HDF5 file, as Keras writes: only files of torch.save and safetensors are read",
}
# What errors of torch and safetensors mean, by words in them.
_MEANINGS = {
    "TorchScript": (
        "is a TorchScript program, not a state dict: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt') makes "
        "one of it"
    ),
    **dict.fromkeys(
        ("data.pkl", "hasRecord", "not in a subdirectory"), "is a zip archive of something else: unpack it first"
    ),
    "central directory": "is cut short: download or copy it again",
    "not fully covered": "is cut short or damaged: download or copy it again",
    "header length": "is cut short or damaged: download or copy it again",
}


def _other_kind(head: bytes) -> str | None:
    """What a file is that is no weights file, and what to do; None where it may be one."""
    if not head:
        return "an empty file: download or copy it again"
    text = head.lstrip().lower()
    return next((kind for beginnings, kind in _OTHER_KINDS.items() if text.startswith(beginnings)), None)


def _refusal(path: Path, argument: str, error: Exception) -> ValueError:
    """What is wrong with a file that cannot be read, in one line."""
    text = str(error)
    code = re.search(r"GLOBAL (\S+) (was not an allowed global|whose module)", text)
    if code is not None:
        return ValueError(
            f"{argument}: cannot read {path} as a state dict: it holds objects of {code[1]}, and reading them runs "
            "code. If you trust the file, save its weights alone where that code can be imported: "
            "model = torch.load(FILE, weights_only=False); torch.save(model.state_dict(), 'weights.pt'), or of a "
            "dictionary the entry that is the state dict"
        )
    meaning = next((meaning for words, meaning in _MEANINGS.items() if words in text), None)
    return ValueError(f"{argument}: {path} {meaning or f'cannot be read as a state dict: {cause(error)}'}")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        tensors, metadata = {key: file.get_tensor(key) for key in names}, file.metadata() or {}
    if metadata.get("sha256", None) not in (None, digest(tensors)):
        raise ValueError("damaged: its weights are not those that were written")
    return tensors, metadata


def _unpickled(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        check_sums(path)
    with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*TorchScript")
        with open(path, "rb") as file:  # by its content: torch goes by the suffix of a path
            return torch.load(file, map_location="cpu", weights_only=True)


def _found_instead(content: Any) -> str:
    if not isinstance(content, dict):
        return f"; it is of type {type(content).__name__}"
    others = [(key, value) for key, value in content.items() if not isinstance(value, Tensor)]
    kinds = ", ".join(f"{key!r}: {type(value).__name__}" for key, value in others[:_MOST_NAMED])
    return f"; beside tensors it holds {kinds}{', ...' * (len(others) > _MOST_NAMED)}" if others else ""


def _state_dicts(
    content: Any, keys: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """The dictionaries of named tensors in a file's content, with the keys that lead there."""
    if not isinstance(content, dict) or not content or id(content) in seen:
        return
    seen.add(id(content))
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        yield keys, content
    elif len(keys) < _NESTING:
        for key, value in content.items():
            if isinstance(key, str) and not key.startswith(("optim", "sched", "scaler", "lr_")):
                yield from _state_dicts(value, (*keys, key), seen)


def _rank(keys: tuple[str, ...]) -> tuple[bool, list[int], int]:
    """Which of several state dicts is meant, the least first; of equals the first in the file."""
    places = [_KEYS.index(key) if key in _KEYS else len(_KEYS) for key in keys]
    return any(COPIES.search(key.lower()) for key in keys), places, len(keys)


def _shapes(tensors: Mapping[str, Tensor]) -> list[tuple[int, ...]]:
    """The shapes of what is not a single number, such as the counter of an average."""
    return sorted(tuple(value.shape) for value in tensors.values() if value.dim())


def _check_tensors(tensors: Mapping[str, Tensor], what: str) -> None:
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_meta or value.is_complex() or value.is_quantized:
            kind = f"{value.dtype} {value.layout} on {value.device}"
            raise ValueError(f"{what} holds {key!r} as a tensor that no network has ({kind})")
