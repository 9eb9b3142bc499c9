"""A sample's result is its own: the batch around it, its radius, the mask, the subset that is still standing."""

import pytest
import torch
from attack_cases import ATTACKS, small_net, target_for
from torch import nn

from ard_fast import attacks


@pytest.fixture
def batch(device):
    x = torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(1)).to(device)
    return x, small_net().to(device).eval()(x).argmax(1)


def assert_same_samples(actual, expected):
    """Other batch sizes round the network's sums in another way, which may flip a sign near zero."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().gt(1e-5).float().mean() < 0.02


@pytest.mark.parametrize("name", ATTACKS)
def test_a_sample_is_attacked_alike_in_any_batch(name, batch, device):
    x, y = batch
    model = small_net().to(device)
    target = target_for(name, y)
    ids = torch.tensor([10, 20, 30, 40, 50, 60], device=device)
    attack = ATTACKS[name]()
    whole = attack(model, x, target, seed=1, sample_ids=ids)
    for chosen in ([4, 1], [0], [5, 3, 2]):
        part = attack(model, x[chosen], target[chosen], seed=1, sample_ids=ids[chosen])
        assert_same_samples(part, whole[chosen])
    order = torch.tensor([3, 0, 5, 1, 4, 2], device=device)
    assert_same_samples(attack(model, x[order], target[order], seed=1, sample_ids=ids[order]), whole[order])


@pytest.mark.parametrize("name", ATTACKS)
def test_a_sample_keeps_its_own_radius(name, batch, device):
    x, y = batch
    model = small_net().to(device)
    target = target_for(name, y)
    attack = ATTACKS[name]()
    radii = getattr(attack, "eps", 0.02) * torch.tensor([0.5, 1.0, 1.5, 0.25, 0.0, 2.0], device=device)
    together = attack.at_eps(radii)(model, x, target, seed=1)
    for i, eps in enumerate(radii.tolist()):
        ids = torch.tensor([i], device=device)
        alone = attack.at_eps(eps)(model, x[i : i + 1], target[i : i + 1], seed=1, sample_ids=ids)
        assert_same_samples(together[i : i + 1], alone)
    if name != "kl":  # whose start does not depend on the radius
        assert together[4].equal(x[4])


@pytest.mark.parametrize("name", ATTACKS)
def test_only_masked_pixels_change(name, batch, device):
    x, y = batch
    model, attack, target = small_net().to(device), ATTACKS[name](), target_for(name, y)
    for shape in ((6, 3, 6, 6), (1, 1, 6, 6), (6, 1, 1, 1), (6, 6)) if name == "pgd" else ((6, 6),):
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)).lt(0.5).to(device)
        x_adv = attack(model, x, target, seed=1, mask=mask)
        outside = ~mask.expand(x.shape)
        assert x_adv[outside].equal(x[outside])
        assert not x_adv.equal(x)
    everywhere = torch.ones(1, dtype=torch.bool, device=device)
    assert_same_samples(attack(model, x, target, seed=1, mask=everywhere), attack(model, x, target, seed=1))


def test_subsets_keep_per_sample_radius_mask_and_noise(batch, device):
    """What several runs do on the samples left is what they do on those samples alone."""
    x, y = batch
    model = small_net().to(device)
    eps = torch.tensor([0.002, 0.05, 0.004, 0.05, 0.006, 0.008], device=device)
    mask = torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(3)).lt(0.7).to(device)
    ids = torch.arange(6, device=device) + 100
    for attack in (
        attacks.APGD(eps=eps, steps=3, restarts=3),
        attacks.APGDT(eps=eps, steps=3, n_targets=3),
        attacks.InTurn([attacks.FGSM(eps=eps), attacks.APGD(eps=eps, steps=3)]),
    ):
        whole = attack(model, x, y, seed=1, sample_ids=ids, mask=mask)
        assert ((whole - x).abs().flatten(1).amax(1) <= eps + 6e-8).all()
        assert whole[~mask].equal(x[~mask])
        for i in range(6):
            index = torch.tensor([i], device=device)
            one = {"seed": 1, "sample_ids": ids[index], "mask": mask[index]}
            alone = attack.for_samples(index)(model, x[index], y[index], **one)
            assert_same_samples(whole[index], alone)


# --- APGD with `drop_every`: samples that are fooled leave the batch, and the others do not notice --------------------

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


MASK = torch.tensor([True, True, True, True, False])
CASES = {  # class, settings and mask
    "linf ce": (attacks.APGD, {"eps": 0.1, "norm": "linf", "loss": "ce"}, None),
    "linf dlr": (attacks.APGD, {"eps": 0.1, "norm": "linf", "loss": "dlr"}, None),
    "l2 ce": (attacks.APGD, {"eps": 0.45, "norm": "l2", "loss": "ce"}, None),
    "targets": (attacks.APGDT, {"eps": 0.1, "norm": "linf", "n_targets": 3}, None),
    "eps a sample": (attacks.APGD, {"eps": torch.linspace(0.02, 0.2, BATCH)}, None),
    "restarts": (attacks.APGD, {"eps": 0.1, "restarts": 2}, None),
    "mask": (attacks.APGD, {"eps": 0.15}, MASK),
}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_dropping_fools_the_same_samples_for_fewer_passes(case, every, victim):
    kind, settings, mask = CASES[case]
    model, x, y = victim
    x = x.contiguous(memory_format=torch.channels_last)
    whole = kind(steps=16, **settings)(model, x, y, seed=3, mask=mask)
    all_images, model.images = model.images, 0
    dropping = kind(steps=16, drop_every=every, **settings)(model, x, y, seed=3, mask=mask)
    with torch.no_grad():
        images, fooled, expected = model.images, model(dropping).argmax(1) != y, model(whole).argmax(1) != y
    assert 0 < expected.sum() < BATCH
    assert fooled.equal(expected)
    # A sample that was not fooled went through the very same run.
    assert dropping[~fooled].equal(whole[~fooled])
    assert images < all_images and dropping.is_contiguous(memory_format=torch.channels_last)
    if mask is not None:
        assert dropping[..., ~mask].equal(x[..., ~mask])
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
