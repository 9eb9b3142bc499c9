"""PGD: what it computes, in which mode of the model, and what it refuses."""

import pytest
import torch
from attack_cases import small_net
from torch import nn

from ard_fast import attacks, reference
from ard_fast import functional as F


@pytest.fixture
def batch(device):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(6, 3, 6, 6, generator=generator).to(device)
    return x, torch.randint(10, (6,), generator=generator).to(device)


def published_pgd(model, x, y, start, *, eps, step_size, steps, sign=1.0):
    """The loop of the published ARD code from a given start, with the summed cross-entropy."""
    x_adv = start.clone()
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        loss = sign * nn.functional.cross_entropy(model(x_adv), y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, [x_adv])
        x_adv = reference.pgd_linf_step(x_adv.detach(), grad, x, step_size=step_size, eps=eps)
    return x_adv


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("clamp_start", [False, True])
def test_is_the_published_loop(targeted, clamp_start, batch, device):
    x, y = batch
    model = small_net().to(device).eval()
    attack = attacks.PGD(eps=0.1, step_size=0.03, steps=5, targeted=targeted, clamp_start=clamp_start)
    start = F.random_start(x, eps=0.1, clamp=clamp_start, seed=9)
    expected = published_pgd(model, x, y, start, eps=0.1, step_size=0.03, steps=5, sign=-1.0 if targeted else 1.0)
    x_adv = attack(model, x, y, seed=9)
    if device.type == "cpu":
        assert x_adv.equal(expected)
    else:  # cuDNN may choose another algorithm for one of the two runs; a sign near 0 may then flip
        assert (x_adv - expected).abs().gt(1e-6).float().mean() < 0.01


def test_raises_the_loss_inside_the_ball(batch, device):
    x, y = batch
    model = small_net().to(device)
    x_adv = attacks.PGD(eps=8 / 255, step_size=2 / 255, steps=10)(model, x, y)
    assert (x_adv - x).abs().max() <= 8 / 255 + 6e-8
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    model.eval()
    loss = nn.CrossEntropyLoss()
    clean = loss(model(x), y)
    assert loss(model(x_adv), y) > clean
    towards = attacks.PGD(eps=8 / 255, step_size=2 / 255, steps=10, targeted=True)(model, x, y)
    assert loss(model(towards), y) < clean


def test_reaches_the_optimum_of_a_linear_model(device):
    """For a linear model the best point is the corner x + eps * sign(w_t - w_y): PGD must find exactly that loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, 2, bias=False)).to(device)
    x = 0.4 + 0.2 * torch.rand(5, 3, 3, 3, device=device)
    y = torch.tensor([0, 1, 0, 1, 1], device=device)
    x_adv = attacks.PGD(eps=0.1, step_size=0.03, steps=20)(model, x, y)
    weight = model[1].weight.detach()
    best = x + 0.1 * (weight[1 - y] - weight[y]).sign().view_as(x)
    torch.testing.assert_close(x_adv, best, rtol=0, atol=6e-8)


def test_kl_loss_attacks_the_target_distribution(batch, device):
    x, _ = batch
    model = small_net().to(device).eval()
    with torch.no_grad():
        target = model(x)
    x_adv = attacks.PGD(eps=0.1, step_size=0.02, steps=5, loss="kl")(model, x, target)
    assert F.kl_distill_loss(model(x_adv), target) > 10 * F.kl_distill_loss(model(x + 0.001), target)


def test_restarts_keep_the_worst_point_of_each_sample(batch, device):
    x, y = batch
    model = small_net().to(device).eval()
    settings = {"eps": 0.1, "step_size": 0.1, "steps": 1}

    def losses(x_adv):
        return nn.functional.cross_entropy(model(x_adv), y, reduction="none").detach()

    singles = torch.stack([losses(attacks.PGD(**settings)(model, x, y, seed=5 + r)) for r in range(4)])
    several = losses(attacks.PGD(**settings, restarts=4)(model, x, y, seed=5))
    torch.testing.assert_close(several, singles.amax(0))
    assert len(set(singles.argmax(0).tolist())) > 1  # no single restart was the best for all
    targeted = losses(attacks.PGD(**settings, restarts=4, targeted=True)(model, x, y, seed=5))
    assert (targeted <= losses(attacks.PGD(**settings, targeted=True)(model, x, y, seed=5)) + 1e-6).all()


def test_per_sample_eps(batch, device):
    x, y = batch
    eps = torch.tensor([0.0, 0.01, 0.02, 0.05, 0.1, 0.2], device=device)
    x_adv = attacks.PGD(eps=eps, step_size=eps / 4, steps=5)(small_net().to(device), x, y)
    reached = (x_adv - x).abs().flatten(1).amax(1)
    assert x_adv[0].equal(x[0])
    assert (reached <= eps + 6e-8).all() and (reached > eps / 2)[1:].all()


def test_a_sample_is_attacked_alike_in_any_batch(batch, device):
    """In eval mode a sample's result depends on its id and the seed, not on its batch."""
    x, y = batch
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 10)).to(device)
    ids = torch.tensor([10, 20, 30, 40, 50, 60], device=device)
    attack = attacks.PGD(eps=0.1, step_size=0.02, steps=3)
    whole = attack(model, x, y, seed=1, sample_ids=ids)
    part = attack(model, x[[4, 1]], y[[4, 1]], seed=1, sample_ids=ids[[4, 1]])
    torch.testing.assert_close(part, whole[[4, 1]], rtol=0, atol=6e-8)


def test_batch_norm_policies(batch, device):
    x, y = batch
    seen = {}
    for bn in attacks.BN_POLICIES:
        model = small_net().to(device)
        used = []
        model[1].register_forward_hook(lambda module, inputs, output, used=used: used.append(output.mean().item()))
        before = model[1].running_mean.clone()
        attacks.PGD(steps=4, bn=bn, random_start=False)(model, x, y)
        seen[bn] = used[0]
        moved = not model[1].running_mean.equal(before)
        assert moved == (bn == "train")
        assert model[1].num_batches_tracked == (4 if bn == "train" else 0)
    # Batch statistics centre the output of batch norm, running ones (at their start) do not.
    assert abs(seen["train"]) < 1e-5 and abs(seen["train_frozen"]) < 1e-5 and abs(seen["eval"]) > 1e-3


def test_train_policies_respect_frozen_modules(batch, device):
    x, y = batch
    for bn in ("train", "train_frozen"):
        model = small_net().to(device).train()
        model[1].eval()
        before = model[1].running_mean.clone()
        attacks.PGD(steps=2, bn=bn)(model, x, y)
        assert model[1].running_mean.equal(before) and not model[1].training


@pytest.mark.parametrize(
    "message, settings, error",
    [
        ("norm must be one of 'linf', 'l2', got 'l1'", {"norm": "l1"}, ValueError),
        ("loss must be one of 'ce', 'kl', 'margin', 'dlr', 'dlr_targeted', got 'mse'", {"loss": "mse"}, ValueError),
        ("bn must be one of 'eval', 'train', 'train_frozen', got 'off'", {"bn": "off"}, ValueError),
        ("steps must be an int of at least 1, got 0", {"steps": 0}, ValueError),
        ("steps must be an int of at least 1, got 2.5", {"steps": 2.5}, ValueError),
        ("restarts must be an int", {"restarts": 0}, ValueError),
        ("restarts must be 1 without random_start", {"restarts": 2, "random_start": False}, ValueError),
        ("eps must be finite and at least 0, got -1.0", {"eps": -1}, ValueError),
        ("step_size must be a number, got str", {"step_size": "2/255"}, TypeError),
        ("bounds must be", {"bounds": (1, 0)}, ValueError),
    ],
)
def test_bad_settings(message, settings, error):
    with pytest.raises(error, match=message):
        attacks.PGD(**settings)


X, Y = torch.rand(2, 3, 6, 6), torch.tensor([1, 2])


@pytest.mark.parametrize(
    "message, model, x, y, settings, error",
    [
        ("x must be float32, got torch.float16", None, X.half(), Y, {}, TypeError),
        ("x must be float32, got torch.uint8", None, X.byte(), Y, {}, TypeError),
        (r"x must have shape \[B, ...\], got \(2,\)", None, X[:, 0, 0, 0], Y, {}, ValueError),
        ("y must be int64 labels for loss='ce', got torch.float32", None, X, X[:, 0, 0], {}, TypeError),
        (r"y must have shape \[2\] for loss='ce', got \(1,\)", None, X, Y[:1], {}, ValueError),
        (r"y must be target logits \[B, C\] for loss='kl', got torch.int64", None, X, Y, {"loss": "kl"}, TypeError),
        (r"y must have shape \[2, C\] for loss='kl'", None, X, X[:1, 0, 0], {"loss": "kl"}, ValueError),
        (r"model must return logits of shape \[2, C\], got \(2, 3, 6, 6\)", nn.Identity(), X, Y, {}, ValueError),
        ("model must return logits .* got tuple", lambda x: (x,), X, Y, {}, ValueError),
    ],
)
def test_bad_inputs(message, model, x, y, settings, error):
    with pytest.raises(error, match=message):
        attacks.PGD(**settings)(model or small_net(), x, y)
