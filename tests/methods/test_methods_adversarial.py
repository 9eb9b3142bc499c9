"""natural, TRADES, MART and the one-step methods: losses against the published formulas in float64, who sees what."""

import pytest
import torch
from distillation_cases import (
    Seen,
    StandIn,
    assert_same_loss_and_gradients,
    cross_entropy,
    double,
    kl,
    losses_over_steps,
    make_batch,
    make_method,
    make_student,
    make_teacher,
    shifted,
    step,
)

from ard_fast.attacks import FGSMRS, KLPGD, NFGSM, PGD
from ard_fast.training.config import resolve

NAMES = ("natural", "trades", "mart", "fgsm-rs", "n-fgsm", "fgsm-ard")


def stand_in(method):
    if hasattr(method, "inner_attack"):
        method.inner_attack = StandIn()
    return method


def make(name, **settings):
    return make_method(name, make_teacher() if name == "fgsm-ard" else None, **settings)


def natural(student, x, x_adv, y, settings):
    return cross_entropy(student(x), y).mean()


def adversarial(student, x, x_adv, y, settings):
    return cross_entropy(student(x_adv), y).mean()


def trades(student, x, x_adv, y, settings):
    clean = student(x)
    divisor = len(y) * (10 if settings.get("reduction") == "mean" else 1)
    distance = kl(student(x_adv), clean).sum() / divisor
    return cross_entropy(clean, y).mean() + settings.get("beta", 6.0) * distance


def mart(student, x, x_adv, y, settings):
    rows = torch.arange(len(y))
    clean, adv = torch.softmax(student(x), 1), torch.softmax(student(x_adv), 1)
    others = adv.clone()
    others[rows, y] = -1.0
    boosted = -adv[rows, y].log() - (1.0001 - others.amax(1)).log()
    distance = (clean * (clean.log() - adv.log())).sum(1) * (1 - clean[rows, y])
    return boosted.mean() + settings.get("beta", 5.0) * distance.mean()


@pytest.mark.parametrize(
    ("name", "formula", "settings"),
    [
        ("natural", natural, {}),
        ("fgsm-rs", adversarial, {}),
        ("n-fgsm", adversarial, {}),
        ("trades", trades, {}),
        ("trades", trades, {"beta": 1.5, "reduction": "mean"}),
        ("trades", trades, {"repeat_clean": True}),
        ("mart", mart, {}),
        ("mart", mart, {"beta": 0.5}),
    ],
)
def test_loss_and_gradients_equal_the_formula(name, formula, settings):
    student, batch = make_student(), make_batch()
    exact = double(student)
    result = step(stand_in(make(name, **settings)), student, batch)
    expected = formula(exact, batch.x.double(), shifted(batch.x).double(), batch.y, settings)
    assert_same_loss_and_gradients(result, student, expected, exact)


@pytest.mark.parametrize(
    ("name", "settings", "forwards"),
    [
        ("natural", {}, ["x"]),
        ("fgsm-rs", {}, ["x'"]),
        ("n-fgsm", {}, ["x'"]),
        ("trades", {}, ["x", "x'"]),
        ("trades", {"repeat_clean": True}, ["x", "x'", "x"]),
        ("mart", {}, ["x", "x'"]),
        ("fgsm-ard", {}, ["x'"]),
        ("fgsm-ard", {"clean_branch": True}, ["x'", "x"]),
    ],
)
def test_who_sees_what_and_one_batch_norm_update_a_forward(name, settings, forwards):
    student, batch = make_student(), make_batch()
    seen = Seen(student)
    result = step(stand_in(make(name, **settings)), student, batch)
    assert seen.names(batch) == forwards
    updates = [value for key, value in student.state_dict().items() if key.endswith("num_batches_tracked")]
    assert updates and all(value == len(forwards) for value in updates)
    assert torch.equal(result.logits, student(batch.x if name == "natural" else shifted(batch.x)))


# Forwards and backwards of a step, and batch-norm updates. FGSM-ARD: 2 units for the attack, 3 for the loss.
@pytest.mark.parametrize(
    ("name", "settings", "units", "updates"),
    [
        ("natural", {}, (1, 1), 1),
        ("trades", {"steps": 3}, (1 + 3 + 2, 3 + 2), 2),
        ("mart", {"steps": 3}, (3 + 2, 3 + 2), 2),
        ("fgsm-rs", {}, (2, 2), 2),
        ("n-fgsm", {}, (2, 2), 2),
        ("fgsm-ard", {}, (2, 2), 2),
    ],
)
def test_passes_of_a_step(name, settings, units, updates):
    student = make_student()
    seen = Seen(student)
    step(make(name, **settings), student, make_batch())
    assert seen.units == units
    assert student.features[1].num_batches_tracked == updates


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_loss(name):
    losses = losses_over_steps(make(name, eps=0.05), make_student(), make_batch(), steps=20, lr=0.1)
    assert losses[-1] < 0.8 * losses[0]


def test_the_attacks_get_the_configuration():
    trades = make("trades", eps=0.2, step_size=0.03, steps=4).inner_attack
    assert isinstance(trades, KLPGD) and (trades.eps, trades.step_size, trades.steps) == (0.2, 0.03, 4)
    assert (trades.init, trades.std, trades.bn, trades.clamp_start) == ("normal", 0.001, "eval", True)
    mart = make("mart", eps=0.2, step_size=0.03, steps=4).inner_attack
    assert type(mart) is PGD and (mart.loss, mart.init, mart.bn) == ("ce", "normal", "eval")
    for name in ("fgsm-rs", "fgsm-ard"):
        attack = make(name, eps=0.2).inner_attack
        assert isinstance(attack, FGSMRS) and attack.eps == 0.2 and attack.bn == "train"
        assert attack.step_size == pytest.approx(0.25) and attack.steps == 1
        assert make(name, eps=0.2, step_size=0.1).inner_attack.step_size == pytest.approx(0.1)
    noisy = make("n-fgsm", eps=0.2, noise_ratio=3.0).inner_attack
    assert isinstance(noisy, NFGSM) and (noisy.noise, noisy.bn) == (3.0, "train")
    assert noisy.step_size == pytest.approx(0.2)
    assert make("n-fgsm", eps=0.2, step_size=0.05).inner_attack.step_size == pytest.approx(0.05)
    assert make("fgsm-rs", eps=0.0).inner_attack.step_size == 0.0


def test_n_fgsm_leaves_the_ball_and_fgsm_rs_does_not():
    student, batch = make_student(), make_batch()
    for name, most, settings in (("fgsm-rs", 0.05, {}), ("n-fgsm", 0.15, {"noise_ratio": 2.0})):
        moved = (make(name, eps=0.05, **settings).attack(student, batch).x_adv - batch.x).abs().max()
        assert 0.9 * most < moved <= most + 1e-6


def test_trades_parity_and_conventions():
    method = make("trades", parity=True)
    assert method.repeat_clean and not method.inner_attack.clamp_start
    assert "clean forward twice (as published)" in " ".join(method.conventions())
    assert not make("mart", parity=True).inner_attack.clamp_start
    for name in NAMES:
        assert all(len(line) < 160 for line in make(name).conventions())


@pytest.mark.parametrize(
    ("preset", "values"),
    [
        ("trades-paper", {"epochs": 76, "eps": 0.031, "step_size": 0.007, "steps": 10, "beta": 6.0, "lr": 0.1}),
        ("mart-paper", {"epochs": 120, "milestones": (75, 90, 100), "lr": 0.01, "weight_decay": 3.5e-3, "beta": 5.0}),
        ("fgsm-rs-paper", {"epochs": 15, "schedule": "cyclic", "lr": 0.2, "step_size": 10 / 255}),
        ("n-fgsm-paper", {"epochs": 30, "schedule": "cyclic", "noise_ratio": 2.0, "step_size": 8 / 255}),
        ("free-paper", {"replays": 8, "step_size": 8 / 255, "weight_decay": 2e-4}),
    ],
)
def test_presets_hold_the_papers_constants(preset, values):
    config = resolve({"data_dir": "."}, preset=preset)
    for key, value in values.items():
        assert getattr(config, key) == (pytest.approx(value) if isinstance(value, float) else value), key
