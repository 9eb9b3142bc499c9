"""Whole runs through a graph: files, checkpoints and metrics are those of an eager run; on a GPU with real graphs."""

from functools import partial

import pytest
import torch
from graph_runs import Run, assert_same
from tape_graphs import TapeGraphs
from test_methods_runs import command
from test_train import metrics, same_weights, small_and_tidy, stop_after

from ard_fast.attacks.cuda_graph import CudaGraphs
from ard_fast.methods import METHODS
from ard_fast.train import main
from ard_fast.training import trainer
from ard_fast.training.checkpoint import load_state
from ard_fast.training.graph_choice import GraphChoice
from ard_fast.training.graphed_update import GraphedUpdate

__all__ = ["small_and_tidy"]  # the fixture that shortens the digits


@pytest.fixture(autouse=True)
def without_plots(monkeypatch):
    monkeypatch.setattr(trainer, "write_run_report", lambda *args, **settings: None)
    monkeypatch.setattr(trainer, "Update", partial(trainer.Update, recordable=True))


@pytest.fixture
def tapes(monkeypatch):
    """Runs on the CPU get graphs: the backends of all of them, one a run."""
    made = []

    def graphed(update, batch_size, **settings):
        made.append(TapeGraphs())
        return GraphedUpdate(update, batch_size, **{**settings, "backend": made[-1]})

    monkeypatch.setattr(trainer, "choose_graph", lambda *args, **settings: GraphChoice("iteration", "a test"))
    monkeypatch.setattr(trainer, "GraphedUpdate", graphed)
    return made


ARGUMENTS = ["--batch-size", "8", "--averaging", "ema", "--averaging-start-share", "0", "--epochs", "2"]


def test_a_run_by_replay_stops_inside_an_epoch_and_goes_on_to_the_same_bits(tmp_path, monkeypatch, tapes, capsys):
    """10 steps an epoch; the one that is stopped is saved after each of them."""
    arguments = [*command("mtard", tmp_path), *ARGUMENTS]
    eager, whole, stopped = (tmp_path / name for name in ("eager", "whole", "stopped"))
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "choose_graph", lambda *args, **settings: GraphChoice("off", "a test"))
        assert main([*arguments, "--out", str(eager)]) == 0
    assert not tapes
    assert main([*arguments, "--out", str(whole)]) == 0
    assert "the whole step is one CUDA graph" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        stop_after(patch, 13)
        assert main([*arguments, "--save-every-seconds", "0", "--out", str(stopped)]) == 130
    state = load_state(stopped / "training_state.pt")
    assert (state.epoch, state.step) == (1, 3)
    assert all(type(group["lr"]) is float for group in state.optimizer["param_groups"])
    assert main(["--resume", str(stopped)]) == 0
    assert [tape.replays > 0 for tape in tapes] == [True] * 3
    for folder in (whole, stopped):
        assert same_weights(eager / "last.safetensors", folder / "last.safetensors")
        assert metrics(eager) == metrics(folder)


def test_the_origin_of_a_nan_is_found_eagerly(tmp_path, monkeypatch, tapes, capsys):
    arguments = [*command("at", tmp_path), *ARGUMENTS, "--schedule", "constant"]
    monkeypatch.setattr(trainer, "learning_rate", lambda config, epoch: 1e30 if epoch > 0.6 else config.lr)
    with monkeypatch.context() as patch:
        seen = []
        real = trainer.choose_graph
        patch.setattr(trainer, "choose_graph", lambda wanted, *a, **s: seen.append(wanted) or real(wanted, *a, **s))
        assert main([*arguments, "--out", str(tmp_path / "run")]) == 1
    assert seen == ["auto", "off"] and tapes[0].replays > 0
    assert "it began in step" in capsys.readouterr().err


# ---- on a GPU -----------------------------------------------------------------------------------------------------


@pytest.fixture
def settled():
    """Algorithms of cuDNN that give the same bits each time, and the same ones to both runs."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    yield
    cudnn.deterministic, cudnn.benchmark = before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in METHODS),
        ("ard", {"precision": "fp32", "teacher_cache": "off"}),
        ("ard", {"precision": "bf16", "teacher_cache": "off", "teacher_precision": "bf16"}),
        ("at", {"precision": "fp32", "fold": "false", "attack_bn": "train"}),
        ("mtard", {"parity": True}),
        ("trades", {"awp_gamma": 0.01, "awp_warmup_share": 0.0, "averaging": "ema", "averaging_start_share": 0.0}),
        ("ard", {"accumulate": 2, "averaging": "ema", "averaging_start_share": 0.0}),
    ],
)
def test_a_cuda_graph_gives_the_eager_bits(settled, tmp_path, monkeypatch, name, settings):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    graphed = Run(name, backend=CudaGraphs(), device="cuda", **settings)
    found = graphed.train()
    assert graphed.graphed.replays >= 3 and not graphed.graphed.failed
    assert_same(found, Run(name, device="cuda", **settings).train())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_replayed_step_never_waits_for_the_gpu(settled):
    run = Run("ard", backend=CudaGraphs(), device="cuda", teacher_cache="off", averaging="ema", epochs=4)
    run.train(epochs=3)
    trainer, replays = run.trainer, run.graphed.replays
    assert replays
    trainer.state.epoch, trainer.state.step = 3, 0
    steps = [next(each) for each in [trainer._steps()] for _ in range(4)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for parts in steps:
            run.step(parts, epoch=3, rates=trainer.rates())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run.graphed.replays == replays + 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_run_on_a_gpu_is_the_same_with_and_without_graph(settled, tmp_path):
    """To what cuDNN's choice of algorithms leaves: it tries them anew in each run."""
    for graph in ("off", "attack", "iteration"):
        extra = [*ARGUMENTS, "--device", "cuda", "--precision", "fp32", "--graph", graph]
        assert main([*command("ard", tmp_path), *extra, "--out", str(tmp_path / graph)]) == 0
    for graph in ("attack", "iteration"):
        for row, wanted in zip(metrics(tmp_path / graph), metrics(tmp_path / "off"), strict=True):
            assert row["train_loss"] == pytest.approx(wanted["train_loss"], rel=1e-3)
