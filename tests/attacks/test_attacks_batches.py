"""A sample's result is its own: the batch around it, its radius, the mask, the subset that is still standing."""

import pytest
import torch
from attack_cases import ATTACKS, small_net, target_for

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


@pytest.mark.parametrize("shape", [(6, 3, 6, 6), (1, 1, 6, 6), (6, 1, 1, 1), (6, 6)])
@pytest.mark.parametrize("name", ATTACKS)
def test_only_masked_pixels_change(name, shape, batch, device):
    x, y = batch
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)).lt(0.5).to(device)
    x_adv = ATTACKS[name]()(small_net().to(device), x, target_for(name, y), seed=1, mask=mask)
    outside = ~mask.expand(x.shape)
    assert x_adv[outside].equal(x[outside])
    assert not x_adv.equal(x)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_mask_of_all_pixels_is_none(name, batch, device):
    x, y = batch
    model = small_net().to(device)
    attack, target = ATTACKS[name](), target_for(name, y)
    everywhere = torch.ones(1, dtype=torch.bool, device=device)
    assert_same_samples(attack(model, x, target, seed=1, mask=everywhere), attack(model, x, target, seed=1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_l2_and_momentum_norms_are_those_of_the_masked_gradient(norm, batch, device):
    """With few pixels the whole step goes into them."""
    x, y = batch
    x = 0.4 + 0.2 * x
    mask = torch.zeros(3, 6, 6, dtype=torch.bool, device=device)
    mask[1, 2:4] = True
    model = small_net().to(device)
    if norm == "l2":
        x_adv = attacks.FGSM(eps=0.2, norm="l2")(model, x, y, mask=mask)
        torch.testing.assert_close((x_adv - x).flatten(1).norm(dim=1), torch.full((6,), 0.2, device=device))
        return
    # Momentum adds gradients of unit L1 norm: with the norm over all pixels the first would weigh otherwise.
    model.eval()

    def gradient(images):
        probe = images.clone().requires_grad_()
        return torch.autograd.grad(torch.nn.functional.cross_entropy(model(probe), y, reduction="sum"), probe)[0] * mask

    x_adv, momentum = x, torch.zeros_like(x)
    for _ in range(4):
        grad = gradient(x_adv)
        momentum = momentum + grad / grad.abs().sum((1, 2, 3), keepdim=True)
        x_adv = (x_adv + 0.05 * momentum.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    assert_same_samples(attacks.MIFGSM(eps=0.1, step_size=0.05, steps=4)(model, x, y, mask=mask), x_adv)


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
