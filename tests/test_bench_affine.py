"""The benchmark of affine_relu: every variant checked before it is timed, rows as the others'."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import _timing
import bench_affine

from ard_fast import functional

# Compiling takes seconds a case.
EAGER = ["--variants", "torch,fused", "--rounds", "2", "--min-sample-ms", "0.05", "--warm"]


def run(tmp_path, *options):
    file = tmp_path / "rows.json"
    status = bench_affine.main([*EAGER, "--json", str(file), *options])
    return status, json.loads(file.read_text()) if file.exists() else []


def test_every_variant_is_checked_and_timed(tmp_path, capsys):
    status, rows = run(tmp_path, "--quick")
    assert status == 0
    assert all(set(row) == {*_timing.ENVIRONMENT_FIELDS, *_timing.TIMING_FIELDS} for row in rows)
    by_name = {(row["case"], row["dtype"], row["variant"]): row for row in rows}
    numel = 32 * 512 * 4 * 4
    for dtype, size in (("fp32", 4), ("bf16", 2)):
        for name, tensors in (("norm", 2), ("add", 3), ("backward", 2)):
            for variant in ("torch", "fused"):
                row = by_name[f"{name}-resnet18-512", dtype, variant]
                assert row["checked"].startswith("within") and row["median_us"] > 0
                assert row["bytes_min"] == tensors * size * numel + numel // 8
    assert "% of copy" in capsys.readouterr().out


@pytest.mark.parametrize("name", bench_affine.PASSES)
def test_the_compiled_forms_are_right(name, monkeypatch):
    """As they are compiled, here run eagerly."""
    monkeypatch.setattr(bench_affine, "compiled", lambda function: function)
    for dtype in bench_affine.DTYPES.values():
        buffers = bench_affine.Buffers(name, (2, 8, 3, 3), dtype, torch.device("cpu"), 2)
        assert buffers.check(buffers.make("compile"))["checked"].startswith("within")


def wrong_mask(*arguments, **options):
    y, mask = affine_relu(*arguments, **options)
    return y, mask + 1


affine_relu, affine_relu_, backward = functional.affine_relu, functional.affine_relu_, functional.affine_relu_backward


@pytest.mark.parametrize(
    ("name", "function", "wrong"),
    [
        ("norm", "affine_relu", wrong_mask),
        ("norm", "affine_relu", lambda x, scale, shift, **o: affine_relu(x, scale * 1.0001, shift, **o)),
        ("add", "affine_relu_", lambda x, residual, **o: affine_relu_(x, residual=residual + 1e-5, **o)),
        ("backward", "affine_relu_backward", lambda grad, mask: backward(grad, mask.flip(0))),
    ],
)
def test_nothing_is_timed_when_a_result_is_wrong(tmp_path, monkeypatch, capsys, name, function, wrong):
    monkeypatch.setattr(functional, function, wrong)
    status, rows = run(tmp_path, "--cases", f"{name}-resnet18-512", "--dtypes", "fp32")
    assert (status, rows) == (1, [])
    assert "bench_affine: wrong result" in capsys.readouterr().err
