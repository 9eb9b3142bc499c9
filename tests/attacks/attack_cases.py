"""What the tests of the attacks share: each attack with few steps, a small model, the traces an attack could leave."""

from __future__ import annotations

import torch
from torch import nn

from ard_fast import attacks
from ard_fast.data.splits import load_digits

# Each attack with few steps; `call` in test files adds what else it needs.
ATTACKS = {
    "pgd": lambda **s: attacks.PGD(eps=0.1, step_size=0.03, steps=3, **s),
    "pgd l2": lambda **s: attacks.PGD(eps=0.5, step_size=0.2, steps=3, norm="l2", **s),
    "pgd margin": lambda **s: attacks.PGD(eps=0.1, step_size=0.03, steps=2, loss="margin", **s),
    "pgd dlr": lambda **s: attacks.PGD(eps=0.1, step_size=0.03, steps=2, loss="dlr", **s),
    "pgd dlr_targeted": lambda **s: attacks.PGD(eps=0.1, step_size=0.03, steps=2, loss="dlr_targeted", **s),
    "pgd restarts": lambda **s: attacks.PGD(eps=0.1, step_size=0.03, steps=2, restarts=2, **s),
    "pgd eot": lambda **s: attacks.PGD(eps=0.1, step_size=0.03, steps=2, eot=2, **s),
    "fgsm": lambda **s: attacks.FGSM(eps=0.1, **s),
    "fgsm l2": lambda **s: attacks.FGSM(eps=0.5, norm="l2", **s),
    "mifgsm": lambda **s: attacks.MIFGSM(eps=0.1, steps=3, **s),
    "cw": lambda **s: attacks.CWLinf(eps=0.1, step_size=0.03, steps=3, **s),
    "kl": lambda **s: attacks.KLPGD(eps=0.1, step_size=0.03, steps=3, **s),
    "fgsm-rs": lambda **s: attacks.FGSMRS(eps=0.1, **s),
    "n-fgsm": lambda **s: attacks.NFGSM(eps=0.1, **s),
    "apgd": lambda **s: attacks.APGD(eps=0.1, steps=4, **s),
    "apgd l2 dlr": lambda **s: attacks.APGD(eps=0.5, steps=4, norm="l2", loss="dlr", **s),
    "apgd restarts": lambda **s: attacks.APGD(eps=0.02, steps=2, restarts=2, **s),
    "apgd-t": lambda **s: attacks.APGDT(eps=0.02, steps=2, n_targets=2, **s),
    "in turn": lambda **s: attacks.InTurn([attacks.FGSM(eps=0.005, **s), attacks.APGD(eps=0.02, steps=2, **s)]),
}
WITHOUT_NOISE = ("fgsm", "fgsm l2", "mifgsm")


def small_net(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    """A convolution, batch norm and a linear layer: 10 logits of `[B, 3, 6, 6]`."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(8 * 36, 10),
    )


def target_for(name: str, y: torch.Tensor) -> torch.Tensor:
    """What the attack of that name takes as y: labels, or logits that stand for them."""
    return 8.0 * nn.functional.one_hot(y, 10).float() if name == "kl" else y


def snapshot(model: nn.Module) -> dict:
    """All that an attack could leave a trace in."""
    return {
        "modes": [m.training for m in model.modules()],
        "tracking": [m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d)],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "state": {k: v.clone() for k, v in model.state_dict().items()},
    }


def assert_same_snapshot(before: dict, after: dict) -> None:
    """Nothing has changed."""
    for key in ("modes", "tracking", "requires_grad", "hooks"):
        assert before[key] == after[key], key
    for a, b in zip(before["grads"], after["grads"], strict=True):
        assert (a is None and b is None) or a.equal(b)
    for name, value in before["state"].items():
        assert value.equal(after["state"][name]), name


def rng_state(device: torch.device) -> torch.Tensor:
    """The state of torch's generator of the device."""
    return torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)


def distances(x_adv: torch.Tensor, x: torch.Tensor, norm: str) -> torch.Tensor:
    """How far each sample is from its clean image, `[B]`, in float64."""
    delta = (x_adv.double() - x.double()).flatten(1)
    return delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)


def evaluation_images(count: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    """Digits `[count, 1, 8, 8]` that are not in the training split, and their labels."""
    data = load_digits()
    images = torch.cat([data.test.images, data.val.images])[:count].float() / data.levels
    return images, torch.cat([data.test.labels, data.val.labels])[:count]
