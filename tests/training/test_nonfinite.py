"""Losses that are not finite: the run stops, says where it began, and keeps the last good state."""

import dataclasses
import re

import pytest
import torch
from test_train import AT, CLEAN, TINY, metrics, same_weights, save_teacher, small_and_tidy  # noqa: F401 - a fixture

from ard_fast.data import loader
from ard_fast.methods.ard import AdversariallyRobustDistillation
from ard_fast.methods.at import AdversarialTraining
from ard_fast.train import main
from ard_fast.training import trainer
from ard_fast.training.checkpoint import load_state, save_weights
from ard_fast.training.nonfinite import LossWatch

NAN = float("nan")


def run_badly(out, capsys, arguments=AT):
    """A run of three epochs of three steps that must diverge; its message."""
    assert main([*arguments, "--epochs", "3", "--schedule", "constant", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def in_step(number, spoil):
    """A function that calls `spoil` on the third argument's batch in one step only, known by its seed."""

    def wrapper(real):
        seeds = []

        def patched(self, student, batch, *rest):
            if batch.seed.item() not in seeds:
                seeds.append(batch.seed.item())
            result = real(self, student, batch, *rest)
            return spoil(result) if seeds.index(batch.seed.item()) == number - 1 else result

        return patched

    return wrapper


def nan_at_one_place(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[0] = NAN
    return tensor


@pytest.mark.parametrize(
    ("part", "spoil", "message"),
    [
        (
            "attack",
            lambda inner: dataclasses.replace(inner, x_adv=nan_at_one_place(inner.x_adv)),
            r"the adversarial images \(1 of 2048 values, the first nan\)",
        ),
        ("loss", lambda result: result._replace(loss=result.loss * NAN), r"the loss \(1 of 1 values, the first nan\)"),
        (
            "loss",
            lambda result: result._replace(loss=result.loss + 1e38 * 1e38),
            r"the loss \(1 of 1 values, the first inf\)",
        ),
        (
            "loss",  # finite itself, but its gradient is 0 * inf
            lambda result: result._replace(loss=result.loss + (result.logits.sum() * 0).sqrt()),
            r"the gradient of [\w.]+ \(\d+ of \d+ values, the first nan\)",
        ),
    ],
)
def test_what_began_is_named(tmp_path, monkeypatch, capsys, part, spoil, message):
    monkeypatch.setattr(
        AdversarialTraining, part, in_step(5, spoil)(getattr(AdversarialTraining, part))
    )  # the second step of the second epoch
    error = run_badly(tmp_path / "bad", capsys)
    assert re.search(rf"at: the (loss|weights) became .* in epoch 2 .*; it began in step 2 of 3 with {message}", error)
    assert "the checkpoint of the epoch before is kept" in error
    assert load_state(tmp_path / "bad" / "training_state.pt").epoch == 1 and len(metrics(tmp_path / "bad")) == 1


def test_a_rate_that_is_too_high_leaves_the_last_good_weights(tmp_path, monkeypatch, capsys):
    good, bad = tmp_path / "good", tmp_path / "bad"
    assert main([*AT, "--epochs", "1", "--schedule", "constant", "--out", str(good)]) == 0
    monkeypatch.setattr(trainer, "learning_rate", lambda config, epoch: config.lr if epoch < 1 else 1e30)
    error = run_badly(bad, capsys)
    assert "it began in step 1 of 3 with" in error or "it began in step 2 of 3 with" in error
    assert "the student" in error
    assert same_weights(good / "last.safetensors", bad / "last.safetensors")


def test_weights_that_become_nan_in_the_last_update_of_an_epoch_are_not_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "learning_rate", lambda config, epoch: NAN if epoch > 1.5 else config.lr)
    error = run_badly(tmp_path / "bad", capsys)
    assert "at: the weights became not finite in epoch 2" in error
    assert re.search(r"it began in step 3 of 3 with the student's [\w.]+ after the update", error)
    assert load_state(tmp_path / "bad" / "training_state.pt").epoch == 1


def test_a_broken_batch_is_named(tmp_path, monkeypatch, capsys):
    real = loader.ResidentLoader.batches

    def batches(self, epoch, first_step=0):
        for step, batch in enumerate(real(self, epoch, first_step), start=first_step):
            bad = epoch == 0 and step == 1
            yield dataclasses.replace(batch, x=nan_at_one_place(batch.x)) if bad else batch

    monkeypatch.setattr(loader.ResidentLoader, "batches", batches)
    error = run_badly(tmp_path / "bad", capsys)
    assert "in epoch 1" in error and "it began in step 2 of 3 with the input batch (1 of 2048 values" in error
    assert "no epoch was finished" in error


@pytest.mark.parametrize("method", ["kd", "ard"])
def test_a_broken_teacher_is_named(tmp_path, capsys, monkeypatch, method):
    model = save_teacher(tmp_path / "t.safetensors")
    for parameter in model.parameters():
        parameter.data.view(-1)[0] = 3e38  # finite as it is
    save_weights(tmp_path / "t.safetensors", model, name="digits-teacher", num_classes=10, in_channels=1)
    tiny = CLEAN if method == "kd" else TINY
    arguments = ["--method", method, *tiny, "--teacher", str(tmp_path / "t.safetensors")]
    assert main([*arguments, "--out", str(tmp_path / "refused")]) == 2
    assert "error: teacher: logits of 4 of 4 clean images are not finite" in capsys.readouterr().err
    monkeypatch.setattr(
        "ard_fast.models.trial.check_logits", lambda model, x, *_: model(x)
    )  # as if only later images did it
    error = run_badly(tmp_path / "bad", capsys, arguments)
    assert re.search(r"it began in step 1 of 3 with the teacher's logits in the \w+", error)


def test_the_methods_are_left_as_they_were(tmp_path, monkeypatch, capsys):
    seen = []
    real = trainer.Trainer.find_origin

    def find_origin(self, steps):
        text = real(self, steps)
        seen.append(vars(self.method).keys() & {"attack", "loss", "after_backward"})
        seen.append(dict(self.student._forward_hooks))
        return text

    monkeypatch.setattr(trainer.Trainer, "find_origin", find_origin)
    broken = in_step(1, lambda result: result._replace(loss=result.loss * NAN))
    monkeypatch.setattr(AdversariallyRobustDistillation, "loss", broken(AdversariallyRobustDistillation.loss))
    save_teacher(tmp_path / "t.safetensors")
    run_badly(tmp_path / "bad", capsys, ["--method", "ard", *TINY, "--teacher", str(tmp_path / "t.safetensors")])
    assert seen == [set(), {}]


def test_the_watch_sees_a_loss_at_once_on_the_cpu():
    watch = LossWatch()
    watch.look(torch.tensor(1.0))
    assert not watch.bad
    watch.look(torch.tensor(NAN))
    assert watch.bad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_watch_never_waits_on_cuda():
    watch, loss = LossWatch(), torch.tensor(NAN, device="cuda", dtype=torch.float64)
    torch.cuda.set_sync_debug_mode("error")
    try:
        watch.look(loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    watch.look(loss)
    assert watch.bad
