"""What is compiled once and kept, and the choice of what to compile for: `ard_fast/nvrtc/`."""

import threading
from pathlib import Path

import pytest
import torch

from ard_fast.nvrtc import ahead, program, store, toolchain
from ard_fast.nvrtc.kernels import Kernels, compile_all

HEADER, NAME = "cuda/pgd_kernels.cuh", "ard::cuda::random_start_kernel<true>"


class Recorder:
    """A toolchain whose images are texts, and that counts what it is asked for."""

    name = "NVRTC of the test"

    def __init__(self) -> None:
        self.compiled: list[tuple[str, str, int]] = []
        self.loaded: list[tuple[str, int]] = []

    def target(self, capability: tuple[int, int]) -> str:
        return "sm_{}{}".format(*capability)

    def compile(self, text: str, options: tuple[str, ...], kernel: str, target: str, device: int) -> tuple[bytes, str]:
        assert f'#include "{HEADER}"' in text
        assert f"-I{program.include_folder()}" in options
        self.compiled.append((kernel, target, device))
        return f"image of {kernel} for {target}".encode(), "_Zentry"

    def load(self, image: bytes, entry: str, device: int) -> tuple[object, int]:
        assert entry == "_Zentry"
        if not image.startswith(b"image of "):
            raise RuntimeError("CUDA_ERROR_INVALID_IMAGE")
        self.loaded.append((image.decode(), device))
        return image, 1000 + len(self.loaded)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The disk cache of the test, and GPUs of two kinds."""
    monkeypatch.setenv(store.VARIABLE, str(tmp_path / "kept"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: [(9, 0), (8, 0), (9, 0)][device])
    return tmp_path / "kept"


def test_kernel_is_compiled_once_a_process_and_once_a_machine(folder: Path) -> None:
    first = Recorder()
    kernels = Kernels(first)
    handle = kernels.handle(0, HEADER, NAME)
    assert kernels.handle(0, HEADER, NAME) == handle
    assert first.compiled == [(NAME, "sm_90", 0)]
    assert [path.name.partition("-")[0] for path in folder.iterdir()] == ["_Zentry"]

    second = Recorder()
    Kernels(second).handle(0, HEADER, NAME)
    assert (second.compiled, second.loaded) == ([], first.loaded)


def test_device_of_another_kind_gets_code_of_its_own_and_each_device_its_own_handle(folder: Path) -> None:
    toolchain = Recorder()
    kernels = Kernels(toolchain)
    handles = [kernels.handle(device, HEADER, NAME) for device in range(3)]
    assert len(set(handles)) == 3
    assert toolchain.compiled == [(NAME, "sm_90", 0), (NAME, "sm_80", 1)]
    assert toolchain.loaded[2] == (f"image of {NAME} for sm_90", 2)


def test_damaged_file_is_made_anew(folder: Path) -> None:
    Kernels(Recorder()).handle(0, HEADER, NAME)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    for damage in (b"", b"rubbish"):
        path.write_bytes(damage)
        toolchain = Recorder()
        assert Kernels(toolchain).handle(0, HEADER, NAME) == 1001
        assert toolchain.compiled == [(NAME, "sm_90", 0)]
        assert path.read_bytes() == whole


def test_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(store.VARIABLE, str(tmp_path / "file" / "kept"))
    with pytest.warns(RuntimeWarning, match="compiled kernels are not kept: .* Set ARD_FAST_KERNEL_CACHE"):
        assert Kernels(Recorder()).handle(0, HEADER, NAME) == 1001


def test_two_threads_that_ask_at_once_share_one_compilation() -> None:
    together = threading.Barrier(4)
    toolchain = Recorder()
    kernels, handles = Kernels(toolchain), []

    def ask() -> None:
        together.wait()
        handles.append(kernels.handle(0, HEADER, NAME))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert handles == [1001] * 4
    assert len(toolchain.compiled) == 1


def test_key_is_of_sources_name_target_and_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        program.key(HEADER, NAME, "sm_90", "NVRTC 13.0"),
        program.key(HEADER, NAME, "sm_80", "NVRTC 13.0"),
        program.key(HEADER, NAME, "sm_90", "NVRTC 13.1"),
        program.key(HEADER, "ard::cuda::random_start_kernel<false>", "sm_90", "NVRTC 13.0"),
        program.key("cuda/kd_loss_kernels.cuh", NAME, "sm_90", "NVRTC 13.0"),
    }
    for folder in ("cuda", "core"):
        (tmp_path / folder).mkdir()
    (tmp_path / "core" / "math.h").write_text("// another\n")
    monkeypatch.setattr(program, "include_folder", lambda: tmp_path)
    keys.add(program.key(HEADER, NAME, "sm_90", "NVRTC 13.0"))
    assert len(keys) == 6


@pytest.mark.parametrize(
    ("capability", "supported", "target"),
    [
        ((9, 0), [80, 90, 100], "sm_90"),
        ((8, 9), [80, 86, 90], "sm_86"),
        ((12, 1), [90, 100, 120], "sm_120"),
        ((12, 0), [80, 90], "compute_90"),
    ],
)
def test_best_target(capability: tuple[int, int], supported: list[int], target: str) -> None:
    assert toolchain.best_target(capability, supported) == target


def test_gpu_older_than_all_is_an_error() -> None:
    with pytest.raises(toolchain.CompileError, match="compiles for sm_80 and newer, the GPU is sm_75"):
        toolchain.best_target((7, 5), [80, 90])


def test_no_binding_that_works_is_an_error_that_names_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("libnvrtc.so.13: cannot open")

    monkeypatch.setattr(toolchain, "_KINDS", {"cuda.bindings.nvrtc": broken, "cupy": broken})
    with pytest.raises(ImportError, match=r"cuda.bindings: OSError: libnvrtc.*; cupy: OSError.*Install cuda-bindings"):
        toolchain.choose()


def test_compile_all_hands_every_kernel_over(monkeypatch: pytest.MonkeyPatch) -> None:
    class ByName:
        stored: dict[tuple[int, str, str], int] = {}  # noqa: RUF012

        def kernels(self) -> list[tuple[str, str]]:
            return [(HEADER, NAME), (HEADER, "ard::cuda::random_start_kernel<false>")]

        def store(self, device: int, header: str, name: str, handle: int) -> None:
            self.stored[device, header, name] = handle

    from ard_fast.nvrtc import kernels

    mine = Kernels(Recorder())
    monkeypatch.setattr(kernels, "shared", lambda: mine)
    module = ByName()
    assert compile_all(module, 1) == 2
    assert module.stored == {(1, *kernel): mine.handle(1, *kernel) for kernel in module.kernels()}


def test_compile_kernels_has_nothing_to_do_without_nvrtc_and_checks_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr(ahead, "load", lambda: SimpleNamespace(cuda_backend="compiled"))
    assert ahead.compile_kernels() == 0
    monkeypatch.setattr(ahead, "load", lambda: SimpleNamespace(cuda_backend="nvrtc"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="device must be a CUDA device, got 'cpu'"):
        ahead.compile_kernels("cpu")
    with pytest.raises(ValueError, match="device must be one of the 2 CUDA devices there are, got 'cuda:2'"):
        ahead.compile_kernels("cuda:2")
