"""Each attack against its paper's formula in plain torch, and the hooks that make other attacks from ours."""

import warnings
import weakref
from copy import deepcopy
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as tf
from attack_cases import assert_same_snapshot, evaluation_images, small_net, snapshot
from torch import nn

from ard_fast import attacks
from ard_fast import functional as F
from ard_fast.attacks import APGD, APGDT, FGSM, FGSMRS, KLPGD, MIFGSM, NFGSM, PGD, CWLinf, InTurn
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
    return lambda x: ce(model(x), y)


def ce(logits, y):
    return tf.cross_entropy(logits, y, reduction="sum")


def kl(student, teacher, temperature=1.0):
    """T^2 KL(teacher^T || student^T) summed over the batch, with a gradient into both.

    In float64: where both are almost equal, float32 leaves little but rounding of these differences.
    """
    p = (teacher.double() / temperature).log_softmax(1)
    q = (student.double() / temperature).log_softmax(1)
    return temperature**2 * (p.exp() * (p - q)).sum()


def margin(logits, y, kappa):
    other = logits.scatter(1, y[:, None], float("-inf")).amax(1)
    return -(logits.gather(1, y[:, None])[:, 0] - other + kappa).clamp(min=0).sum()


def targeted_dlr(logits, y, targets):
    z = logits.sort(1).values
    gap = logits.gather(1, y[:, None])[:, 0] - logits.gather(1, targets[:, None])[:, 0]
    return -(gap / (z[:, -1] - 0.5 * (z[:, -3] + z[:, -4]) + 1e-12)).sum()


def signed_steps(loss, x, start, steps, step_size, eps=EPS):
    """The loop of the published codes."""
    x_adv = start
    for _ in range(steps):
        x_adv = (x_adv + step_size * input_gradient(loss, x_adv).sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return x_adv


def assert_nearly_all_close(actual, expected, tolerance=1e-6):
    """Gradients of another rounding may flip a sign near zero in a pixel or two."""
    assert (actual - expected).abs().gt(tolerance).float().mean() < 0.005


class LogitSquare(PGD):
    """A loss of one's own."""

    def logits_gradient(self, logits, problem, with_rows=False):
        return attacks.differentiated(lambda z: -(z.gather(1, problem.y[:, None])[:, 0] ** 2), logits)


SETTINGS = {"eps": EPS, "step_size": 0.02, "steps": 4}
FROM_X = {**SETTINGS, "random_start": False}


def start_at(x, **changes):
    return F.random_start(x, **{"eps": EPS, "seed": 8, **changes})


# The attack, the loss of the logits that it raises, its start (None: the image), its steps.
SIGNED = {
    "pgd": (PGD(**SETTINGS), ce, {}, 4, 0.02),
    "pgd, not clamped": (PGD(**SETTINGS, clamp_start=False), ce, {"clamp": False}, 4, 0.02),
    "targeted": (PGD(**FROM_X, targeted=True), lambda z, y: -ce(z, y), None, 4, 0.02),
    "fgsm": (FGSM(eps=EPS), ce, None, 1, EPS),
    "fgsm targeted": (FGSM(eps=EPS, targeted=True), lambda z, y: -ce(z, y), None, 1, EPS),
    "fgsm-rs": (FGSMRS(eps=EPS), ce, {}, 1, 1.25 * EPS),
    "cw 0": (CWLinf(**FROM_X, kappa=0.0), lambda z, y: margin(z, y, 0.0), None, 4, 0.02),
    "cw .05": (CWLinf(**FROM_X, kappa=0.05), lambda z, y: margin(z, y, 0.05), None, 4, 0.02),
    "cw 50": (CWLinf(**FROM_X), lambda z, y: margin(z, y, 50.0), None, 4, 0.02),
    "own": (LogitSquare(**FROM_X), lambda z, y: -z.gather(1, y[:, None]).square().sum(), None, 4, 0.02),
}


@pytest.mark.parametrize("name", SIGNED)
def test_is_the_published_loop(name, batch, model):
    attack, loss, start, steps, step_size = SIGNED[name]
    x, y = batch
    start = x if start is None else start_at(x, **start)
    expected = signed_steps(lambda z: loss(model(z), y), x, start, steps, step_size)
    assert_nearly_all_close(attack(model, x, y, seed=8), expected)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("target", ["own logits", "teacher's logits", "teacher", "teacher without gradient"])
def test_kl_pgd_is_the_inner_problem_of_trades_rslad_and_adaad(target, temperature, batch, model, device):
    x, _ = batch
    teacher = small_net(seed=5).to(device).eval()
    own, fixed = model(x).detach(), teacher(x).detach()
    y, at = {
        "own logits": (None, lambda z: own),
        "teacher's logits": (fixed, lambda z: fixed),
        "teacher": (teacher, teacher),
        "teacher without gradient": (torch.no_grad()(teacher.forward), lambda z: teacher(z).detach()),
    }[target]
    start = start_at(x, eps=0.0, init="normal", std=0.001, clamp=False)
    expected = signed_steps(lambda z: kl(model(z), at(z), temperature), x, start, 4, 0.02)
    attack = KLPGD(**SETTINGS, temperature=temperature)
    assert_nearly_all_close(attack(model, x, y, seed=8), expected)


def test_the_target_model_is_left_without_a_trace(batch, model, device):
    x, _ = batch
    teacher = small_net(seed=5).to(device).train()
    teacher[5].weight.grad = torch.ones_like(teacher[5].weight)
    seen = []
    teacher.register_forward_pre_hook(lambda module, inputs: seen.append(module.training))
    before = snapshot(teacher)
    KLPGD(eps=EPS, steps=2, restarts=2)(model, x, teacher)
    assert_same_snapshot(before, snapshot(teacher))
    assert seen == [False] * 6  # two steps and one evaluation in each of two restarts, in eval mode


def test_l2_steps_are_normalised_and_projected(batch, model):
    x, y = batch
    x_adv = x
    for _ in range(4):
        grad = input_gradient(cross_entropy(model, y), x_adv)
        delta = x_adv + 0.2 * grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1) - x
        x_adv = (x + delta * (0.5 / delta.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)).clamp(0, 1)
    attack = PGD(eps=0.5, step_size=0.2, steps=4, norm="l2", random_start=False)
    torch.testing.assert_close(attack(model, x, y), x_adv, rtol=0, atol=1e-4)


def test_n_fgsm_does_not_project(batch, model):
    x, y = batch
    start = start_at(x, eps=2 * EPS)
    expected = (start + EPS * input_gradient(cross_entropy(model, y), start).sign()).clamp(0, 1)
    x_adv = NFGSM(eps=EPS)(model, x, y, seed=8)
    assert_nearly_all_close(x_adv, expected)
    assert 2 * EPS < (x_adv - x).abs().max() <= 3 * EPS + 6e-8
    assert (NFGSM(eps=EPS, noise=0)(model, x, y) - x).abs().max() <= EPS + 6e-8


@pytest.mark.parametrize("decay, masked", [(0.0, False), (0.5, False), (1.0, True)])
def test_mifgsm_adds_up_gradients_of_unit_l1_norm(decay, masked, batch, model):
    """With a mask the norm is that of the pixels that may change."""
    x, y = batch
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[:, 1:, 2:4] = not masked
    x_adv, momentum = x, torch.zeros_like(x)
    for _ in range(5):
        grad = input_gradient(cross_entropy(model, y), x_adv) * mask
        momentum = decay * momentum + grad / grad.abs().sum((1, 2, 3), keepdim=True)
        x_adv = (x_adv + EPS / 5 * momentum.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    assert_nearly_all_close(MIFGSM(eps=EPS, steps=5, decay=decay)(model, x, y, mask=mask), x_adv)


def test_targeted_dlr_moves_to_its_classes(batch, model):
    x, _ = batch
    y = model(x).argmax(1)
    targets = model(x).argsort(1)[:, -3]
    expected = signed_steps(lambda z: targeted_dlr(model(z), y, targets), x, x, 4, 0.02)
    attack = PGD(**FROM_X, loss="dlr_targeted")
    assert_nearly_all_close(attack(model, x, y, target_classes=targets), expected)
    second = model(x).argsort(1)[:, -2]  # without classes, those second to the label
    assert attack(model, x, y).equal(attack(model, x, y, target_classes=second))


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_without_labels_the_predictions_in_eval_mode_are_attacked(loss, batch, device):
    x, _ = batch
    model = small_net(dropout=0.9).to(device)
    predicted = model.eval()(x).argmax(1)
    attack = PGD(**SETTINGS, loss=loss)
    model.train()
    assert attack(model, x, seed=1).equal(attack(model, x, predicted, seed=1))


@pytest.mark.parametrize("attack", [PGD(eps=0.1, step_size=0.1, steps=1), LogitSquare(eps=0.1, step_size=0.1, steps=1)])
def test_restarts_keep_the_worst_point_of_each_sample(attack, batch, model):
    x, y = batch

    def losses(attack, seed):
        return attack.loss_at(model(attack(model, x, y, seed=seed)), y).detach()

    singles = torch.stack([losses(attack, 5 + r) for r in range(4)])
    torch.testing.assert_close(losses(attack.replace(restarts=4), 5), singles.amax(0))
    assert len(set(singles.argmax(0).tolist())) > 1  # no single restart was the best for all
    singles = torch.stack([losses(attack.replace(targeted=True), 5 + r) for r in range(4)])
    torch.testing.assert_close(losses(attack.replace(restarts=4, targeted=True), 5), singles.amin(0))


def test_eot_sums_gradients_of_a_random_model(batch, model):
    """A model that is wrong about the gradient's sign once in three passes is attacked as well as a true one."""
    x, y = batch
    calls = []

    def unreliable(images):
        calls.append(1)
        return model(images) if len(calls) % 3 else -0.4 * model(images)

    def summed(images):
        logits = model(images)
        return 2 * ce(logits, y) + ce(-0.4 * logits, y)

    x_adv = PGD(**FROM_X, eot=3)(unreliable, x, y)
    assert len(calls) == 12
    assert_nearly_all_close(x_adv, signed_steps(summed, x, x, 4, 0.02))


def test_batch_norm_policies(batch, device):
    x, y = batch
    seen = {}
    for bn in attacks.BN_POLICIES:
        model = small_net().to(device)
        used = []
        model[1].register_forward_hook(lambda module, inputs, output, used=used: used.append(output.mean().item()))
        before = model[1].running_mean.clone()
        PGD(steps=4, bn=bn, random_start=False)(model, x, y)
        seen[bn] = used[0]
        assert model[1].running_mean.equal(before) == (bn != "train")
        assert model[1].num_batches_tracked == (4 if bn == "train" else 0)
    # Batch statistics centre the output of batch norm, running ones (at their start) do not.
    assert abs(seen["train"]) < 1e-5 and abs(seen["train_frozen"]) < 1e-5 and abs(seen["eval"]) > 1e-3


# --- Auto-PGD and sequences; Auto-PGD's steps are in test_apgd_official.py --------------------------------------------


def watched(model, sizes):
    def watch(images):
        sizes.append(len(images))
        return model(images)

    return watch


def test_apgd_returns_the_fooled_point_or_the_highest_loss(batch, model):
    x, _ = batch
    y = model(x).argmax(1)
    for eps, steps in ((0.005, 5), (0.02, 10), (0.2, 10)):
        losses, fooled = [], torch.zeros_like(y, dtype=torch.bool)

        def watch(images, losses=losses):
            logits = model(images)
            losses.append((tf.cross_entropy(logits, y, reduction="none").detach(), logits.argmax(1) != y))
            return logits

        x_adv = APGD(eps=eps, steps=steps)(watch, x, y, seed=1)
        assert len(losses) == steps + 1
        fooled = torch.stack([wrong for _, wrong in losses]).any(0)
        best = torch.stack([loss for loss, _ in losses]).amax(0)
        logits = model(x_adv)
        assert (logits.argmax(1) != y).equal(fooled)
        torch.testing.assert_close(tf.cross_entropy(logits, y, reduction="none")[~fooled], best[~fooled])


@pytest.mark.filterwarnings("ignore:bn=")
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
    attack = APGD(eps=0.1, steps=2, restarts=restarts)
    x_adv = attack(model, x, torch.zeros(2, dtype=torch.int64, device=device), seed=0)
    assert len(seen) == 3 * restarts
    assert x_adv.equal(seen[fooled_at])


def test_targeted_apgd_reaches_the_target(batch, model):
    x, _ = batch
    target = (model(x).argmax(1) + 3) % 10
    assert model(APGD(eps=0.3, steps=30, targeted=True)(model, x, target)).argmax(1).equal(target)


def test_apgd_restarts_only_what_is_left(batch, model):
    """Later runs see fewer samples, and the result is no worse than that of the best of single runs."""
    x, _ = batch
    y = model(x).argmax(1)
    attack, sizes = APGD(eps=0.012, steps=4, restarts=4), []
    x_adv = attack(watched(model, sizes), x, y, seed=2)
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
    x_adv = APGDT(eps=0.02, steps=5, n_targets=3)(watched(model, sizes), x, y, seed=1)
    assert sizes[:2] == [6, 5]  # the clean images; without the one that is wrong already
    assert x_adv[2].equal(x[2])
    # The single runs, by hand: fooled samples are those that any target fools.
    order = model(x).scatter(1, y[:, None], float("-inf")).argsort(1, descending=True)
    single = APGD(eps=0.02, steps=5, loss="dlr_targeted")
    fooled = model(x).argmax(1) != y
    expected = x.clone()
    for k in range(3):
        found = single(model, x, y, seed=1 + k, target_classes=order[:, k])
        newly = (model(found).argmax(1) != y) & ~fooled
        expected[newly] = found[newly]
        fooled |= newly
    assert (model(x_adv).argmax(1) != y).equal(fooled) and fooled.sum() > 2
    assert_nearly_all_close(x_adv[fooled], expected[fooled])


def test_in_turn_attacks_what_is_left(batch, model):
    x, _ = batch
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 10
    weak, strong, sizes = FGSM(eps=0.01), PGD(eps=0.3, step_size=0.05, steps=10), []
    x_adv = InTurn([weak, strong])(watched(model, sizes), x, y, seed=1)
    left = int((model(weak(model, x, y)).argmax(1) == y)[1:].sum())
    assert 0 < left < 6
    assert sizes[:2] == [6, 5] and sizes[3] == left
    assert (model(x_adv).argmax(1) != y).all() and x_adv[0].equal(x[0])


# --- attacks of one's own ---------------------------------------------------------------------------------------------


class EightBit(PGD):
    """A projection of one's own."""

    def project(self, x_adv, problem):
        return x_adv.mul_(255).round_().div_(255)


@dataclass(eq=False, repr=False)
class Shrinking(PGD):
    """A step and a setting of one's own."""

    shrink: float = field(default=0.5, kw_only=True)

    def begin(self, problem, x_adv):
        return {"step": self.step_size}

    def step(self, x_adv, outcome, problem, state):
        moved = x_adv + state["step"] * outcome.grad.sign()
        state["step"] *= self.shrink
        return moved.clamp(problem.x - self.eps, problem.x + self.eps).clamp(*self.bounds)


def test_a_projection_and_a_step_of_ones_own(batch, model):
    x, y = batch
    x = (x * 255).round() / 255
    x_adv = EightBit(eps=8 / 255, step_size=2.3 / 255, steps=4)(model, x, y)
    assert (x_adv * 255 - (x_adv * 255).round()).abs().max() < 1e-4
    assert (x_adv - x).abs().max() <= 8 / 255 + 1e-6 and not x_adv.equal(x)
    attack = Shrinking(eps=EPS, step_size=0.04, steps=2, random_start=False)
    assert "shrink=0.5" in repr(attack) and attack.replace(shrink=0.2).shrink == 0.2
    x_adv = attack(model, x, y)
    expected = signed_steps(cross_entropy(model, y), x, x, 1, 0.04)
    assert_nearly_all_close(x_adv, signed_steps(cross_entropy(model, y), x, expected, 1, 0.02))


def test_the_loss_is_what_the_attack_raises(batch, model):
    x, y = batch
    logits = model(x).detach()
    torch.testing.assert_close(PGD().loss_at(logits, y), tf.cross_entropy(logits, y, reduction="none"))
    target = logits.flip(1)
    torch.testing.assert_close(KLPGD().loss_at(logits, target).sum().double(), kl(logits, target))


# --- precision of the logits and of the gradient ----------------------------------------------------------------------


def test_half_precision_and_double_precision_logits(batch, model):
    x, y = batch
    attack = PGD(**FROM_X)
    expected = attack(model, x, y)
    assert_nearly_all_close(attack(lambda z: model(z).double(), x, y), expected)
    half = attack(lambda z: model(z).bfloat16(), x, y)
    assert (half - expected).abs().gt(1e-6).float().mean() < 0.1  # rounded logits flip more signs


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


class OwnCrossEntropy(PGD):
    """Cross-entropy as an expression in the logits, and as the sum of two halves of the attack's own."""

    def logits_gradient(self, logits, problem, with_rows=False):
        own = super().logits_gradient(logits, problem, with_rows)
        mine = attacks.differentiated(lambda z: tf.cross_entropy(z, problem.y, reduction="none"), logits)
        return own._replace(grad=0.5 * own.grad + 0.5 * mine.grad)


SURE_ATTACKS = {
    "pgd l2": PGD(eps=0.7, step_size=0.2, steps=20, norm="l2"),
    "pgd eot": PGD(eps=0.15, step_size=0.04, steps=10, eot=2),
    "mifgsm": MIFGSM(eps=0.15, steps=10),
    "apgd": APGD(eps=0.15, steps=10),
    "own loss": OwnCrossEntropy(eps=0.15, step_size=0.04, steps=20, random_start=False),
}


@pytest.mark.parametrize("name", SURE_ATTACKS)
def test_float16_attacks_a_confident_network_as_well_as_float32(name, sure, device):
    """Gradients that are tiny at the logits do not underflow there, nor on their way to the images."""
    net, x, y = sure[0].to(device), sure[1].to(device), sure[2].to(device)
    attack = SURE_ATTACKS[name]

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
    attack = KLPGD(eps=0.15)
    exact = attack.gradient(Problem(net, x, other), x.clone()).grad.flatten(1)
    half = attack.gradient(Problem(Half(net), x, Half(other)), x.clone()).grad.flatten(1)
    likeness = torch.cosine_similarity(exact, half)
    assert likeness.quantile(0.05) > 0.5 and half.ne(0).any(1).all()


class Steps:
    """Keeps the gradients that its steps see."""

    def step(self, x_adv, outcome, problem, state):
        self.seen = outcome.grad
        return super().step(x_adv, outcome, problem, state)


class Watching(Steps, PGD):
    """A step of one's own that is not its own."""


def test_gradients_whose_size_is_seen_have_it(sure, device):
    """A step of one's own, and sums over passes: the power of two is taken out again, exactly."""
    net, x, y = sure[0].to(device), sure[1].to(device), sure[2].to(device)
    exact = input_gradient(cross_entropy(net.double(), y), x.double())
    net.float()
    assert not Watching.scale_free and not Shrinking.scale_free
    assert PGD.scale_free and APGDT.scale_free and EightBit.scale_free
    for model, rtol in ((net, 1e-3), (Half(net), 2e-2)):
        for passes in (1, 2):
            attack = Watching(eps=0.1, steps=1, random_start=False, eot=passes)
            attack(model, x, y)
            error = (attack.seen / passes - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
            assert error.quantile(0.9) < rtol


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
    attack = PGD(**FROM_X, bn=bn)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="bn=")
        x_adv = attack(given, x, y)
    model.train(policy != "no running statistics")
    expected = signed_steps(cross_entropy(model, y), x, x, 4, 0.02)
    assert_nearly_all_close(x_adv, expected)
