"""The papers' constants and training recipes, and what parity changes in them; every method as a run."""

import pytest
import torch
from distillation_cases import few_steps
from short_runs import CLEAN, assert_same_run, save_teacher, small_and_tidy, stop_after

from ard_fast.methods import METHODS
from ard_fast.train import main
from ard_fast.training.checkpoint import load_state
from ard_fast.training.config import resolve
from ard_fast.training.optimiser import learning_rate

__all__ = ["small_and_tidy"]  # the fixture that shortens the digits

ARD = {"epochs": 200, "milestones": (100, 150), "lr": 0.1, "weight_decay": 2e-4}
RSLAD = {"epochs": 300, "milestones": (215, 260, 285), "lr": 0.1, "weight_decay": 2e-4, "student": "resnet18"}
ADAAD = {**ARD, "weight_decay": 5e-4, "student": "resnet18"}
EIGHT = {"eps": 8 / 255, "step_size": 2 / 255, "steps": 10, "attack_bn": "eval", "clamp_start": True}
TRADES = {**EIGHT, "eps": 0.031, "step_size": 0.007}
T1, T30 = ({"temperature": temperature, "reduction": "mean"} for temperature in (1.0, 30.0))
IKL = {"mse_weight": 20.0, "kl_weight": 4.0, "class_mean_temperature": 4.0}
ANNEALED = {
    "first_temperature": 2.5,
    "last_temperature": 2.0,
    "first_soft_share": 0.7,
    "last_soft_share": 0.95,
}
BATCHMEAN = {"temperature": 1.0, "reduction": "batchmean"}

PAPERS = {
    "natural": ARD,
    "at": {**ARD, **EIGHT},
    "trades": {**TRADES, "epochs": 76, "milestones": (75,), "lr": 0.1, "beta": 6.0, "eval_step_size": 0.003},
    "mart": {**TRADES, "epochs": 120, "milestones": (75, 90, 100), "lr": 0.01, "weight_decay": 3.5e-3, "beta": 5.0},
    "ikl": {**EIGHT, **IKL, "epochs": 200, "schedule": "cosine", "lr": 0.2, "awp_gamma": 0.005, "ema_decay": 0.9997},
    "ikl-rslad": {**RSLAD, **EIGHT, **IKL, "mse_weight": 8.0, "kl_weight": 1.0, "alpha": 5 / 6},
    "adr": {**ADAAD, **EIGHT, "nesterov": True, "mean_teacher_decay": 0.995, **ANNEALED},
    "free": {"epochs": 205, "replays": 8, "step_size": 8 / 255, "weight_decay": 2e-4, "clamp_delta": True},
    "fgsm-rs": {"epochs": 15, "schedule": "cyclic", "lr": 0.2, "step_size": 10 / 255, "attack_bn": "train"},
    "n-fgsm": {"epochs": 30, "schedule": "cyclic", "noise_ratio": 2.0, "step_size": 8 / 255, "weight_decay": 5e-4},
    "kd": {**ARD, **T30, "alpha": 1.0},
    "ard": {**ARD, **EIGHT, **T30, "alpha": 1.0, "student": "mobilenetv2", "batch_size": 128, "momentum": 0.9},
    "fast-ard": {**ARD, **T30, "replays": 4, "delta_gradient": "ce", "step_size": 8 / 255},
    "fgsm-ard": {**ARD, **T30, "step_size": 10 / 255, "attack_bn": "train"},
    "rslad": {**RSLAD, **EIGHT, **T1, "alpha": 5 / 6},
    "iad-i": {**ARD, **EIGHT, **BATCHMEAN, "alpha": 1.0, "trust_power": 0.1, "begin_share": 0.3},
    "iad-ii": {**ARD, **EIGHT, **BATCHMEAN, "alpha": 0.5, "alpha2": 0.25, "trust_power": 0.1, "begin_share": 0.2},
    "mtard": {**RSLAD, **EIGHT, **T1, "balance_rate": 0.025},
    "adaad": {**ADAAD, **EIGHT, **T1, "alpha": 1.0},
    "adaiad": {**ADAAD, **EIGHT, "alpha": 1.0, "temperature": 30.0, "reduction": "batchmean", "trust_power": 0.1},
    "absld": {**RSLAD, **EIGHT, **T1, "alpha": 5 / 6, "balance_rate": 0.1, "temperature_product": False},
    "fair-ard": {**ARD, **EIGHT, **T30, "fairness_power": 2.0, "nesterov": True, "student": "resnet18"},
    "igdm": {**ARD, **EIGHT, **BATCHMEAN, "igdm_weight": 1.0},
    "saad": {**ARD, **EIGHT, **BATCHMEAN, "igdm_weight": 1.0, "entropy_scale": 5.0, "averaging": "swa"},
    "peeraid": {
        **RSLAD,
        "milestones": (214, 259, 284),
        **EIGHT,
        "temperature": 5.0,
        "reduction": "mean",
        "label_weight": 0.0,
        "peer_weight": 1.0,
        "self_weight": 1.0,
        "feedback_weight": 0.1,
        "averaging": "swa",
    },
}
START, TRAIN_MODE = {"clamp_start": False}, {"attack_bn": "train"}
CODE = {**START, **TRAIN_MODE, "schedule": "ard"}
CLEAN_BRANCH = {"clean_branch": True}
PARITY = {
    "at": TRAIN_MODE,
    "trades": {**START, "repeat_clean": True},
    "mart": START,
    "ikl": START,
    "ikl-rslad": START,
    "adr": TRAIN_MODE,
    "free": {"clamp_delta": False},
    "ard": {**CODE, **CLEAN_BRANCH},
    "fair-ard": {**CODE, **CLEAN_BRANCH},
    "rslad": START,
    "iad-i": {**CODE, **CLEAN_BRANCH, "trust_teacher": False},
    "iad-ii": CODE,
    "mtard": START,
    "adaad": {**START, **CLEAN_BRANCH},
    "adaiad": {**START, **CLEAN_BRANCH, "trust_teacher": False},
    "absld": {**START, "temperature_product": True},
    "igdm": START,
    "saad": {**START, **CLEAN_BRANCH},
    "peeraid": {**START, "joint_loss": True},
}


def paper(name, **flags):
    teachers = dict.fromkeys(METHODS[name].teachers, "wrn-34-10")
    return resolve({"data_dir": "d", **teachers, **flags}, preset=f"{name}-paper")


@pytest.mark.parametrize("name", METHODS)
def test_a_preset_has_its_papers_constants_and_parity_changes_only_quirks(name):
    plain, published = paper(name), paper(name, parity=True)
    for key, value in PAPERS[name].items():
        assert getattr(plain, key) == (pytest.approx(value) if isinstance(value, float) else value), key
    changed = {key: value for key, value in vars(published).items() if value != getattr(plain, key)}
    assert changed == {**PARITY.get(name, {}), "parity": True}


def test_every_drop_of_the_learning_rate_is_reached_except_in_the_published_code():
    moments = (0, 99.9, 100, 149, 150, 199)
    for parity, last in ((False, 0.001), (True, 0.01)):
        rates = [learning_rate(paper("ard", parity=parity), epoch) for epoch in moments]
        assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, last, last])
    drops = [learning_rate(paper("rslad"), epoch) for epoch in (214, 215, 260, 285)]
    assert drops == pytest.approx([0.1, 0.01, 0.001, 0.0001])


def command(name, folder):
    """A run of 2 passes of 3 batches, the last of them smaller."""
    arguments = ["--method", name, *CLEAN, "--subset", "80", "--epochs", "2"]
    if few_steps(name):
        arguments += ["--steps", "2"]
    if "replays" in METHODS[name].defaults():
        arguments += ["--replays", "2", "--epochs", "4"]
    for role in METHODS[name].teachers:
        path = folder / f"{role}.safetensors"
        if not path.exists():
            save_teacher(path)
        arguments += [f"--{role.replace('_', '-')}", str(path)]
    return arguments


@pytest.mark.parametrize("name", METHODS)
def test_a_run_of_the_method_and_its_state_in_the_checkpoint(tmp_path, monkeypatch, name):
    whole, stopped, told = tmp_path / "whole", tmp_path / "stopped", []

    def telling(moment):
        real = getattr(METHODS[name], moment)
        return lambda self, *epoch: (told.append((moment, *epoch)), real(self, *epoch))[1]

    with monkeypatch.context() as patch:
        for moment in ("begin_epoch", "end_epoch"):
            patch.setattr(METHODS[name], moment, telling(moment))
        assert main([*command(name, tmp_path), "--out", str(whole)]) == 0
    assert told[-4:] == [("begin_epoch", 0), ("end_epoch",), ("begin_epoch", 1), ("end_epoch",)]
    state = load_state(whole / "training_state.pt").method
    changes_with_the_epoch = name in ("iad-i", "iad-ii", "adaiad", "igdm")
    if not (state or changes_with_the_epoch):  # tests/training stops and resumes such runs
        return
    with monkeypatch.context() as patch:
        stop_after(patch, 5)  # inside the second pass
        assert main([*command(name, tmp_path), "--out", str(stopped)]) == 130
    assert load_state(stopped / "training_state.pt").step == 2
    assert main(["--resume", str(stopped)]) == 0
    assert_same_run(whole, stopped)
    found = load_state(stopped / "training_state.pt").method
    assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
