"""NVRTC and the loading of its results, through the packages that bind them to Python.

`cuda-bindings` comes with torch's CUDA builds from PyPI and is tried first; CuPy serves where it is missing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Protocol


class CompileError(RuntimeError):
    """NVRTC refused a program; the message holds its log."""


class Toolchain(Protocol):
    """Compiles a kernel for a device and loads it there."""

    name: str  # with versions: "NVRTC 13.0 through cuda-bindings 13.0.3"

    def target(self, capability: tuple[int, int]) -> str:
        """The architecture that is compiled for a GPU of this compute capability: "sm_90", or "compute_90" for PTX."""
        ...

    def compile(self, text: str, options: Sequence[str], kernel: str, target: str, device: int) -> tuple[bytes, str]:
        """The compiled image and the symbol in it of `kernel`, a name expression."""
        ...

    def load(self, image: bytes, entry: str, device: int) -> tuple[Any, int]:
        """What keeps the loaded image alive, and the CUfunction of its symbol `entry`."""
        ...


def best_target(capability: tuple[int, int], supported: Sequence[int]) -> str:
    """The architecture to compile for.

    Machine code runs on its own major version from its own minor version on; for a GPU of a newer major version the
    driver compiles the PTX of the newest architecture known.

    Args:
        capability: the GPU's, such as (9, 0).
        supported: what NVRTC knows, such as [80, 90].

    Raises:
        CompileError: the GPU is older than all of these.
    """
    wanted = 10 * capability[0] + capability[1]
    below = [arch for arch in supported if arch <= wanted]
    if not below:
        raise CompileError(f"this NVRTC compiles for sm_{min(supported)} and newer, the GPU is sm_{wanted}")
    best = max(below)
    return f"sm_{best}" if best // 10 == capability[0] else f"compute_{best}"


def _version(*distributions: str) -> str:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


class CudaBindings:
    """NVRTC and the driver through `cuda.bindings`."""

    def __init__(self) -> None:
        from cuda.bindings import nvrtc

        self._nvrtc = nvrtc
        major, minor = self._values(nvrtc.nvrtcVersion())
        (self.supported,) = self._values(nvrtc.nvrtcGetSupportedArchs())
        self.name = f"NVRTC {major}.{minor} through cuda-bindings {_version('cuda-bindings')}".rstrip()

    @staticmethod
    def _values(answer: tuple[Any, ...]) -> tuple[Any, ...]:
        """The values of a call's answer, or an exception named as its error code."""
        error, *values = answer
        if error.value != 0:
            raise RuntimeError(error.name)
        return tuple(values)

    def target(self, capability: tuple[int, int]) -> str:
        """See `Toolchain`."""
        return best_target(capability, self.supported)

    def compile(
        self, text: str, options: Sequence[str], kernel: str, target: str, device: int = 0
    ) -> tuple[bytes, str]:
        """See `Toolchain`."""
        image, entries, _ = self.compile_all(text, options, [kernel], target)
        return image, entries[0]

    def compile_all(
        self, text: str, options: Sequence[str], kernels: Sequence[str], target: str
    ) -> tuple[bytes, list[str], str]:
        """One image with all these kernels, their symbols, and the compiler's log."""
        nvrtc, values = self._nvrtc, self._values
        (program,) = values(nvrtc.nvrtcCreateProgram(text.encode(), b"ard_fast.cu", 0, [], []))
        try:
            for kernel in kernels:
                values(nvrtc.nvrtcAddNameExpression(program, kernel.encode()))
            arguments = [option.encode() for option in (*options, f"-arch={target}")]
            (error,) = nvrtc.nvrtcCompileProgram(program, len(arguments), arguments)
            (size,) = values(nvrtc.nvrtcGetProgramLogSize(program))
            log = bytearray(size)
            values(nvrtc.nvrtcGetProgramLog(program, log))
            said = log.rstrip(b"\0").decode(errors="replace").strip()
            if error.value != 0:
                raise CompileError(f"{error.name} for {target}:\n{said}")
            entries = [values(nvrtc.nvrtcGetLoweredName(program, kernel.encode()))[0].decode() for kernel in kernels]
            ptx = target.startswith("compute_")
            (size,) = values((nvrtc.nvrtcGetPTXSize if ptx else nvrtc.nvrtcGetCUBINSize)(program))
            image = bytearray(size)
            values((nvrtc.nvrtcGetPTX if ptx else nvrtc.nvrtcGetCUBIN)(program, image))
        finally:
            nvrtc.nvrtcDestroyProgram(program)
        return bytes(image), entries, said

    def load(self, image: bytes, entry: str, device: int) -> tuple[Any, int]:
        """See `Toolchain`. The image is loaded into the device's primary context, which is torch's."""
        from cuda.bindings import driver

        values = self._values
        values(driver.cuInit(0))
        (handle,) = values(driver.cuDeviceGet(device))
        (context,) = values(driver.cuDevicePrimaryCtxRetain(handle))
        values(driver.cuCtxPushCurrent(context))
        try:
            (module,) = values(driver.cuModuleLoadData(image))
            (function,) = values(driver.cuModuleGetFunction(module, entry.encode()))
        finally:
            values(driver.cuCtxPopCurrent())
        return module, int(function)


class CuPy:
    """NVRTC and the loading through CuPy.

    The program is compiled by `cupy.cuda.compiler.compile_using_nvrtc` and not by `cupy.RawModule(code=...)`, which
    flushes subnormal numbers to zero, whatever is asked for; `cupy.RawModule(path=...)` loads the result.
    """

    def __init__(self) -> None:
        import cupy
        from cupy.cuda import compiler, nvrtc

        self._cupy, self._compiler = cupy, compiler
        major, minor = nvrtc.getVersion()
        self.name = f"NVRTC {major}.{minor} through CuPy {cupy.__version__}"

    def target(self, capability: tuple[int, int]) -> str:
        """See `Toolchain`. CuPy itself takes the newest architecture that its NVRTC knows."""
        return "sm_{}{}".format(*capability)

    def compile(self, text: str, options: Sequence[str], kernel: str, target: str, device: int) -> tuple[bytes, str]:
        """See `Toolchain`."""
        # CuPy gives this option itself, and NVRTC takes it once.
        options = tuple(option for option in options if option != "-default-device")
        with self._cupy.cuda.Device(device):
            try:
                image, entries = self._compiler.compile_using_nvrtc(text, options, name_expressions=(kernel,))
            except self._compiler.CompileException as error:
                raise CompileError(f"for {target}:\n{error}") from None
        return image, entries[kernel]

    def load(self, image: bytes, entry: str, device: int) -> tuple[Any, int]:
        """See `Toolchain`."""
        # CuPy reads an image from a file only.
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file, self._cupy.cuda.Device(device):
            file.write(image)
            file.flush()
            kernel = self._cupy.RawModule(path=file.name).get_function(entry)
            return kernel, kernel.kernel.ptr


_KINDS = {"cuda.bindings.nvrtc": CudaBindings, "cupy": CuPy}


def installed() -> bool:
    """Whether a package that binds NVRTC is installed. Imports none of them."""
    for module in _KINDS:
        try:
            if find_spec(module) is not None:
                return True
        except ImportError:
            continue
    return False


def choose() -> Toolchain:
    """The first one that works.

    Raises:
        ImportError: there is none; the message says what was tried and what to install.
    """
    tried = []
    for module, kind in _KINDS.items():
        try:
            return kind()
        except Exception as error:  # what a binding raises without its library differs by package and version
            tried.append(f"{module.split('.nvrtc')[0]}: {type(error).__name__}: {error}")
    raise ImportError(
        f"NVRTC cannot be used ({'; '.join(tried)}). Install cuda-bindings (with nvidia-cuda-nvrtc) or CuPy "
        "for the CUDA version of this torch"
    )
