"""The kernels against the limits of the hardware: what is read from ncu, what is judged, and a rehearsal on the CPU."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import _ceiling_cases  # noqa: E402
import ceilings  # noqa: E402
import profile_kernels  # noqa: E402
from ceilings import MEMORY, SHORT, Found  # noqa: E402

HEAD = '"ID","Kernel Name","Block Size","Grid Size","t:Push/Pop_Range:n","Metric Name","Metric Unit","Metric Value"'


def ncu_text(*kernels):
    """ncu's CSV of kernels (case, microseconds, DRAM %), a line for each metric."""
    lines = ["==PROF== Connected to process 7", HEAD]
    for number, (case, us, dram) in enumerate(kernels):
        start = f'"{number}","void ard::some_kernel<float>(P)","(256, 1, 1)","(384, 1, 1)","{case}"'
        lines.append(f'{start},"gpu__time_duration.sum","ns","{1000 * us:,.0f}"')
        lines.append(f'{start},"dram__throughput.avg.pct_of_peak_sustained_elapsed","%","{dram}"')
    return "\n".join(lines)


def test_ncu_times_are_summed_over_the_kernels_of_a_call():
    found = ceilings.from_ncu(
        ncu_text(
            ("ceiling-step-imagenet", 100.0, 93.5),
            ("copy-step-imagenet", 95.0, 92.0),
            ("ceiling-loss-cifar", 1.5, 10.0),
            ("ceiling-loss-cifar", 1.25, 1.0),
            ("copy-loss-cifar", 1.0, 5.0),
            ("ceiling-apgd-cifar", 2.0, 5.0),  # its copy is missing
            ("step-fp32-cifar-128", 2.0, 5.0),
        )
    )
    assert found == {
        "step-imagenet": Found(100.0, 95.0, 95.0, 1.0, 93.5, "ncu"),
        "loss-cifar": Found(2.75, 1.0, pytest.approx(100 / 2.75), 2.0, 10.0, "ncu"),
    }


@pytest.mark.parametrize("text", ["", "==ERROR== ERR_NVGPUCTRPERM - no permission", HEAD])
def test_ncu_without_kernels_is_passed_over(text):
    assert ceilings.from_ncu(text) == {}


def found(**changes):
    return Found(
        **{"us": 2.5, "copy_us": 2.4, "pct_of_copy": 96.0, "launches": 1.0, "dram_pct": None, "source": "ncu"} | changes
    )


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (MEMORY, {}, ["pass", "pass"]),
        (MEMORY, {"pct_of_copy": 90.0}, ["pass", "pass"]),
        (MEMORY, {"pct_of_copy": 89.9}, ["FAIL", "pass"]),
        (MEMORY, {"pct_of_copy": float("nan")}, ["FAIL", "pass"]),
        (SHORT, {"pct_of_copy": 10.0}, ["pass", "pass"]),
        (SHORT, {"us": 3.0}, ["FAIL", "pass"]),
        (SHORT, {"launches": 2.0}, ["pass", "FAIL"]),
        (SHORT, {"launches": 0.0}, ["pass", "FAIL"]),
        (SHORT, {"launches": None}, ["pass", "not counted"]),
    ],
)
def test_verdicts(kind, changes, words):
    assert [verdict.words() for verdict in ceilings.judge(kind, found(**changes), "cuda")] == words


def test_a_cpu_is_not_judged():
    verdicts = ceilings.judge(SHORT, found(us=500.0, launches=None), "cpu")
    assert [verdict.words() for verdict in verdicts] == ["a GPU's bound", "not counted"]


def test_ncu_has_the_last_word_on_times_and_anyone_on_launches():
    def row(case, verdict, launches):
        return {"case": case, "bound": "< 3 us", "verdict": verdict, "launch_verdict": launches}

    rows = [row("a", "FAIL", "pass"), row("a", "pass", "pass"), row("b", "pass", "FAIL"), row("b", "pass", "pass")]
    assert ceilings.missed(rows) == ["b: launches = 1"]
    assert ceilings.missed(rows[:1]) == ["a: < 3 us"]


def test_launches_are_what_the_device_does_in_every_call():
    def events(name, count, kind=DeviceType.CUDA):
        return [SimpleNamespace(name=name, device_type=kind)] * count

    host = events("cudaLaunchKernel", 30, DeviceType.CPU)
    assert (
        ceilings.launches_in(host + events("rows", 10) + events("sum", 10) + events("Memset (Device)", 10), 10) == 3.0
    )
    assert ceilings.launches_in(host + events("step", 9) + events("Activity Buffer Request", 1), 10) == 1.0
    assert ceilings.launches_in(host + events("halves", 20), 10) == 2.0
    assert ceilings.launches_in(host, 10) is None


def test_rehearsal_on_the_cpu(tmp_path, capsys):
    file = tmp_path / "rows.csv"
    ncu = tmp_path / "ncu.csv"
    ncu.write_text(ncu_text(("ceiling-loss-cifar", 1.5, 10.0), ("copy-loss-cifar", 1.0, 5.0)))
    options = ["--quick", "--rounds", "2", "--cases", "step-cifar,loss-cifar", "--ncu", str(ncu), "--json", str(file)]
    assert ceilings.main(options) == 0
    printed = capsys.readouterr().out
    assert "a GPU's bound" in printed and "ncu saw 1 of 2 cases" in printed and "bounds missed" not in printed
    rows = list(csv.DictReader(file.open()))
    assert [(row["case"], row["source"]) for row in rows] == [
        ("step-cifar", "call"), ("loss-cifar", "call"), ("loss-cifar", "ncu"),
    ]  # fmt: skip
    assert all(float(row["us"]) > 0 and float(row["pct_of_copy"]) > 0 for row in rows)
    assert float(rows[0]["bytes_min"]) == 16 * 128 * 3 * 32 * 32


@pytest.mark.parametrize("case", ["affine", "fold", "loss"])
def test_a_wrong_result_is_not_timed(case, monkeypatch, capsys):
    def wrong(*arguments, **named):
        raise AssertionError("timed")

    makers = {
        "affine": lambda device: _ceiling_cases.affine(SHORT, device, torch.float32),
        "fold": lambda device: _ceiling_cases.fold(SHORT, device, torch.bfloat16),
        "loss": lambda device: _ceiling_cases.loss(SHORT, device),
    }
    if case == "affine":
        monkeypatch.setattr(_ceiling_cases, "AFFINE_SHAPE", (2, 4, 3, 3))
    call = makers[case](torch.device("cpu"))
    call.check()
    spoil = {
        "affine": ("ard_fast.functional.affine_relu_", lambda x, *a, **k: torch.zeros(9, dtype=torch.uint8)),
        "fold": ("ard_fast.folding.weights.FoldedWeights.weight", lambda self, i: torch.zeros(())),
        "loss": ("ard_fast.functional._ops.kd_loss", lambda s, *a: (torch.zeros(()), torch.zeros_like(s))),
    }[case]
    monkeypatch.setattr(*spoil)
    monkeypatch.setattr(ceilings, "time_call", wrong)
    monkeypatch.setitem(ceilings.MAKERS, "spoilt", (SHORT, lambda kind, device: call))
    assert ceilings.main(["--cases", "spoilt"]) == 1
    assert "wrong result" in capsys.readouterr().err


def test_profiled_cases_by_pattern(capsys):
    assert profile_kernels.main(["--device", "cpu", "--repeat", "1", "--cases", "c*-loss-cifar"]) == 0
    assert capsys.readouterr().out.split() == ["ceiling-loss-cifar", "copy-loss-cifar"]
    with pytest.raises(SystemExit):
        profile_kernels.main(["--device", "cpu", "--cases", "ceilings-*"])
    assert "ceilings-*" in capsys.readouterr().err


def test_a_graph_holds_many_calls_over_the_sets_there_are(monkeypatch):
    captured = []
    monkeypatch.setattr(ceilings, "with_graph", lambda variant, n: captured.append((variant, n)) or variant)
    called = []
    variant = ceilings._many(ceilings.Variant("fused", called.append, lambda n: called.append(f"reset {n}")), 3)
    ((_, count),) = captured
    for i in range(count):
        variant.call(i)
    variant.reset(99)
    assert count >= 30 and called == [*([0, 1, 2] * count)[:count], "reset 3"]
