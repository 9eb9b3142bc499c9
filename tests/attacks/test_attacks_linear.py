"""On a linear model the distance to the boundary is known: attacks succeed just beyond it, and stay in their budget."""

import pytest
import torch
from attack_cases import distances
from torch import nn

from ard_fast import attacks

PIXELS = (3, 5, 4)
CLASSES = 5

# name -> attack at a radius
ATTACKS = {
    "pgd": lambda eps, **s: attacks.PGD(eps=eps, step_size=eps / 4, steps=20, **s),
    "pgd margin": lambda eps, **s: attacks.PGD(eps=eps, step_size=eps / 4, steps=20, loss="margin", **s),
    "pgd dlr": lambda eps, **s: attacks.PGD(eps=eps, step_size=eps / 4, steps=20, loss="dlr", **s),
    "pgd from x": lambda eps, **s: attacks.PGD(eps=eps, step_size=eps / 4, steps=20, random_start=False, **s),
    "pgd restarts": lambda eps, **s: attacks.PGD(eps=eps, step_size=eps / 4, steps=10, restarts=3, **s),
    "fgsm": lambda eps, **s: attacks.FGSM(eps=eps, **s),
    "mifgsm": lambda eps, **s: attacks.MIFGSM(eps=eps, **s),
    "cw": lambda eps, **s: attacks.CWLinf(eps=eps, step_size=eps / 4, steps=20, **s),
    "kl": lambda eps, **s: attacks.KLPGD(eps=eps, step_size=eps / 4, steps=20, **s),
    "fgsm-rs": lambda eps, **s: attacks.FGSMRS(eps=eps, **s),
    "apgd": lambda eps, **s: attacks.APGD(eps=eps, steps=20, **s),
    "apgd dlr": lambda eps, **s: attacks.APGD(eps=eps, steps=20, loss="dlr", **s),
    "apgd-t": lambda eps, **s: attacks.APGDT(eps=eps, steps=20, **s),
}
L2 = ("pgd", "pgd margin", "fgsm", "kl", "apgd", "apgd dlr", "apgd-t")
CASES = [("linf", name) for name in ATTACKS] + [("l2", name) for name in L2]


class Linear(nn.Module):
    """Logits (m, -m, c, c, c) with the margin m = w (x - centre) and classes 2, 3, 4 out of reach."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.w = nn.Parameter(torch.randn(PIXELS, generator=generator))

    def margin(self, x: torch.Tensor) -> torch.Tensor:
        return ((x - 0.5) * self.w).flatten(1).sum(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        m = self.margin(x)
        far = torch.full_like(m, -30.0)
        return torch.stack([m, -m, far, far, far], 1)

    def distance(self, x: torch.Tensor, norm: str) -> torch.Tensor:
        """To the boundary m = 0, by the dual norm, far from the limits of the pixel range: `[B]`."""
        dual = self.w.abs().sum() if norm == "linf" else self.w.norm()
        return (self.margin(x).abs() / dual).detach()


def problem(size: int, device: torch.device) -> tuple[Linear, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    model = Linear().to(device)
    x = 0.35 + 0.3 * torch.rand(size, *PIXELS, generator=generator).to(device)
    return model, x, model(x).argmax(1)


def goal(name: str, y: torch.Tensor, targeted: bool) -> torch.Tensor:
    """The class to leave or to reach, for "kl" as logits."""
    y = 1 - y if targeted else y
    return 20.0 * nn.functional.one_hot(y, CLASSES).float() if name == "kl" else y


def attack_for(norm: str, name: str, eps: torch.Tensor | float, **settings) -> attacks.GradientAttack:
    return ATTACKS[name](eps, **settings, **({"norm": norm} if norm == "l2" else {}))


def check(norm, name, model, x, y, eps, fooled, targeted=False, **call):
    settings = {"targeted": True} if targeted else {}
    x_adv = attack_for(norm, name, eps, **settings)(model, x, goal(name, y, targeted), seed=0, **call)
    assert model(x_adv).argmax(1).equal(1 - y if fooled else y)
    assert (distances(x_adv, x, norm) <= torch.as_tensor(eps).double() + 6e-8).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    return x_adv


@pytest.mark.parametrize("norm, name", CASES)
def test_succeeds_just_beyond_the_optimal_distance_and_not_below(norm, name, device):
    for size in (1, 8):
        model, x, y = problem(size, device)
        distance = model.distance(x, norm)
        check(norm, name, model, x, y, 1.25 * distance, fooled=True)
        check(norm, name, model, x, y, 1.25 * distance.max().item(), fooled=True)
        check(norm, name, model, x, y, 0.95 * distance, fooled=False)
        if name != "apgd-t":  # has its own targets
            check(norm, name, model, x, y, 1.25 * distance, fooled=True, targeted=True)


@pytest.mark.parametrize("norm, name", CASES)
def test_masked_attacks_succeed_with_the_pixels_they_have(norm, name, device):
    """The optimum with a mask is the same with w cut to it; pixels elsewhere keep their bits."""
    model, x, y = problem(8, device)
    mask = torch.zeros(PIXELS, dtype=torch.bool, device=device)
    mask[:, :4] = True
    w = model.w.detach() * mask
    dual = w.abs().sum() if norm == "linf" else w.norm()
    eps = 1.25 * model.margin(x).detach().abs() / dual
    x_adv = check(norm, name, model, x, y, eps, fooled=True, mask=mask)
    assert x_adv[:, ~mask].equal(x[:, ~mask])
    assert x_adv.min() > 0 and x_adv.max() < 1  # else the pixel range would make the optimum another one
