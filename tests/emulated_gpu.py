"""The emulated GPU: the extension as nvcc compiles it, run by the PTX interpreter of `csrc/emulator`.

`build()` compiles the launchers (`.cu`, as PTX of three GPU generations), the operators' bindings and the emulator into
the extension module `_emulated`, in `build/emulated`; Ninja compiles what has changed. Within `active()` the operators
`ard_fast::*` on CPU tensors run there instead of on the CPU: whatever a test does with `ard_fast.functional` then runs
the code of the GPU. A kernel may touch the tensors it was given and the new ones it returns, and write to those that
its schema says it writes.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.machinery
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
FOLDER = ROOT / "build" / "emulated"
GENERATIONS = [80, 90]
ORDERS = ("forward", "reverse", "shuffled")
APPROXIMATIONS = ("exact", "extreme")
NAMESPACE = "ard_fast_emulated"
# The extension's sources, by the ends of their names.
EXTENSION = (".cu", "_ops.cpp", "csrc/module.cpp")
# What the emulator stands between: allocations of libtorch.
ONE_CALL = threading.Lock()
WRAPPED = ("aoti_torch_empty_strided",)


def nvcc() -> Path | None:
    """The compiler of a toolkit: of $CUDA_HOME, on PATH, in /usr/local/cuda or of PyPI's nvidia-cuda-nvcc."""
    homes = [Path(os.environ["CUDA_HOME"])] if os.environ.get("CUDA_HOME") else []
    homes += [Path("/usr/local/cuda"), Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13"]
    found = [shutil.which("nvcc")] if not os.environ.get("CUDA_HOME") else []
    return next(
        (Path(path) for path in [*found, *(home / "bin" / "nvcc" for home in homes)] if path and Path(path).is_file()),
        None,
    )


def _include_of(compiler: Path) -> Path:
    """The folder of cuda_runtime_api.h: nvcc says where its toolkit is, since it may be a script outside of it."""
    run = subprocess.run([str(compiler), "--dryrun", "x.cu"], cwd="/", capture_output=True, text=True)
    top = next(line.partition("=")[2].strip() for line in run.stderr.splitlines() if line.startswith("#$ TOP="))
    return Path(top) / "include"


def _ninja_file(compiler: Path, archs: Sequence[int]) -> str:
    """Builds `_emulated.so` with PTX of the architectures."""
    import pybind11

    torch_root = Path(torch.__file__).parent
    standard = "-std=c++20" if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13) else "-std=c++17"
    folders = [torch_root / "include", sysconfig.get_path("include"), pybind11.get_include(), _include_of(compiler)]
    common = [standard, "-DUSE_CUDA", "-DARD_EMULATED", "-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{CSRC}"]
    common += [word for folder in folders for word in ("-isystem", str(folder))]
    # Results do not depend on the processor: no -march, no contraction. The interpreter changes rounding modes.
    host = [*common, "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-frounding-math"]
    device = [*common, "-O3", "--expt-relaxed-constexpr", "-DNDEBUG", "--no-compress"]
    device += ["-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off"]
    device += [f"--generate-code=arch=compute_{arch},code=compute_{arch}" for arch in archs]
    wraps = [f"-Wl,--wrap={name}" for name in WRAPPED]
    link = ["-shared", "-Wl,-Bsymbolic", *wraps, f"-L{torch_root / 'lib'}", "-ltorch_cpu", "-lc10"]
    lines = [
        f"cxx = {os.environ.get('CXX', 'c++')}",
        f"host = {shlex.join(host)} {os.environ.get('CXXFLAGS', '')}",
        f"device = {shlex.join(device)}",
        f"link = {os.environ.get('LDFLAGS', '')} {shlex.join(link)}",
    ]
    for rule, command in {"cpp": "$cxx $host", "cu": f"{compiler} $device"}.items():
        lines += [f"rule {rule}", f"  command = {command} -MD -MF $out.d -c $in -o $out"]
        lines += ["  depfile = $out.d", "  deps = gcc"]
    lines += ["rule link", "  command = $cxx $in -o $out $link"]

    sources = [path for path in sorted(CSRC.rglob("*")) if str(path).endswith(EXTENSION)]
    sources += [path for path in sorted((CSRC / "emulator").glob("*.cpp")) if path.name != "module.cpp"]
    objects = {source: str(source.relative_to(CSRC)).replace("/", "_") + ".o" for source in sources}
    lines += [f"build {name}: {source.suffix[1:]} {source}" for source, name in objects.items()]
    return "\n".join([*lines, f"build _emulated.so: link {' '.join(objects.values())}", ""])


def _loaded(name: str, path: Path) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@functools.cache
def build() -> ModuleType:
    """The module `_emulated`, compiled where sources have changed since the last time.

    Its PTX is that of `GENERATIONS`, to which an option of pytest may add.

    Raises:
        RuntimeError: there is no nvcc, or with what a compiler said.
    """
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("the emulated GPU needs nvcc: a CUDA toolkit, or pip install nvidia-cuda-nvcc")
    folder = FOLDER / "-".join(map(str, GENERATIONS))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes
        text = _ninja_file(compiler, GENERATIONS)
        file = folder / "build.ninja"
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
        run = subprocess.run([sys.executable, "-m", "ninja", "-C", str(folder)], capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(f"compiling the emulated GPU failed:\n{run.stdout[-8000:]}{run.stderr[-2000:]}")
    return _loaded("_emulated", folder / "_emulated.so")


@functools.cache
def interpreter() -> ModuleType:
    """The interpreter: alone where $ARD_FAST_INTERPRETER names a module that CMake has built."""
    built = os.environ.get("ARD_FAST_INTERPRETER")
    return _loaded("_interpreter", Path(built)) if built else build()


@dataclass(frozen=True)
class Mode:
    """What hardware may choose: the order of threads, the error of approximate functions, fused multiply and add."""

    order: str = "forward"
    approximation: str = "exact"
    contract: bool = False
    seed: int = 0

    @classmethod
    def drawn(cls, name: str, seed: int = 0) -> Mode:
        """One that depends on a test's name, so that a suite sees all of them and a failure can be repeated."""
        draw = zlib.crc32(f"{name} {seed}".encode())
        return cls(ORDERS[draw % 3], APPROXIMATIONS[draw // 3 % 2], draw // 6 % 2 == 1, draw)

    def options(self, gpu: ModuleType) -> Any:
        """As the interpreter takes them."""
        order, approximation = (
            gpu.ThreadOrder.__members__[self.order],
            gpu.Approximation.__members__[self.approximation],
        )
        return gpu.Options(approximation=approximation, order=order, contract=self.contract, seed=self.seed)


def _add_memory(gpu: ModuleType, tensor: Tensor, writable: bool) -> None:
    if tensor.numel():
        extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        gpu.add_memory(tensor.data_ptr(), extent * tensor.element_size(), writable)


def _on_gpu(gpu: ModuleType, name: str) -> Any:
    """The operator `name` on the emulated device."""
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    written = [a.alias_info is not None and a.alias_info.is_write for a in operator._schema.arguments]

    def call(*arguments: Any) -> Any:
        with ONE_CALL:
            gpu.forget_memory()
            for value, write in zip(arguments, written, strict=False):
                for tensor in value if isinstance(value, (list, tuple)) else (value,):
                    if isinstance(tensor, Tensor):
                        _add_memory(gpu, tensor, write)
            return operator(*arguments)

    return call


def operators(gpu: ModuleType) -> dict[str, Any]:
    """The operators on the emulated device by name."""
    names = [
        name.partition("::")[2].partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(f"{NAMESPACE}::")
    ]
    return {name: _on_gpu(gpu, name) for name in names if name != "simd_level"}


@contextmanager
def active(
    arch: int = 90, mode: Mode = Mode(), *, code: int = 1000, max_shared: int | None = None
) -> Iterator[ModuleType]:
    """The operators run on an emulated GPU of a generation.

    Args:
        arch: 80, 90 or 120.
        mode: see `Mode`.
        code: the newest architecture that the extension has code for, where it is older than the GPU.
        max_shared: bytes of shared memory that a block may have, where the generation's are too many for a test.
    """
    gpu = build()
    gpu.choose(arch, code, max_shared or 0)
    gpu.set_options(mode.options(gpu))
    gpu.take_launches()
    library = torch.library.Library("ard_fast", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
        for name, call in operators(gpu).items():
            library.impl(name, call, "CPU", allow_override=True)
    try:
        yield gpu
    finally:
        library._destroy()
        gpu.take_error()
