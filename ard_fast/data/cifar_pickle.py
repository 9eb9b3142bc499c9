"""The python version of the CIFAR files, read without trusting them: nothing in such a pickle is ever run.

A pickle is a program. Three things keep this one harmless. Its opcodes are looked through first, so that no length or
memo number in it can make the unpickler allocate what the file does not hold. The few functions an honest file calls
are replaced by stand-ins that only keep their arguments; any other name is refused. And arrays are made from what the
stand-ins kept by this module, after every field has been checked.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

MAX_BYTES = 1 << 30  # the largest official file has 155 MB
_MAX_NESTABLE = 1000  # honest files hold a handful; hashing tuples nested without end would exhaust the stack


class _DType:
    """What the file says of an array's element type."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass  # byte order and the like mean nothing for single bytes


class _NDArray:
    """What the file says of an array: (version, shape, dtype, Fortran order, bytes)."""

    def __init__(self, *_: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state


def _reconstruct(*_: object) -> _NDArray:
    return _NDArray()


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _NDArray,
    ("numpy", "dtype"): _DType,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, raw: bytes) -> None:
        super().__init__(io.BytesIO(raw), encoding="bytes")
        self._encodable = len(raw)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused to load {module[:80]}.{name[:80]}") from None

    def _encode(self, text: object, codec: object) -> bytes:
        """Bytes as Python 3 stores them in protocol 2, in all no more than the file itself holds."""
        if not isinstance(text, str) or codec != "latin1":
            raise pickle.UnpicklingError("refused to encode anything but text as latin1")
        self._encodable -= len(text)
        if self._encodable < 0:
            raise pickle.UnpicklingError("more bytes than the file holds")
        return text.encode("latin1")

    def persistent_load(self, pid: object) -> Any:
        raise pickle.UnpicklingError("refused to load a persistent id")


def read_pickle(path: Path) -> object:
    """The content of a pickle of plain containers, text, numbers and, as values of the outermost dict, uint8 arrays.

    Raises:
        ValueError: the file is too large, damaged, or asks for anything else.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path}: {size} bytes; no CIFAR file has more than {MAX_BYTES}")
    raw = path.read_bytes()
    try:
        _look_through(raw)
        content = _Unpickler(raw).load()
        if isinstance(content, dict):
            return {key: _array(value) if isinstance(value, _NDArray) else value for key, value in content.items()}
    except Exception as error:  # a damaged pickle fails with almost any exception type
        raise ValueError(f"{path}: not a CIFAR batch ({type(error).__name__}: {error})") from error
    return content


def _look_through(raw: bytes) -> None:
    """Refuse opcodes that would cost more than the file's size; lengths beyond its end fail in `genops` itself."""
    memo: dict[int, bool] = {}  # by number: is it a tuple?
    nestable, after_tuple = 0, False
    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
        name = opcode.name
        if name == "FRAME" and argument > len(raw):
            raise pickle.UnpicklingError(f"a frame of {argument} bytes in a file of {len(raw)}")
        if "PUT" in name or name == "MEMOIZE":
            number = len(memo) if name == "MEMOIZE" else int(argument)
            if number > count:
                raise pickle.UnpicklingError(f"memo number {number} after {count} opcodes")
            memo[number] = after_tuple
            continue
        # A tuple that is not at once the arguments of a call may become part of another one; so may one fetched again.
        nestable += after_tuple and name != "REDUCE"
        nestable += "GET" in name and memo.get(int(argument), False)
        after_tuple = "TUPLE" in name
        if nestable > _MAX_NESTABLE:
            raise pickle.UnpicklingError(f"more than {_MAX_NESTABLE} tuples")


def _array(kept: _NDArray) -> np.ndarray:
    """The uint8 array that an honest file describes."""
    if not isinstance(kept.state, tuple) or len(kept.state) != 5:
        raise ValueError("an array without content")
    _, shape, dtype, fortran, content = kept.state
    code = dtype.code if isinstance(dtype, _DType) else None
    if code not in ("u1", b"u1"):
        raise ValueError(f"an array of {str(code)[:20]}, expected uint8")
    sizes = shape if isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape) else None
    if sizes is None or not isinstance(content, bytes) or math.prod(sizes) != len(content):
        raise ValueError("an array whose shape does not fit its bytes")
    return np.frombuffer(content, np.uint8).reshape(sizes, order="F" if fortran else "C")
