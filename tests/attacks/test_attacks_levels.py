"""Attacks of 8-bit images: every iterate is one, in the ball counted in levels, and a PNG holds the same image."""

import io

import numpy as np
import pytest
import torch
from attack_cases import small_net
from PIL import Image

from ard_fast import attacks
from ard_fast.functional import _levels

LEVELS = torch.randint(0, 256, (6, 3, 6, 6), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
EIGHT = {
    "pgd": attacks.PGD(eps=7.905 / 255, step_size=1.2 / 255, steps=4, levels=255),
    "margin": attacks.CWLinf(eps=7 / 255, steps=2, levels=255),
    "trades": attacks.KLPGD(eps=7 / 255, step_size=0.003, steps=3, clamp_start=True, std=0.01, levels=255),
    "fgsm": attacks.FGSM(eps=7 / 255, levels=255),
    "fgsm-rs": attacks.FGSMRS(eps=7 / 255, levels=255),
    "mifgsm": attacks.MIFGSM(eps=7 / 255, steps=5, levels=255),
    "apgd": attacks.APGD(eps=7 / 255, steps=12, levels=255),
    "apgd-t": attacks.APGDT(eps=7 / 255, steps=6, n_targets=2, restarts=2, drop_every=2, levels=255),
}


@pytest.fixture
def network():
    return small_net().eval()


@pytest.mark.parametrize("name", EIGHT)
def test_every_iterate_is_an_image_of_8_bits(name, network):
    seen, attack = [], EIGHT[name]
    x, y = LEVELS.float() / 255, torch.tensor([0, 1, 2, 3, 4, 5])

    def model(images):
        seen.append(images.detach().clone())
        return network(images)

    y = None if name == "trades" else network(x).argmax(1)
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[0, 0] = False
    x_adv = attack(model, x * (1 + 1e-7), y, seed=0, mask=mask)  # such as comes back from a normalised form
    farthest = 0
    for iterate in (*seen, x_adv):
        stored = (iterate * 255).round().to(torch.uint8)
        assert iterate.equal(stored.float() / 255)
        if len(stored) == len(x):
            moved = (stored.long() - LEVELS.long()).abs()
            farthest = max(farthest, int(moved.max()))
            assert not moved[:, :, 0, 0].any()
    assert farthest == 7 and not x_adv.equal(x)
    for image in x_adv:
        file = io.BytesIO()
        Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(file, "png")
        assert torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float().div(255).equal(image)


def test_sizes_become_whole_levels():
    attack = EIGHT["pgd"]
    assert "eps=7/255, step_size=2/255" in repr(attack) and "levels=255" in repr(attack)
    assert (attack.eps, attack.step_size) == (7 / 255, 2 / 255) and attack.at_eps(0.5 + 7 / 255).eps == 134 / 255
    rows = attacks.PGD(eps=torch.tensor([8, 7.9, 0.5]) / 255, step_size=torch.tensor([0.0, 0.1, 2.3]) / 255, levels=255)
    assert (rows.eps * 255).tolist() == [8, 7, 0] and (rows.step_size * 255).tolist() == [0, 1, 3]
    for k in range(256):  # each as float64, as float32, and as eight digits say it
        for eps in (k / 255, float(torch.tensor(k / 255)), float(f"{k / 255:.8f}")):
            assert _levels.whole_radius(eps, 255) == k / 255


def test_what_is_no_image_of_8_bits_is_refused(network):
    x, y = torch.full((1, 3, 6, 6), 0.5), torch.tensor([0])
    with pytest.raises(
        ValueError, match=r"x must hold whole levels, k/255 \(levels=255\), got 0.5, which is 127.50/255"
    ):
        EIGHT["pgd"](network, x, y)
    with pytest.raises(ValueError, match="clamp_start must be True with levels"):
        attacks.PGD(clamp_start=False, levels=255)
    with pytest.raises(ValueError, match="levels must be None for norm='l2'"):
        attacks.APGD(norm="l2", levels=255)
    with pytest.raises(ValueError, match=r"eps must be at least 1/255 .* got 0.001: less than one"):
        attacks.FGSM(eps=0.001, levels=255)
