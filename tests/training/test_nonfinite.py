"""Losses that are not finite: the run stops, says in which step and term it began, and keeps the last good state."""

import dataclasses
import re

import pytest
import torch
from short_runs import AT, TINY, metrics, same_weights, save_teacher, small_and_tidy

from ard_fast.data.loader import ResidentLoader
from ard_fast.methods.ard import AdversariallyRobustDistillation
from ard_fast.methods.at import AdversarialTraining
from ard_fast.train import main
from ard_fast.training import trainer
from ard_fast.training.checkpoint import load_state
from ard_fast.training.nonfinite import LossWatch

__all__ = ["small_and_tidy"]  # a fixture

NAN = float("nan")


def run_badly(out, capsys, arguments=AT):
    """A run of three epochs of three steps that must diverge; its message."""
    assert main([*arguments, "--epochs", "3", "--schedule", "constant", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def in_step(number, spoil):
    """A wrapper of a method's part that calls `spoil` on its result in one step only, known by the batch's seed."""

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
        (
            "loss",
            lambda result: result._replace(loss=result.loss + 1e38 * 1e38),
            r"the loss \(1 of 1 values, the first inf\)",
        ),
        (
            "loss",  # finite itself, but its gradient is 0 * inf
            lambda result: result._replace(loss=result.loss + (result.logits.sum() * 0).sqrt()),
            r"the gradient of the student's [\w.]+ \(\d+ of \d+ values, the first nan\)",
        ),
    ],
)
def test_step_and_term_are_named_and_the_last_good_state_is_kept(tmp_path, monkeypatch, capsys, part, spoil, message):
    spoilt = in_step(5, spoil)(getattr(AdversarialTraining, part))  # the second step of the second epoch
    good, bad = tmp_path / "good", tmp_path / "bad"
    assert main([*AT, "--epochs", "1", "--schedule", "constant", "--out", str(good)]) == 0
    monkeypatch.setattr(AdversarialTraining, part, spoilt)
    error = run_badly(bad, capsys)
    assert re.search(rf"at: the (loss|weights) became .* in epoch 2 .*; it began in step 2 of 3 with {message}", error)
    assert "the checkpoint of the epoch before is kept" in error
    assert load_state(bad / "training_state.pt").epoch == 1 and len(metrics(bad)) == 1
    assert same_weights(good / "last.safetensors", bad / "last.safetensors")


def test_weights_that_become_nan_in_the_last_update_of_an_epoch_are_not_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "learning_rate", lambda config, epoch: NAN if epoch > 1.5 else config.lr)
    error = run_badly(tmp_path / "bad", capsys)
    assert "at: the weights became not finite in epoch 2" in error
    assert re.search(r"it began in step 3 of 3 with the student's [\w.]+ after the update", error)
    assert load_state(tmp_path / "bad" / "training_state.pt").epoch == 1


def test_a_broken_batch_is_named(tmp_path, monkeypatch, capsys):
    real = ResidentLoader.batches

    def batches(self, epoch, first_step=0):
        for step, batch in enumerate(real(self, epoch, first_step), start=first_step):
            bad = epoch == 0 and step == 1
            yield dataclasses.replace(batch, x=nan_at_one_place(batch.x)) if bad else batch

    monkeypatch.setattr(ResidentLoader, "batches", batches)
    error = run_badly(tmp_path / "bad", capsys)
    assert (
        "it began in step 2 of 3 with the input batch (1 of 2048 values" in error and "no epoch was finished" in error
    )


def test_a_broken_teacher_is_named(tmp_path, monkeypatch, capsys):
    spoil = in_step(2, lambda inner: dataclasses.replace(inner, target=inner.target * NAN))
    monkeypatch.setattr(AdversariallyRobustDistillation, "attack", spoil(AdversariallyRobustDistillation.attack))
    save_teacher(tmp_path / "t.safetensors")
    error = run_badly(
        tmp_path / "bad", capsys, ["--method", "ard", *TINY, "--teacher", str(tmp_path / "t.safetensors")]
    )
    assert (
        "it began in step 2 of 3 with the logits of teacher, peer or average (320 of 320 values, the first nan)"
        in error
    )


if torch.cuda.is_available():

    @pytest.mark.gpu
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
