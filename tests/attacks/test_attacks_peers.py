"""Against torchattacks, foolbox and pyautoattack on a trained network: equal losses, equal robust accuracy."""

import itertools

import pytest
import torch
import torch.nn.functional as tf
from attack_cases import distances, evaluation_images
from tolerances import DIRECTION_LOSS_RTOL, TURNED_IMAGES, TURNED_LOSS_RTOL

from ard_fast import attacks
from ard_fast import functional as F
from ard_fast.attacks.adapters import FoolboxAdapter, FromFoolbox, FromTorchattacks, TorchattacksAdapter
from ard_fast.data.splits import load_digits
from ard_fast.models.digits import DigitsNet

STEPS = 20
RADII = {"linf": 0.15, "l2": 0.6}


@pytest.fixture(scope="module")
def trained():
    """A `DigitsNet` after some seconds of fast adversarial training, 300 images it has not seen, their labels."""
    torch.manual_seed(0)
    data = load_digits().train
    x, y = data.images.float() / 16, data.labels
    model = DigitsNet().train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    attack = attacks.FGSMRS(eps=RADII["linf"])
    for epoch in range(6):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for chosen in order.split(64)[:-1]:
            x_adv = attack(model, x[chosen], y[chosen], seed=epoch)
            optimiser.zero_grad()
            tf.cross_entropy(model(x_adv), y[chosen]).backward()
            optimiser.step()
    return model.eval(), *evaluation_images(300)


def final(trained, x_adv) -> tuple[float, int]:
    """Mean cross-entropy, and how many images are still classified correctly."""
    model, _, y = trained
    with torch.no_grad():
        logits = model(x_adv)
    return tf.cross_entropy(logits, y).item(), int((logits.argmax(1) == y).sum())


def ours(norm: str) -> attacks.PGD:
    eps = RADII[norm]
    return attacks.PGD(eps=eps, step_size=eps / 8, steps=STEPS, norm=norm, random_start=False)


def assert_equal_strength(trained, actual, expected, norm):
    loss, correct = final(trained, actual)
    expected_loss, expected_correct = final(trained, expected)
    if norm == "linf":
        turned = (actual - expected).abs().flatten(1).amax(1) > 1e-6  # what projection and clamp round
        assert turned.float().mean() <= TURNED_IMAGES
        assert loss == pytest.approx(expected_loss, rel=TURNED_LOSS_RTOL)
    else:
        assert loss == pytest.approx(expected_loss, rel=DIRECTION_LOSS_RTOL)
    assert abs(correct - expected_correct) <= 1  # an image on the border between two classes
    clean_loss, clean_correct = final(trained, trained[1])
    assert loss > 2 * clean_loss and 0 < correct < clean_correct


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_torchattacks_pgd(norm, trained, capsys):
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed")
    model, x, y = trained
    eps = RADII[norm]
    kind = torchattacks.PGD if norm == "linf" else torchattacks.PGDL2
    theirs = kind(model, eps=eps, alpha=eps / 8, steps=STEPS, random_start=False)
    expected = theirs(x, y)
    assert_equal_strength(trained, ours(norm)(model, x, y), expected, norm)
    # Each in the other's interface, on fewer images.
    x, y = x[:40], y[:40]
    assert TorchattacksAdapter(model, ours(norm))(x, y).equal(ours(norm)(model, x, y))
    assert FromTorchattacks(theirs)(model, x, y).equal(theirs(x, y))
    wanted = (y + 1) % 10
    theirs.set_mode_targeted_by_label(quiet=True)
    towards = FromTorchattacks(theirs)(model, x, wanted)
    assert tf.cross_entropy(model(towards), wanted) < tf.cross_entropy(model(x), wanted)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_foolbox_pgd(norm, trained):
    foolbox = pytest.importorskip("foolbox", reason="foolbox cannot be imported", exc_type=ImportError)
    model, x, y = trained
    eps = RADII[norm]
    kind = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    theirs = kind(rel_stepsize=1 / 8, steps=STEPS, random_start=False)
    fmodel = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, expected, is_adv = theirs(fmodel, x, y, epsilons=eps)
    # Ours in foolbox's place: same call, same kinds of results.
    raw, clipped, found = FoolboxAdapter(ours(norm))(fmodel, x, y, epsilons=eps)
    assert_equal_strength(trained, clipped, expected, norm)
    assert found.dtype == is_adv.dtype and found.shape == is_adv.shape and found.sum() == is_adv.sum()
    x, y, raw, clipped = x[:40], y[:40], raw[:40], clipped[:40]
    _, expected, _ = theirs(fmodel, x, y, epsilons=eps)
    assert FromFoolbox(theirs, eps=eps)(model, x, y).equal(expected)
    assert (distances(clipped, x, norm) <= eps + 1e-6).all() and (raw - clipped).abs().max() < 1e-6


@pytest.mark.filterwarnings("ignore:there are")
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_autoattack_apgd_t(steps, norm, trained):
    """The robust accuracy of AutoAttack's own runs, to one image in 300, from the very starts that ours takes.

    Single runs from other starts differ by more.
    """
    base = pytest.importorskip("pyautoattack.autopgd_base", reason="pyautoattack is not installed")
    model, x, y = trained
    eps = RADII[norm]
    theirs = base.APGDAttack_targeted(model, n_iter=steps, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=0)
    run, runs = theirs.attack_single_run, itertools.count()

    def from_our_start(images, labels):
        ids = (images[:, None] == x).flatten(2).all(2).float().argmax(1)  # where in x they are
        start = F.random_start(images, eps=eps, norm=norm, init="surface", seed=next(runs), sample_ids=ids)
        return run(images, labels, x_init=start)

    theirs.attack_single_run = from_our_start
    expected = theirs.perturb(x, y)
    x_adv = attacks.APGDT(eps=eps, norm=norm, steps=steps)(model, x, y, seed=0)
    assert abs(final(trained, x_adv)[1] - final(trained, expected)[1]) <= 1
    assert 5 < final(trained, x_adv)[1] / 3 < 95
    assert (distances(x_adv, x, norm) <= eps + 6e-8).all()
