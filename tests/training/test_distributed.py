"""Several processes train as one does: the same images, gradients, states and files."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from graph_runs import Run
from process_pair import Pair, train, with_world
from safetensors.torch import load_file
from short_runs import metrics, small_and_tidy
from tolerances import SAME_RUN_ATOL

from ard_fast.attacks import GraphedPGD
from ard_fast.methods import METHODS
from ard_fast.models import build_model
from ard_fast.training.checkpoint import load_state, save_weights
from ard_fast.training.distributed import World

__all__ = ["small_and_tidy"]  # a fixture

# 3 steps an epoch; the last has one image, so that the second process works on padding.
SMALL = ["--subset", "65", "--batch-size", "32", "--val-steps", "1", "--epochs", "2"]
PLAIN = ["--student", "process_pair:plain_network"]  # on a CPU each process has its own batch statistics


@pytest.fixture(scope="module")
def pair():
    pair = Pair()
    yield pair
    pair.close()


def command(name, folder, *more):
    """A short run of a method, with teachers made once in the folder."""
    spec = METHODS[name]
    arguments = ["--method", name, *SMALL, *more]
    if "steps" in spec.defaults():
        arguments += ["--steps", "2"]
    if "replays" in spec.defaults():
        arguments += ["--replays", "2", "--epochs", "4"]
    for role in spec.teachers:
        path = folder / f"{role}.safetensors"
        if not path.exists():
            torch.manual_seed(0)
            save_weights(path, build_model("digits-teacher"), name="digits-teacher", num_classes=10, in_channels=1)
        arguments += [f"--{role.replace('_', '-')}", str(path)]
    return arguments


def furthest(a, b):
    """The largest difference between the tensors of two dicts with the same keys."""
    assert a.keys() == b.keys()
    return max((float((a[key].double() - b[key].double()).abs().max()) for key in a), default=0.0)


def assert_same_run(one, two):
    """Weights, the method's state and metrics, but for rounding."""
    states = [load_state(folder / "training_state.pt") for folder in (one, two)]
    for part in ("model", "method", "average"):
        assert furthest(getattr(states[0], part), getattr(states[1], part)) < SAME_RUN_ATOL, part
    for row, other in zip(metrics(one), metrics(two), strict=True):
        assert row == pytest.approx(other, abs=SAME_RUN_ATOL)


# ---- a run ----------------------------------------------------------------------------------------------------------

ALL_AT_ONCE = ["--awp-gamma", "0.01", "--awp-warmup-share", "0", "--averaging", "ema", "--accumulate", "2"]
ALL_AT_ONCE += ["--label-smoothing", "0.1", "--cutout", "3"]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("at", ALL_AT_ONCE),
        *((name, []) for name in ("fair-ard", "free", "mtard", "saad")),
        ("peeraid", ["--peer", PLAIN[1], "--accumulate", "2", "--awp-gamma", "0.01", "--awp-warmup-share", "0"]),
    ],
)
def test_two_processes_train_as_one(pair, tmp_path, name, more):
    arguments = command(name, tmp_path, *PLAIN, *more)
    one, two = tmp_path / "one", tmp_path / "two"
    assert train([*arguments, "--out", str(one)])[0] == 0
    (code, printed), (other_code, other_printed) = pair.run(train, [*arguments, "--out", str(two)])
    assert (code, other_code) == (0, 0), printed
    assert_same_run(one, two)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, two)]
    assert all(summaries[0][key] == summaries[1][key] for key in ("clean_acc", "pgd20_acc"))
    assert "2 processes" in printed and other_printed == ""


def test_with_batch_norm_on_a_cpu_a_run_says_so_and_goes_on_to_the_same_bits(pair, tmp_path):
    arguments = command("at", tmp_path)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    code, printed = pair.run(train, [*arguments, "--out", str(whole)])[0]
    assert code == 0 and "batch statistics are those of each process's own images" in printed
    assert pair.run(train, [*arguments, "--out", str(stopped)], {0: 2})[0][0] == 130
    assert pair.run(train, ["--resume", str(stopped)])[0][0] == 0
    assert furthest(*(load_file(folder / "last.safetensors") for folder in (whole, stopped))) == 0.0
    assert metrics(whole) == metrics(stopped)


# ---- stopping and going on ------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_another_number_of_processes(pair, tmp_path):
    arguments = command("free", tmp_path, *PLAIN)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train([*arguments, "--out", str(whole)])[0] == 0
    stopped = pair.run(train, [*arguments, "--out", str(run)], {1: 1})  # by the second process alone
    assert [code for code, _ in stopped] == [130, 130]
    assert f"--resume {run}" in stopped[0][1] and stopped[1][1] == ""
    assert load_state(run / "training_state.pt").step == 2  # the first learnt of it one step later
    assert train(["--resume", str(run)], {0: 2})[0] == 130  # in the second pass
    assert [code for code, _ in pair.run(train, ["--resume", str(run)])] == [0, 0]
    assert_same_run(whole, run)


def test_a_restart_goes_on_by_itself_with_the_same_command(pair, tmp_path, monkeypatch):
    arguments = [*command("at", tmp_path, *PLAIN), "--out", str(tmp_path / "run")]
    assert pair.run(train, arguments, {0: 2})[0][0] == 130
    again = pair.run(train, arguments, TORCHELASTIC_RESTART_COUNT="0")
    assert [code for code, _ in again] == [2, 2] and "already holds a run" in again[0][1]
    other = pair.run(train, [*arguments, "--seed", "5"], TORCHELASTIC_RESTART_COUNT="1")
    assert [code for code, _ in other] == [2, 2]
    assert pair.run(train, arguments, TORCHELASTIC_RESTART_COUNT="1")[0][0] == 0
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    code, printed = train(command("at", tmp_path))
    assert code == 2 and "out: name the run's folder with --out" in printed


@pytest.mark.slow
def test_torchrun_starts_a_killed_run_again_to_the_same_weights(pair, tmp_path):
    arguments = command("at", tmp_path)
    assert pair.run(train, [*arguments, "--out", str(tmp_path / "whole")])[0][0] == 0
    script = Path(__file__).parent / "killed_once.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "--max-restarts", "3", str(script), *arguments, "--out", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(-signal.SIGKILL) in done.stderr  # torchrun says that a process was killed
    assert furthest(*(load_file(tmp_path / name / "last.safetensors") for name in ("whole", "run"))) == 0.0
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "run")


# ---- what the processes tell each other ---------------------------------------------------------------------------


def decide(world):
    """What each process gets from the decisions they take together."""
    soon = [world.any_soon(False, world.rank == 1) for _ in range(3)]
    failures = []
    for failing in range(2):
        try:
            world.main_first(lambda failing=failing: 1 / (world.rank != failing))
        except ZeroDivisionError as error:
            failures.append(str(error))
    try:
        world.from_main(lambda: int("no number"))
    except ValueError as error:
        failures.append(str(error))
    mean = torch.tensor([1.0, 3.0]) + world.rank
    world.average_([mean[:1], mean[1:]])
    return soon, world.main_first(lambda: world.rank), failures, mean.tolist(), world.from_main(lambda: world.rank)


def test_decisions_are_the_same_for_all(pair):
    for rank, (soon, own, failures, mean, told) in enumerate(pair.run(with_world, decide)):
        assert soon == [(False, False), (False, True), (False, True)] and own == rank and told == 0
        assert failures[:2] == ["division by zero", "process 1: division by zero"] and "no number" in failures[2]
        assert mean == [1.5, 3.5]


def test_a_batch_too_small_to_share_is_refused(pair, tmp_path):
    arguments = command("at", tmp_path, "--batch-size", "5", "--accumulate", "3", "--out", str(tmp_path / "run"))
    outcomes = pair.run(train, arguments)
    assert [code for code, _ in outcomes] == [2, 2]
    assert "batch_size: 5 images cannot be cut into 3 micro-batches for each of 2 processes" in outcomes[0][1]


def test_a_graphed_attack_beside_ddp_trains_as_the_eager_one(device, tmp_path):
    """One of two processes, alone in its group, since each needs a GPU of its own; on a CPU both runs are eager."""
    backend, name = ("cpu:gloo,cuda:nccl", "cuda:0") if device.type == "cuda" else ("gloo", "cpu")
    torch.distributed.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        found = []
        for graph in ("auto", "off"):
            run = Run("at", device=name, world=World(size=2), graph=graph, precision="fp32", epochs=3)
            assert isinstance(run.trainer.update.wrapped, torch.nn.parallel.DistributedDataParallel)
            found.append(run.train().tensors)
            graphed = isinstance(run.trainer.method.inner_attack, GraphedPGD)
            assert graphed == (device.type == "cuda" and graph == "auto")
            assert not graphed or run.trainer.method.inner_attack.replays >= 3
        assert furthest(*found) < SAME_RUN_ATOL
    finally:
        torch.distributed.destroy_process_group()


def test_one_gpu_a_process(monkeypatch):
    world = World(rank=1, local_rank=1, size=2)
    assert world.device_name("cpu") == "cpu" and World().device_name("cuda:3") == "cuda:3"
    with pytest.raises(ValueError, match="device: expected cpu or cuda with 2 processes, one GPU each; got 'cuda:0'"):
        world.device_name("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="lower --nproc-per-node"):
        world.device_name("cuda")
