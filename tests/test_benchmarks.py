"""The benchmarks: what they would publish if their timing core were wrong, and one tiny run of each script."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import _networks  # noqa: E402
import _run  # noqa: E402
import _timing  # noqa: E402
import bench_pgd  # noqa: E402


class FakeClock:
    """Gives each variant's own time, and records what it was asked to do."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.log = seconds, []

    def sample(self, call: Callable[[int], object], indices: list[int]) -> float:
        name = call(indices[0])
        self.log.append((name, list(indices)))
        return self.seconds[name]


def test_variants_take_turns_on_restored_buffers():
    resets: list[tuple[str, int]] = []
    clock = FakeClock({"slow": 2e-3, "quick": 1e-4, "graph": 4e-3})

    def variant(name: str, **settings: int) -> _timing.Variant:
        return _timing.Variant(name, lambda i: name, lambda n: resets.append((name, n)), **settings)

    variants = [variant("slow"), variant("quick"), variant("graph", calls_per_run=8)]
    measured = _timing.measure(variants, clock, n_sets=4, rounds=5, min_sample_s=1e-3)
    assert {name: len(m.seconds) for name, m in measured.items()} == {"slow": 5, "quick": 5, "graph": 5}
    assert measured["graph"].seconds[0] == 4e-3 / 8  # a captured graph is eight operations
    assert {n: m.calls_per_sample for n, m in measured.items()} == {"slow": 1, "quick": 10, "graph": 8}
    timed = clock.log[-15:]
    for r in range(5):  # each round holds every variant once ...
        assert sorted(name for name, _ in timed[3 * r : 3 * r + 3]) == ["graph", "quick", "slow"]
    orders = {tuple(name for name, _ in timed[3 * r : 3 * r + 3]) for r in range(5)}
    assert len(orders) > 1  # ... and not always in the same order
    assert dict(timed)["quick"] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert [n for name, n in resets if name == "quick"] == [4] * 6  # warm-up, then before each sample
    assert [n for name, n in resets if name == "slow"] == [4] + [1] * 5  # only the sets it will touch


def test_rows_hold_medians_and_ratios_within_the_rounds():
    measured = {
        "ard": _timing.Measurement([8e-3, 80e-3, 8e-3], 1),  # the second round was ten times slower for all
        "fused": _timing.Measurement([1e-3, 10e-3, 2e-3], 3),
        "copy": _timing.Measurement([0.5e-3, 5e-3, 0.5e-3], 3),
        "ard+graph": _timing.Measurement([6e-3] * 3, 1),
        "fused+graph": _timing.Measurement([2e-3] * 3, 1),
    }
    common = {"case": "c"}
    rows = _timing.timing_rows(
        measured, {"ard": {"checked": "yes"}}, common=common, baseline="ard", bytes_min=4_000_000, n_sets=2
    )
    rows = {row["variant"]: row for row in rows}
    fused = rows["fused"]
    assert (fused["median_us"], fused["min_us"], fused["q1_us"]) == pytest.approx((2000, 1000, 1500))
    assert fused["gb_per_s"] == pytest.approx(2.0)
    assert fused["pct_of_copy"] == pytest.approx(50)
    assert fused["speedup_vs_baseline"] == pytest.approx(8)  # the medians' ratio is 4
    assert rows["ard+graph"]["fused_speedup"] == pytest.approx(3)  # graph against graph
    assert (fused["case"], fused["buffer_sets"], rows["ard"]["checked"]) == ("c", 2, "yes")


def test_buffers_are_rotated_past_the_cache():
    assert _timing.rotation_sets(6_000_000, 32_000_000) == 16
    assert (_timing.rotation_sets(10**9, 32_000_000), _timing.rotation_sets(1, 10**9)) == (1, _timing.MAX_SETS)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (1234.5, "1,234"), (12.345, "12.3"), (0.0123, "0.0123"), (1e-5, "1.00e-05"), (0, "0")],
)
def test_numbers_are_short(value, text):
    assert _run.number(value) == text


def test_a_gradient_that_is_nan_or_off_is_a_wrong_result():
    right = torch.tensor(1.0), torch.ones(2, 3)
    assert _run.require_errors("a", right, right, (1e-6, 1e-6))["grad_rel_error"] == 0
    for wrong in (torch.full((2, 3), float("nan")), 1.01 * right[1]):
        with pytest.raises(_run.WrongResult, match="relative error of loss 0, of gradient"):
            _run.require_errors("a", (right[0], wrong), right, (1e-6, 1e-3))


# One tiny run of each script, without `compile`, which takes seconds a case.
SHORT = "--rounds 2 --min-sample-ms 0.05 --warm"
RUNS = {
    "bench_pgd": f"{SHORT} --cases cifar-1 --variants ard,torchattacks,inplace,fused",
    "bench_kd_loss": f"{SHORT} --cases c10-128,trades-c10-128,mart-c10-128,rslad-c10-128 "
    "--variants ard,kl_div,kl_div_fp32,eager,composed,fused",
    "bench_ops": f"{SHORT} --dtypes fp32,bf16 --cases ce-c10-128,margin-c10-128,dlr-c10-128,kl-c10-128,l2-digits-1,"
    "mifgsm-digits-1,select-digits-1,start-digits-1,apgd-linf-digits-1,apgd-l2-digits-1,norm-resnet18-512,"
    "add-resnet18-512,backward-resnet18-512,fold-mobilenetv2-last,augment-cifar-128,augment-cifar-128-last "
    "--variants eager,closed,torchattacks,autoattack,mask,torch,layers,foreach,indexing,masks,inplace,fused",
    "bench_attacks": "--rounds 1 --cases digits --batch 16 --steps 3 --attacks pgd,pgd-l2,mifgsm,apgd-ce,apgd-dlr "
    "--variants fused,folded,dropping,published,plain,model",
    "bench_train": "--rounds 1 --cases digits --batch 16 --steps 3 "
    "--variants published,published-eval,fused,train-attack,parity,published-adaad,adaad,published-igdm,igdm,"
    "published-saad,saad",
}


@pytest.fixture(autouse=True)
def small_cache(monkeypatch):
    """Nothing is measured here: a cache that is flushed, and a network that is trained, in no time."""
    monkeypatch.setattr(_timing, "cache_bytes", lambda device: 2**16)
    monkeypatch.setattr(_timing, "gc", Mock())  # a full collection before each case
    monkeypatch.setattr(_networks, "TRAIN_EPOCHS", 1)


@pytest.mark.parametrize("program", RUNS)
def test_every_benchmark_runs_and_checks_what_it_times(program, tmp_path):
    arguments = RUNS[program].split()
    assert import_module(program).main([*arguments, "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["variant"] for row in rows} - {"copy"} == set(arguments[-1].split(","))
    assert all(row["status"] == "ok" and row["median_us"] > 0 and row["device_name"] for row in rows), rows
    assert all(row["checked"] for row in rows if row["variant"] not in ("copy", "model"))


def test_nothing_is_timed_when_a_result_is_wrong(tmp_path, monkeypatch, capsys):
    from ard_fast import functional

    right = functional.pgd_linf_step_
    monkeypatch.setattr(functional, "pgd_linf_step_", lambda *a, **k: right(*a, **k).add_(1e-7))
    file = tmp_path / "rows.json"
    arguments = [*RUNS["bench_pgd"].split(), "--dtypes", "fp32", "--json", str(file)]
    assert bench_pgd.main(arguments) == 1
    assert not file.exists()
    assert "fused: x_adv differs by" in capsys.readouterr().err


def test_a_baseline_that_cannot_run_is_said(tmp_path, capsys):
    arguments = f"{SHORT} --cases cifar-1 --dtypes fp32 --variants ard,cupy,fused".split()
    assert bench_pgd.main([*arguments, "--json", str(tmp_path / "rows.csv")]) == 0
    if torch.cuda.is_available():
        pytest.skip("CuPy may be there")
    assert "unavailable: ModuleNotFoundError: No module named 'cupy'" in (tmp_path / "rows.csv").read_text()
    assert "cupy: unavailable" in capsys.readouterr().out


def test_no_cuda_device_is_an_error_not_a_cpu_run(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_pgd.main(["--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err
