"""The benchmark of the folding: every variant checked before it is timed, rows as the others'."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import _timing
import bench_fold

from ard_fast import folding as lean

# Compiling takes a minute a case.
EAGER = ["--variants", "layers,foreach,fused", "--rounds", "2", "--min-sample-ms", "0.05", "--warm"]


def run(tmp_path, *options):
    file = tmp_path / "rows.json"
    status = bench_fold.main([*EAGER, "--json", str(file), *options])
    return status, json.loads(file.read_text()) if file.exists() else []


def test_every_variant_is_checked_and_timed(tmp_path, capsys):
    status, rows = run(tmp_path, "--cases", "mobilenetv2-last")
    assert status == 0
    assert all(set(row) == {*_timing.ENVIRONMENT_FIELDS, *_timing.TIMING_FIELDS} for row in rows)
    by_name = {(row["dtype"], row["variant"]): row for row in rows}
    for dtype in ("fp32", "bf16"):
        for name in ("layers", "foreach", "fused"):
            row = by_name[dtype, name]
            assert row["checked"].startswith("within ") and row["median_us"] > 0
    layers, weights = by_name["fp32", "fused"]["shape"]
    channels = sum(norm.num_features for _, norm in bench_fold.make_pairs("mobilenetv2", False, torch.device("cpu"), 0))
    assert (layers, weights) == (57, 2_249_024)
    assert by_name["fp32", "fused"]["bytes_min"] == 8 * weights + 20 * channels
    assert by_name["bf16", "fused"]["bytes_min"] == 6 * weights + 20 * channels
    assert "% of copy" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_form_folds(dtype):
    """As it is compiled, here run eagerly."""
    pairs = bench_fold.make_pairs("resnet18", False, torch.device("cpu"), 0)[:4]
    one, other = bench_fold.Plain(pairs, dtype), bench_fold.Plain(pairs, dtype)
    bench_fold.functional_layers(**vars(one))
    other.layers()
    for a, b in zip(one.weights + one.shifts, other.weights + other.shifts, strict=True):
        torch.testing.assert_close(a, b)


def test_nothing_is_timed_when_a_result_is_wrong(tmp_path, monkeypatch, capsys):
    right = lean.FoldedWeights.refresh

    def wrong(self):
        right(self)
        self.shift(3).mul_(1.00001)

    monkeypatch.setattr(lean.FoldedWeights, "refresh", wrong)
    status, rows = run(tmp_path, "--cases", "mobilenetv2", "--dtypes", "fp32")
    assert (status, rows) == (1, [])
    assert "bench_fold: wrong result" in capsys.readouterr().err


def test_only_convolutions_followed_by_norms():
    with pytest.raises(ValueError, match="norms in turn"):
        bench_fold.conv_norm_pairs(torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 3, 1)))
