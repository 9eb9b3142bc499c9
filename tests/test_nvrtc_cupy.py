"""NVRTC through CuPy, where cuda-bindings is missing: what CuPy is asked, and, where it is installed, what it makes."""

import contextlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from ard_fast.nvrtc import program, toolchain

HEADER, NAME = "cuda/pgd_kernels.cuh", "ard::cuda::pgd_linf_step_scalar_kernel<float>"


class FakeCuPy:
    """The part of CuPy that is used, with a record of the calls; `device` is the current one."""

    class Refused(Exception):
        pass

    def __init__(self) -> None:
        self.device, self.calls = 0, []

    def modules(self) -> dict[str, ModuleType]:
        cupy, cuda, compiler, nvrtc = (ModuleType(name) for name in ("cupy", "cupy.cuda", "compiler", "nvrtc"))
        cupy.__version__, cupy.cuda, cupy.RawModule = "99.1", cuda, self.raw_module
        cuda.Device, cuda.compiler, cuda.nvrtc = self.on, compiler, nvrtc
        nvrtc.getVersion = lambda: (13, 0)
        compiler.CompileException, compiler.compile_using_nvrtc = self.Refused, self.compile
        return {"cupy": cupy, "cupy.cuda": cuda, "cupy.cuda.compiler": compiler, "cupy.cuda.nvrtc": nvrtc}

    @contextlib.contextmanager
    def on(self, device: int):
        before, self.device = self.device, device
        yield
        self.device = before

    def compile(self, source: str, options: tuple[str, ...], *, name_expressions: tuple[str, ...]):
        self.calls.append((self.device, options, name_expressions))
        if "broken" in source:
            raise self.Refused("line 1: broken")
        return b"image", {name_expressions[0]: "_Zentry"}

    def raw_module(self, *, path: str):
        image, device = Path(path).read_bytes(), self.device
        return SimpleNamespace(
            get_function=lambda entry: SimpleNamespace(kernel=SimpleNamespace(ptr=(image, entry, device)))
        )


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCuPy:
    fake = FakeCuPy()
    for name, module in fake.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return fake


def test_compiled_and_loaded_on_the_device_that_asks(cupy: FakeCuPy) -> None:
    mine = toolchain.CuPy()
    assert mine.name == "NVRTC 13.0 through CuPy 99.1"
    assert mine.compile("text", ("-std=c++17", "-default-device"), NAME, "sm_90", 1) == (b"image", "_Zentry")
    assert cupy.calls == [(1, ("-std=c++17",), (NAME,))]
    kept, handle = mine.load(b"image", "_Zentry", 1)
    assert handle == (b"image", "_Zentry", 1)
    assert kept.kernel.ptr is handle
    assert cupy.device == 0


def test_refused_source_is_an_error_with_the_log(cupy: FakeCuPy) -> None:
    with pytest.raises(toolchain.CompileError, match=r"for sm_90:\nline 1: broken"):
        toolchain.CuPy().compile("broken", (), NAME, "sm_90", 0)


def test_chosen_where_cuda_bindings_cannot_be_used(cupy: FakeCuPy, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("No module named 'cuda'")

    monkeypatch.setitem(toolchain._KINDS, "cuda.bindings.nvrtc", missing)
    assert isinstance(toolchain.choose(), toolchain.CuPy)


def test_cupy_that_is_installed_makes_the_code_of_cuda_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No -ftz=true, no other option that changes the code. CuPy wants a GPU for its architecture: it is told one."""
    pytest.importorskip("cupy")
    from cupy.cuda import compiler

    monkeypatch.setattr(compiler, "_get_arch_for_options_for_nvrtc", lambda arch=None: ("-arch=sm_90", "cubin"))
    mine = toolchain.CuPy()
    without_gpu = SimpleNamespace(Device=lambda device: contextlib.nullcontext())
    monkeypatch.setattr(mine, "_cupy", SimpleNamespace(cuda=without_gpu))
    arguments = program.text(HEADER), program.options(), NAME, "sm_90", 0
    image, entry = mine.compile(*arguments)
    theirs, name = toolchain.CudaBindings().compile(*arguments)
    assert entry == name
    sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
    import check_nvrtc

    assert check_nvrtc.machine_code(image) == check_nvrtc.machine_code(theirs)
    with pytest.raises(toolchain.CompileError, match="need subnormal numbers"):
        mine.compile(arguments[0], (*arguments[1], "-ftz=true"), *arguments[2:])
