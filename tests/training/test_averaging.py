"""SWA and EMA of the weights: the formulas, what is validated and kept, exact resume."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_train import metrics, same_weights, small_and_tidy, stop_after
from torch import nn

from ard_fast.train import main
from ard_fast.training.averaging import WeightAverage
from ard_fast.training.checkpoint import load_state
from ard_fast.training.config import resolve

__all__ = ["small_and_tidy"]  # the fixture that shortens the digits

RUN = ["--method", "at", "--subset", "96", "--batch-size", "32", "--val-steps", "1", "--steps", "1", "--epochs", "4"]


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def wander(student, generator):
    """Other weights and statistics, as after an update."""
    with torch.no_grad():
        for value in student.state_dict().values():
            value.copy_(torch.rand(value.shape, generator=generator) * 9)
    return {name: value.clone() for name, value in student.state_dict().items()}


def test_swa_is_the_mean_of_the_epochs_from_the_first_on():
    student, generator = network(), torch.Generator().manual_seed(0)
    average = WeightAverage(student, kind="swa", first_epoch=2)
    seen = []
    for epoch in range(6):
        seen.append(wander(student, generator))
        assert average.count_update(epoch) is None
        average.after_epoch(epoch)
        average.after_epoch(epoch)  # a run that stopped in the validation comes by again
        assert (average.network is student) == (epoch < 2)
    for name, value in average.network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert value == seen[-1][name]
        else:
            assert torch.allclose(value, torch.stack([one[name] for one in seen[2:]]).mean(0), atol=1e-5), name


def test_ema_follows_its_recursion_with_a_decay_that_grows():
    student, generator = network(), torch.Generator().manual_seed(0)
    average = WeightAverage(student, kind="ema", decay=0.3, first_epoch=0)
    expected = None
    for update in range(6):
        now = {name: value.double() for name, value in wander(student, generator).items()}
        share = average.count_update(0)
        average.move(torch.tensor(share) if update % 2 else share)  # a number, or on the device
        decay = min(0.3, (1 + update) / (10 + update))
        expected = now if expected is None else {k: decay * expected[k] + (1 - decay) * now[k] for k in now}
    assert decay == 0.3
    for name, value in average.network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.allclose(value.double(), expected[name], atol=1e-5), name
    average.after_epoch(0)
    assert average.count == 6


def test_an_average_has_no_gradient_and_follows_weights_that_are_loaded():
    student = network()
    average = WeightAverage(student, kind="ema", first_epoch=0)
    student.load_state_dict({name: value + 1 for name, value in student.state_dict().items()})
    average.move(average.count_update(0))
    assert torch.equal(average.network[0].weight, student[0].weight)
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    assert average.network[0].weight.data_ptr() != student[0].weight.data_ptr()


@pytest.mark.parametrize("kind", ["swa", "ema"])
def test_the_average_is_what_a_run_keeps_and_it_resumes_to_the_same_bits(tmp_path, monkeypatch, kind):
    plain, whole = tmp_path / "plain", tmp_path / "whole"
    assert main([*RUN, "--out", str(plain)]) == 0
    averaged = [*RUN, "--averaging", kind]
    assert main([*averaged, "--out", str(whole)]) == 0
    state = load_state(whole / "training_state.pt")
    last, student = load_file(whole / "last.safetensors"), load_file(plain / "last.safetensors")
    for name, value in last.items():
        assert torch.equal(value, state.average[f"network.{name}"])
        assert torch.equal(student[name], state.model[name])  # the averaging does not disturb the training
    assert not same_weights(plain / "last.safetensors", whole / "last.safetensors")
    assert int(state.average["count"]) == {"swa": 2, "ema": 6}[kind]

    # 3 steps an epoch; 2: before the average begins, 9: before the third validation, 10: inside the fourth epoch.
    for steps in (2, 9, 10):
        stopped = tmp_path / f"stopped{steps}"
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            assert main([*averaged, "--out", str(stopped)]) == 130
        assert main(["--resume", str(stopped)]) == 0
        for name in ("best.safetensors", "last.safetensors"):
            assert same_weights(whole / name, stopped / name), (steps, name)
        assert metrics(whole) == metrics(stopped)


def test_awp_and_averaging_go_with_a_run_and_are_printed(tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--awp-gamma", "0.005", "--awp-warmup-share", "0.5", "--averaging", "ema", "--ema-decay", "0.9"]
    assert main([*RUN, *options, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "adversarial weight perturbation: gamma 0.005, from epoch 3" in printed
    assert "weights averaged: ema decay 0.9, from epoch 3" in printed
    assert main([*RUN, "--out", str(tmp_path / "plain")]) == 0
    rows, plain = metrics(out), metrics(tmp_path / "plain")
    assert [row["train_loss"] for row in rows[:2]] == [row["train_loss"] for row in plain[:2]]
    assert rows[2]["train_loss"] != plain[2]["train_loss"]
    assert json.loads((out / "summary.json").read_text())["epochs"] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"awp_gamma": -0.1}, "awp_gamma: expected at least 0"),
        ({"awp_warmup_share": 1.5}, "awp_warmup_share: expected 0 to 1, a share of the epochs"),
        ({"averaging": "sma"}, "averaging: unknown value 'sma'; did you mean"),
        ({"ema_decay": 1.0}, "ema_decay: expected 0 to below 1"),
        ({"averaging_start_share": 1.0}, "averaging_start_share: expected 0 to below 1"),
    ],
)
def test_what_cannot_run_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        resolve({"method": "at", **changes})
