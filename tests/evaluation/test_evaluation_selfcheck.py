"""Each warning of the self-checks: there when its cause is there, absent when all is fine."""

import re

import pytest
import torch
from torch import nn

from ard_fast import attacks
from ard_fast.evaluation.counting import Cost
from ard_fast.evaluation.runner import StageResult, StepResult
from ard_fast.evaluation.selfcheck import SelfCheck, check_model, check_normalisation, check_results
from ard_fast.models import Normalised

CLASSES = 4


def images(count=32):
    """Images whose first CLASSES pixels say the class, faintly."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, 1, 4, 4, generator=generator) * 0.4
    y = torch.arange(count) % CLASSES
    x.flatten(1)[torch.arange(count), y] += 0.5
    return x, y


class Good(nn.Module):
    """Reads the class off the pixels."""

    scale = 3.0

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x):
        return self.scale * self.norm(x).flatten(1)[:, :CLASSES]


class Probabilities(Good):
    def forward(self, x):
        return super().forward(x).softmax(1)


class Saturated(Good):
    scale = 1e4


class Rounded(Good):
    def forward(self, x):
        return super().forward((x * 4).round() / 4)


class Noisy(Good):
    def forward(self, x):
        logits = super().forward(x)
        return logits + 0.1 * torch.randn_like(logits)


class Detached(Good):
    def forward(self, x):
        return super().forward(x.detach()).detach()


class Inverted(Good):
    def forward(self, x):
        return super().forward(1 - x)


class RootOfZero(Good):
    def forward(self, x):
        return super().forward(x) + 0.0 * (x - x).square().sum((1, 2, 3)).sqrt()[:, None]


def names(model, x=None, y=None):
    if x is None:
        x, y = images()
    return [finding.check for finding in check_model(model, x, y, num_classes=CLASSES).findings]


def test_nothing_to_complain_of():
    found = check_model(Good().eval(), *images(), num_classes=CLASSES)
    assert found.findings == [] and found.differentiable
    assert found.measured["zero_gradient_images"] == 0.0 and found.measured["sample_accuracy"] == 100.0
    assert found.measured["randomness"] == 0.0 and found.measured["modules_in_train_mode"] == 0


@pytest.mark.parametrize(
    ("model", "check", "advice"),
    [
        (Probabilities, "probabilities", "return logits"),
        (Saturated, "zero gradient", "margin losses"),
        (Rounded, "zero gradient", "not differentiable"),
        (Noisy, "randomness", "eot=20"),
        (Detached, "no gradient", "square can"),
        (Inverted, "accuracy", "normalisation"),
        (RootOfZero, "gradient", "square root"),
    ],
)
def test_each_model_has_its_warning_and_no_other(model, check, advice):
    torch.manual_seed(0)
    found = check_model(model().eval(), *images(), num_classes=CLASSES)
    assert [finding.check for finding in found.findings] == [check]
    assert advice in str(found.findings[0])


def test_train_mode_is_seen_and_left_alone():
    model = Good().train()
    before = model.norm.running_mean.clone()
    found = check_model(model, *images(), num_classes=CLASSES)
    assert [finding.check for finding in found.findings] == ["train mode"]
    assert "2 of 2 modules" in str(found.findings[0]) and "model.eval()" in str(found.findings[0])
    assert model.training and model.norm.training and torch.equal(before, model.norm.running_mean)


def test_pixels_outside_the_range_are_seen():
    x, y = images()
    assert names(Good().eval(), (x - 0.3) * 2, y) == ["pixels"]
    assert names(Good().eval(), x * 1.2, y) == ["pixels"]
    assert names(Good().eval(), x - x.min() - 3e-8, y) == []


def test_the_count_of_zero_gradients_is_exact():
    class Half(Good):
        def forward(self, x):
            logits = super().forward(x)
            return torch.where(torch.arange(len(x))[:, None] < 8, logits.detach(), logits)

    found = check_model(Half().eval(), *images(32), num_classes=CLASSES)
    assert found.measured["zero_gradient_images"] == 0.25
    assert "8 of 32 images" in str(found.findings[0])


class SureInHalf(Good):
    """Probabilities of 1 - 1e-8: their gradient is 0 in float16, unless it is scaled."""

    def forward(self, x):
        right = super().forward(x).argmax(1, keepdim=True)
        logits = 0.1 * self.norm(x).flatten(1)[:, :CLASSES]
        return (logits + 20.0 * torch.zeros_like(logits).scatter(1, right, 1.0)).half()


def test_attacks_and_the_check_of_gradients_agree_in_float16():
    x, y = images()
    model = SureInHalf().eval()
    assert (attacks.FGSM(eps=0.01)(model, x, y) != x).flatten(1).any(1).all()
    assert "zero gradient" not in names(model)


def test_chance_is_judged_by_the_number_of_images():
    x, y = images(400)
    wrong = (y + 1) % CLASSES
    few = torch.where(torch.arange(400) < 110, y, wrong)  # 27.5 %: guessing would give that
    some = torch.where(torch.arange(400) < 140, y, wrong)  # 35 %: it would not
    assert names(Good().eval(), x, few) == ["accuracy"]
    assert names(Good().eval(), x, some) == []


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: x, "must return logits"),
        (lambda x: (x.flatten(1)[:, :CLASSES],), "got tuple"),
        (lambda x: x.flatten(1)[:, :3], "returns 3 classes, the data set has 4"),
        (lambda x: x.flatten(1)[:, :CLASSES] * float("nan"), "32 of 32 clean images are not finite"),
        (lambda x: nn.functional.linear(x.flatten(1), torch.ones(4, 7)), "cannot take images of shape"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(output, message):
    class Odd(nn.Module):
        def forward(self, x):
            return output(x)

    with pytest.raises(ValueError, match=message):
        check_model(Odd().eval(), *images(), num_classes=CLASSES)


# ---- normalisation ------------------------------------------------------------------------------------------------


class Centred(nn.Module):
    """The class is the brightest of the first CLASSES pixels, for inputs that reach below zero, as normalised do."""

    def forward(self, x):
        return torch.where(x.amin((1, 2, 3))[:, None] < 0, 1, -1) * x.flatten(1)[:, :CLASSES]


def normalisation(model, dataset="npz", channels=1):
    x, y = images(200)
    found = SelfCheck()
    check_normalisation(model.eval(), x.expand(-1, channels, -1, -1), y, dataset, found)
    return [finding.message for finding in found.findings if finding.check == "normalisation"]


def test_weights_for_normalised_images_are_noticed_and_the_option_is_named():
    (message,) = normalisation(Centred())
    assert re.search(r"^0\.0 % of 200 images are right, and 100\.0 % with --mean 0\.\d+ --std 0\.\d+:", message)
    assert normalisation(Normalised(Centred(), 0.3, 0.2)) == []
    (message,) = normalisation(Centred(), "cifar10", channels=3)
    assert "with --mean 0.4914,0.4822,0.4465 --std 0.247,0.2435,0.2616:" in message


def test_a_normalisation_too_many_is_noticed():
    class Pixels(nn.Module):
        def forward(self, x):
            return -Centred()(x)

    assert normalisation(Pixels()) == []
    (message,) = normalisation(Normalised(Pixels(), 0.3, 0.2))
    assert "100.0 % without the mean and std given or in the file" in message


def test_a_gain_by_chance_is_no_finding():
    class Guess(nn.Module):
        """Another guess for every input."""

        def forward(self, x):
            return torch.sin(x.flatten(1)[:, :CLASSES] * 1e5)

    assert normalisation(Guess()) == []


# ---- after the attacks --------------------------------------------------------------------------------------------


def line(name, robust, stages=(), outside=0):
    stages = stages or (StageResult(name, "", 100, robust, outside, False, Cost()),)
    return StepResult(name, 100, robust, robust, 1000, tuple(stages))


def ensemble(square_attacked, left):
    rest = [StageResult(name, "", 100, square_attacked, 0, False, Cost()) for name in ("apgd-ce", "apgd-t", "fab-t")]
    square = StageResult("square", "", square_attacked, left, 0, False, Cost())
    return line("autoattack", left, (*rest, square))


def test_results_that_look_as_they_should():
    assert check_results([line("clean", 900), line("fgsm", 600), line("pgd20", 500), ensemble(450, 449)]) == []


def test_one_step_better_than_many_is_a_sign():
    (finding,) = check_results([line("fgsm", 500), line("pgd20", 600), line("apgd-ce", 590)])
    assert finding.check == "gradient masking" and "50.00 %" in finding.message and "60.00 %" in finding.message
    assert check_results([line("fgsm", 500), line("pgd20", 504)]) == []
    (finding,) = check_results([line("fgsm", 500), line("pgd40-5", 600)])
    assert finding.check == "gradient masking" and "pgd40-5" in finding.message
    assert check_results([line("fgsm", 500), line("pgd3", 600), line("pgd20-trades", 600)]) == []


def test_square_fooling_what_gradients_could_not_is_a_sign():
    (finding,) = check_results([ensemble(450, 440)])
    assert finding.check == "square" and "1.00 points" in finding.message


def test_results_outside_the_ball_are_told():
    (finding,) = check_results([line("odd", 500, outside=3)])
    assert finding.check == "ball" and finding.message.startswith("3 results of odd")
