"""gpu_check.sh with a Python and tools that only note how they were called; what check_nvcc.py makes of a log."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("bash", "timeout", "tar")),
    reason="gpu_check.sh needs bash, timeout and tar",
)

FAKE_PYTHON = """#!/bin/bash
echo "$*" >> "$FAKE_LOG"
case "$*" in
  *"pip install"*) echo 'building "it"'; exit "${FAKE_PIP:-0}" ;;
  *pytest*) echo "${FAKE_PYTEST:-3 passed, 1 skipped in 0.1s}" ;;
esac
"""
FAKE_TOOL = """#!/bin/bash
echo "${0##*/} $*" >> "$FAKE_LOG"
[[ "$*" == *"--tool ${FAKE_BAD_TOOL:-none} "* ]] && { echo "1 passed"; exit 86; }
while (($#)) && [[ $1 != *fake_python ]]; do shift; done
"$@"
"""
PLANS = {  # seconds of its call, and its stages
    "first": (560, ["env", "install", "operators", "times", "tests", "graphs", "racecheck", "memcheck", "ncu"]),
    "second": (240, ["env", "build", "compiled", "digits"]),
}
TO_PACK_AND_KILL = 30


@pytest.fixture
def gpu_check(tmp_path):
    """Runs it; exit status, output, commands given to Python, and the stages of the packed summary by name."""
    for name, text in {"fake_python": FAKE_PYTHON, "compute-sanitizer": FAKE_TOOL, "ncu": FAKE_TOOL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "commands"
    log.touch()

    def run(*options, **settings):
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": str(tmp_path / "fake_python"), "FAKE_LOG": str(log)}
        command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), *options, str(tmp_path / "out")]
        done = subprocess.run(
            command, env={**os.environ, **env, **settings}, capture_output=True, text=True, timeout=60
        )
        stages = {}
        if (tmp_path / "out").is_dir():
            with tarfile.open(tmp_path / "out" / "gpu_check.tar.gz") as archive:
                summary = archive.extractfile("./summary.jsonl").read().splitlines()
            stages = {stage["stage"]: stage for stage in map(json.loads, summary)}
        return done.returncode, done.stdout + done.stderr, log.read_text(), stages

    return run


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_calls_only_what_exists_and_keeps_its_time(gpu_check, plan):
    seconds, planned = PLANS[plan]
    status, output, commands, stages = gpu_check("--plan", plan)
    assert status == 0, output
    assert list(stages) == planned and {stage["status"] for stage in stages.values()} == {"ok"}
    named = re.findall(r"\b(?:benchmarks|tests)(?:/\w+)*(?:\.py)?", commands)
    assert named and [name for name in named if not (ROOT / name).exists()] == []
    everything = subprocess.check_output(["bash", str(ROOT / "scripts" / "gpu_check.sh"), "--list"], text=True)
    limits = dict(line.split() for line in everything.splitlines() if ":" not in line)
    budget = seconds - TO_PACK_AND_KILL
    assert f"{plan}, {budget} s: {' '.join(planned)}\n" in everything
    assert sum(int(limits[name]) for name in planned) <= budget


def test_a_dry_run_starts_no_tool(gpu_check):
    stages = "operators,racecheck,ncu"
    status, output, commands, found = gpu_check("--dry-run", "--stages", stages, FAKE_PYTEST="3 tests collected in 1s")
    assert "ncu --" not in commands and "compute-sanitizer" not in commands and commands.count("--collect-only") == 2
    # the fake benchmark ends without having looked for a GPU
    assert status == 1 and {name for name, stage in found.items() if stage["status"] == "failed"} == {"ncu"}, output


def test_what_the_tests_import_is_looked_for_first():
    names = {"pyyaml": "yaml", "scikit-learn": "sklearn", "pillow": "PIL"}
    script = (ROOT / "scripts" / "gpu_check.sh").read_text()
    lines = (ROOT / "pyproject.toml").read_text().split("\ndependencies = [\n")[1].split("]")[0].splitlines()
    required = [re.findall(r"[\w-]+", line)[0] for line in lines]
    looked_for = re.search(r"^ +numpy .*$", script, re.MULTILINE).group().split()
    assert "numpy" in required and {names.get(name, name) for name in required} - {"torch"} <= set(looked_for)


def test_a_stage_that_fails_does_not_stop_the_next(gpu_check):
    stages = "build,memcheck,racecheck,digits"
    status, output, commands, found = gpu_check("--stages", stages, FAKE_PIP="3", FAKE_BAD_TOOL="racecheck")
    assert status == 1 and "2 of 4 stages failed" in output and '| building "it"' in output
    assert {name: stage["status"] for name, stage in found.items()} == {
        "build": "failed", "memcheck": "ok", "racecheck": "failed", "digits": "ok",
    }  # fmt: skip
    assert found["build"]["note"] == "exit status 3" and "ard_fast.train" in commands


@pytest.mark.parametrize(
    ("options", "settings", "expected"),
    [
        (["--stages", "tests", "--budget", "5"], {}, "skipped"),
        (["--stages", "cifar10"], {"CIFAR10_DIR": ""}, "skipped"),
        (["--stages", "tests"], {"FAKE_PYTEST": "4 skipped in 0.1s"}, "failed"),  # a run that skips all proves nothing
    ],
)
def test_how_a_stage_ended_is_said(gpu_check, options, settings, expected):
    status, output, _, stages = gpu_check(*options, **settings)
    assert [stage["status"] for stage in stages.values()] == [expected], output
    assert status == (expected == "failed")


@pytest.mark.parametrize("options", [["--stages", "nothing"], ["--budget", "x"], ["--frob"], ["--plan", "third"]])
def test_wrong_arguments_are_refused(gpu_check, options):
    status, output, commands, _ = gpu_check(*options)
    assert (status, commands) == (2, "") and output.startswith("gpu_check: ")


# ---- check_nvcc.py ---------------------------------------------------------------------------------------------------

LOG = """ptxas info    : Compiling entry function '_Zstep' for 'sm_90'
ptxas info    : Function properties for _Zstep
    {stack} bytes stack frame, {stores} bytes spill stores, 0 bytes spill loads
ptxas info    : Used 38 registers, used 0 barriers, {shared} bytes smem
"""


@pytest.mark.parametrize(
    ("name", "log", "wide", "fault"),
    [
        ("any_kernel<float, 4>", {}, (0, 0), None),
        ("any_kernel<float, 4>", {"stores": 4}, (0, 0), "spills 4 bytes"),
        ("any_kernel<float, 4>", {"shared": 16 * 1024 + 1}, (0, 0), "static shared memory"),
        ("any_kernel<float, 4>", {"stack": 16}, (0, 0), None),
        ("random_start_kernel<1>", {"stack": 16}, (0, 0), "16 bytes of local memory"),
        ("pgd_linf_step_kernel<float, 4>", {}, (3, 1), None),
        ("pgd_linf_step_kernel<float, 4>", {}, (2, 1), "expected 3 128-bit loads"),
        ("affine_relu_kernel<float, 1, 4>", {}, (3, 2), "expected at least 4"),
    ],
)
def test_faults_of_a_kernel(monkeypatch, name, log, wide, fault):
    spec = importlib.util.spec_from_file_location("check_nvcc", ROOT / "scripts" / "check_nvcc.py")
    check = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "check_nvcc", check)  # dataclasses look their module up
    spec.loader.exec_module(check)
    (kernel,) = check.parse_ptxas("x.cu", LOG.format(**{"stack": 0, "stores": 0, "shared": 512, **log})).values()
    assert (kernel.arch, kernel.registers) == ("sm_90", 38)
    kernel.name, (kernel.wide_loads, kernel.wide_stores) = name, wide
    assert (fault is None and kernel.faults() == []) or fault in kernel.faults()[0]
