"""NVRTC compiles the kernels: `scripts/check_nvrtc.py`, quick form, where NVRTC is installed (it needs no GPU)."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from ard_fast.nvrtc import program, toolchain

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))

import check_nvcc  # noqa: E402
import check_nvrtc  # noqa: E402


@pytest.fixture(scope="module")
def compiler() -> toolchain.CudaBindings:
    try:
        return toolchain.CudaBindings()
    except Exception as error:
        pytest.skip(f"no NVRTC: {error}")


def test_kernels_of_some_headers_compile_and_their_names_resolve(compiler: toolchain.CudaBindings) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "check_nvrtc.py"), "--arch", "90", "--jobs", "1"]
    run = subprocess.run([*command, "--kernels", "pgd_linf|fold|crop"], text=True, capture_output=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1] == "19 kernels checked, 0 faults"


def test_flushing_subnormals_to_zero_is_refused(compiler: toolchain.CudaBindings) -> None:
    header, name = "cuda/pgd_kernels.cuh", "ard::cuda::pgd_linf_step_scalar_kernel<float>"
    image, entry = compiler.compile(program.text(header), program.options(), name, "sm_90")
    assert image[:4] == b"\x7fELF"
    assert entry.startswith("_ZN3ard4cuda27pgd_linf_step_scalar_kernelIfE")
    with pytest.raises(toolchain.CompileError, match="the kernels need subnormal numbers"):
        compiler.compile(program.text(header), (*program.options(), "-ftz=true"), name, "sm_90")


def test_unknown_name_and_broken_source_are_errors_with_the_log(compiler: toolchain.CudaBindings) -> None:
    text = program.text("cuda/pgd_kernels.cuh")
    with pytest.raises(toolchain.CompileError, match=r"NVRTC_ERROR_COMPILATION for sm_90(?s:.*)no_such_kernel"):
        compiler.compile(text, program.options(), "ard::cuda::no_such_kernel<float>", "sm_90")
    with pytest.raises(toolchain.CompileError, match="cannot open source file"):
        compiler.compile(program.text("cuda/none.cuh"), program.options(), "none", "sm_90")


def test_ptx_for_a_gpu_that_nvrtc_does_not_know(compiler: toolchain.CudaBindings) -> None:
    target = compiler.target((99, 0))
    assert target == f"compute_{max(compiler.supported)}"
    name = "ard::cuda::pgd_linf_step_scalar_kernel<float>"
    image, entry = compiler.compile(program.text("cuda/pgd_kernels.cuh"), program.options(), name, target)
    assert f".entry {entry}(" in image.decode()


def test_headers_in_the_package_are_complete(compiler: toolchain.CudaBindings, tmp_path: Path) -> None:
    """The programs include nothing from outside core/ and cuda/, which is all that a wheel has."""
    for folder in ("core", "cuda"):
        (tmp_path / folder).mkdir()
        for path in (ROOT / "csrc" / folder).iterdir():
            if path.suffix in (".h", ".cuh"):
                (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    found = check_nvrtc.kernels("")
    assert set(found) == {f"cuda/{path.name}" for path in (ROOT / "csrc" / "cuda").glob("*_kernels.cuh")}
    for header in found:
        compiler.compile_all(program.text(header, tmp_path), program.options(tmp_path), [], "compute_90")


def test_spills_and_local_memory_are_faults() -> None:
    def kernel(name: str, **found: int) -> check_nvcc.Kernel:
        return check_nvcc.Kernel("x", "sm_90", "_Zx", name, registers=30, **found)

    assert check_nvrtc.judge(kernel("kd_loss_warp_kernel<float, 4>", stack=16)) == []
    assert "spills 40 bytes" in check_nvrtc.judge(kernel("kd_loss_warp_kernel<float, 4>", spill_stores=40))[0]
    assert not check_nvrtc.judge(kernel("kd_loss_warp_kernel<float, 4>", spill_stores=16, spill_loads=16))
    assert "local memory" in check_nvrtc.judge(kernel("pgd_linf_step_kernel<float, 4>", stack=16))[0]
    assert "no register count" in check_nvrtc.judge(check_nvcc.Kernel("x", "sm_90", "_Zx", "f"))[0]


def test_machine_code_is_read_from_the_section_of_each_kernel() -> None:
    names, code = b"\0.text._Zone\0.data\0", [b"\x01\x02\x03", b"\x04\x05"]
    header = bytearray(0x40)
    body = names + code[0] + code[1]
    struct.pack_into("<Q", header, 0x28, 0x40 + len(body))
    struct.pack_into("<HHH", header, 0x3A, 64, 3, 0)
    places = [(0, 0, len(names)), (1, len(names), 3), (13, len(names) + 3, 2)]
    table = b"".join(
        struct.pack("<IIQQQQ", name, 0, 0, 0, 0x40 + at, size).ljust(64, b"\0") for name, at, size in places
    )
    assert check_nvrtc.machine_code(bytes(header) + body + table) == {"_Zone": b"\x01\x02\x03"}


def test_every_kernel_is_listed_once() -> None:
    names = [name for group in check_nvrtc.kernels("").values() for name in group]
    assert len(names) == len(set(names)) > 100
    assert all(name.startswith("ard::cuda::") for name in names)
