"""The graph of a training step: what --graph comes to, and a replayed step that is the eager one to the bit."""

import dataclasses
import json
import warnings
from functools import partial

import pytest
import torch
from distillation_cases import make_method, make_teacher
from graph_runs import Run, assert_same
from short_runs import AT, assert_same_run, small_and_tidy, stop_after
from tape_graphs import TapeGraphs

from ard_fast.attacks import GraphedPGD
from ard_fast.attacks.cuda_graph import GraphWarning
from ard_fast.methods import METHODS
from ard_fast.methods.at import AdversarialTraining
from ard_fast.train import main
from ard_fast.training import trainer
from ard_fast.training.distributed import World
from ard_fast.training.graph import GraphChoice, GraphedUpdate, choose_graph, graph_attack, host_values

__all__ = ["small_and_tidy"]  # a fixture

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
ALONE, TWO = World(), World(rank=0, size=2)


@pytest.fixture(autouse=True)
def no_surprise(tmp_path, monkeypatch):
    """A warning that a test does not expect fails it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", GraphWarning)
        yield


# ---- what is captured ---------------------------------------------------------------------------------------------


def choose(wanted="auto", *, device=CUDA, world=ALONE, name="at", sync_bn=True, **settings):
    teachers = [make_teacher()] if name in ("ard", "fair-ard") else []
    return choose_graph(wanted, device, make_method(name, *teachers, **settings), world, sync_bn=sync_bn)


@pytest.mark.parametrize(
    ("settings", "mode", "why"),
    [
        ({"device": CPU}, "off", "the device is not a GPU"),
        ({}, "iteration", "one process"),
        ({"name": "free"}, "iteration", "one process"),
        ({"wanted": "attack"}, "attack", "as asked"),
        ({"wanted": "off"}, "off", "as asked"),
        ({"world": TWO}, "attack", "2 processes"),
        ({"world": TWO, "attack_bn": "train", "sync_bn": False}, "attack", "2 processes"),
        ({"world": TWO, "attack_bn": "train"}, "off", "exchanges statistics"),
        ({"world": TWO, "name": "fair-ard"}, "off", "steps_correct"),
        ({"world": TWO, "name": "free"}, "off", "no attack apart from its update"),
    ],
)
def test_what_is_captured(settings, mode, why):
    choice = choose(**settings)
    assert choice.mode == mode and why in choice.describe()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"wanted": "attack", "device": CPU}, "graph: expected auto or off on device cpu.*'attack'"),
        ({"wanted": "iteration", "world": TWO}, "graph: iteration needs a run of one process, got 2"),
        ({"wanted": "attack", "world": TWO, "name": "free"}, "graph: the attack of method free cannot be captured"),
    ],
)
def test_what_cannot_be_captured_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        choose(**settings)


# ---- to the bit ---------------------------------------------------------------------------------------------------


def by_replay(name, at_least=3, **settings):
    """A run whose steps are replays where they can be, after it was compared with the eager one."""
    run = Run(name, backend=TapeGraphs(), **settings)
    found = run.train()
    assert run.graphed.replays >= at_least and not run.graphed.failed
    assert_same(found, Run(name, **settings).train())
    return run


FROM_THE_START = {"averaging_start_share": 0.0, "awp_warmup_share": 0.0}


@pytest.mark.parametrize(
    ("name", "settings", "graphs"),
    [
        *((name, {}, 1) for name in ("ard", "fair-ard", "saad", "peeraid")),
        ("mtard", {"parity": True}, 1),
        ("at", {"awp_gamma": 0.01, "awp_warmup_share": 0.5}, 2),
        ("at", {"averaging": "ema", "averaging_start_share": 0.5}, 2),
        ("free", {"averaging": "ema", **FROM_THE_START, "epochs": 6}, 1),
        ("ard", {"accumulate": 2, "teacher_cache": "off", "averaging": "swa", **FROM_THE_START}, 1),
        ("trades", {"nesterov": True, "schedule": "multistep", "precision": "bf16"}, 1),
        (
            "adaad",
            {"fold": "true", "awp_gamma": 0.01, "optimiser": "adamw", "schedule": "onecycle", **FROM_THE_START},
            1,
        ),
        ("own_losses:distil", {"averaging": "ema", **FROM_THE_START}, 1),
    ],
)
def test_a_step_by_replay_is_the_eager_one(name, settings, graphs):
    """`graphs`: one for each phase of the run; the smaller last batch of an epoch is in none."""
    run = by_replay(name, **settings)
    assert run.graphed._graphed.graphs == graphs
    run.graphed.forget()
    assert run.graphed._graphed.graphs == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method(name):
    by_replay(name)


@pytest.fixture
def tapes(monkeypatch):
    """Runs on the CPU get graphs: the backends of all of them, one a run."""
    made = []

    def graphed(update, batch_size, **settings):
        made.append(TapeGraphs())
        return GraphedUpdate(update, batch_size, **{**settings, "backend": made[-1]})

    choice = lambda wanted, *args, **settings: GraphChoice("off" if wanted == "off" else "iteration", "a test")  # noqa: E731
    monkeypatch.setattr(trainer, "choose_graph", choice)
    monkeypatch.setattr(trainer, "GraphedUpdate", graphed)
    monkeypatch.setattr(trainer, "Update", partial(trainer.Update, capturable=True))
    return made


# 6 steps an epoch, two of them by replay.
RUN = [*AT, "--batch-size", "16", "--epochs", "2", "--averaging", "ema", "--averaging-start-share", "0"]


def test_a_run_by_replay_stops_inside_an_epoch_and_goes_on_to_the_same_bits(tmp_path, monkeypatch, tapes, capsys):
    eager, whole, stopped = (tmp_path / name for name in ("eager", "whole", "stopped"))
    assert main([*RUN, "--graph", "off", "--out", str(eager)]) == 0
    assert main([*RUN, "--out", str(whole)]) == 0
    assert "the whole step is one CUDA graph" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        assert main([*RUN, "--save-every-seconds", "0", "--out", str(stopped)]) == 130
    assert main(["--resume", str(stopped)]) == 0
    assert [len(tape.tapes) for tape in tapes] == [1] * 3
    assert_same_run(whole, stopped)
    assert_same_run(eager, whole)


def test_a_run_whose_capture_fails_says_why_once_and_in_its_files(tmp_path, monkeypatch, tapes, capsys):
    loss, reports = AdversarialTraining.loss, []

    def waits(self, *args):
        result = loss(self, *args)
        result.loss.item()
        return result

    monkeypatch.setattr(AdversarialTraining, "loss", waits)
    monkeypatch.setattr(
        trainer, "write_run_report", lambda folder, summary, lines, *args, **more: reports.append(lines)
    )
    assert main([*RUN, "--out", str(tmp_path / "run")]) == 0
    line = (
        "no CUDA graph (its capture failed with NotCapturable: aten._local_scalar_dense.default reads values from the"
    )
    assert capsys.readouterr().out.count(f"warning: graph: {line}") == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["graph"].startswith(line) and f"graph: {summary['graph']}" in summary["warnings"]
    assert summary["graph"] in reports[0]


@pytest.mark.parametrize(
    ("epochs", "came_to"), [("1", "no CUDA graph (too few whole batches"), ("2", "the whole step")]
)
def test_what_a_run_got_is_in_its_summary(epochs, came_to, tmp_path, tapes):
    assert main([*AT, "--epochs", epochs, "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["graph"].startswith(came_to)


def test_the_origin_of_a_nan_is_found_eagerly(tmp_path, monkeypatch, tapes, capsys):
    monkeypatch.setattr(trainer, "learning_rate", lambda config, epoch: 1e30 if epoch > 0.8 else config.lr)
    assert main([*RUN, "--out", str(tmp_path / "run")]) == 1
    assert len(tapes) == 1 and len(tapes[0].tapes) == 1  # no second graph: the search is eager
    assert "it began in step 1 of 6 with the student's logits" in capsys.readouterr().err


# ---- what is eager ------------------------------------------------------------------------------------------------


class Counts(AdversarialTraining):
    """Changes a plain number at every step."""

    count = 0

    def loss(self, student, batch, inner):
        result = super().loss(student, batch, inner)
        return result._replace(loss=result.loss * (1.0 + 0.1 * self.count))

    def after_backward(self, batch, inner):
        self.count += 1


class Waits(AdversarialTraining):
    """Looks at a value of the device."""

    def loss(self, student, batch, inner):
        result = super().loss(student, batch, inner)
        return result._replace(loss=result.loss * (1.0 if result.loss.item() > 1e9 else 2.0))


class Phases(AdversarialTraining):
    """Changes a plain number with the epoch."""

    def begin_epoch(self, epoch):
        self.share = 1.0 / (1 + epoch)

    def loss(self, student, batch, inner):
        result = super().loss(student, batch, inner)
        return result._replace(loss=result.loss * self.share)


def of_ones_own(kind, backend, **settings):
    """A run of a method that is not of the package."""
    run = Run("at", backend=backend, **settings)
    own = run.trainer.method
    settings = {item.name: getattr(own, item.name) for item in dataclasses.fields(own) if item.init}
    run.trainer.method = run.trainer.update.method = kind(**settings)
    return run


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Counts, "method at changes count from step to step"),
        (Waits, "its capture failed with NotCapturable: .*_local_scalar_dense"),
    ],
)
def test_a_method_that_no_graph_can_hold_is_said_once_and_runs_eagerly(kind, reason):
    run = of_ones_own(kind, TapeGraphs())
    with pytest.warns(GraphWarning, match=reason) as said:
        found = run.train()
    assert len(said) == 1 and run.graphed.failed and run.graphed.replays == 0
    assert_same(found, of_ones_own(kind, None).train())


def test_a_phase_of_training_gets_a_graph_of_its_own():
    run = of_ones_own(Phases, TapeGraphs(), epochs=3)
    found = run.train()
    assert run.graphed._graphed.graphs == 3 and run.graphed.replays > 3
    assert_same(found, of_ones_own(Phases, None, epochs=3).train())


def test_a_failed_capture_leaves_no_trace_and_the_attack_may_still_be_a_graph():
    attempts = [TapeGraphs(), TapeGraphs()]
    attempts[0].fail = RuntimeError("no memory")
    run = Run("at", backend=attempts[0], epochs=3, fold="true")
    run.graphed._fallback = lambda: graph_attack(run.trainer.method, attempts[1])
    with pytest.warns(GraphWarning, match="the training step runs without a CUDA graph: .*no memory"):
        found = run.train()
    assert not attempts[0].tapes and attempts[1].tapes
    assert isinstance(run.trainer.method.inner_attack, GraphedPGD)
    assert_same(found, Run("at", epochs=3, fold="true").train())


def test_plain_values_are_told_apart():
    class Thing:
        pass

    def values(**attributes):
        thing, thing.inner = Thing(), Thing()
        for name, value in attributes.items():
            setattr(thing.inner if name.startswith("inner_") else thing, name, value)
        return host_values(thing)

    keys = [values(a=1), values(a=1.0), values(a=True), values(a="1"), values(a=(1, 2)), values(a=[1, 2])]
    keys += [values(inner_a=1), values(a=0.0), values(a=-0.0)]
    assert len(set(keys)) == len(keys) and values(a=float("nan")) == values(a=float("nan"))
    assert values(a=torch.ones(2), b=torch.nn.Linear(1, 1)) == ()


# ---- on a GPU -----------------------------------------------------------------------------------------------------

if torch.cuda.is_available():
    from ard_fast.attacks.cuda_graph import CudaGraphs

    @pytest.mark.gpu
    @pytest.mark.parametrize(
        ("name", "settings"),
        [
            *(pytest.param(name, {}, id=name) for name in METHODS),
            ("ard", {"precision": "bf16", "teacher_cache": "off", "teacher_precision": "bf16"}),
            ("at", {"precision": "fp32", "fold": "false", "attack_bn": "train"}),
            ("mtard", {"parity": True}),
            ("trades", {"awp_gamma": 0.01, "averaging": "ema", **FROM_THE_START}),
            ("ard", {"accumulate": 2, "averaging": "ema", **FROM_THE_START}),
        ],
    )
    def test_a_cuda_graph_gives_the_eager_bits(name, settings):
        graphed = Run(name, backend=CudaGraphs(), device="cuda", **settings)
        found = graphed.train()
        assert graphed.graphed.replays >= 3 and not graphed.graphed.failed
        assert_same(found, Run(name, device="cuda", **settings).train())

    @pytest.mark.gpu
    def test_a_replayed_step_never_waits_for_the_gpu():
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
