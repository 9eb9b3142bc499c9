"""APGD with `drop_every`: samples that are fooled leave the batch, and the others do not notice."""

import pytest
import torch
from torch import nn

from ard_fast import attacks
from ard_fast import functional as F

BATCH, CLASSES = 24, 6


class Counting(nn.Module):
    """A convolution and a linear layer; counts the images it is given. Rows do not depend on one another."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(100, CLASSES))
        self.images = 0

    def forward(self, x):
        self.images += len(x)
        # One image after another: the same rounding in any batch.
        return torch.cat([self.features(image[None]) for image in x])


@pytest.fixture
def victim():
    model = Counting().eval()
    x = torch.rand(BATCH, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    model.images = 0
    return model, x, y


CASES = {
    "linf ce": (attacks.APGD, {"eps": 0.1, "norm": "linf", "loss": "ce"}),
    "linf dlr": (attacks.APGD, {"eps": 0.1, "norm": "linf", "loss": "dlr"}),
    "l2 ce": (attacks.APGD, {"eps": 0.45, "norm": "l2", "loss": "ce"}),
    "targets": (attacks.APGDT, {"eps": 0.1, "norm": "linf", "n_targets": 3}),
    "eps a sample": (attacks.APGD, {"eps": torch.linspace(0.02, 0.2, BATCH)}),
    "restarts": (attacks.APGD, {"eps": 0.1, "restarts": 2}),
}


@pytest.mark.parametrize("every", [1, 3, 40])
@pytest.mark.parametrize("case", CASES)
def test_the_same_samples_are_fooled_for_fewer_passes(case, every, victim):
    kind, settings = CASES[case]
    model, x, y = victim
    whole = kind(steps=25, **settings)(model, x, y, seed=3)
    all_images, model.images = model.images, 0
    dropping = kind(steps=25, drop_every=every, **settings)(model, x, y, seed=3)
    with torch.no_grad():
        images, fooled, expected = model.images, model(dropping).argmax(1) != y, model(whole).argmax(1) != y
    assert 0 < expected.sum() < BATCH
    assert fooled.equal(expected)
    # A sample that was not fooled went through the very same run.
    assert dropping[~fooled].equal(whole[~fooled])
    assert images < all_images if every < 25 else images == all_images
    distance = (dropping - x).flatten(1)
    norm = distance.abs().amax(1) if settings.get("norm") != "l2" else distance.norm(dim=1)
    assert (norm <= settings["eps"] + 6e-8).all()
    assert dropping.min() >= 0 and dropping.max() <= 1


def test_nothing_is_left_to_do_when_all_are_fooled(victim):
    model, x, y = victim
    x_adv = attacks.APGD(eps=1.0, steps=50, drop_every=1)(model, x, y, seed=0)
    assert model.images < 10 * BATCH
    with torch.no_grad():
        assert (model(x_adv).argmax(1) != y).all()


def test_a_mask_and_channels_last(victim):
    model, x, y = victim
    mask = torch.zeros(5, 5, dtype=torch.bool)
    mask[:, :4] = True
    settings = {"eps": 0.15, "steps": 12}
    whole = attacks.APGD(**settings)(model, x, y, seed=1, mask=mask)
    last = x.contiguous(memory_format=torch.channels_last)
    dropping = attacks.APGD(drop_every=2, **settings)(model, last, y, seed=1, mask=mask)
    assert dropping.is_contiguous(memory_format=torch.channels_last)
    assert dropping[..., 4].equal(x[..., 4])
    with torch.no_grad():
        fooled = model(whole).argmax(1) != y
        assert (model(dropping).argmax(1) != y).equal(fooled)
    assert 0 < fooled.sum() < BATCH
    torch.testing.assert_close(dropping[~fooled], whole[~fooled], rtol=0, atol=1e-6)


def test_a_run_goes_on_with_some_of_its_samples():
    x, grads = torch.rand(6, 3), torch.randn(9, 6, 3)
    losses, correct = torch.randn(9, 6), torch.rand(9, 6) > 0.3
    whole = F.APGDRun(x, x, eps=torch.linspace(0.1, 0.4, 6), steps=8)
    part, index = F.APGDRun(x, x, eps=torch.linspace(0.1, 0.4, 6), steps=8), torch.arange(6)
    for step in range(8):
        if step in (2, 5):
            stay = torch.arange(len(index))[1:]
            part, index = part.take(stay), index[stay]
        whole.step(grads[step], losses[step], correct[step])
        part.step(grads[step][index], losses[step][index], correct[step][index])
        assert part.x_adv.equal(whole.x_adv[index])
        assert part.state.equal(whole.state[:, index])
    whole.finish(losses[8], correct[8])
    part.finish(losses[8][index], correct[8][index])
    for name in ("x_best", "x_fooled", "fooled", "loss_best", "step_size"):
        value = getattr(whole, name)
        assert getattr(part, name).equal(value[index])


def test_a_run_that_was_taken_from_is_over():
    x = torch.rand(4, 3)
    run = F.APGDRun(x, x, eps=0.1, steps=3)
    run.step(torch.randn(4, 3), torch.zeros(4), torch.ones(4, dtype=torch.bool))
    run.take(torch.tensor([1]))
    with pytest.raises(RuntimeError, match="finished"):
        run.step(torch.randn(4, 3), torch.zeros(4), torch.ones(4, dtype=torch.bool))


@pytest.mark.parametrize("value", [-1, 1.5, True])
def test_bad_values_are_refused(value):
    with pytest.raises(ValueError, match="drop_every"):
        attacks.APGD(drop_every=value)
