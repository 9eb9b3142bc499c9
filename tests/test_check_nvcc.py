"""The judgements of scripts/check_nvcc.py, on texts as nvcc writes them; the compiler itself runs in CI."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "check_nvcc.py"


@pytest.fixture(scope="module")
def check():
    import sys

    spec = importlib.util.spec_from_file_location("check_nvcc", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_nvcc"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Zstep' for 'sm_90'
ptxas info    : Function properties for _Zstep
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used 38 registers, used 0 barriers, 512 bytes smem
ptxas info    : Compile time = 12.1 ms
"""
PTX = """//
.version 9.0
.target sm_90
.visible .entry _Zstep(
        .param .u64 _Zstep_param_0
)
.maxntid 256
{{
        ld.param.u64    %rd1, [_Zstep_param_0];
        {body}
        ret;
}}
.visible .entry _Zother(
)
{{
        ld.global.nc.v4.f32   {{%f1, %f2, %f3, %f4}}, [%rd1];
        ret;
}}
"""


def kernel(check, name: str, stack: int = 0, stores: int = 0, loads: int = 0, wide: tuple[int, int] = (3, 1)):
    (found,) = check.parse_ptxas("x.cu", LOG.format(stack=stack, stores=stores, loads=loads)).values()
    found.name = name
    found.wide_loads, found.wide_stores = wide
    return found


def test_ptxas_report_is_read(check) -> None:
    found = kernel(check, "kd_loss_warp_kernel<float, 4>", stack=8, stores=12, loads=16)
    assert (found.arch, found.registers, found.shared) == ("sm_90", 38, 512)
    assert (found.stack, found.spill_stores, found.spill_loads) == (8, 12, 16)


def test_spills_fail_in_any_kernel(check) -> None:
    assert kernel(check, "anything").faults() == []
    assert "spills 4 bytes" in kernel(check, "anything", stores=4).faults()[0]
    assert "8 bytes (loads)" in kernel(check, "anything", loads=8).faults()[0]


def test_static_shared_memory_is_what_launchers_allow_for(check) -> None:
    found = kernel(check, "anything")
    found.shared = 16 * 1024
    assert found.faults() == []
    found.shared += 1
    assert "static shared memory" in found.faults()[0]


def test_local_memory_fails_in_the_step(check) -> None:
    assert kernel(check, "kd_loss_warp_kernel<float, 4>", stack=16).faults() == []
    assert "16 bytes of local memory" in kernel(check, "pgd_linf_step_kernel<float, 4>", stack=16).faults()[0]
    assert "16 bytes of local memory" in kernel(check, "random_start_kernel<1>", stack=16).faults()[0]
    assert "16 bytes of local memory" in kernel(check, "fold_batch_norm_kernel<float>", stack=16).faults()[0]


@pytest.mark.parametrize(("name", "wide"), [("<float, 4>", (3, 1)), ("<ard::bf16, 8>", (5, 2))])
def test_narrow_access_fails_in_the_vector_step(check, name: str, wide: tuple[int, int]) -> None:
    name = check.short_name(f"void ard::cuda::pgd_linf_step_kernel{name}(ard::PgdLinfParams, long, long)")
    assert kernel(check, name, wide=wide).faults() == []
    assert "expected" in kernel(check, name, wide=(wide[0] - 1, wide[1])).faults()[0]
    assert "expected" in kernel(check, name, wide=(wide[0], 0)).faults()[0]
    assert kernel(check, "pgd_linf_step_scalar_kernel<float>", wide=(0, 0)).faults() == []


def test_narrow_access_fails_in_affine_relu(check) -> None:
    name = check.short_name("void ard::cuda::affine_relu_kernel<float, (ard::cuda::Spread)1, (int)4>(ard::P, unsigned)")
    assert name == "affine_relu_kernel<float, 1, 4>"
    assert kernel(check, name, wide=(6, 2)).faults() == []
    assert "expected at least 4" in kernel(check, name, wide=(3, 2)).faults()[0]
    assert "expected at least 4" in kernel(check, name, wide=(4, 1)).faults()[0]
    assert kernel(check, "affine_relu_bytes_kernel<float>", wide=(0, 0)).faults() == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1];", (1, 0)),
        ("ld.global.nc.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1];", (1, 0)),
        ("ld.global.nc.L1::no_allocate.v2.b64 {%rd1, %rd2}, [%rd1];", (1, 0)),
        ("st.global.v4.b32 [%rd1], {%r1, %r2, %r3, %r4};", (0, 1)),
        ("st.global.v2.f64 [%rd1], {%fd1, %fd2};", (0, 1)),
        ("ld.global.f32 %f1, [%rd1];", (0, 0)),
        ("ld.global.v2.f32 {%f1, %f2}, [%rd1];", (0, 0)),
        ("ld.global.v4.u16 {%rs1, %rs2, %rs3, %rs4}, [%rd1];", (0, 0)),
        ("ld.shared.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1];", (0, 0)),
    ],
)
def test_ptx_accesses_are_counted(check, body: str, expected: tuple[int, int]) -> None:
    counts = check.count_wide_accesses(PTX.format(body=body))
    assert counts == {"_Zstep": expected, "_Zother": (1, 0)}


def test_without_nvcc_it_says_so(check, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(check.shutil, "which", lambda name: None)
    monkeypatch.setattr("sys.argv", ["check_nvcc.py"])
    assert check.main() == 2
    assert "nvcc not found (looked for" in capsys.readouterr().err
