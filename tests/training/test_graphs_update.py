"""The graphed training step is the eager one to the bit, for every method; what cannot be captured runs eagerly."""

import warnings

import pytest
import torch
from graph_runs import IMAGES, Run, assert_same
from tape_graphs import TapeGraphs

from ard_fast.attacks import GraphedPGD
from ard_fast.attacks.cuda_graph import GraphWarning
from ard_fast.attacks.model_mode import network_tensors
from ard_fast.methods import METHODS
from ard_fast.methods.at import AdversarialTraining
from ard_fast.training.checkpoint import TrainingState
from ard_fast.training.graph_choice import graph_attack
from ard_fast.training.host_values import changed, host_values
from ard_fast.training.nonfinite import FirstBad, watched


@pytest.fixture(autouse=True)
def no_surprise(tmp_path, monkeypatch):
    """A warning that a test does not expect fails it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", GraphWarning)
        yield


def by_replay(name, at_least=4, **settings):
    """A run whose steps are replays where they can be, after it was compared with the eager one."""
    run = Run(name, backend=TapeGraphs(), **settings)
    found = run.train()
    assert run.graphed.replays >= at_least and not run.graphed.failed
    assert_same(found, Run(name, **settings).train())
    return run


# ---- to the bit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name):
    run = by_replay(name)
    tape = run.graphed._graphed.backend
    # 13 steps or, at 2 replays, 7; the last of each epoch is smaller and never part of a graph
    eager = run.trainer.loader.steps * run.config.passes() - run.graphed.replays
    assert tape.warmed_up + run.config.passes() == eager


@pytest.mark.parametrize("name", ["ard", "rslad", "iad-ii", "mtard", "fast-ard"])
def test_as_published(name):
    by_replay(name, parity=True)


@pytest.mark.parametrize(
    ("name", "settings", "kinds"),
    [
        ("at", {"awp_gamma": 0.01, "awp_warmup_share": 0.5}, 2),
        ("ard", {"averaging": "ema", "averaging_start_share": 0.0}, 1),
        ("at", {"averaging": "ema", "averaging_start_share": 0.5}, 2),
        ("free", {"averaging": "ema", "averaging_start_share": 0.0, "epochs": 6}, 1),
        ("at", {"averaging": "swa", "averaging_start_share": 0.0}, 1),
        ("ard", {"accumulate": 2}, 1),
        ("at", {"accumulate": 3, "awp_gamma": 0.01, "awp_warmup_share": 0.0}, 1),
        ("trades", {"nesterov": True, "schedule": "multistep"}, 1),
        ("fair-ard", {"attack_bn": "train"}, 1),
        ("adaad", {"alpha": 0.5}, 1),
        ("ard", {"teacher_cache": "off"}, 1),
        ("ard", {"precision": "bf16"}, 1),
        ("ard", {"fold": "true", "awp_gamma": 0.01, "awp_warmup_share": 0.0}, 1),
        ("adaad", {"fold": "true", "precision": "bf16"}, 1),
    ],
)
def test_what_a_run_may_do_besides(name, settings, kinds):
    """`kinds`: how many phases of the run have a graph of their own."""
    run = by_replay(name, at_least=3, **settings)
    assert run.graphed._graphed.graphs == kinds


def test_a_run_that_goes_on_inside_an_epoch():
    """In a new process, whose steps are eager at first; the whole run replays where this one does not."""
    settings = {"averaging": "ema", "averaging_start_share": 0.0}
    whole = by_replay("mtard", **settings)
    first = Run("mtard", backend=TapeGraphs(), **settings)
    first.train(epochs=2, stop=1)
    assert first.graphed.replays
    state = TrainingState(epoch=1, step=1)
    state.model, state.optimizer = first.trainer.student.state_dict(), first.trainer.update.optimizer.state_dict()
    state.method, state.average = first.trainer.method.state_dict(), first.trainer.average.state_dict()
    assert all(type(group["lr"]) is float for group in state.optimizer["param_groups"])
    second = Run("mtard", backend=TapeGraphs(), **settings)
    second.trainer.load(state)
    second.train(first=1, skip=1)
    assert second.graphed.replays == 2
    for name, value in whole.outcome.tensors.items():
        assert torch.equal(value, second.outcome.tensors[name]), name


def test_state_that_is_loaded_into_a_run_with_a_graph():
    """Its tensors stay in place or are noticed: the graph goes on from them."""
    runs = [Run("mtard", backend=TapeGraphs()), Run("mtard")]
    for run in runs:
        run.train(epochs=1)
        trainer = run.trainer
        optimizer, student = trainer.update.optimizer, trainer.student
        optimizer.load_state_dict(optimizer.state_dict())
        student.load_state_dict({name: value * 0.5 for name, value in student.state_dict().items()})
        trainer.method.load_state_dict({name: value + 0.25 for name, value in trainer.method.state_dict().items()})
        run.train(first=1, epochs=1)
    assert runs[0].graphed.replays > 6
    assert_same(runs[0].outcome, runs[1].outcome)


def test_the_graph_reads_nothing_that_may_go_away():
    """All that it touches and does not own is held: parameters, state, inputs, teachers, numbers."""
    run = by_replay("mtard", parity=True)
    update, (tape,) = run.trainer.update, run.graphed._graphed.backend.tapes
    kinds = run.graphed._graphed._kinds.values()
    held = [tensor for kind in kinds for tensor in kind.inputs.values()]
    held += [*run.graphed._fixed(), update._rates._tensor]
    held += network_tensors(*(teacher.network for teacher in run.trainer.teachers.values()))
    assert not tape.reads_beyond(held)


# ---- what is eager ------------------------------------------------------------------------------------------------


class Counts(AdversarialTraining):
    """Changes a plain number at every step."""

    steps = 0

    def loss(self, student, batch, inner):
        result = super().loss(student, batch, inner)
        return result._replace(loss=result.loss * (1.0 + 0.1 * self.steps))

    def after_backward(self, batch, inner):
        self.steps += 1


class Hides(Counts):
    """Does so where nobody can see it."""

    counter = ()

    def __init__(self, attack):
        super().__init__(attack)
        self.counter = {"steps": 0}

    @property
    def steps(self):
        return self.counter["steps"]

    @steps.setter
    def steps(self, value):
        self.counter["steps"] = value


class Replaces(AdversarialTraining):
    """Puts its state in a new tensor at every step."""

    def __init__(self, attack):
        super().__init__(attack)
        self.state = torch.zeros(())

    def loss(self, student, batch, inner):
        result = super().loss(student, batch, inner)
        return result._replace(loss=result.loss * (1.0 + self.state))

    def after_backward(self, batch, inner):
        self.state = self.state + 0.1


class Waits(AdversarialTraining):
    """Looks at a value of the device."""

    def loss(self, student, batch, inner):
        result = super().loss(student, batch, inner)
        return result._replace(loss=result.loss * (1.0 if result.loss.item() > 1e9 else 2.0))


def of_ones_own(kind, backend, **settings):
    """A run of a method that is not of the package."""
    run = Run("at", backend=backend, **settings)
    run.trainer.method = run.trainer.update.method = kind(run.trainer.method.inner_attack)
    return run


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Counts, "method at changes steps from step to step"),
        (Replaces, "in new places"),
        (Waits, "its capture failed with NotCapturable: .*_local_scalar_dense"),
    ],
)
def test_a_method_that_no_graph_can_hold_is_said_once_and_runs_eagerly(kind, reason):
    run = of_ones_own(kind, TapeGraphs())
    with pytest.warns(GraphWarning, match=reason) as said:
        found = run.train()
    assert len(said) == 1 and run.graphed.failed and run.graphed.replays == 0
    assert_same(found, of_ones_own(kind, None).train())


def test_the_comparison_sees_what_python_changes_unnoticed():
    """The planted fault of these tests: state that is in no attribute and in no tensor."""
    found = of_ones_own(Hides, TapeGraphs()).train()
    with pytest.raises(AssertionError):
        assert_same(found, of_ones_own(Hides, None).train())


def test_a_phase_of_training_is_no_unsteadiness():
    class Phases(AdversarialTraining):
        def begin_epoch(self, epoch):
            self.share = 1.0 / (1 + epoch)

        def loss(self, student, batch, inner):
            result = super().loss(student, batch, inner)
            return result._replace(loss=result.loss * self.share)

    run = of_ones_own(Phases, TapeGraphs(), epochs=6)
    found = run.train()
    assert run.graphed.replays == 6 * 3 - 1  # in each epoch 3 eager steps, in the first one more, and the last
    assert_same(found, of_ones_own(Phases, None, epochs=6).train())


@pytest.mark.parametrize(("name", "fold"), [("at", "false"), ("at", "true"), ("adaad", "true")])
def test_a_failed_capture_leaves_no_trace_and_the_attack_may_still_be_a_graph(name, fold):
    attempts = [TapeGraphs(), TapeGraphs()]
    attempts[0].fail = RuntimeError("no memory")
    run = Run(name, backend=attempts[0], epochs=3, fold=fold)
    run.graphed._fallback = lambda: graph_attack(run.trainer.method, attempts[1])
    with pytest.warns(GraphWarning, match="the training step runs without a CUDA graph: .*no memory"):
        found = run.train()
    assert attempts[0].replays == 0 and attempts[1].replays >= 3
    assert isinstance(run.trainer.method.inner_attack, GraphedPGD)
    assert_same(found, Run(name, epochs=3, fold=fold).train())


def test_a_smaller_batch_is_never_captured():
    tape = TapeGraphs()
    run = Run("at", backend=tape, epochs=6)
    run.train()
    assert IMAGES % run.config.batch_size and len(tape.tapes) == 1 == run.graphed._graphed.graphs
    run.graphed.forget()
    assert run.graphed._graphed.graphs == 0


def test_every_part_of_a_step_can_be_looked_at():
    """The search for the origin of a NaN takes the update itself, which is eager."""
    run = Run("ard", backend=TapeGraphs())
    run.train(epochs=1)
    with torch.no_grad():
        next(run.trainer.student.parameters()).view(-1)[0] = torch.nan
    trainer = run.trainer
    trainer.state.epoch, trainer.state.step = 1, 0
    with watched(trainer.method, trainer.student, trainer.teachers), pytest.raises(FirstBad, match="before the step"):
        trainer.update(next(trainer._steps()), epoch=1, rates=trainer.rates())


# ---- plain values -------------------------------------------------------------------------------------------------


def test_plain_values_are_told_apart():
    class Thing:
        pass

    def values(**attributes):
        thing, thing.inner = Thing(), Thing()
        for name, value in attributes.items():
            setattr(thing.inner if name.startswith("inner_") else thing, name, value)
        return host_values(thing)

    keys = [
        values(a=1),
        values(a=1.0),
        values(a=True),
        values(a="1"),
        values(a=(1, 2)),
        values(a=[1, 2]),
        values(inner_a=1),
    ]
    assert len(set(keys)) == len(keys)
    assert values(a=float("nan")) == values(a=float("nan")) and values(a=-0.0) != values(a=0.0)
    assert values(a=torch.ones(2), b=torch.nn.Linear(1, 1)) == ()
    assert changed(values(a=1, b=2, inner_c=3), values(a=1, b=5, d=1)) == ["b", "d", "inner.inner_c"]
