"""Every method's step against its paper's formula in float64, and who sees which image how often."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from distillation_cases import (
    EPOCHS,
    Seen,
    assert_same_loss_and_gradients,
    cross_entropy,
    double,
    few_steps,
    kl,
    make_batch,
    make_method,
    make_student,
    make_teacher,
    shifted,
    step,
    with_stand_in,
)

from ard_fast.attacks import FGSMRS, KLPGD, NFGSM, PGD
from ard_fast.methods import METHODS, MethodContext, build_method
from ard_fast.methods.fair_ard import CountingPGD
from ard_fast.methods.saad import FirstOrderTeacher
from ard_fast.methods.shared import teacher_trust
from ard_fast.training.config import resolve

# ---- the formulas: of S, T, U (the clean teacher), x, the attacked z, labels y and the settings ---------------------


def divided(c, rows):
    """The mean over the batch, or over batch and classes."""
    return rows.mean() / (10 if c.reduction == "mean" else 1)


def entropy(c, logits):
    """The cross-entropy of each row at labels that are smoothed."""
    hard, s = cross_entropy(logits, c.y), c.label_smoothing or 0.0
    return (1 - s) * hard - s * logits.log_softmax(1).mean(1)


def natural(c):
    return entropy(c, c.S(c.x)).mean()


def adversarial(c):
    return entropy(c, c.S(c.z)).mean()


def trades(c):
    clean = c.S(c.x)
    return entropy(c, clean).mean() + c.beta * divided(c, kl(c.S(c.z), clean))


def mart(c):
    rows = torch.arange(len(c.y))
    clean, adv = torch.softmax(c.S(c.x), 1), torch.softmax(c.S(c.z), 1)
    others = adv.clone()
    others[rows, c.y] = -1.0
    boosted = -adv[rows, c.y].log() - (1.0001 - others.amax(1)).log()
    return boosted.mean() + c.beta * divided(c, kl(adv.log(), clean.log()) * (1 - clean[rows, c.y]))


def improved_kl(c, logits, reference):
    """Of each row, its pairs of classes written out."""
    w = c.method.class_means[c.y].double()
    z, r = (values[:, :, None] - values[:, None, :] for values in (logits, reference))
    mse = (w[:, :, None] * w[:, None, :] * (z - r) ** 2).sum((1, 2)) / 4
    return c.mse_weight * mse + c.kl_weight * kl(logits, reference.detach())


def ikl(c):
    clean = c.S(c.x)
    return entropy(c, clean).mean() + improved_kl(c, c.S(c.z), clean).mean()


def ikl_rslad(c):
    target = c.T(c.x)
    rows = c.alpha * improved_kl(c, c.S(c.z), target) + (1 - c.alpha) * improved_kl(c, c.S(c.x), target)
    return rows.mean()


def adr(c):
    average = c.method.average
    assert not average.training and not any(parameter.requires_grad for parameter in average.parameters())
    left = (1 + math.cos(math.pi * (c.epoch + 0.5) / EPOCHS)) / 2
    t = left * c.first_temperature + (1 - left) * c.last_temperature
    s = left * c.first_soft_share + (1 - left) * c.last_soft_share
    p = torch.softmax(double(average)(c.x) / t, 1)
    label = torch.eye(10, dtype=torch.float64)[c.y]
    share = (s - (p.amax(1) - p[torch.arange(len(c.y)), c.y])).clamp(0, 1)[:, None]
    q = share * p + (1 - share) * label
    assert torch.equal(q.argmax(1), c.y)
    return -(q * c.S(c.z).log_softmax(1)).sum(1).mean()


def distilled(c, student, teacher, teacher_t=1.0):
    """T^2 KL of each row."""
    return c.temperature**2 * kl(student, teacher, c.temperature, c.temperature * teacher_t)


def kd(c):
    clean = c.S(c.x)
    term = divided(c, distilled(c, clean, c.T(c.x)))
    return c.alpha * term + (1 - c.alpha) * entropy(c, clean).mean()


def ard(c):
    term = divided(c, distilled(c, c.S(c.z), c.T(c.x)))
    return c.alpha * term + (1 - c.alpha) * entropy(c, c.S(c.x)).mean()


def fair_ard(c):
    weight = c.method.class_weights[c.y].double()
    term = divided(c, weight * distilled(c, c.S(c.z), c.T(c.x)))
    return c.alpha * term + (1 - c.alpha) * (weight * entropy(c, c.S(c.x))).mean()


def rslad(c):
    target = c.T(c.x)
    rows = c.alpha * distilled(c, c.S(c.z), target) + (1 - c.alpha) * distilled(c, c.S(c.x), target)
    return divided(c, rows)


def absld(c):
    a, n = (values[c.y].double()[:, None] for values in c.method.class_temperatures)
    if c.temperature_product:
        a = n = a * n
    rows = c.alpha * distilled(c, c.S(c.z), c.T(c.x), a) + (1 - c.alpha) * distilled(c, c.S(c.x), c.T(c.x), n)
    return divided(c, rows)


def adaad(c):
    rows = c.alpha * distilled(c, c.S(c.z), c.T(c.z)) + (1 - c.alpha) * distilled(c, c.S(c.x), c.T(c.x))
    return divided(c, rows)


def introspective(c, target):
    """w KL(T || S(z)) + (1 - w) KL(S(x) || S(z)), the latter at temperature 1 and w = 1 before it has begun."""
    adv, trusted = c.S(c.z), getattr(c, "trust_teacher", None) is not False
    if not c.begun:
        return distilled(c, adv, target)
    w = torch.softmax(c.T(c.z), 1)[torch.arange(len(c.y)), c.y] ** c.trust_power
    return distilled(c, adv, target) * (w if trusted else 1.0) + (1 - w) * kl(adv, c.S(c.x))


def iad_i(c):
    term = divided(c, introspective(c, c.T(c.x)))
    return c.alpha * term + (1 - c.alpha) * entropy(c, c.S(c.x)).mean()


def adaiad(c):
    term = divided(c, introspective(c, c.T(c.z)))
    return c.alpha * term + (1 - c.alpha) * entropy(c, c.S(c.x)).mean()


def iad_ii(c):
    rows = c.alpha * introspective(c, c.T(c.z)) + c.alpha2 * distilled(c, c.S(c.z), c.U(c.z))
    return divided(c, rows) + (1 - c.alpha - c.alpha2) * entropy(c, c.S(c.z)).mean()


def mtard(c):
    """Of the first step: both losses are their own units, so that the weights stay at 1/2."""
    return divided(c, 0.5 * distilled(c, c.S(c.z), c.T(c.z)) + 0.5 * distilled(c, c.S(c.x), c.U(c.x)))


def igdm(c):
    below = 2 * c.x - c.z
    matching = kl(c.S(c.z) - c.S(below), c.T(c.z) - c.T(below))
    rows = distilled(c, c.S(c.z), c.T(c.z)) + c.igdm_weight * (c.epoch + 1) / EPOCHS * matching
    if c.method.name == "saad":
        p = torch.softmax(c.T(c.z), 1)
        entropy = -(p * p.log()).sum(1)
        rows = c.entropy_scale * (entropy - entropy.min()) * rows
    return divided(c, rows)


def peeraid(c):
    """Both losses: the peer's with the student's logits as a constant, but in the published code."""
    adv, tutor = c.S(c.z), double(c.method.peer)(c.z)
    rows = c.peer_weight * distilled(c, adv, tutor.detach()) + c.self_weight * distilled(c, adv, c.S(c.x))
    feedback = c.feedback_weight * kl(tutor, adv if c.joint_loss else adv.detach())
    labels = c.label_weight * entropy(c, adv) + entropy(c, tutor)
    return divided(c, rows + feedback) + labels.mean()


FORMULAS = {
    "natural": natural,
    "at": adversarial,
    "fgsm-rs": adversarial,
    "n-fgsm": adversarial,
    "trades": trades,
    "mart": mart,
    "ikl": ikl,
    "ikl-rslad": ikl_rslad,
    "adr": adr,
    "free": natural,  # of the first update: the perturbation is zero
    "kd": kd,
    "ard": ard,
    "fast-ard": kd,  # likewise
    "fgsm-ard": ard,
    "fair-ard": fair_ard,
    "rslad": rslad,
    "absld": absld,
    "adaad": adaad,
    "iad-i": iad_i,
    "adaiad": adaiad,
    "iad-ii": iad_ii,
    "mtard": mtard,
    "igdm": igdm,
    "saad": igdm,
    "peeraid": peeraid,
}
FIRST, LAST = 0, EPOCHS - 1


def make_means():
    """Of softmax rows, one a class, the class's own entry the largest."""
    values = torch.rand(10, 10, generator=torch.Generator().manual_seed(4))
    return torch.softmax(3 * values + 2 * torch.eye(10), 1)


T3 = {"temperature": 3.0}

# name, settings, epoch, then which images student, teacher and clean teacher see, in order
CASES = [
    ("natural", {}, FIRST, "x", "", ""),
    ("at", {"label_smoothing": 0.3}, FIRST, "x'", "", ""),
    ("natural", {"label_smoothing": 0.3}, FIRST, "x", "", ""),
    ("at", {}, FIRST, "x'", "", ""),
    ("fgsm-rs", {}, FIRST, "x'", "", ""),
    ("n-fgsm", {}, FIRST, "x'", "", ""),
    ("trades", {}, FIRST, "x x'", "", ""),
    ("trades", {"label_smoothing": 0.3, "beta": 2.0}, FIRST, "x x'", "", ""),
    ("trades", {"beta": 1.5, "reduction": "mean", "repeat_clean": True}, FIRST, "x x' x", "", ""),
    ("mart", {}, FIRST, "x x'", "", ""),
    ("mart", {"beta": 0.5, "reduction": "mean"}, FIRST, "x x'", "", ""),
    ("ikl", {}, FIRST, "x' x", "", ""),
    ("ikl", {"mse_weight": 3.0, "kl_weight": 0.0, "label_smoothing": 0.3}, FIRST, "x' x", "", ""),
    ("ikl", {"kl_weight": 2.0}, FIRST, "x' x", "", ""),
    ("ikl-rslad", {}, FIRST, "x' x", "x", ""),
    ("ikl-rslad", {"alpha": 1.0, "mse_weight": 2.0}, FIRST, "x'", "x", ""),
    ("adr", {}, FIRST, "x'", "", ""),
    ("adr", {"first_temperature": 0.2, "last_temperature": 0.1, "last_soft_share": 0.6}, LAST, "x'", "", ""),
    ("free", {"label_smoothing": 0.3}, FIRST, "x", "", ""),
    ("free", {}, FIRST, "x", "", ""),
    ("kd", {"temperature": 30.0}, FIRST, "x", "x", ""),
    ("kd", {"label_smoothing": 0.3, "alpha": 0.4}, FIRST, "x", "x", ""),
    ("kd", {"alpha": 0.7, **T3, "reduction": "batchmean"}, FIRST, "x", "x", ""),
    ("ard", {"temperature": 30.0}, FIRST, "x'", "x", ""),
    ("ard", {"alpha": 0.7, **T3, "reduction": "batchmean"}, FIRST, "x' x", "x", ""),
    ("fgsm-ard", {"label_smoothing": 0.3, "alpha": 0.4}, FIRST, "x' x", "x", ""),
    ("ard", {"clean_branch": True}, FIRST, "x' x", "x", ""),
    ("fast-ard", T3, FIRST, "x", "x", ""),
    ("fast-ard", {"label_smoothing": 0.3, "alpha": 0.4}, FIRST, "x x", "x", ""),
    ("fast-ard", {"alpha": 0.25, "temperature": 2.0, "delta_gradient": "kd"}, FIRST, "x x", "x", ""),
    ("fgsm-ard", {}, FIRST, "x'", "x", ""),
    ("fgsm-ard", {"alpha": 0.6, "clean_branch": True}, FIRST, "x' x", "x", ""),
    ("fair-ard", {"temperature": 30.0}, FIRST, "x'", "x", ""),
    ("fair-ard", {"alpha": 0.6, **T3, "reduction": "batchmean"}, FIRST, "x' x", "x", ""),
    ("fair-ard", {"label_smoothing": 0.3, "alpha": 0.4}, FIRST, "x' x", "x", ""),
    ("fair-ard", {"clean_branch": True}, FIRST, "x' x", "x", ""),
    ("rslad", {}, FIRST, "x' x", "x", ""),
    ("rslad", {"alpha": 0.7, **T3, "reduction": "batchmean"}, FIRST, "x' x", "x", ""),
    ("rslad", {"alpha": 1.0}, FIRST, "x'", "x", ""),
    ("absld", {"alpha": 0.7, "temperature": 2.0, "reduction": "batchmean"}, FIRST, "x' x", "x", ""),
    ("absld", {"temperature_product": True}, FIRST, "x' x", "x", ""),
    ("adaad", T3, FIRST, "x'", "x'", ""),
    ("adaad", {"clean_branch": True, "reduction": "batchmean"}, FIRST, "x x'", "x'", ""),
    ("adaad", {"alpha": 0.7}, FIRST, "x x'", "x x'", ""),
    ("iad-i", T3, FIRST, "x'", "x", ""),
    ("iad-i", {"trust_power": 0.5, "reduction": "mean"}, LAST, "x' x", "x x'", ""),
    ("iad-i", {"alpha": 0.6, "trust_power": 0.3, **T3}, LAST, "x' x", "x x'", ""),
    ("iad-i", {"label_smoothing": 0.3, "alpha": 0.4}, LAST, "x' x", "x x'", ""),
    ("iad-i", {"clean_branch": True, "trust_teacher": False}, LAST, "x' x x", "x x'", ""),
    ("adaiad", {"alpha": 0.6}, FIRST, "x' x", "x'", ""),
    ("adaiad", {"trust_power": 0.5, **T3}, LAST, "x' x", "x'", ""),
    ("adaiad", {"clean_branch": True, "trust_teacher": False}, LAST, "x x' x x", "x'", ""),
    ("iad-ii", {}, FIRST, "x'", "x'", "x'"),
    ("iad-ii", {"alpha": 0.3, "alpha2": 0.5, **T3, "reduction": "mean"}, LAST, "x' x", "x'", "x'"),
    ("iad-ii", {"label_smoothing": 0.3, "alpha": 0.3, "alpha2": 0.4}, LAST, "x' x", "x'", "x'"),
    ("iad-ii", {"alpha": 1.0, "alpha2": 0.0, "trust_power": 0.4}, LAST, "x' x", "x'", "x'"),
    ("mtard", {}, FIRST, "x' x", "x'", "x"),
    ("mtard", {**T3, "reduction": "batchmean"}, FIRST, "x' x", "x'", "x"),
    ("igdm", {}, FIRST, "x' -x'", "x' -x'", ""),
    ("igdm", {"temperature": 2.0, "reduction": "mean", "igdm_weight": 7.0}, LAST, "x' -x'", "x' -x'", ""),
    ("saad", {"entropy_scale": 3.0}, LAST, "x' -x'", "x x' -x'", ""),
    ("saad", {"clean_branch": True, "reduction": "mean"}, FIRST, "x' -x' x", "x x' -x'", ""),
    ("peeraid", {"feedback_weight": 0.0}, FIRST, "x' x", "", ""),
    ("peeraid", {"label_smoothing": 0.3, "label_weight": 0.5, "reduction": "mean"}, FIRST, "x' x", "", ""),
    ("peeraid", {"joint_loss": True, "feedback_weight": 20.0}, FIRST, "x' x' x", "", ""),
    ("peeraid", {"joint_loss": True, "feedback_weight": 0.0}, FIRST, "x' x", "", ""),
    ("peeraid", {"self_weight": 0.0, "peer_weight": 2.0, **T3}, FIRST, "x'", "", ""),
]


@pytest.mark.parametrize(("name", "settings", "epoch", "student_sees", "teacher_sees", "clean_teacher_sees"), CASES)
def test_loss_gradients_and_who_sees_what(name, settings, epoch, student_sees, teacher_sees, clean_teacher_sees):
    student, teacher, other, batch = make_student(), make_teacher(), make_teacher(7), make_batch()
    method = with_stand_in(make_method(name, teacher, other, **settings))
    method.begin_epoch(epoch)
    if name == "absld":
        method.class_temperatures = torch.stack((torch.linspace(0.5, 3.0, 10), torch.linspace(4.0, 0.6, 10)))
    if name == "fair-ard":
        method.class_weights = torch.linspace(0.9, 2.4, 10)
    if name.startswith("ikl"):
        method.class_means = make_means()
    exact = double(student)
    values = vars(resolve({"method": name, "dataset": "digits", **settings}))
    seen = [Seen(network) for network in (student, teacher, other)]
    result = step(method, student, batch)

    expected = [sees.split() for sees in (student_sees, teacher_sees, clean_teacher_sees)]
    assert [sorted(one.names(batch)) for one in seen] == [sorted(names) for names in expected]
    assert seen[0].names(batch) == expected[0]
    updates = [value for key, value in student.state_dict().items() if key.endswith("num_batches_tracked")]
    assert updates and all(value == len(expected[0]) for value in updates)  # one of batch norm a forward
    assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())
    with torch.no_grad():
        assert torch.equal(result.logits, student(shifted(batch.x) if "x'" in student_sees else batch.x))

    context = SimpleNamespace(**values, S=exact, T=double(teacher), U=double(other), x=batch.x.double(), y=batch.y)
    context.z, context.method = shifted(batch.x).double(), method
    context.epoch, context.begun = epoch, epoch == LAST
    assert_same_loss_and_gradients(result, student, FORMULAS[name](context), exact)


def test_every_method_has_a_case():
    assert {name for name, *_ in CASES} == set(METHODS)


# ---- the attacks ----------------------------------------------------------------------------------------------------

# class, start, target, then forward and backward passes of student, teacher and clean teacher in the last epoch's step
# of an attack of 3 steps
ATTACKS = {
    "at": (PGD, "uniform", "labels", (4, 4), (0, 0), (0, 0)),
    "trades": (KLPGD, "normal", "none", (1 + 3 + 2, 3 + 2), (0, 0), (0, 0)),
    "mart": (PGD, "normal", "labels", (5, 5), (0, 0), (0, 0)),
    "ikl": (KLPGD, "normal", "none", (1 + 3 + 2, 3 + 2), (0, 0), (0, 0)),
    "ikl-rslad": (KLPGD, "normal", "teacher at x", (5, 5), (1, 0), (0, 0)),
    "adr": (KLPGD, "uniform", "soft labels", (4, 4), (0, 0), (0, 0)),
    "fgsm-rs": (FGSMRS, "uniform", "labels", (2, 2), (0, 0), (0, 0)),
    "n-fgsm": (NFGSM, "uniform", "labels", (2, 2), (0, 0), (0, 0)),
    "ard": (PGD, "uniform", "labels", (4, 4), (1, 0), (0, 0)),
    "fgsm-ard": (FGSMRS, "uniform", "labels", (2, 2), (1, 0), (0, 0)),
    "fair-ard": (CountingPGD, "uniform", "labels", (4, 4), (1, 0), (0, 0)),
    "rslad": (KLPGD, "normal", "teacher at x", (5, 5), (1, 0), (0, 0)),
    "absld": (KLPGD, "normal", "teacher at x", (5, 5), (1, 0), (0, 0)),
    "adaad": (KLPGD, "normal", "teacher", (4, 4), (4, 3), (0, 0)),
    "iad-i": (PGD, "uniform", "labels", (5, 5), (2, 0), (0, 0)),
    "iad-ii": (PGD, "uniform", "labels", (5, 5), (1, 0), (1, 0)),
    "adaiad": (KLPGD, "normal", "teacher", (5, 5), (4, 3), (0, 0)),
    "mtard": (PGD, "normal", "labels", (5, 5), (1, 0), (1, 0)),
    "igdm": (KLPGD, "normal", "teacher", (5, 5), (5, 3), (0, 0)),
    "saad": (KLPGD, "normal", "first-order teacher", (5, 5), (3, 1), (0, 0)),
    "peeraid": (KLPGD, "normal", "peer at x", (5, 5), (0, 0), (0, 0)),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attack_and_its_cost(name):
    kind, init, target, *passes = ATTACKS[name]
    networks = [make_student(), make_teacher(), make_teacher(7)]
    student, teacher, _ = networks
    batch = make_batch()
    settings = {"eps": 0.1, **({"attack_bn": "eval"} if kind in (FGSMRS, NFGSM) else {}), **few_steps(name, 3)}
    method = make_method(name, *networks[1:], **settings)
    method.begin_epoch(LAST)
    attack = method.inner_attack
    assert type(attack) is kind and (attack.init, attack.std, attack.bn, attack.clamp_start) == (
        init,
        0.001,
        "eval",
        True,
    )
    assert attack.eps == 0.1 and attack.step_size == pytest.approx(0.1 * METHODS[name].step_ratio)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    seen = [Seen(network) for network in networks]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inner = method.attack(student, batch)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert student.training and not inner.x_adv.requires_grad and all(p.grad is None for p in student.parameters())
    most = 0.1 * 3.0 if name == "n-fgsm" else 0.1  # noise of twice eps (once on the digits), then eps
    assert 0.05 < (inner.x_adv - batch.x).abs().max() <= most + 1e-6
    method.loss(student, batch, inner).loss.backward()
    assert [one.passes for one in seen] == passes

    stand_in = with_stand_in(method).inner_attack
    method.attack(student, batch)
    assert stand_in.seed is batch.seed and stand_in.sample_ids is batch.ids
    if target == "labels":
        assert stand_in.y is batch.y
    elif target == "teacher at x":
        assert torch.equal(stand_in.y, teacher(batch.x))
    elif target == "peer at x":
        assert method.peer.training and torch.equal(stand_in.y, method.peer.eval()(batch.x))
    elif target == "teacher":
        assert stand_in.y is method.teacher.attacked
    elif target == "soft labels":
        assert torch.equal(stand_in.y, method.soft_labels(batch).log())
    else:
        assert stand_in.y is None if target == "none" else isinstance(stand_in.y, FirstOrderTeacher)


def test_settings_of_the_attack_reach_it():
    attack = make_method(
        "ard", eps=0.2, step_size=0.03, steps=4, attack_bn="train_frozen", clamp_start=False
    ).inner_attack
    assert (attack.eps, attack.step_size, attack.steps, attack.bn) == (0.2, 0.03, 4, "train_frozen")
    assert not attack.clamp_start
    noisy = make_method("n-fgsm", eps=0.2, noise_ratio=3.0, step_size=0.05).inner_attack
    assert noisy.noise == 3.0 and noisy.step_size == pytest.approx(0.05) and noisy.bn == "train"
    assert make_method("fgsm-rs", eps=0.2, step_size=0.1).inner_attack.step_size == pytest.approx(0.1)
    assert make_method("fgsm-rs", eps=0.0).inner_attack.step_size == 0.0


@pytest.mark.parametrize(("name", "target"), [("trades", "own"), ("rslad", "clean"), ("adaad", "moving")])
def test_a_kl_attack_raises_its_divergence(name, target):
    student, teacher, batch = make_student(), make_teacher(), make_batch()
    x_adv = make_method(name, teacher, eps=0.1).attack(student, batch).x_adv
    student.eval()
    of = {"own": student, "clean": teacher, "moving": teacher}[target]
    raised = kl(student(x_adv), of(x_adv if target == "moving" else batch.x))
    assert (raised > kl(student(batch.x), of(batch.x))).all()


# ---- parts ----------------------------------------------------------------------------------------------------------


def test_trust_is_the_power_of_the_teachers_probability():
    logits, labels = torch.randn(50, 7) * 3, torch.randint(0, 7, (50,))
    weight = teacher_trust(logits.requires_grad_(), labels, 0.1)
    wanted = torch.softmax(logits.double(), 1)[torch.arange(50), labels] ** 0.1
    assert not weight.requires_grad and weight.dtype == torch.float32
    assert torch.allclose(weight.double(), wanted, rtol=1e-5)
    assert torch.equal(teacher_trust(logits, labels, 0.0), torch.ones(50))
    sure = torch.full((1, 3), -1e4).index_fill(1, torch.tensor([1]), 0.0)
    assert teacher_trust(sure, torch.tensor([0]), 0.1) == 0.0 and teacher_trust(sure, torch.tensor([1]), 0.1) == 1.0


@pytest.mark.parametrize(
    ("name", "share", "epochs", "first"),
    [("iad-i", 0.5, 4, 2), ("iad-i", 0.0, 4, 0), ("adaiad", 0.3, 200, 60), ("iad-ii", 0.2, 200, 40)],
)
def test_the_weights_begin_at_their_share_of_the_epochs(name, share, epochs, first):
    method = make_method(name, begin_share=share, context={"epochs": epochs})
    for epoch in (first - 1, first):
        method.begin_epoch(epoch)
        assert method.begun == (epoch == first)
    assert f"before epoch {first + 1} " in " ".join(method.conventions()) or first == 0


def test_the_first_order_teacher():
    teacher, batch = make_teacher(), make_batch()
    nearby = FirstOrderTeacher(teacher, batch.x, batch.y)
    rows = torch.arange(12)
    assert torch.allclose(nearby(batch.x), teacher(batch.x))
    x_adv = (batch.x + 0.3 * torch.randn_like(batch.x)).requires_grad_()
    exact, x = double(teacher), batch.x.double().requires_grad_()
    (gradient,) = torch.autograd.grad(exact(x)[rows, batch.y].sum(), x)
    wanted = exact(x).detach()
    wanted[rows, batch.y] += ((x_adv - batch.x).double() * gradient).flatten(1).sum(1).detach()
    moved = nearby(x_adv)
    assert torch.allclose(moved.double(), wanted, rtol=1e-4, atol=1e-4)
    (back,) = torch.autograd.grad(moved.sum(), x_adv)
    assert torch.allclose(back.double(), gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("iad-ii", {"alpha": 0.6, "alpha2": 0.5}, r"alpha2: expected at most 1 - alpha = 0.4.*got 0.5"),
        ("ardd", {}, "did you mean 'ard'"),
    ],
)
def test_what_cannot_be_built_is_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        make_method(name, **settings)


def test_missing_teachers_and_settings_are_named():
    context = MethodContext(num_classes=10, epochs=1)
    for name, role in (("ard", "teacher"), ("mtard", "teacher"), ("kd", "teacher")):
        with pytest.raises(ValueError, match=f"{role}: method {name} needs one"):
            build_method(name, resolve({"method": name}), context)
    with pytest.raises(ValueError, match="steps: method at needs a value, got None"):
        build_method("at", resolve({"method": "at"}).replace(steps=None), context)
    with pytest.raises(ValueError, match="unknown method 'att'; did you mean 'at'"):
        build_method("att", resolve({"method": "at"}), context)


@pytest.mark.parametrize("name", METHODS)
def test_conventions_are_few_lines_and_begin_with_the_loss(name):
    for parity in (False, True):
        lines = make_method(name, parity=parity).conventions()
        assert lines[0].startswith("loss ") and len(lines) <= 3
