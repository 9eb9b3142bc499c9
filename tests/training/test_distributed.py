"""Several processes train as one does: the same batches, gradients, states and files."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from process_pair import Pair, count_messages, hang_or_die, make_quick, train, with_world
from safetensors.torch import load_file
from test_train import save_teacher
from tolerances import SAME_RUN_ATOL
from torch import nn

from ard_fast.attacks import attack_mode
from ard_fast.data.shards import share_of_step
from ard_fast.methods import METHODS
from ard_fast.training import runs as experiment
from ard_fast.training import trainer
from ard_fast.training.checkpoint import load_state
from ard_fast.training.distributed import World
from ard_fast.training.run_folder import RunFolder
from ard_fast.training.sync_bn import SyncBatchNorm, synchronise

# 4 steps an epoch; the last has one image, so that the second process has none.
SMALL = ["--subset", "97", "--batch-size", "32", "--val-steps", "1", "--epochs", "2"]
OWN = ("images_per_s", "elapsed_s", "teacher_cache_hits", "clean_teacher_cache_hits")  # figures of a process


@pytest.fixture(scope="module")
def pair():
    pair = Pair()
    yield pair
    pair.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for module, name in ((experiment, "load_dataset"), (trainer, "write_run_report")):
        monkeypatch.setattr(module, name, getattr(module, name))  # puts back what make_quick changes
    make_quick()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def command(name, folder, *more):
    """A short run of the method, with teachers made once in the folder."""
    spec = METHODS[name]
    arguments = ["--method", name, *SMALL, *more]
    if "steps" in spec.defaults:
        arguments += ["--steps", "2"]
    if "replays" in spec.defaults:
        arguments += ["--replays", "2", "--epochs", "4"]
    for role in spec.teachers:
        path = folder / f"{role}.safetensors"
        if not path.exists():
            save_teacher(path)
        arguments += [f"--{role.replace('_', '-')}", str(path)]
    return arguments


def weights(folder):
    return load_file(folder / "last.safetensors")


def furthest(a, b):
    """The largest difference between the tensors of two dicts with the same keys."""
    assert a.keys() == b.keys()
    return max((float((a[key].double() - b[key].double()).abs().max()) for key in a), default=0.0)


def metrics(folder):
    return [{key: row[key] for key in row if key not in OWN} for row in RunFolder(folder).metrics()]


def assert_same_run(one, two):
    """Weights, the method's state and metrics, but for rounding."""
    assert furthest(weights(one), weights(two)) < SAME_RUN_ATOL
    states = [load_state(folder / "training_state.pt") for folder in (one, two)]
    assert furthest(states[0].method, states[1].method) < SAME_RUN_ATOL
    for row, other in zip(metrics(one), metrics(two), strict=True):
        assert row == pytest.approx(other, abs=SAME_RUN_ATOL)


# ---- a run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["at", "ard", "mtard", "fair-ard", "free", "fast-ard", "absld"])
def test_two_processes_train_as_one(pair, tmp_path, name):
    arguments = command(name, tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    assert train([*arguments, "--out", str(one)])[0] == 0
    (code, printed), (other_code, other_printed) = pair.run(train, [*arguments, "--out", str(two)])
    assert (code, other_code) == (0, 0), printed
    assert_same_run(one, two)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, two)]
    assert all(summaries[0][key] == summaries[1][key] for key in ("clean_acc", "pgd20_acc"))
    assert "2 processes" in printed and other_printed == ""


def test_weight_perturbation_and_averages_of_two_processes_are_those_of_one(pair, tmp_path):
    arguments = command("at", tmp_path, "--awp-gamma", "0.01", "--averaging", "ema", "--accumulate", "2")
    one, two = tmp_path / "one", tmp_path / "two"
    assert train([*arguments, "--out", str(one)])[0] == 0
    assert [code for code, _ in pair.run(train, [*arguments, "--out", str(two)])] == [0, 0]
    assert_same_run(one, two)


def test_a_teacher_is_trained_by_both_and_first(pair, tmp_path):
    arguments = ["--method", "ard", *SMALL, "--steps", "2", "--teacher-epochs", "1", "--teacher", "digits-teacher"]
    for name in ("one", "two"):
        runs = pair.run(train, [*arguments, "--out", str(tmp_path / name)]) if name == "two" else [
            train([*arguments, "--out", str(tmp_path / name)])]  # fmt: skip
        assert {code for code, _ in runs} == {0}
    assert furthest(weights(tmp_path / "one" / "teacher"), weights(tmp_path / "two" / "teacher")) < SAME_RUN_ATOL
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_the_attack_sends_no_gradients_and_accumulation_sends_them_once(pair, tmp_path):
    for extra in ([], ["--accumulate", "3"]):
        arguments = command("at", tmp_path, "--out", str(tmp_path / f"run{len(extra)}"), *extra)
        assert pair.run(count_messages, arguments) == [[8], [8]]  # 2 epochs of 4 updates, one bucket each


def test_without_synchronised_batch_norm_a_run_goes_on_to_the_same_bits(pair, tmp_path):
    arguments = command("at", tmp_path, "--sync-bn", "false")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert pair.run(train, [*arguments, "--out", str(whole)])[0][0] == 0
    assert pair.run(train, [*arguments, "--out", str(stopped)], {0: 2})[0][0] == 130
    assert pair.run(train, ["--resume", str(stopped)])[0][0] == 0
    assert furthest(weights(whole), weights(stopped)) == 0.0
    assert metrics(whole) == metrics(stopped)


# ---- stopping and going on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fair-ard", "free"])
def test_a_run_goes_on_with_another_number_of_processes(pair, tmp_path, name):
    arguments = command(name, tmp_path)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train([*arguments, "--out", str(whole)])[0] == 0
    # A stop asked for by the second process alone: both end after the same step.
    stopped = pair.run(train, [*arguments, "--out", str(run)], {1: 2})
    assert [code for code, _ in stopped] == [130, 130]
    assert f"--resume {run}" in stopped[0][1] and stopped[1][1] == ""
    assert load_state(run / "training_state.pt").step == 3  # the second learnt of it one step later
    assert not (run / "summary.json").exists()
    assert train(["--resume", str(run)], {0: 2})[0] == 130  # in the second pass
    assert load_state(run / "training_state.pt").epoch == 1
    assert [code for code, _ in pair.run(train, ["--resume", str(run)])] == [0, 0]
    assert_same_run(whole, run)


def test_a_stop_inside_the_validation_is_agreed_on(pair, tmp_path):
    arguments = command("at", tmp_path, "--eval-batch-size", "7", "--out", str(tmp_path / "run"))
    outcomes = pair.run(train, arguments, {1: 4})  # the last step of the epoch
    assert [code for code, _ in outcomes] == [130, 130]
    state = load_state(tmp_path / "run" / "training_state.pt")
    assert (state.epoch, state.step) == (0, 4)


def test_divergence_stops_both(pair, tmp_path):
    arguments = command("at", tmp_path, "--lr", "1e30", "--out", str(tmp_path / "run"))
    outcomes = pair.run(train, arguments)
    assert [code for code, _ in outcomes] == [1, 1]
    assert "the loss became" in outcomes[0][1]


def test_a_restart_goes_on_by_itself_with_the_same_command(pair, tmp_path, monkeypatch):
    arguments = [*command("at", tmp_path), "--out", str(tmp_path / "run")]
    assert pair.run(train, arguments, {0: 3})[0][0] == 130
    again = pair.run(train, arguments, TORCHELASTIC_RESTART_COUNT="0")
    assert [code for code, _ in again] == [2, 2] and "already holds a run" in again[0][1]
    other = pair.run(train, [*arguments, "--seed", "5"], TORCHELASTIC_RESTART_COUNT="1")
    assert [code for code, _ in other] == [2, 2]
    assert pair.run(train, arguments, TORCHELASTIC_RESTART_COUNT="1")[0][0] == 0
    assert train([*command("at", tmp_path), "--out", str(tmp_path / "whole")])[0] == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_restarts_need_a_named_folder(tmp_path, monkeypatch):
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
    assert furthest(weights(tmp_path / "whole"), weights(tmp_path / "run")) == 0.0
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "run")


# ---- accumulation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["at", "ard"])
def test_micro_batches_add_up_to_the_whole(pair, tmp_path, name):
    arguments = command(name, tmp_path, "--student", "process_pair:plain_network")
    whole, parts, both = (tmp_path / part for part in ("whole", "parts", "both"))
    assert train([*arguments, "--out", str(whole)])[0] == 0
    assert train([*arguments, "--accumulate", "3", "--out", str(parts)])[0] == 0
    assert pair.run(train, [*arguments, "--accumulate", "3", "--out", str(both)])[0][0] == 0
    assert_same_run(whole, parts)
    assert_same_run(whole, both)


@pytest.mark.parametrize("name", ["free", "fast-ard", "mtard", "saad"])
def test_methods_of_whole_batches_refuse_accumulation(tmp_path, name):
    code, printed = train([*command(name, tmp_path), "--accumulate", "2", "--out", str(tmp_path / "run")])
    assert code == 2 and f"accumulate: expected 1 for method {name}" in printed


def test_a_batch_too_small_to_share_is_refused(pair, tmp_path):
    arguments = command("at", tmp_path, "--batch-size", "5", "--accumulate", "3", "--out", str(tmp_path / "run"))
    outcomes = pair.run(train, arguments)
    assert [code for code, _ in outcomes] == [2, 2]
    assert "batch_size: 5 images cannot be cut into 3 micro-batches for each of 2 processes" in outcomes[0][1]


def test_shares_are_contiguous_and_whole():
    for size in (1, 2, 5, 32):
        seen = []
        for part in range(3):
            for rank in range(4):
                share = share_of_step(64 + size, 2, batch_size=32, shard=(rank, 4), micro_batch=(part, 3))
                assert share.global_size == size
                if share.filler:
                    assert share.images == slice(64, 65)
                else:
                    assert share.offset == share.images.start - 64
                    seen += range(share.images.start, share.images.stop)
        assert seen == list(range(64, 64 + size))


# ---- batch norm -----------------------------------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)]
    return nn.Sequential(*layers, nn.BatchNorm1d(5, affine=False, momentum=None))


def pass_through(world, count, mode):
    """A rank's share of a batch of `count` images, the gradients there and of the weights, and the buffers."""
    model = network()
    if world.size > 1:
        model = synchronise(model, world)
        assert sum(isinstance(layer, SyncBatchNorm) for layer in model.modules()) == 2
    torch.manual_seed(1)
    images, target = torch.randn(count, 2, 6, 6), torch.randn(count, 5)
    share = share_of_step(count, 0, batch_size=count, shard=(world.rank, world.size))
    x = images[share.images].requires_grad_()
    with attack_mode(model, mode):
        (model(x) * target[share.images]).sum().backward()
    grads = {key: world.all_reduce(value.grad) for key, value in model.named_parameters()}
    return share, x.grad, grads, dict(model.named_buffers())


@pytest.mark.parametrize("mode", ["train", "train_frozen", "eval"])
@pytest.mark.parametrize("count", [4, 7])
def test_batch_norm_over_two_processes_is_that_of_the_whole_batch(pair, count, mode):
    _, grad_x, grads, buffers = pass_through(World(), count, mode)
    for share, part_x, part_grads, part_buffers in pair.run(with_world, pass_through, count, mode):
        torch.testing.assert_close(part_x, grad_x[share.images], atol=2e-6, rtol=1e-5)
        assert furthest(part_grads, grads) < 2e-5 and furthest(part_buffers, buffers) < 1e-6


def pass_filler(world):
    """As `pass_through` for a batch of one image, which the second process only pretends to have.

    It attacks its copy like any image, and its loss has no weight.
    """
    model = network()[:2]
    model = synchronise(model, world) if world.size > 1 else model
    x = torch.arange(72.0).sin().reshape(1, 2, 6, 6).requires_grad_()
    with world.counting(world.rank == 0):
        out = model(x)
        loss = (out * torch.arange(96.0).cos().reshape_as(out)).sum()
        (grad_x,) = torch.autograd.grad(loss, x, retain_graph=True)
        (loss * (1.0 if world.rank == 0 else 0.0)).backward()
    return grad_x, {key: world.all_reduce(value.grad) for key, value in model.named_parameters()}


def test_a_process_without_images_changes_no_gradient(pair):
    grad_x, grads = pass_filler(World())
    outcomes = pair.run(with_world, pass_filler)
    torch.testing.assert_close(outcomes[0][0], grad_x, atol=2e-6, rtol=1e-5)
    for _, part in outcomes:
        assert furthest(part, grads) < 2e-5


# ---- the world ------------------------------------------------------------------------------------------------------


def decide(world):
    """What each process gets from the decisions they take together."""
    soon = [world.any_soon(False, world.rank == 1) for _ in range(3)]
    turns = []
    world.in_turns(lambda: turns.append(world.rank))
    failures = []
    for failing in range(2):
        try:
            world.in_turns(lambda failing=failing: 1 / (world.rank != failing))
        except ZeroDivisionError as error:
            failures.append(str(error))
    try:
        world.from_main(lambda: int("no number"))
    except ValueError as error:
        failures.append(str(error))
    with world.counting(world.rank == 0):
        counted = world.sum_counted(torch.tensor(5.0)).item()
    mean = torch.tensor([1.0, 3.0]) + world.rank
    world.average_([mean[:1], mean[1:]])
    return soon, turns, failures, counted, mean.tolist(), world.from_main(lambda: os.environ["RANK"])


def test_decisions_are_the_same_for_all(pair):
    for rank, outcome in enumerate(pair.run(with_world, decide)):
        soon, turns, failures, counted, mean, told = outcome
        assert soon == [(False, False), (False, True), (False, True)] and turns == [rank]
        assert failures == ["division by zero", "process 1: division by zero", failures[2]]
        assert "no number" in failures[2] and counted == 5.0 and mean == [1.5, 3.5] and told == "0"


@pytest.mark.parametrize("how", ["hang", "die", "gradient"])
def test_a_lost_process_is_said(pair, how):
    for _ in range(3):  # a busy machine may take longer to let them meet than one waits for the lost
        met, heard = pair.run(hang_or_die, how)[0]
        if met:
            break
    assert met and heard.startswith("process 0 lost the others"), heard


def test_one_gpu_a_process():
    world = World(rank=1, local_rank=1, size=2)
    assert world.device_name("cpu") == "cpu" and World().device_name("cuda:3") == "cuda:3"
    with pytest.raises(ValueError, match="device: expected cpu or cuda with 2 processes, one GPU each; got 'cuda:0'"):
        world.device_name("cuda:0")
    if torch.cuda.device_count() != 1:
        assert world.device_name("cuda") == "cuda:1"
    else:
        with pytest.raises(ValueError, match="lower --nproc-per-node"):
            world.device_name("cuda")
