"""FAB-T and Square of pyautoattack behind our interface, and the whole ensemble against pyautoattack's own."""

import sys

import pytest
import torch
from torch import nn

from ard_fast.attacks import attack_mode
from ard_fast.data import Split
from ard_fast.evaluation.ball import inside_ball
from ard_fast.evaluation.plan import ATTACK_NAMES, AUTOATTACK_STAGES, curve_attack, default_attacks, make_plan
from ard_fast.evaluation.referees import FABT, Square, require_pyautoattack
from ard_fast.evaluation.runner import Evaluator, evaluation_mode

SEED = torch.tensor([3])


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of passes through tiny networks: more threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_net(classes=5):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, classes)
    )


def data(model, count=24):
    """Images and the classes that the network gives them."""
    images = torch.randint(0, 17, (count, 1, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    with attack_mode(model, "eval"), torch.no_grad():
        labels = model(images / 16.0).argmax(1)
    return images / 16.0, labels, torch.arange(count)


def call(attack, model, x, y, ids):
    with evaluation_mode(model):
        return attack(model, x, y, seed=SEED, sample_ids=ids)


CASES = [("linf", 0.03), ("l2", 0.25)]


@pytest.mark.parametrize(("norm", "eps"), CASES)
@pytest.mark.parametrize("kind", ["fab-t", "square"])
def test_batches_do_not_change_a_result(kind, norm, eps):
    pytest.importorskip("pyautoattack")
    model = small_net()
    x, y, ids = data(model)
    attack = FABT(eps, norm, 5, steps=8) if kind == "fab-t" else Square(eps, norm, queries=60)
    whole = call(attack, model, x, y, ids)
    parts = [call(attack, model, x[part], y[part], ids[part]) for part in ids.split(9)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-6)
    valid = inside_ball(whole, x, norm=norm, eps=eps)
    with attack_mode(model, "eval"), torch.no_grad():
        fooled = (model(whole).argmax(1) != y) & valid
    assert 0 < int(fooled.sum()) < len(x)
    assert not torch.equal(whole, x)


@pytest.mark.parametrize(("norm", "eps"), CASES)
def test_square_is_as_strong_as_with_its_own_random_numbers(norm, eps):
    square = pytest.importorskip("pyautoattack.square")
    model = small_net().eval().requires_grad_(False)
    x, y, ids = data(model, 200)
    ours = call(Square(eps, norm, queries=200), model, x, y, ids)
    theirs = square.SquareAttack(
        model, norm={"linf": "Linf", "l2": "L2"}[norm], n_queries=200, eps=eps, p_init=0.8, seed=3, resc_schedule=False
    ).perturb(x, y)
    left = [int((model(found).argmax(1) == y).sum()) for found in (ours, theirs)]
    assert 20 < left[1] < 180 and abs(left[0] - left[1]) <= 12, left


def test_no_trace_in_the_network_or_the_random_state():
    pytest.importorskip("pyautoattack")
    model = small_net().train()
    x, y, ids = data(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(11)
    before = torch.get_rng_state()
    for attack in (FABT(0.03, "linf", 5, steps=2), Square(0.03, "linf", queries=10)):
        call(attack, model, x, y, ids)
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert model.training


def test_parameters_are_the_standard_ones():
    fab, square = repr(FABT(8 / 255, "linf", 10)), repr(Square(8 / 255, "linf"))
    for text in ("targets=9", "steps=100", "restarts=1", "alpha_max=0.1", "eta=1.05", "beta=0.9"):
        assert text in fab
    for text in ("queries=5000", "p_init=0.8", "restarts=1", "margin"):
        assert text in square
    assert "targets=2" in repr(FABT(0.1, "l2", 3))


def test_the_missing_package_is_named_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.delitem(sys.modules, "pyautoattack.fab_pt", raising=False)
    with pytest.raises(ValueError, match=r"autoattack needs the package pyautoattack.*pip install 'ard-fast\[autoatt"):
        require_pyautoattack("autoattack")
    for name in ("autoattack", "square", "fab-t"):
        with pytest.raises(ValueError, match=f"attacks: {name} needs the package pyautoattack"):
            make_plan(["clean", name], eps=0.1, norm="linf", num_classes=10)
    assert [step.name for step in make_plan(["clean", "pgd20"], eps=0.1, norm="linf", num_classes=10)] == ["pgd20"]


def test_the_plan_says_what_a_name_stands_for():
    pytest.importorskip("pyautoattack")
    names = [name for name in ATTACK_NAMES if name != "clean"]
    steps = make_plan(["clean", *names, "fgsm"], eps=8 / 255, norm="linf", num_classes=10)
    assert [step.name for step in steps] == names
    stages = {step.name: [name for name, _ in step.stages] for step in steps}
    assert stages["autoattack"] == list(AUTOATTACK_STAGES) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert all(stages[name] == [name] for name in names if name != "autoattack")
    by_name = {step.name: step.stages[0][1] for step in steps}
    # The ensemble's own stages are the same attacks, so that what was run alone need not be run again.
    ensemble = dict(steps[-1].stages) if steps[-1].name == "autoattack" else None
    assert ensemble is not None
    assert all(repr(ensemble[name]) == repr(by_name[name]) for name in AUTOATTACK_STAGES)
    texts = [repr(attack) for attack in by_name.values()]
    assert all("\n" not in text and "eps=" in text for text in texts)


@pytest.mark.parametrize(
    ("names", "norm", "classes", "message"),
    [
        (["pdg21"], "linf", 10, "unknown attack 'pdg21'; did you mean"),
        (["apgd-t"], "linf", 3, "apgd-t needs a model of at least 4 classes, got 3"),
        (["apgd-dlr"], "linf", 2, "apgd-dlr needs a model of at least 3 classes"),
        (["autoattack"], "linf", 3, "autoattack needs a model of at least 4 classes"),
        (["cw20"], "l2", 10, "cw20"),
        (["apgd-t20-2"], "linf", 3, "apgd-t20-2 needs a model of at least 4 classes, got 3"),
        (["pgd20-l2"], "linf", 10, "pgd20-l2 works in the l2 ball, but eps 0.1 is a radius of the linf .*--norm l2"),
        (["pgd20-linf"], "l2", 10, "pgd20-linf works in the linf ball"),
        (["pgd"], "linf", 10, "attacks: attack 'pgd': the number of steps is missing, as in pgd20"),
    ],
)
def test_what_cannot_be_run_is_refused(names, norm, classes, message):
    with pytest.raises(ValueError, match=message):
        make_plan(names, eps=0.1, norm=norm, num_classes=classes)


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


def trained_digits(count=60):
    """A small network trained for a moment on the digits, and images it gets mostly right."""
    from ard_fast.data import load_dataset

    dataset = load_dataset("digits")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    x, y = dataset.train.images / 16.0, dataset.train.labels
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval().requires_grad_(False), dataset.test.take(torch.arange(count)), dataset.levels


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.4)])
def test_the_ensemble_equals_pyautoattacks_own(norm, eps):
    autoattack = pytest.importorskip("pyautoattack").AutoAttack
    model, split, levels = trained_digits(100)
    (step,) = make_plan(["autoattack"], eps=eps, norm=norm, num_classes=10)
    made = Evaluator(model, Split(split.images, split.labels, split.ids), levels=levels, norm=norm, eps=eps)
    made.clean()
    ours = made.run(step).robust_acc
    referee = autoattack(model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=0, version="standard")
    x, y = split.images / float(levels), split.labels
    x_adv, _ = referee.run_standard_evaluation(x, y, batch_size=100)
    theirs = 100.0 * float((model(x_adv).argmax(1) == y).float().mean())
    assert abs(ours - theirs) <= 1.0, (ours, theirs)
    assert 10 < theirs < made.results[0].robust_acc - 10  # neither all nor none
