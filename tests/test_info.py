"""`python -m ard_fast.info`: the report, and the judgement of what runs on which GPU."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ard_fast import _load, info
from ard_fast._cuda_part import arch_coverage
from ard_fast.nvrtc import kernels, store, toolchain

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("capability", "archs", "runs", "phrase"),
    [
        ((9, 0), ["sm_80", "sm_90", "compute_90"], True, "runs its sm_90 code"),
        ((8, 6), ["sm_80", "sm_90", "compute_90"], True, "runs its sm_80 code"),
        ((8, 9), ["sm_80", "sm_86"], True, "runs its sm_86 code"),
        ((8, 0), ["sm_86"], False, "TORCH_CUDA_ARCH_LIST=8.0"),
        ((12, 1), ["sm_90", "compute_90"], True, "from compute_90 at first use"),
        ((7, 5), ["sm_80", "compute_80"], False, "TORCH_CUDA_ARCH_LIST=7.5"),
        ((9, 0), ["sm_90a"], True, "runs its sm_90a code"),
        ((12, 1), ["sm_120a"], False, "not covered"),
        ((12, 1), ["sm_120"], True, "runs its sm_120 code"),
        ((10, 3), ["sm_100", "sm_120"], True, "runs its sm_100 code"),
        ((9, 0), [], False, "not covered"),
        ((9, 0), ["sm_80", "compute_80"], True, "from compute_80 at first use, without the thread-block clusters"),
        ((9, 0), ["sm_80", "compute_80"], True, ": build again with TORCH_CUDA_ARCH_LIST=9.0"),
        ((12, 0), ["compute_80", "compute_90"], True, "from compute_90 at first use"),
        ((12, 0), ["compute_90", "compute_120"], True, "from compute_120 at first use"),
    ],
)
def test_arch_coverage(capability: tuple[int, int], archs: list[str], runs: bool, phrase: str) -> None:
    covered, how = arch_coverage(capability, archs)
    assert covered is runs
    assert phrase in how


def test_every_operator_is_reported_with_what_it_runs() -> None:
    report = info.collect()
    assert {"pgd_linf_step_", "random_start", "kd_loss"} <= report["operators"].keys()
    assert "simd_level" not in report["operators"]
    for name, on in report["operators"].items():
        assert on["cpu"] == f"compiled, {report['simd_level']}", name
        if not report["cuda_kernels"]:
            assert on["cuda"] == f"none: {report['cuda_reason']}", name


def run_info(*arguments: str) -> subprocess.CompletedProcess[str]:
    """From the command line in the clone's root, as a person or a script runs it."""
    command = [sys.executable, "-m", "ard_fast.info", *arguments]
    return subprocess.run(command, text=True, capture_output=True, check=False, cwd=ROOT)


def test_report_as_text_and_as_json() -> None:
    text, as_json = run_info(), run_info("--json")
    assert f"{torch.__version__}, " in text.stdout, text.stderr
    assert "pgd_linf_step_" in text.stdout
    report = json.loads(as_json.stdout)
    assert report["torch"] == torch.__version__
    assert as_json.returncode == text.returncode == (1 if report["stale"] else 0)


def test_stale_extension_and_uncovered_gpu_fail_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = {**info.collect(), "stale": None, "gpus": []}
    monkeypatch.setattr(info, "collect", lambda: report)
    assert info.main([]) == 0
    report["stale"] = "the extension was built from other sources"
    assert info.main([]) == 1
    assert "STALE: the extension was built from other sources" in capsys.readouterr().out
    gpu = {"name": "GPU", "capability": "7.0", "kernels_run": False, "how": "not covered: build again"}
    report.update(stale=None, cuda_kernels=True, gpus=[gpu])
    assert info.main([]) == 1
    assert "GPU (7.0): not covered: build again" in capsys.readouterr().out


def test_report_of_kernels_that_nvrtc_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which compiler, where its results are kept, what each GPU gets; a missing compiler fails the command."""

    class Compiler:
        name = "NVRTC 13.0 through the test"

        def target(self, capability: tuple[int, int]) -> str:
            return toolchain.best_target(capability, [80, 90])

    extension = dataclasses.replace(_load.load(), cuda_path=tmp_path, cuda_backend="nvrtc", cuda_reason="at first use")
    monkeypatch.setattr(_load, "load", lambda: extension)
    monkeypatch.setattr(kernels, "shared", lambda: kernels.Kernels(Compiler()))
    monkeypatch.setenv(store.VARIABLE, str(tmp_path))
    (tmp_path / "_Zone-00.cubin").touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (12, 0), (7, 5)][index])
    assert info.main([]) == 1
    text = capsys.readouterr().out
    assert "loaded: at first use" in text
    assert "NVRTC 13.0 through the test" in text
    assert f"1 compiled kernels kept in {tmp_path}" in text
    assert "GPU 0 (9.0): NVRTC compiles sm_90 code at first use" in text
    assert "GPU 1 (12.0): NVRTC compiles compute_90 code at first use" in text
    assert "GPU 2 (7.5): not covered: this NVRTC compiles for sm_80 and newer" in text
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert info.main([]) == (1 if extension.stale else 0)

    def missing() -> None:
        raise ImportError("NVRTC cannot be used (cupy: none)")

    monkeypatch.setattr(kernels, "shared", missing)
    assert info.main([]) == 1
    assert "GPU 0 (9.0): not covered: NVRTC cannot be used (cupy: none)" in capsys.readouterr().out
