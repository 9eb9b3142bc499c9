"""PGD: what it computes, and that it leaves no trace."""

import pytest
import torch
from torch import nn

from ard_fast import attacks, reference
from ard_fast import functional as F


def small_net(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(8 * 36, 10),
    )


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


def snapshot(model):
    return {
        "modes": [m.training for m in model.modules()],
        "tracking": [m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d)],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "state": {k: v.clone() for k, v in model.state_dict().items()},
    }


def assert_same_snapshot(before, after, *, buffers=True):
    for key in ("modes", "tracking", "requires_grad"):
        assert before[key] == after[key]
    for a, b in zip(before["grads"], after["grads"], strict=True):
        assert (a is None and b is None) or a.equal(b)
    for name, value in before["state"].items():
        if buffers or ("running" not in name and "num_batches" not in name):
            assert value.equal(after["state"][name]), name


@pytest.mark.parametrize("bn", attacks.BN_POLICIES)
@pytest.mark.parametrize("training", [True, False])
def test_leaves_no_trace(bn, training, batch, device):
    x, y = batch
    model = small_net().to(device).train(training)
    model[0].weight.requires_grad_(False)
    model[5].weight.grad = torch.ones_like(model[5].weight)
    before, image = snapshot(model), x.clone()
    x_adv = attacks.PGD(steps=3, bn=bn)(model, x, y)
    assert_same_snapshot(before, snapshot(model), buffers=bn != "train")
    assert x.equal(image) and not x_adv.requires_grad and x_adv.grad_fn is None
    assert x_adv.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("bn", attacks.BN_POLICIES)
def test_leaves_no_trace_after_an_exception(bn, batch, device):
    x, y = batch
    model = small_net().to(device).train()
    model[1].eval()
    before = snapshot(model)
    calls = []

    def fail_at_the_second(module, inputs):
        calls.append(module.training)
        if len(calls) == 2:
            raise KeyboardInterrupt

    hook = model[5].register_forward_pre_hook(fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        attacks.PGD(steps=3, bn=bn)(model, x, y)
    hook.remove()
    assert len(calls) == 2
    assert_same_snapshot(before, snapshot(model), buffers=bn != "train")


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


def test_weights_get_no_gradient_work(batch, device):
    """The backward pass of the attack computes input gradients only: a third of a training step's work is left out."""
    x, y = batch
    model = nn.Sequential(small_net()[0], nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 10)).to(device)
    masks = []

    class RecordConvolutions(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution_backward.default:
                masks.append(tuple(args[-1]))
            return func(*args, **(kwargs or {}))

    with RecordConvolutions():
        attacks.PGD(steps=2)(model, x, y)
    assert masks == [(True, False, False)] * 4
    assert all(parameter.grad is None for parameter in model.parameters())


def test_inside_no_grad_and_inference_mode(batch, device):
    x, y = batch
    model = small_net().to(device)
    attack = attacks.PGD(steps=3)
    expected = attack(model, x, y, seed=2)
    with torch.no_grad():
        inside = attack(model, x, y, seed=2)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(inside, expected)
    with torch.inference_mode():
        torch.testing.assert_close(attack(model, x.clone(), y.clone(), seed=2), expected)


def test_random_numbers_used(batch, device):
    """One draw from torch's generator without a seed, none with one."""
    x, y = batch
    model = small_net().to(device)
    state = torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state()

    def current():
        return torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state()

    attacks.PGD(steps=2)(model, x, y, seed=1)
    assert current().equal(state)
    attacks.PGD(steps=2, random_start=False)(model, x, y)
    assert current().equal(state)
    attacks.PGD(steps=2)(model, x, y)
    assert not current().equal(state)


def test_autocast_keeps_the_iterate_in_float32(batch, device):
    x, y = batch
    model = small_net().to(device)
    with torch.autocast(device.type, torch.bfloat16):
        x_adv = attacks.PGD(eps=0.1, step_size=0.03, steps=4)(model, x, y)
    assert x_adv.dtype == torch.float32
    assert ((x_adv - x).abs() <= 0.1 + 6e-8).all()
    # Every pixel moved by whole float32 steps: none is rounded to bfloat16.
    assert not x_adv.equal(x_adv.bfloat16().float())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_keeps_the_memory_format(memory_format, batch, device):
    x, y = batch
    x = x.contiguous(memory_format=memory_format)
    x_adv = attacks.PGD(steps=2)(small_net().to(device), x, y)
    assert x_adv.is_contiguous(memory_format=memory_format)


def test_empty_batch(device):
    x = torch.empty(0, 3, 6, 6, device=device)
    y = torch.empty(0, dtype=torch.int64, device=device)
    assert attacks.PGD()(small_net().to(device), x, y).shape == x.shape


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
