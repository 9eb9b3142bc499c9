"""The benchmark of the augmentation: every variant checked to the bit before it is timed, rows as the others'."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import _timing
import bench_augment

from ard_fast import functional

# Compiling takes seconds a case.
EAGER = ["--variants", "indexing,masks,fused", "--rounds", "2", "--min-sample-ms", "0.05", "--warm"]


def run(tmp_path, *options):
    file = tmp_path / "rows.json"
    status = bench_augment.main([*EAGER, "--json", str(file), *options])
    return status, json.loads(file.read_text()) if file.exists() else []


def test_every_variant_is_checked_and_timed(tmp_path, capsys):
    status, rows = run(tmp_path, "--quick")
    assert status == 0
    assert all(set(row) == {*_timing.ENVIRONMENT_FIELDS, *_timing.TIMING_FIELDS} for row in rows)
    by_name = {(row["case"], row["variant"]): row for row in rows}
    assert {case for case, _ in by_name} == {"cifar-128", "cifar-128-last"}
    for case in ("cifar-128", "cifar-128-last"):
        for name in ("indexing", "masks", "fused"):
            assert by_name[case, name]["checked"] == "bit-equal" and by_name[case, name]["median_us"] > 0
        assert by_name[case, "fused"]["bytes_min"] == 5 * 128 * 3 * 32 * 32
    assert "% of copy" in capsys.readouterr().out


def test_the_compiled_form_has_the_right_pixels():
    """As it is compiled, here run eagerly."""
    problem = bench_augment.make_problem("cifar-128", False, torch.device("cpu"), 1)
    variant = problem.make("indexing")
    view = torch.arange(128)
    images = torch.randint(0, 256, (128, 3, 9, 7), dtype=torch.uint8)
    got = bench_augment.unpadded(images, view, *bench_augment.split_views(view))
    expected, _ = functional.crop_flip(images, view, views=view, padding=bench_augment.PADDING, levels=255)
    assert got.equal(expected)
    assert problem.check(variant) == {"checked": "bit-equal"}


@pytest.mark.parametrize("case", ["cifar-128", "cifar-128-last"])
def test_nothing_is_timed_when_a_result_is_wrong(tmp_path, monkeypatch, capsys, case):
    right = functional.crop_flip
    monkeypatch.setattr(functional, "crop_flip", lambda *a, **k: (right(*a, **k)[0] * 1.0000002, None))
    status, rows = run(tmp_path, "--cases", case)
    assert (status, rows) == (1, [])
    assert "bench_augment: wrong result" in capsys.readouterr().err
