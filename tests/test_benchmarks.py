"""The benchmarks' statistics, their rows, their refusal of wrong results, and gpu_check.sh's isolation of stages.

Compiling takes seconds a case, so the benchmark runs here leave `compile` out by `--variants`.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import _pair_losses  # noqa: E402
import _timing  # noqa: E402
import bench_kd_loss  # noqa: E402
import bench_pgd  # noqa: E402
import ncu_summary  # noqa: E402
import profile_kernels  # noqa: E402
from _cli import WrongResult  # noqa: E402

# ---------------------------------------------------------------------------------------------------------------------
# _timing
# ---------------------------------------------------------------------------------------------------------------------


def test_summarize_gives_median_and_inclusive_quartiles():
    stats = _timing.summarize([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (stats.q1, stats.median, stats.q3) == (2.0, 3.0, 4.0)
    assert (stats.iqr, stats.minimum, stats.count) == (2.0, 1.0, 5)
    even = _timing.summarize([1.0, 2.0, 3.0, 4.0])
    assert (even.q1, even.median, even.q3) == (1.75, 2.5, 3.25)
    assert _timing.summarize([7.0]) == _timing.Stats(7.0, 7.0, 7.0, 7.0, 1)
    with pytest.raises(ValueError, match="at least one sample"):
        _timing.summarize([])


def test_paired_ratio_cancels_a_slow_round():
    base, other = [1.0, 10.0, 1.0], [2.0, 20.0, 2.0]  # the second round was ten times slower for both
    assert _timing.paired_ratio(other, base) == 2.0
    # it is the median of the ratios, not the ratio of the medians
    assert _timing.paired_ratio([1.0, 4.0, 9.0], [1.0, 1.0, 10.0]) == 1.0
    with pytest.raises(ValueError, match="3 and 2"):
        _timing.paired_ratio(base, [1.0, 2.0])


def test_buffers_are_rotated_past_the_cache():
    assert _timing.rotation_sets(6_000_000, 32_000_000, factor=3) == 16
    assert _timing.rotation_sets(6_000_000, 32_000_000, factor=3) * 6_000_000 >= 3 * 32_000_000
    assert _timing.rotation_sets(10**9, 32_000_000) == 1
    assert _timing.rotation_sets(1, 32_000_000, cap=100) == 100
    with pytest.raises(ValueError, match="set_bytes"):
        _timing.rotation_sets(0, 1)


@pytest.mark.parametrize(("text", "size"), [("32768K\n", 32 * 2**20), ("32M", 32 * 2**20), ("1G", 2**30), ("512", 512)])
def test_cache_size_of_linux_is_read(text, size):
    assert _timing.parse_cache_size(text) == size


class FakeClock:
    """Gives each variant's own time, times the slowness of the round, and records what it was asked to do."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.log = seconds, []

    def sample(self, call: Callable[[int], object], indices: list[int]) -> float:
        name = call(indices[0])
        self.log.append((name, list(indices)))
        return self.seconds[name]


def fake_variant(name: str, resets: list[tuple[str, int]], **kwargs: int) -> _timing.Variant:
    return _timing.Variant(name, lambda i: name, lambda n: resets.append((name, n)), **kwargs)


def test_measure_interleaves_resets_and_walks_the_sets():
    resets: list[tuple[str, int]] = []
    clock = FakeClock({"slow": 2e-3, "quick": 1e-4, "graph": 4e-3})
    variants = [
        fake_variant("slow", resets),
        fake_variant("quick", resets),
        fake_variant("graph", resets, calls_per_run=8),
    ]
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
    with pytest.raises(ValueError, match="different names"):
        _timing.measure(variants[:1] * 2, clock, n_sets=1, rounds=1, min_sample_s=1e-3)


def test_timing_rows_compute_bandwidth_and_ratios():
    measured = {
        "ard": _timing.Measurement([8e-3, 80e-3, 8e-3], 1),
        "fused": _timing.Measurement([1e-3, 10e-3, 1e-3], 3),
        "copy": _timing.Measurement([0.5e-3, 5e-3, 0.5e-3], 3),
        "ard+graph": _timing.Measurement([6e-3] * 3, 1),
        "fused+graph": _timing.Measurement([2e-3] * 3, 1),
    }
    rows = {
        r["variant"]: r
        for r in _timing.timing_rows(
            measured, n_sets=2, bytes_min=4_000_000, baseline="ard", common={"case": "c", "date": "d"}
        )
    }
    fused = rows["fused"]
    assert fused["median_us"] == pytest.approx(1000)
    assert fused["gb_per_s"] == pytest.approx(4.0)
    assert fused["pct_of_copy"] == pytest.approx(50)
    assert fused["speedup_vs_baseline"] == pytest.approx(8)
    assert rows["ard"]["fused_speedup"] == pytest.approx(8)
    assert rows["ard+graph"]["fused_speedup"] == pytest.approx(3)  # graph against graph
    assert (fused["case"], fused["buffer_sets"], fused["bytes_min"]) == ("c", 2, 4_000_000)


def test_rows_are_written_as_json_and_csv(tmp_path):
    rows = [{"variant": "a", "shape": [1, 2]}, {"variant": "b", "extra": None}]
    _timing.write_rows(tmp_path / "deep" / "r.json", rows)
    assert json.loads((tmp_path / "deep" / "r.json").read_text()) == rows
    _timing.write_rows(tmp_path / "r.csv", rows)
    with (tmp_path / "r.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [(r["variant"], r["shape"], r["extra"]) for r in read] == [("a", "[1, 2]", ""), ("b", "", "")]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (1234.5, "1,234"), (12.345, "12.3"), (0.0123, "0.0123"), (1e-5, "1.00e-05"), (0, "0.0")],
)
def test_numbers_are_short(value, text):
    assert _timing.number(value) == text


def test_table_is_aligned():
    assert _timing.format_table(["name", "us"], [["a", "10"], ["longer", "5"]]).splitlines() == [
        "name    us",
        "------  --",
        "a       10",
        "longer   5",
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The benchmarks
# ---------------------------------------------------------------------------------------------------------------------

TINY = ["--rounds", "2", "--min-sample-ms", "0.05", "--warm"]


def run_pgd(tmp_path: Path, *options: str) -> tuple[int, list[dict[str, object]]]:
    file = tmp_path / "pgd.json"
    status = bench_pgd.main(
        [
            "--quick",
            "--cases",
            "cifar-1",
            "--variants",
            "ard,torchattacks,lean,fused",
            "--json",
            str(file),
            *TINY,
            *options,
        ]
    )
    return status, json.loads(file.read_text()) if file.exists() else []


def test_bench_pgd_rows_have_the_stated_fields(tmp_path, capsys):
    status, rows = run_pgd(tmp_path)
    assert status == 0
    stated = {*_timing.ENVIRONMENT_FIELDS, *_timing.TIMING_FIELDS, "passes"}
    assert all(set(row) == stated for row in rows)
    assert {(r["variant"], r["dtype"]) for r in rows} == {
        (v, d) for v in ("ard", "torchattacks", "lean", "fused", "copy") for d in ("fp32", "bf16")
    }
    by_name = {(r["variant"], r["dtype"]): r for r in rows}
    fused = by_name["fused", "fp32"]
    assert fused["bytes_min"] == 3072 * 16
    assert by_name["fused", "bf16"]["bytes_min"] == 3072 * 14
    assert fused["checked"] == by_name["fused", "bf16"]["checked"] == by_name["ard", "fp32"]["checked"] == "bit-equal"
    assert by_name["ard", "bf16"]["checked"].endswith("(bf16 step)")
    assert (fused["torch"], fused["allocator"]) == (torch.__version__, "aged")
    assert fused["median_us"] > 0
    assert by_name["ard", "fp32"]["speedup_vs_baseline"] == 1.0
    out = capsys.readouterr().out
    assert "% of copy" in out
    assert "bit-equal" in out


def test_bench_pgd_times_nothing_when_a_result_is_wrong(tmp_path, monkeypatch, capsys):
    from ard_fast import functional

    right = functional.pgd_linf_step_
    monkeypatch.setattr(functional, "pgd_linf_step_", lambda *a, **k: right(*a, **k).add_(1e-7))
    status, rows = run_pgd(tmp_path, "--dtypes", "fp32")
    assert (status, rows) == (1, [])
    assert "fused: differs from the ARD expression by" in capsys.readouterr().err


def test_a_baseline_that_cannot_run_is_said(tmp_path, monkeypatch, capsys):
    make = bench_pgd.make_variant

    def no_lean(name: str, buffers: bench_pgd.Buffers) -> _timing.Variant:
        if name == "lean":
            raise ModuleNotFoundError("No module named 'lean'")
        return make(name, buffers)

    monkeypatch.setattr(bench_pgd, "make_variant", no_lean)
    status, rows = run_pgd(tmp_path, "--dtypes", "fp32")
    assert status == 0
    assert [r["status"] for r in rows if r["variant"] == "lean"] == [
        "unavailable: ModuleNotFoundError: No module named 'lean'"
    ]
    assert "lean: unavailable" in capsys.readouterr().out


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        bench_pgd.main(["--cases", "mnist"])
    assert "expected any of cifar-1" in capsys.readouterr().err


def test_no_cuda_device_is_an_error_not_a_cpu_run(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_pgd.main(["--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_bench_kd_loss_rows_have_the_stated_fields(tmp_path):
    file = tmp_path / "kd.json"
    options = [
        "--quick",
        "--cases",
        "c10-128",
        "--variants",
        "ard,kl_div,kl_div_fp32,fused",
        "--json",
        str(file),
        *TINY,
    ]
    assert bench_kd_loss.main(options) == 0
    rows = json.loads(file.read_text())
    stated = {*_timing.ENVIRONMENT_FIELDS, *_timing.TIMING_FIELDS, "temperature", "loss_rel_error", "grad_rel_error"}
    assert all(set(row) == stated for row in rows)
    by_name = {(r["variant"], r["dtype"]): r for r in rows}
    assert ("kl_div_fp32", "fp32") not in by_name
    assert by_name["fused", "fp32"]["bytes_min"] == 3 * 128 * 10 * 4
    assert by_name["fused", "fp32"]["grad_rel_error"] < 1e-5
    assert by_name["fused", "fp32"]["temperature"] == 30
    # in bf16 arithmetic the gradient at T=30 loses a hundred times more than in fp32
    assert by_name["kl_div", "bf16"]["grad_rel_error"] > 5 * by_name["fused", "bf16"]["grad_rel_error"]


@pytest.mark.parametrize("loss", ["trades", "mart", "rslad"])
def test_bench_kd_loss_times_the_losses_of_two_rows(loss, tmp_path):
    file = tmp_path / "pair.json"
    case = f"{loss}-c10-128"
    options = ["--quick", "--cases", case, "--variants", "eager,composed,fused", "--json", str(file), *TINY]
    assert bench_kd_loss.main(options) == 0
    rows = json.loads(file.read_text())
    assert {(r["variant"], r["dtype"]) for r in rows if r["variant"] != "copy"} == {
        (variant, dtype) for variant in ("eager", "composed", "fused") for dtype in ("fp32", "bf16")
    }
    by_name = {(r["variant"], r["dtype"]): r for r in rows}
    assert by_name["fused", "fp32"]["grad_rel_error"] < 1e-6 < 1e-3 < by_name["eager", "bf16"]["grad_rel_error"]
    logits_bytes = 128 * 10 * 4
    assert by_name["fused", "fp32"]["bytes_min"] == (
        5 * logits_bytes if loss == "rslad" else 4 * logits_bytes + 128 * 8
    )


def test_a_wrong_loss_of_two_rows_is_not_timed():
    adv, clean = torch.randn(2, 4, 10)
    labels = torch.tensor([0, 1, 2, 3])
    leaves = [adv.clone().requires_grad_(), clean.clone().requires_grad_()]

    def call(_):
        value = _pair_losses.fused_loss("trades")(*leaves, labels) * 1.01
        return value, *torch.autograd.grad(value, leaves)

    wrong = _timing.Variant("fused", call, lambda n: None)
    with pytest.raises(WrongResult, match="fused, trades, fp32: relative error of loss"):
        _pair_losses.check_variant("trades", wrong, adv, clean, labels, "fp32")


@pytest.mark.filterwarnings("ignore:reduction")  # torch's warning about 'mean'
@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
def test_relative_errors_are_those_of_the_formula(reduction):
    torch.manual_seed(0)
    student = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 7, dtype=torch.float64)
    log_p, log_q = (student / 3).log_softmax(1), (teacher / 3).log_softmax(1)
    loss = 9 * torch.nn.functional.kl_div(log_p, log_q, reduction=reduction, log_target=True)
    (grad,) = torch.autograd.grad(loss, student)

    def errors(loss: torch.Tensor, grad: torch.Tensor) -> tuple[float, float]:
        return bench_kd_loss.relative_errors(loss, grad, student, teacher, temperature=3.0, reduction=reduction)

    assert max(errors(loss, grad)) < 1e-13
    assert errors(loss * 1.01, grad * 0.98) == pytest.approx((0.01, 0.02))


def test_a_nan_gradient_is_a_wrong_result():
    student = torch.randn(2, 3)
    variant = _timing.Variant(
        "fused", lambda i: (torch.tensor(float("nan")), torch.full((2, 3), float("nan"))), lambda n: None
    )
    with pytest.raises(WrongResult, match="relative error of loss nan"):
        bench_kd_loss.check_variant(variant, student, torch.randn(2, 3), temperature=1.0, dtype_name="fp32")


def test_every_kind_of_case_can_be_profiled(capsys):
    cases = ["step-bf16-cifar-1", "start-cifar-1", "loss-fp32-c10-128", "attack-dlr-c10-128", "attack-l2-cifar-128"]
    cases.append("augment-cifar-128-last")
    assert profile_kernels.main(["--device", "cpu", "--repeat", "1", "--cases", ",".join(cases)]) == 0
    assert capsys.readouterr().out.split() == cases
    assert ncu_summary.CASE.fullmatch("step-fp32-imagenet-128")
    assert all(ncu_summary.CASE.fullmatch(name) for name in profile_kernels.all_cases(torch.device("cpu")))


def test_ncu_summary_reads_cases_and_units():
    head = '"ID","Kernel Name","Block Size","Grid Size","x:Push/Pop_Range:y","Metric Name","Metric Unit","Metric Value"'
    cells = '"0","void ard::pgd_linf_step_kernel<float, 4>(P)","(256, 1, 1)","(384, 1, 1)","step-fp32-cifar-128"'
    text = "\n".join(
        [
            "==PROF== Connected to process 1",
            head,
            f'{cells},"gpu__time_duration.sum","ns","1,500"',
            f'{cells},"dram__bytes.sum","Mbyte","6.3"',
        ]
    )
    (row,) = ncu_summary.read_kernels(text)
    assert (row["case"], row["kernel"]) == ("step-fp32-cifar-128", "ard::pgd_linf_step_kernel")
    assert (row["us"], row["DRAM MB"], row["SM %"]) == ("1.5", "6.3", "-")
    with pytest.raises(ValueError, match="not the output of ncu"):
        ncu_summary.read_kernels("==ERROR== ERR_NVGPUCTRPERM")


# ---------------------------------------------------------------------------------------------------------------------
# gpu_check.sh
# ---------------------------------------------------------------------------------------------------------------------

SCRIPT = ROOT / "scripts" / "gpu_check.sh"

needs_bash = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("bash", "timeout", "tar")),
    reason="gpu_check.sh needs bash, timeout and tar",
)

FAKE_PYTHON = """#!/bin/bash
# Stands for Python: records its arguments and does what the environment says.
echo "$*" >> "$FAKE_LOG"
case "$*" in
  *"pip install"*) echo 'building "it"'; exit "${FAKE_PIP:-0}" ;;
  *ard_fast.info*) [[ -z "${FAKE_INFO:-}" ]] || eval "$FAKE_INFO" ;;
  *ard_fast.train*) mkdir -p "${@: -1}"; touch "${@: -1}"/{config.yaml,best.pt}; truncate -s 3M "${@: -1}/large.json" ;;
  *pytest*) [[ -z "${FAKE_TEST:-}" ]] || eval "$FAKE_TEST"; echo "${FAKE_PYTEST:-3 passed, 1 skipped in 0.1s}" ;;
esac
exit 0
"""

FAKE_SANITIZER = """#!/bin/bash
echo "sanitizer $* caching=${PYTORCH_NO_CUDA_MEMORY_CACHING:-0}" >> "$FAKE_LOG"
[[ "$*" == *"--tool ${FAKE_BAD_TOOL:-none} "* ]] && { echo "1 passed"; exit 86; }
while (($#)) && [[ $1 != *fake_python ]]; do shift; done
"$@"
"""

# Of a stage that is interrupted, as pytest: it says what had failed.
SLOW_TESTS = "trap 'echo FAILED tests/test_x.py; exit 2' INT; echo ..F; sleep 30 >/dev/null 2>&1 & wait"


class Checked:
    """What a run of gpu_check.sh left."""

    def __init__(self, done, out, log):
        self.status, self.output, self.commands = done.returncode, done.stdout + done.stderr, log.read_text()
        self.stages, self.files = {}, {}
        if (out / "gpu_check.tar.gz").exists():
            assert [path.name for path in out.iterdir()] == ["gpu_check.tar.gz"]
            with tarfile.open(out / "gpu_check.tar.gz") as archive:
                members = [member for member in archive.getmembers() if member.isfile()]
                self.files = {m.name.removeprefix("./"): archive.extractfile(m).read().decode() for m in members}
            self.stages = {stage["stage"]: stage for stage in json.loads(self.files["summary.json"])["stages"]}

    def statuses(self):
        return {name: stage["status"] for name, stage in self.stages.items()}


@pytest.fixture
def gpu_check(tmp_path):
    """Runs gpu_check.sh with a fake Python and fake tools."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {"fake_python": FAKE_PYTHON, "compute-sanitizer": FAKE_SANITIZER}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    log, out = tmp_path / "commands", tmp_path / "out dir"

    def run(*options: str, **env: str):
        log.write_text("")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("CIFAR10_", "GPU_CHECK_", "ARD_FAST_"))}
        done = subprocess.run(
            ["bash", str(SCRIPT), *options, str(out)],
            env={
                **clean,
                "PATH": f"{tools}:/usr/bin:/bin",
                "PYTHON": str(tools / "fake_python"),
                "FAKE_LOG": str(log),
                **env,
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Checked(done, out, log)

    return run


PLANS = {
    "first": ["env", "install", "operators", "times", "tests", "runs", "racecheck", "memcheck", "ncu"],
    "second": ["env", "build", "compiled", "digits", "cifar10"],
}


@needs_bash
@pytest.mark.parametrize("plan", PLANS)
def test_gpu_check_runs_a_plan(gpu_check, plan, tmp_path):
    found = gpu_check("--plan", plan, CIFAR10_DIR=str(tmp_path))
    assert found.status == 0, found.output
    assert list(found.stages) == PLANS[plan]
    skipped = {name for name, status in found.statuses().items() if status != "ok"}
    assert skipped <= {"ncu"}  # wherever ncu is installed the fake Python runs under it
    assert {f"{name}.log" for name in PLANS[plan]} < set(found.files)
    if plan == "first":
        assert re.findall(r"^sanitizer --tool (\w+)", found.commands, re.M) == ["racecheck", "memcheck"]
        for benchmark in ("bench_pgd", "bench_kd_loss", "bench_steps"):
            assert f"{benchmark}.py --device cuda --json" in found.commands
        # each test file on the GPU runs once
        assert "--ignore=tests/training/test_graphs_runs.py" in found.commands
        assert "--ignore=tests/ops/test_compile.py" in found.commands
    else:
        assert "-m pip install -v --no-build-isolation --no-deps ." in found.commands
        assert f"--dataset cifar10 --data-dir {tmp_path}" in found.commands
        assert "ard_fast.evaluate" in found.commands
        # checkpoints and what is large stay out of the archive
        assert {name for name in found.files if "/" in name} == {"digits/config.yaml", "cifar10/config.yaml"}


@needs_bash
def test_gpu_check_fits_its_first_plan_into_one_call():
    listed = subprocess.run(["bash", str(SCRIPT), "--list"], capture_output=True, text=True, check=True).stdout
    plan, limits = {}, {}
    for line in listed.splitlines():
        name, _, rest = line.partition(" ")
        (plan if name.endswith(":") else limits)[name.rstrip(":")] = rest
    assert {name: text.split() for name, text in plan.items()} == PLANS
    assert sum(int(limits[name]) for name in PLANS["first"]) <= 560


@needs_bash
def test_gpu_check_goes_on_after_a_failing_stage(gpu_check):
    found = gpu_check("--stages", "build,operators,digits", FAKE_PIP="3")
    assert found.status == 1
    assert found.statuses() == {"build": "failed", "operators": "ok", "digits": "ok"}
    assert found.stages["build"]["note"] == "exit status 3"
    assert '| building "it"' in found.output  # the log's end is shown
    assert "1 of 3 stages failed" in found.output
    assert "ard_fast.train" in found.commands


@needs_bash
def test_gpu_check_names_what_is_missing_before_anything_else(gpu_check, tmp_path):
    """A Python without pydantic, whose pip has no network."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pydantic_core'] = None\n")
    python = tmp_path / "python"
    pip = '[[ $1 == -m ]] && { echo "$*" >> "$FAKE_LOG"; exit 0; }'
    python.write_text(f'#!/bin/bash\n{pip}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    clone = tmp_path / "clone"
    (clone / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", clone)
    shutil.copy(SCRIPT, clone / "scripts")
    environment = {**os.environ, "PYTHON": str(python), "FAKE_LOG": str(tmp_path / "log")}

    def run(out, **more):
        (tmp_path / "log").write_text("")
        command = ["bash", str(clone / "scripts" / SCRIPT.name), "--device", "cpu", "--stages", "env,install"]
        command += ["--limit", "env=300", str(out)]
        done = subprocess.run(command, env={**environment, **more}, capture_output=True, text=True)
        return Checked(done, out, tmp_path / "log")

    blocked = {"PYTHONPATH": str(tmp_path)}
    found = run(tmp_path / "blocked", **blocked)
    assert found.status == 1 and found.statuses() == {"env": "failed"}, found.output
    assert found.stages["env"]["note"] == "missing: pydantic_core (of pydantic)"
    assert "--prepare makes them" in found.output and found.commands == ""
    wheels = clone / "build" / "wheels"
    wheels.mkdir(parents=True)
    for name in ("pydantic_core-2-x.whl", "ard_fast-0-x.whl"):
        (wheels / name).touch()
    found = run(tmp_path / "carried", **blocked)
    assert f"-m pip install --no-index --no-deps {wheels}/pydantic_core-2-x.whl\n" == found.commands
    assert "do not have them" in found.output
    found = run(tmp_path / "there")
    assert found.statuses() == {"env": "ok", "install": "ok"}, found.output
    wheel = f"{wheels}/ard_fast-0-x.whl"
    assert f"-m pip install --no-index --no-deps --force-reinstall {wheel}" in found.commands


@needs_bash
def test_gpu_check_keeps_the_summary_of_a_stage_that_it_cuts(gpu_check):
    found = gpu_check("--stages", "tests,digits", "--limit", "tests=1", FAKE_TEST=SLOW_TESTS)
    assert found.status == 1
    assert found.statuses() == {"tests": "timeout", "digits": "ok"}
    assert found.stages["tests"]["seconds"] >= 1
    assert found.files["tests.log"].startswith("..F\nFAILED tests/test_x.py\n")


@needs_bash
@pytest.mark.parametrize("report", ["4 skipped in 0.1s", "10 deselected", "0 passed"])
def test_gpu_check_fails_when_no_test_ran(gpu_check, report):
    found = gpu_check("--stages", "tests", FAKE_PYTEST=report)
    assert found.status == 1
    assert found.statuses() == {"tests": "failed"}


@needs_bash
def test_gpu_check_reports_the_sanitizer_that_found_something(gpu_check):
    found = gpu_check("--stages", "memcheck,racecheck", FAKE_BAD_TOOL="racecheck")
    assert found.status == 1
    assert found.statuses() == {"memcheck": "ok", "racecheck": "failed"}
    # only without torch's cache is each tensor an allocation that memcheck can see the end of
    assert [line.split("caching=")[1] for line in found.commands.splitlines() if line.startswith("sanitizer")] == [
        "1",
        "0",
    ]


@needs_bash
def test_gpu_check_stops_when_the_budget_is_gone(gpu_check):
    found = gpu_check("--budget", "5")
    assert found.status == 0
    assert {s["note"] for s in found.stages.values()} == {"no time left of the budget"}


@needs_bash
def test_gpu_check_interrupted_still_packs(gpu_check, tmp_path):
    """TERM, which a scheduler sends to the driver: fake <- stage's bash <- timeout <- driver."""
    signal = (
        "trap 'echo the last words; exit 2' INT; parent() { awk '/^PPid:/ { print $2 }' \"/proc/$1/status\"; }; "
        'kill -TERM "$(parent "$(parent "$PPID")")"; sleep 20 & wait'
    )
    found = gpu_check("--stages", "operators,install,digits", FAKE_INFO=signal)
    assert found.status == 130, found.output
    assert found.statuses() == {"operators": "ok", "install": "failed"}
    assert found.stages["install"]["note"] == "interrupted"
    assert "the last words" in found.files["install.log"]


@needs_bash
def test_gpu_check_without_a_gpu_skips_what_needs_one(gpu_check):
    found = gpu_check("--device", "cpu")
    assert found.status == 0, found.output
    skipped = {n for n, status in found.statuses().items() if status == "skipped"}
    assert skipped == {"operators", "tests", "runs", "racecheck", "memcheck", "ncu"}
    assert "bench_pgd.py --device cpu --json" in found.commands


@needs_bash
@pytest.mark.parametrize(
    "options", [["--stages", "nothing"], ["--limit", "env"], ["--budget", "x"], ["--frob"], ["--device", "tpu"], ["a"]]
)
def test_gpu_check_refuses_wrong_arguments(gpu_check, options):
    found = gpu_check(*options)
    assert (found.status, found.stages, found.commands) == (2, {}, "")
    assert found.output.startswith("gpu_check: ")
