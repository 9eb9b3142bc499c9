"""Each warning appears where its cause is there, and only there."""

import re

import pytest
import torch
from torch import nn

from ard_fast import attacks
from ard_fast.evaluation.measure import Accuracy
from ard_fast.evaluation.results import Agreement, Cost, StageResult, StepResult
from ard_fast.evaluation.self_checks import check_model, check_normalisation, check_results, collapsed
from ard_fast.models import Normalised

CLASSES = 4


def images(count=32):
    """Images whose first CLASSES pixels show the class, faintly."""
    x = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.4
    y = torch.arange(count) % CLASSES
    x.flatten(1)[torch.arange(count), y] += 0.5
    return x, y


class Good(nn.Module):
    """Reads the class off the pixels; `before` and `after` change what goes in and what comes out."""

    def __init__(self, scale=3.0, before=lambda x: x, after=lambda logits, x: logits):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.scale, self.before, self.after = scale, before, after

    def forward(self, x):
        logits = self.scale * self.norm(self.before(x)).flatten(1)[:, :CLASSES]
        return self.after(logits, x)


def sure_in_float16(logits, x):
    """Probabilities of 1 - 1e-8: their gradient is 0 in float16, unless it is scaled."""
    right = torch.zeros_like(logits).scatter(1, logits.argmax(1, keepdim=True), 1.0)
    return (logits / 30 + 20.0 * right.detach()).half()


def half_detached(logits, x):
    return torch.where(torch.arange(len(x))[:, None] < 8, logits.detach(), logits)


@pytest.mark.parametrize(
    ("model", "check", "advice"),
    [
        (Good(), None, ""),
        (Good(after=sure_in_float16), None, ""),
        (Good(after=lambda logits, x: logits.softmax(1)), "probabilities", "return logits"),
        (Good(scale=1e4), "zero gradient", "margin losses"),
        (Good(before=lambda x: (x * 4).round() / 4), "zero gradient", "not differentiable"),
        (Good(after=half_detached), "zero gradient", r"8 of 32 images \(25%\)"),
        (Good(after=lambda logits, x: logits + 0.1 * torch.randn_like(logits)), "randomness", "eot=20"),
        (Good(after=lambda logits, x: logits.detach()), "no gradient", "square can"),
        (Good(before=lambda x: 1 - x), "accuracy", "--mean and --std"),
        (Good(after=lambda z, x: z + 0.0 * (x - x).square().sum((1, 2, 3)).sqrt()[:, None]), "gradient", "square root"),
    ],
)
def test_each_model_has_its_warning_and_no_other(model, check, advice):
    torch.manual_seed(0)
    found = check_model(model.eval(), *images(), num_classes=CLASSES)
    assert [finding.check for finding in found.findings] == ([check] if check else [])
    assert found.differentiable == (check != "no gradient")
    assert re.search(advice, " ".join(map(str, found.findings)))


def test_the_measured_numbers_are_kept_and_the_attack_agrees_in_float16():
    measured = check_model(Good().eval(), *images(), num_classes=CLASSES).measured
    assert (measured["zero_gradient_images"], measured["sample_accuracy"], measured["randomness"]) == (0.0, 100.0, 0.0)
    x, y = images()
    moved = attacks.FGSM(eps=0.01)(Good(after=sure_in_float16).eval(), x, y) != x
    assert moved.flatten(1).any(1).all()


def test_train_mode_is_seen_and_left_alone():
    model = Good().train()
    before = model.norm.running_mean.clone()
    (finding,) = check_model(model, *images(), num_classes=CLASSES).findings
    assert finding.check == "train mode" and "2 of 2 modules" in finding.message
    assert model.training and model.norm.training and torch.equal(before, model.norm.running_mean)


def test_chance_is_judged_by_the_number_of_images():
    x, y = images(400)
    for right, checks in ((110, ["accuracy"]), (140, [])):  # 27.5 % could be guessing, 35 % could not
        labels = torch.where(torch.arange(400) < right, y, (y + 1) % CLASSES)
        found = check_model(Good().eval(), x, labels, num_classes=CLASSES).findings
        assert [finding.check for finding in found] == checks


# ---- normalisation ------------------------------------------------------------------------------------------------


class Centred(nn.Module):
    """The class is the brightest of the first CLASSES pixels of inputs that reach below zero, as normalised ones do."""

    def __init__(self, sign=1):
        super().__init__()
        self.sign = sign

    def forward(self, x):
        return self.sign * torch.where(x.amin((1, 2, 3))[:, None] < 0, 1, -1) * x.flatten(1)[:, :CLASSES]


class Guess(nn.Module):
    """Another guess for every input."""

    def forward(self, x):
        return torch.sin(x.flatten(1)[:, :CLASSES] * 1e5)


@pytest.mark.parametrize(
    ("model", "dataset", "channels", "message"),
    [
        (Centred(), "npz", 1, r"^0\.0 % of 200 images .* 100\.0 % with --mean 0\.\d+ --std 0\.\d+:"),
        (Centred(), "cifar10", 3, r"with --mean 0\.4914,0\.4822,0\.4465 --std 0\.247,0\.2435,0\.2616:"),
        (Normalised(Centred(), 0.3, 0.2), "npz", 1, None),
        (Centred(-1), "npz", 1, None),
        (Normalised(Centred(-1), 0.3, 0.2), "npz", 1, "100.0 % without the mean and std given or in the file"),
        (Guess(), "npz", 1, None),  # a difference by chance
    ],
)
def test_a_wrong_normalisation_is_found(model, dataset, channels, message):
    x, y = images(200)
    found = check_normalisation(model.eval(), x.expand(-1, channels, -1, -1), y, dataset)
    assert re.search(message, found) if message else found == ""


# ---- after the attacks --------------------------------------------------------------------------------------------


def line(name, robust, stages=(), outside=0, source=None, agreement=None):
    stages = stages or (StageResult(name, "", 100, robust, outside, False, Cost(), agreement=agreement),)
    return StepResult(name, 100, robust, robust, 1000, tuple(stages), source)


def ensemble(square_attacked, left):
    rest = [StageResult(name, "", 100, square_attacked, 0, False, Cost()) for name in ("apgd-ce", "apgd-t", "fab-t")]
    square = StageResult("square", "", square_attacked, left, 0, False, Cost())
    return line("autoattack", left, (*rest, square))


@pytest.mark.parametrize(
    ("results", "check", "said"),
    [
        ([line("clean", 900), line("fgsm", 600), line("pgd20", 500), ensemble(450, 449)], None, ""),
        ([line("fgsm", 500), line("pgd20", 600), line("apgd-ce", 590)], "gradient masking", "50.00 %.*60.00 %"),
        ([line("fgsm", 500), line("pgd40-5", 600)], "gradient masking", "pgd40-5"),
        ([line("fgsm", 500), line("pgd20", 504)], None, ""),
        ([line("fgsm", 500), line("pgd3", 600), line("pgd20-trades", 600)], None, ""),
        ([ensemble(450, 440)], "square", "1.00 points"),
        ([line("pgd20", 500), line("pgd20 from a", 490, source="a")], "gradient masking", "49.00 % robust.*50.00 %"),
        ([line("pgd20", 500), line("pgd20 from a", 496, source="a"), line("cw20 from a", 3, source="a")], None, ""),
        ([line("pgd20", 500, agreement=Agreement(100, 98, 52, 50))], None, ""),
        ([line("pgd20", 500, agreement=Agreement(100, 90, 60, 50))], "precision", "pgd20 fools fewer images"),
        ([line("odd", 500, outside=3)], "ball", "3 results of odd"),
    ],
)
def test_results_that_show_gradient_masking(results, check, said):
    findings = check_results(results)
    assert [finding.check for finding in findings] == ([check] if check else [])
    assert re.search(said, " ".join(map(str, findings)))


@pytest.mark.parametrize(
    ("clean", "robust", "images_of_class", "said"),
    [
        (80.0, 80.0, [80, 20], "it predicts the same class for every image"),  # far above the chance of two classes
        (80.0, 79.0, [80, 20], None),
        (11.0, 3.0, [100] * 10, "its accuracy on 1000 images is 11.00 %, not clearly above chance (10.00 %)"),
        (25.0, 3.0, [100] * 10, None),
    ],
)
def test_a_network_that_has_not_learned_is_recognised(clean, robust, images_of_class, said):
    labels = torch.arange(len(images_of_class)).repeat_interleave(torch.tensor(images_of_class))
    found = collapsed(Accuracy(clean, robust), labels, len(images_of_class))
    assert found == said if said is None else said in found
