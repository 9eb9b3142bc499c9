"""`python -m ard_fast.info`: the report, and the judgement of what runs on which GPU."""

import json
import re

import pytest
import torch

from ard_fast import info
from ard_fast.functional._load import arch_coverage


@pytest.mark.parametrize(
    ("capability", "archs", "runs", "phrase"),
    [
        ((9, 0), ["sm_80", "sm_90", "compute_90"], True, "runs its sm_90 code"),
        ((8, 9), ["sm_80", "sm_86"], True, "runs its sm_86 code"),
        ((8, 0), ["sm_86"], False, "TORCH_CUDA_ARCH_LIST=8.0"),
        ((12, 1), ["sm_90", "compute_90"], True, "from compute_90 at first use"),
        ((7, 5), ["sm_80", "compute_80"], False, "TORCH_CUDA_ARCH_LIST=7.5"),
        ((9, 0), ["sm_90a"], True, "runs its sm_90a code"),
        ((12, 1), ["sm_120a"], False, "not covered"),
        ((9, 0), [], False, "not covered"),
        ((9, 0), ["sm_80", "compute_80"], True, "without the thread-block clusters.*: build again with .*LIST=9.0"),
        ((12, 0), ["compute_90", "compute_120"], True, "from compute_120 at first use"),
    ],
)
def test_arch_coverage(capability: tuple[int, int], archs: list[str], runs: bool, phrase: str) -> None:
    covered, how = arch_coverage(capability, archs)
    assert covered is runs
    assert re.search(phrase, how)


def test_every_operator_is_reported_with_what_it_runs() -> None:
    report = info.collect()
    assert {"pgd_linf_step_", "random_start", "kd_loss"} <= report["operators"].keys()
    assert "simd_level" not in report["operators"]
    for name, on in report["operators"].items():
        assert on["cpu"] == f"compiled, {report['simd_level']}", name
        if not report["cuda_kernels"]:
            assert on["cuda"] == "none", name


def test_report_as_text_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    text_code, text = info.main([]), capsys.readouterr().out
    json_code, report = info.main(["--json"]), json.loads(capsys.readouterr().out)
    assert f"{torch.__version__}, " in text and "pgd_linf_step_" in text
    assert report["torch"] == torch.__version__
    assert json_code == text_code == (1 if report["stale"] else 0)


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
