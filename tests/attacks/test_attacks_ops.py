"""What a step costs outside the network: one operation on images, none that waits for the device."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ard_fast import attacks

BATCH, PIXELS, CLASSES = 4, 48, 10

# name -> attack of K steps, and the operators on images that one step may run.
STEPS = {
    "pgd": (lambda k, **s: attacks.PGD(steps=k, **s), ["pgd_linf_step_"]),
    "pgd margin": (lambda k, **s: attacks.PGD(steps=k, loss="margin", **s), ["pgd_linf_step_"]),
    "pgd dlr": (lambda k, **s: attacks.PGD(steps=k, loss="dlr", **s), ["pgd_linf_step_"]),
    "pgd kl": (lambda k, **s: attacks.KLPGD(steps=k, **s), ["pgd_linf_step_"]),
    "pgd l2": (lambda k, **s: attacks.PGD(steps=k, norm="l2", **s), ["pgd_l2_step_"]),
    "mifgsm": (lambda k, **s: attacks.MIFGSM(steps=k, step_size=0.01, **s), ["mifgsm_step_"]),
    "apgd": (lambda k, **s: attacks.APGD(steps=k, **s), ["apgd_step_"]),
    "apgd l2 dlr": (lambda k, **s: attacks.APGD(steps=k, norm="l2", loss="dlr", **s), ["apgd_step_"]),
    "apgd dlr_targeted": (lambda k, **s: attacks.APGD(steps=k, loss="dlr_targeted", **s), ["apgd_step_"]),
}
SYNCS = ("_local_scalar_dense", "nonzero", "index.Tensor", "masked_select", "item", "is_nonzero", "equal")


class Counted(TorchDispatchMode):
    """Names of the operations that run outside the network, and of those that touch tensors as large as the images."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = False
        self.all: list[str] = []
        self.on_images: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        if tensors and not self.inside and not is_view:
            name = func._schema.name.split("::")[1]
            name += f".{func._schema.overload_name}" if func._schema.overload_name else ""
            self.all.append(name)
            if any(t.numel() >= BATCH * PIXELS for t in tensors):
                self.on_images.append(name)
        return result


class Network(torch.autograd.Function):
    """A linear layer whose own operations, forward and backward, are not counted."""

    @staticmethod
    def forward(ctx, x, weight, mode):
        mode.inside = True
        ctx.mode, ctx.shape = mode, x.shape
        ctx.save_for_backward(weight)
        logits = x.flatten(1) @ weight
        mode.inside = False
        return logits

    @staticmethod
    def backward(ctx, grad):
        ctx.mode.inside = True
        (weight,) = ctx.saved_tensors
        grad = (grad @ weight.t()).view(ctx.shape)
        ctx.mode.inside = False
        return grad, None, None


class Model(torch.nn.Module):
    """`Network` as a module: behind a bare callable images might see one another, which costs operations."""

    def __init__(self, weight, mode):
        super().__init__()
        self.weight, self.mode = weight, mode

    def forward(self, x):
        return Network.apply(x, self.weight, self.mode)


@pytest.fixture
def case(device):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, 3, 4, 4, generator=generator).to(device)
    weight = torch.randn(PIXELS, CLASSES, generator=generator).to(device)
    return x, weight, (x.flatten(1) @ weight).argmax(1)


def count(attack, case, **call) -> Counted:
    x, weight, y = case
    if attack.loss == "kl":
        y = torch.nn.functional.one_hot(y, CLASSES).float()
    mode = Counted()
    seed = torch.tensor([0], device=x.device)
    with mode:
        attack(Model(weight, mode), x, y, seed=seed, **call)
    return mode


def difference(more: list[str], fewer: list[str]) -> list[str]:
    rest = list(more)
    for name in fewer:
        rest.remove(name)
    return rest


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_one_operation_on_images_and_waits_for_nothing(name, case, device):
    make, expected = STEPS[name]
    longer, shorter = count(make(12), case), count(make(11), case)
    assert difference(longer.on_images, shorter.on_images) == expected
    # Besides it, the gradient at the logits; and nothing else, on tensors of any size.
    assert len(difference(longer.all, shorter.all)) == 2
    assert not [op for op in longer.all if op.startswith(SYNCS)]
    mask = torch.ones(3, 4, 4, dtype=torch.bool, device=device)
    longer, shorter = count(make(12), case, mask=mask), count(make(11), case, mask=mask)
    assert sorted(difference(longer.on_images, shorter.on_images)) == sorted([*expected, "mul.Tensor"])


def test_restarts_wait_for_nothing_and_select_in_one_operation(case):
    found = count(attacks.PGD(steps=2, restarts=3), case)
    assert not [op for op in found.all if op.startswith(SYNCS)]
    assert sorted(found.on_images) == sorted(["random_start"] * 3 + ["pgd_linf_step_"] * 6 + ["select_best_"] * 2)
