"""Which attacks names stand for, and FAB-T, Square and the whole ensemble compared with pyautoattack's own."""

import sys

import pytest
import torch
from torch import nn

from ard_fast.attacks import attack_mode
from ard_fast.attacks.autoattack import FABT, STAGES, Square
from ard_fast.evaluation.evaluator import Evaluator, evaluation_mode, inside_ball
from ard_fast.evaluation.standard_attacks import ATTACK_NAMES, curve_attack, default_attacks, make_plan, transferred


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 5)
    )


def data(model, count):
    """Images and the classes that the network gives them."""
    images = torch.randint(0, 17, (count, 1, 8, 8), generator=torch.Generator().manual_seed(1)) / 16.0
    with attack_mode(model, "eval"), torch.no_grad():
        return images, model(images).argmax(1), torch.arange(count)


def call(attack, model, x, y, ids):
    with evaluation_mode(model):
        return attack(model, x, y, seed=torch.tensor([3]), sample_ids=ids)


CASES = [("linf", 0.03), ("l2", 0.25)]


@pytest.mark.parametrize(("norm", "eps"), CASES)
@pytest.mark.parametrize("kind", ["fab-t", "square"])
def test_batches_do_not_change_a_result_and_no_trace_is_left(kind, norm, eps):
    pytest.importorskip("pyautoattack")
    model = small_net().train()
    x, y, ids = data(model, 18)
    attack = FABT(eps, norm, targets=4, steps=5) if kind == "fab-t" else Square(eps, norm, queries=40)
    torch.manual_seed(11)
    before, state = torch.get_rng_state(), {key: value.clone() for key, value in model.state_dict().items()}
    whole = call(attack, model, x, y, ids)
    assert torch.equal(before, torch.get_rng_state()) and model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    parts = [call(attack, model, x[part], y[part], ids[part]) for part in ids.split(7)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-6)
    with attack_mode(model, "eval"), torch.no_grad():
        fooled = (model(whole).argmax(1) != y) & inside_ball(whole, x, norm=norm, eps=eps)
    assert 0 < int(fooled.sum()) < len(x)


def test_square_is_as_strong_as_with_its_own_random_numbers():
    square = pytest.importorskip("pyautoattack.square")
    model = small_net().eval().requires_grad_(False)
    x, y, ids = data(model, 100)
    ours = call(Square(0.03, "linf", queries=100), model, x, y, ids)
    theirs = square.SquareAttack(
        model, norm="Linf", n_queries=100, eps=0.03, p_init=0.8, seed=3, resc_schedule=False
    ).perturb(x, y)
    left = [int((model(found).argmax(1) == y).sum()) for found in (ours, theirs)]
    assert 10 < left[1] < 90 and abs(left[0] - left[1]) <= 9, left


def test_the_plan_says_what_a_name_stands_for():
    pytest.importorskip("pyautoattack")
    names = [name for name in ATTACK_NAMES if name != "clean"]
    steps = make_plan(["clean", *names, "fgsm"], eps=8 / 255, norm="linf", num_classes=10)
    assert [step.name for step in steps] == names
    stages = {step.name: dict(step.stages) for step in steps}
    assert list(stages["autoattack"]) == list(STAGES) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert all(list(stages[name]) == [name] for name in names if name != "autoattack")
    # The ensemble's own stages are the same attacks, so that what was run alone need not be run again.
    assert all(repr(stages["autoattack"][name]) == repr(stages[name][name]) for name in STAGES)
    for text in ("targets=9", "steps=100", "restarts=1", "alpha_max=0.1", "eta=1.05", "beta=0.9"):
        assert text in repr(stages["fab-t"]["fab-t"])
    for text in ("queries=5000", "p_init=0.8", "restarts=1", "margin"):
        assert text in repr(stages["square"]["square"])
    assert "targets=2" in repr(make_plan(["fab-t"], eps=0.1, norm="l2", num_classes=3)[0])
    moved = transferred([step for step in steps if step.name in ("pgd20", "apgd-t", "autoattack")], "at")
    assert [(step.name, step.source) for step in moved] == [
        (f"{name} from at", "at") for name in ("pgd20", "apgd-t", "autoattack")
    ]
    assert repr(dict(moved[0].stages)["pgd20 from at"]) == repr(stages["pgd20"]["pgd20"])
    goes_on = dict(moved[1].stages)["apgd-t from at"], *list(dict(moved[2].stages).values())[:2]
    assert [attack.drop_every for attack in goes_on] == [0, 0, 0]  # behind the boundary of the other network


@pytest.mark.parametrize(
    ("names", "norm", "classes", "message"),
    [
        (["pdg20"], "linf", 10, "unknown attack 'pdg20'; did you mean"),
        (["apgd-t20-2"], "linf", 3, "apgd-t20-2 needs a model of at least 4 classes, got 3"),
        (["apgd-dlr"], "linf", 2, "apgd-dlr needs a model of at least 3 classes"),
        (["autoattack"], "linf", 3, "autoattack needs a model of at least 4 classes"),
        (["cw20"], "l2", 10, "cw20"),
        (["pgd20-l2"], "linf", 10, "pgd20-l2 works in the l2 ball, but eps 0.1 is a radius of the linf .*--norm l2"),
        (["pgd20-8bit"], "linf", 10, "pgd20-8bit needs images of 8 bits, .* has levels 0 to 16: use pgd20$"),
        (["pgd"], "linf", 10, "attacks: attack 'pgd': the number of steps is missing, as in pgd20"),
        (["clean", "square"], "linf", 10, r"square needs the package pyautoattack.*pip install 'ard-fast\[autoatt"),
    ],
)
def test_what_cannot_be_run_is_refused(names, norm, classes, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.delitem(sys.modules, "pyautoattack.fab_pt", raising=False)
    with pytest.raises(ValueError, match=message):
        make_plan(names, eps=0.1, norm=norm, num_classes=classes, levels=16)


@pytest.mark.parametrize(("norm", "classes", "absent"), [("linf", 10, 0), ("linf", 4, 0), ("linf", 3, 1), ("l2", 2, 1)])
def test_the_default_attacks_are_those_that_the_classes_allow(norm, classes, absent):
    names, left_out = default_attacks(norm, classes)
    assert len(left_out) == absent and ("apgd-t" in names) == (not absent) and ("cw20" in names) == (norm == "linf")
    assert len(make_plan(names, eps=0.1, norm=norm, num_classes=classes)) == len(names) - 1
    assert left_out == [f"apgd-t is left out: it needs 4 classes, the data set has {classes}"] * absent


def test_the_attack_of_the_curve():
    assert curve_attack(["clean", "pgd20", "apgd-ce"], norm="linf")[0] == "apgd-ce"
    assert curve_attack(["autoattack"], norm="l2")[0] == "apgd-ce"
    name, make = curve_attack(["clean", "fgsm"], norm="linf")
    assert name == "pgd20" and make(0.1).eps == 0.1 and make(0.1).step_size == pytest.approx(0.025)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.4)])
def test_the_ensemble_equals_pyautoattacks_own(norm, eps):
    from ard_fast.data import load_dataset

    autoattack = pytest.importorskip("pyautoattack").AutoAttack
    dataset = load_dataset("digits")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(dataset.train.images / 16.0), dataset.train.labels).backward()
        optimizer.step()
    model.eval().requires_grad_(False)
    split = dataset.test.take(torch.arange(100))
    made = Evaluator(model, split, levels=dataset.levels, norm=norm, eps=eps)
    made.clean()
    ours = made.run(make_plan(["autoattack"], eps=eps, norm=norm, num_classes=10)[0]).robust_acc
    theirs_attack = autoattack(model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=0, version="standard")
    x, y = split.images / float(dataset.levels), split.labels
    x_adv, _ = theirs_attack.run_standard_evaluation(x, y, batch_size=100)
    theirs = 100.0 * float((model(x_adv).argmax(1) == y).float().mean())
    assert abs(ours - theirs) <= 1.0, (ours, theirs)
    assert 10 < theirs < made.results[0].robust_acc - 10  # neither all nor none
