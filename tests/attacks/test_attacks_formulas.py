"""Each attack against its paper's formula in plain torch, and the hooks that make other attacks from ours."""

import warnings
import weakref
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as tf
from attack_cases import assert_same_snapshot, small_net, snapshot
from torch import nn
from trained_digits import evaluation_images

from ard_fast import attacks
from ard_fast import functional as F
from ard_fast.attacks.base import Problem
from ard_fast.data.splits import load_digits

EPS = 0.1


@pytest.fixture
def batch(device):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(6, 3, 6, 6, generator=generator).to(device)
    return x, torch.randint(10, (6,), generator=generator).to(device)


@pytest.fixture
def model(device):
    return small_net().to(device).eval()


def input_gradient(loss, x):
    probe = x.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(probe), probe)[0]


def cross_entropy(model, y):
    return lambda x: tf.cross_entropy(model(x), y, reduction="sum")


def assert_nearly_all_close(actual, expected, tolerance=1e-6):
    """Gradients of another rounding may flip a sign near zero in a pixel or two."""
    assert (actual - expected).abs().gt(tolerance).float().mean() < 0.005


@pytest.mark.parametrize("targeted", [False, True])
def test_fgsm(targeted, batch, model):
    x, y = batch
    sign = -1 if targeted else 1
    expected = (x + sign * EPS * input_gradient(cross_entropy(model, y), x).sign()).clamp(0, 1)
    assert_nearly_all_close(attacks.FGSM(eps=EPS, targeted=targeted)(model, x, y), expected)


def test_fgsm_rs(batch, model):
    x, y = batch
    start = F.random_start(x, eps=EPS, seed=3)
    delta = start - x + 1.25 * EPS * input_gradient(cross_entropy(model, y), start).sign()
    expected = (x + delta.clamp(-EPS, EPS)).clamp(0, 1)
    assert_nearly_all_close(attacks.FGSMRS(eps=EPS)(model, x, y, seed=3), expected)


def test_n_fgsm_does_not_project(batch, model):
    x, y = batch
    start = F.random_start(x, eps=2 * EPS, seed=3)
    expected = (start + EPS * input_gradient(cross_entropy(model, y), start).sign()).clamp(0, 1)
    x_adv = attacks.NFGSM(eps=EPS)(model, x, y, seed=3)
    assert_nearly_all_close(x_adv, expected)
    assert 2 * EPS < (x_adv - x).abs().max() <= 3 * EPS + 6e-8
    assert (attacks.NFGSM(eps=EPS, noise=0)(model, x, y) - x).abs().max() <= EPS + 6e-8


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_mifgsm(decay, batch, model):
    x, y = batch
    x_adv, momentum = x, torch.zeros_like(x)
    for _ in range(5):
        grad = input_gradient(cross_entropy(model, y), x_adv)
        momentum = decay * momentum + grad / grad.abs().sum((1, 2, 3), keepdim=True)
        x_adv = (x_adv + EPS / 5 * momentum.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    assert_nearly_all_close(attacks.MIFGSM(eps=EPS, steps=5, decay=decay)(model, x, y), x_adv)


@pytest.mark.parametrize("kappa", [0.0, 0.05, 50.0])
def test_cw_follows_the_margin_up_to_kappa(kappa, batch, model):
    x, y = batch

    def loss(images):
        logits = model(images)
        other = logits.scatter(1, y[:, None], float("-inf")).amax(1)
        return -(logits.gather(1, y[:, None])[:, 0] - other + kappa).clamp(min=0).sum()

    x_adv = x
    for _ in range(4):
        x_adv = (x_adv + 0.02 * input_gradient(loss, x_adv).sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    attack = attacks.CWLinf(eps=EPS, step_size=0.02, steps=4, kappa=kappa, random_start=False)
    assert_nearly_all_close(attack(model, x, y), x_adv)


def kl(student, teacher, temperature=1.0):
    """T^2 KL(teacher^T || student^T) summed over the batch, with a gradient into both.

    In float64: where both are almost equal, float32 leaves little but rounding of these differences.
    """
    student, teacher = student.double(), teacher.double()
    p = (teacher / temperature).log_softmax(1)
    q = (student / temperature).log_softmax(1)
    return temperature**2 * (p.exp() * (p - q)).sum()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("target", ["own logits", "teacher's logits", "teacher"])
def test_kl_pgd_is_the_inner_problem_of_trades_rslad_and_adaad(target, temperature, batch, model, device):
    x, _ = batch
    teacher = small_net(seed=5).to(device).eval()
    fixed = {"own logits": model(x).detach(), "teacher's logits": teacher(x).detach(), "teacher": None}[target]
    y = {"own logits": None, "teacher's logits": fixed, "teacher": teacher}[target]
    x_adv = F.random_start(x, eps=0.0, init="normal", std=0.001, clamp=False, seed=8)
    for _ in range(4):
        grad = input_gradient(lambda z: kl(model(z), teacher(z) if fixed is None else fixed, temperature), x_adv)
        x_adv = (x_adv + 0.02 * grad.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    attack = attacks.KLPGD(eps=EPS, step_size=0.02, steps=4, temperature=temperature)
    assert_nearly_all_close(attack(model, x, y, seed=8), x_adv)


def test_the_target_model_is_left_without_a_trace(batch, model, device):
    x, _ = batch
    teacher = small_net(seed=5).to(device).train()
    teacher[5].weight.grad = torch.ones_like(teacher[5].weight)
    seen = []
    teacher.register_forward_pre_hook(lambda module, inputs: seen.append(module.training))
    before = snapshot(teacher)
    attacks.KLPGD(eps=EPS, steps=2, restarts=2)(model, x, teacher)
    assert_same_snapshot(before, snapshot(teacher))
    assert seen == [False] * 6  # two steps and one evaluation in each of two restarts, in eval mode


def test_a_target_model_without_gradient_is_only_evaluated(batch, model, device):
    """The target moves with the iterate, but the gradient is that of the attacked model alone."""
    x, _ = batch
    teacher = small_net(seed=5).to(device).eval()
    x_adv = F.random_start(x, eps=0.0, init="normal", std=0.001, clamp=False, seed=8)
    for _ in range(3):
        fixed = teacher(x_adv).detach()
        grad = input_gradient(lambda z, fixed=fixed: kl(model(z), fixed), x_adv)
        x_adv = (x_adv + 0.02 * grad.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    attack = attacks.KLPGD(eps=EPS, step_size=0.02, steps=3)
    assert_nearly_all_close(attack(model, x, torch.no_grad()(teacher.forward), seed=8), x_adv)


def test_targeted_dlr_moves_to_its_classes(batch, model):
    x, _ = batch
    y = model(x).argmax(1)
    targets = model(x).argsort(1)[:, -3]

    def loss(images):
        logits = model(images)
        z = logits.sort(1).values
        gap = logits.gather(1, y[:, None])[:, 0] - logits.gather(1, targets[:, None])[:, 0]
        return -(gap / (z[:, -1] - 0.5 * (z[:, -3] + z[:, -4]) + 1e-12)).sum()

    x_adv = x
    for _ in range(3):
        x_adv = (x_adv + 0.02 * input_gradient(loss, x_adv).sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    attack = attacks.PGD(eps=EPS, step_size=0.02, steps=3, loss="dlr_targeted", random_start=False)
    assert_nearly_all_close(attack(model, x, y, target_classes=targets), x_adv)
    # Without classes, those second to the label.
    second = model(x).argsort(1)[:, -2]
    assert attack(model, x, y).equal(attack(model, x, y, target_classes=second))


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_without_labels_the_predictions_are_attacked(loss, batch, device):
    """Those of the model in eval mode, whatever mode the attack runs in."""
    x, _ = batch
    model = small_net(dropout=0.9).to(device).train()
    before = model[1].running_mean.clone()
    predicted = model.eval()(x).argmax(1)
    attack = attacks.PGD(eps=EPS, step_size=0.02, steps=2, loss=loss)
    model.train()
    assert attack(model, x, seed=1).equal(attack(model, x, predicted, seed=1))
    assert model.training and model[1].running_mean.equal(before)


def test_eot_sums_gradients_of_a_random_model(batch, model):
    """A model that is wrong about the gradient's sign once in three passes is attacked as well as a true one."""
    x, y = batch
    calls = []

    def unreliable(images):
        calls.append(1)
        return model(images) if len(calls) % 3 else -0.4 * model(images)

    settings = {"eps": EPS, "step_size": 0.02, "steps": 4, "random_start": False}
    x_adv = attacks.PGD(**settings, eot=3)(unreliable, x, y)
    assert len(calls) == 12

    def summed(images):
        total = 2 * cross_entropy(model, y)(images)
        return total + tf.cross_entropy(-0.4 * model(images), y, reduction="sum")

    expected = x
    for _ in range(4):
        expected = (expected + 0.02 * input_gradient(summed, expected).sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    assert_nearly_all_close(x_adv, expected)


def test_eot_restarts_compare_losses_over_all_passes(batch, model):
    """One pass in two is noise of its own; two passes together say which start is better."""
    x, y = batch
    calls = []

    def alternating(images):
        calls.append(1)
        return model(images) if len(calls) % 2 else torch.zeros_like(model(images)) + 0 * model(images)

    attack = attacks.PGD(eps=EPS, step_size=EPS, steps=1, restarts=4, eot=2)
    several = tf.cross_entropy(model(attack(alternating, x, y, seed=5)), y, reduction="none")
    single = attack.replace(restarts=1)
    losses = [tf.cross_entropy(model(single(alternating, x, y, seed=5 + r)), y, reduction="none") for r in range(4)]
    torch.testing.assert_close(several, torch.stack(losses).amax(0))


def test_apgd_returns_the_fooled_point_or_the_highest_loss(batch, model):
    x, _ = batch
    y = model(x).argmax(1)
    for eps, steps in ((0.005, 5), (0.02, 10), (0.2, 10)):
        attack = attacks.APGD(eps=eps, steps=steps)
        x_adv = attack(model, x, y, seed=1)
        losses, fooled = [], torch.zeros_like(y, dtype=torch.bool)

        def watch(images, losses=losses):
            logits = model(images)
            losses.append((tf.cross_entropy(logits, y, reduction="none").detach(), logits.argmax(1) != y))
            return logits

        again = attack(watch, x, y, seed=1)
        assert again.equal(x_adv)
        assert len(losses) == steps + 1
        fooled = torch.stack([wrong for _, wrong in losses]).any(0)
        best = torch.stack([loss for loss, _ in losses]).amax(0)
        logits = model(x_adv)
        assert (logits.argmax(1) != y).equal(fooled)
        reached = tf.cross_entropy(logits, y, reduction="none")
        torch.testing.assert_close(reached[~fooled], best[~fooled])


@pytest.mark.parametrize("restarts, fooled_at", [(1, 0), (1, 1), (1, 2), (2, 3), (2, 4)])
def test_apgd_prefers_a_fooled_point_to_one_of_higher_loss(restarts, fooled_at, device):
    """A class barely ahead of the label has less loss than a label barely ahead of two: the former is what counts."""
    seen = []

    def model(images):
        seen.append(images.detach().clone())
        tilt = images.flatten(1).mean(1, keepdim=True) * torch.tensor([[0.0, 1e-3, 1e-3]], device=device)
        fooled = torch.tensor([[0.0, 0.1, -30.0]], device=device)
        resists = torch.tensor([[0.0, -0.1, -0.1]], device=device)
        return tilt + (fooled if len(seen) - 1 == fooled_at else resists)

    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).to(device)
    attack = attacks.APGD(eps=0.1, steps=2, restarts=restarts)
    x_adv = attack(model, x, torch.zeros(2, dtype=torch.int64, device=device), seed=0)
    assert len(seen) == 3 * restarts
    assert x_adv.equal(seen[fooled_at])


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_targeted_apgd_reaches_the_target(loss, batch, model):
    x, _ = batch
    target = (model(x).argmax(1) + 3) % 10
    x_adv = attacks.APGD(eps=0.3, steps=30, loss=loss, targeted=True)(model, x, target)
    # CE leads all the way; the untargeted DLR, turned round, may also grow by a wider gap from first to third class.
    assert (model(x_adv).argmax(1) == target).float().mean() > (0.99 if loss == "ce" else 0.5)


def test_apgd_restarts_only_what_is_left(batch, model):
    """Later runs see fewer samples, and the result is no worse than that of the best of single runs."""
    x, _ = batch
    y = model(x).argmax(1)
    attack = attacks.APGD(eps=0.012, steps=4, restarts=4)
    sizes = []

    def watch(images):
        sizes.append(len(images))
        return model(images)

    x_adv = attack(watch, x, y, seed=2)
    single = [attack.replace(restarts=1)(model, x, y, seed=2 + r) for r in range(4)]
    fooled = torch.stack([model(one).argmax(1) != y for one in single]).any(0)
    assert (model(x_adv).argmax(1) != y).equal(fooled)
    assert 0 < fooled.sum() < 6  # else the test shows nothing
    assert sizes[0] == 6 and sizes == sorted(sizes, reverse=True) and sizes[-1] == int((~fooled).sum())


def test_apgd_t_tries_the_likeliest_classes_on_what_is_left(batch, model):
    x, y = batch
    y = model(x).argmax(1)
    y[2] = (y[2] + 1) % 10
    sizes = []

    def watch(images):
        sizes.append(len(images))
        return model(images)

    x_adv = attacks.APGDT(eps=0.02, steps=5, n_targets=3)(watch, x, y, seed=1)
    assert sizes[0] == 6  # the clean images
    assert sizes[1] == 5  # without the one that is wrong already
    assert x_adv[2].equal(x[2])
    assert len(sizes) % 6 == 1
    # The single runs, by hand: fooled samples are those that any target fools.
    order = model(x).scatter(1, y[:, None], float("-inf")).argsort(1, descending=True)
    single = attacks.APGD(eps=0.02, steps=5, loss="dlr_targeted")
    fooled = model(x).argmax(1) != y
    expected = x.clone()
    for k in range(3):
        found = single(model, x, y, seed=1 + k, target_classes=order[:, k])
        newly = (model(found).argmax(1) != y) & ~fooled
        expected[newly] = found[newly]
        fooled |= newly
    assert (model(x_adv).argmax(1) != y).equal(fooled) and fooled.sum() > 2
    assert_nearly_all_close(x_adv[fooled], expected[fooled])


def test_apgd_t_starts_each_run_elsewhere(batch, model):
    x, _ = batch
    y = model(x).argmax(1)
    seen = []

    def watch(images):
        seen.append(images.detach().clone())
        return model(images)

    attacks.APGDT(eps=1e-4, steps=1, n_targets=2, restarts=2)(watch, x, y, seed=7)
    for run, start in enumerate(seen[1::2]):
        assert start.equal(F.random_start(x, eps=1e-4, init="surface", seed=7 + run))
    assert len(seen) == 9


def test_in_turn_attacks_what_is_left(batch, model):
    x, _ = batch
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 10
    sizes = []

    def watch(images):
        sizes.append(len(images))
        return model(images)

    weak, strong = attacks.FGSM(eps=0.01), attacks.PGD(eps=0.3, step_size=0.05, steps=10)
    x_adv = attacks.InTurn([weak, strong])(watch, x, y, seed=1)
    left = int((model(weak(model, x, y)).argmax(1) == y)[1:].sum())
    assert 0 < left < 6
    assert sizes[:2] == [6, 5] and sizes[3] == left
    assert (model(x_adv).argmax(1) != y).all() and x_adv[0].equal(x[0])


class LogitSquare(attacks.PGD):
    """A loss of one's own."""

    def logits_gradient(self, logits, problem, with_rows=False):
        return attacks.differentiated(lambda z: -(z.gather(1, problem.y[:, None])[:, 0] ** 2), logits)


class EightBit(attacks.PGD):
    """A projection of one's own."""

    def project(self, x_adv, problem):
        return x_adv.mul_(255).round_().div_(255)


class HalfStep(attacks.PGD):
    """A step of one's own."""

    def begin(self, problem, x_adv):
        return {"step": self.step_size}

    def step(self, x_adv, outcome, problem, state):
        moved = x_adv + state["step"] * outcome.grad.sign()
        state["step"] /= 2
        return moved.clamp(problem.x - self.eps, problem.x + self.eps).clamp(*self.bounds)


def test_a_loss_of_ones_own(batch, model):
    x, y = batch
    attack = LogitSquare(eps=EPS, step_size=0.02, steps=3, random_start=False)
    x_adv = x
    for _ in range(3):
        grad = input_gradient(lambda z: -(model(z).gather(1, y[:, None]) ** 2).sum(), x_adv)
        x_adv = (x_adv + 0.02 * grad.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    assert_nearly_all_close(attack(model, x, y), x_adv)
    restarted = attack.replace(random_start=True, restarts=3)(model, x, y, seed=0)
    singles = [attack.replace(random_start=True)(model, x, y, seed=r) for r in range(3)]
    logit = [model(one).gather(1, y[:, None])[:, 0].square() for one in (restarted, *singles)]
    torch.testing.assert_close(logit[0], torch.stack(logit[1:]).amin(0))


def test_a_projection_of_ones_own(batch, model):
    x, y = batch
    x = (x * 255).round() / 255
    x_adv = EightBit(eps=8 / 255, step_size=2.3 / 255, steps=4)(model, x, y)
    assert (x_adv * 255 - (x_adv * 255).round()).abs().max() < 1e-4
    assert (x_adv - x).abs().max() <= 8 / 255 + 1e-6 and not x_adv.equal(x)


def test_a_step_of_ones_own(batch, model):
    x, y = batch
    x_adv = HalfStep(eps=EPS, step_size=0.04, steps=2, random_start=False)(model, x, y)
    expected = x + 0.04 * input_gradient(cross_entropy(model, y), x).sign()
    expected = expected.clamp(0, 1)
    expected = (expected + 0.02 * input_gradient(cross_entropy(model, y), expected).sign()).clamp(0, 1)
    assert_nearly_all_close(x_adv, expected)


def test_the_loss_is_what_the_attack_raises(batch, model):
    x, y = batch
    logits = model(x).detach()
    torch.testing.assert_close(attacks.PGD().loss_at(logits, y), tf.cross_entropy(logits, y, reduction="none"))
    target = logits.flip(1)
    torch.testing.assert_close(attacks.KLPGD().loss_at(logits, target).sum().double(), kl(logits, target))


def test_half_precision_and_double_precision_logits(batch, model, device):
    x, y = batch
    attack = attacks.PGD(eps=EPS, step_size=0.02, steps=3, random_start=False)
    expected = attack(model, x, y)
    assert_nearly_all_close(attack(lambda z: model(z).double(), x, y), expected)
    half = attack(lambda z: model(z).bfloat16(), x, y)
    assert (half - expected).abs().gt(1e-6).float().mean() < 0.1  # rounded logits flip more signs


def test_a_model_that_ignores_its_input_is_refused(batch, device):
    x, y = batch
    with pytest.raises(ValueError, match="model must be differentiable"):
        attacks.PGD()(lambda z: torch.zeros(len(z), 10, device=device), x, y)
    with pytest.raises(ValueError, match="model must be differentiable"):
        attacks.PGD()(torch.no_grad()(nn.Sequential(nn.Flatten(), nn.Linear(108, 10)).to(device).forward), x, y)


class Half(nn.Module):
    """A copy of a network in float16, of float32 images; `single`: its logits are cast back."""

    def __init__(self, net, single=False):
        super().__init__()
        self.net, self.single = deepcopy(net).half(), single

    def forward(self, x):
        logits = self.net(x.half())
        return logits.float() if self.single else logits


@pytest.fixture(scope="module")
def sure():
    """A network with a median confidence of 0.99998, and 500 images with their labels."""
    torch.manual_seed(0)
    data = load_digits().train
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(10):
        for chosen in torch.randperm(len(data.labels)).split(64):
            optimiser.zero_grad()
            tf.cross_entropy(net(data.images[chosen].float() / 16), data.labels[chosen]).backward()
            optimiser.step()
    x, y = evaluation_images()
    with torch.no_grad():
        net[3].weight.mul_(2.0)
        net[3].bias.mul_(2.0)
        assert 0.99997 < net(x).softmax(1).amax(1).median() < 0.99999
    return net.requires_grad_(False), x, y


class OwnCrossEntropy(attacks.PGD):
    """Cross-entropy as an expression in the logits, and as the sum of two halves of the attack's own."""

    def logits_gradient(self, logits, problem, with_rows=False):
        own = super().logits_gradient(logits, problem, with_rows)
        mine = attacks.differentiated(lambda z: tf.cross_entropy(z, problem.y, reduction="none"), logits)
        return own._replace(grad=0.5 * own.grad + 0.5 * mine.grad)


SURE_ATTACKS = {
    "pgd": lambda: attacks.PGD(eps=0.15, step_size=0.04, steps=20),
    "pgd without start": lambda: attacks.PGD(eps=0.15, step_size=0.04, steps=20, random_start=False),
    "pgd l2": lambda: attacks.PGD(eps=0.7, step_size=0.2, steps=20, norm="l2"),
    "pgd eot": lambda: attacks.PGD(eps=0.15, step_size=0.04, steps=10, eot=2),
    "fgsm": lambda: attacks.FGSM(eps=0.15),
    "mifgsm": lambda: attacks.MIFGSM(eps=0.15, steps=10),
    "apgd": lambda: attacks.APGD(eps=0.15, steps=10),
    "own loss": lambda: OwnCrossEntropy(eps=0.15, step_size=0.04, steps=20, random_start=False),
}


@pytest.mark.parametrize("name", SURE_ATTACKS)
def test_float16_attacks_a_confident_network_as_well_as_float32(name, sure, device):
    """Gradients that are tiny at the logits do not underflow there, nor on their way to the images."""
    net, x, y = sure[0].to(device), sure[1].to(device), sure[2].to(device)
    attack = SURE_ATTACKS[name]()

    def robust_accuracy(model):
        return float((net(attack(model, x, y, seed=0)).argmax(1) == y).float().mean())

    expected = robust_accuracy(net)
    with torch.autocast(device.type, torch.float16):
        found = [robust_accuracy(net)]
    found += [robust_accuracy(Half(net)), robust_accuracy(Half(net, single=True))]
    assert max(found) <= expected + 0.004, (found, expected)  # two images of 500; without scaling 20 and more
    grad = attack.gradient(Problem(Half(net), x, y), x.clone()).grad
    assert grad.flatten(1).ne(0).any(1).all()


def test_a_divergence_of_two_networks_in_float16(sure, device):
    """KL-PGD against a target model (AdaAD): both gradients of a row have one factor."""
    net, x = sure[0].to(device), sure[1].to(device)
    other = deepcopy(net)
    with torch.no_grad():
        other[1].weight.add_(0.003 * torch.randn_like(other[1].weight))
    attack = attacks.KLPGD(eps=0.15)
    exact = attack.gradient(Problem(net, x, other), x.clone()).grad.flatten(1)
    half = attack.gradient(Problem(Half(net), x, Half(other)), x.clone()).grad.flatten(1)
    likeness = torch.cosine_similarity(exact, half)
    assert likeness.quantile(0.05) > 0.5 and half.ne(0).any(1).all()


class Watching(attacks.PGD):
    """Keeps the gradients that its steps see."""

    def step(self, x_adv, outcome, problem, state):
        self.seen = outcome.grad
        return super().step(x_adv, outcome, problem, state)


class Steps:
    """The same for any attack."""

    def step(self, x_adv, outcome, problem, state):
        self.seen = outcome.grad
        return super().step(x_adv, outcome, problem, state)


class Mixed(Steps, attacks.PGD):
    """A step of one's own that is not its own."""


@pytest.mark.parametrize("kind", [Watching, Mixed])
def test_gradients_whose_size_is_seen_have_it(kind, sure, device):
    """A step of one's own, and sums over passes: the power of two is taken out again, exactly."""
    net, x, y = sure[0].to(device), sure[1].to(device), sure[2].to(device)
    exact = input_gradient(cross_entropy(net.double(), y), x.double())
    net.float()
    assert not kind.scale_free and attacks.PGD.scale_free and attacks.APGDT.scale_free and EightBit.scale_free
    for model, rtol in ((net, 1e-3), (Half(net), 2e-2)):
        for passes in (1, 2):
            attack = kind(eps=0.1, steps=1, random_start=False, eot=passes)
            attack(model, x, y)
            error = (attack.seen / passes - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
            assert error.quantile(0.9) < rtol
    own = attacks.PGD(eps=0.1, eot=2).gradient(Problem(net, x, y), x.clone()).grad
    torch.testing.assert_close(own / 2, attack.seen / 2, rtol=0.1, atol=1e-2 * float(exact.abs().max()))


@pytest.mark.parametrize("policy", ["train", "train_frozen", "no running statistics", "no eval mode", "unseen"])
def test_images_that_see_one_another_have_one_factor(policy, batch, model):
    """Batch statistics: the gradient of an image is a sum over rows, which factors of their own would weigh anew."""
    x, _ = batch
    with torch.no_grad():
        model[5].weight.mul_(20.0)
        y = model(x).argmax(1)
        y[0] = (y[0] + 1) % 10  # one image is wrong, of the others the model is more or less sure
    given, bn = model, policy if policy.startswith("train") else "eval"
    if policy == "no running statistics":
        model[1].running_mean = model[1].running_var = None
    elif policy == "no eval mode":
        model[1].train().train = lambda mode=True: model[1]
    elif policy == "unseen":
        model.train()
        reference = weakref.ref(model)
        given = lambda z: reference()(z)  # noqa: E731
    attack = attacks.PGD(eps=EPS, step_size=0.02, steps=3, random_start=False, bn=bn)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="bn=")
        x_adv = attack(given, x, y)
    model.train(policy != "no running statistics")
    expected = x
    for _ in range(3):
        grad = input_gradient(cross_entropy(model, y), expected)
        expected = (expected + 0.02 * grad.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    assert_nearly_all_close(x_adv, expected)
    if policy == "unseen":
        return
    half = attack(lambda z: model(z).half(), x, y)
    assert (half - expected).abs().gt(1e-6).float().mean() < 0.1
