"""No attack leaves a trace: modes, gradients, buffers, random state, inputs; also after an exception."""

import pytest
import torch
from attack_cases import ATTACKS, WITHOUT_NOISE, assert_same_snapshot, rng_state, small_net, snapshot, target_for
from torch import nn

from ard_fast import attacks


@pytest.fixture
def batch(device):
    """Images, and labels that the small net gets right: those it gets wrong APGD-T leaves alone."""
    x = torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(1)).to(device)
    return x, small_net().to(device).eval()(x).argmax(1)


def mixed_modes(model: nn.Module) -> nn.Module:
    """In train mode but for one frozen module, one parameter that is not trained, one with a gradient already."""
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[5].weight.grad = torch.ones_like(model[5].weight)
    return model


@pytest.mark.parametrize("bn", attacks.BN_POLICIES)
@pytest.mark.parametrize("name", ATTACKS)
def test_leaves_no_trace(name, bn, batch, device):
    x, y = batch
    model = mixed_modes(small_net().to(device))
    target = target_for(name, y)
    before, image, label = snapshot(model), x.clone(), target.clone()
    x_adv = ATTACKS[name](bn=bn)(model, x, target)
    assert_same_snapshot(before, snapshot(model), buffers=bn != "train")
    assert x.equal(image) and target.equal(label) and not x.requires_grad
    assert not x_adv.requires_grad and x_adv.grad_fn is None and not x_adv.is_inference()
    assert x_adv.data_ptr() != x.data_ptr() and x_adv.shape == x.shape and x_adv.dtype == torch.float32
    assert not x_adv.equal(x)


@pytest.mark.parametrize("name", ATTACKS)
def test_only_the_train_policy_moves_batch_norm(name, batch, device):
    x, y = batch
    for bn in attacks.BN_POLICIES:
        model = small_net().to(device)
        before = model[1].running_mean.clone()
        ATTACKS[name](bn=bn)(model, x, target_for(name, y))
        assert model[1].running_mean.equal(before) == (bn != "train")


@pytest.mark.parametrize("at_call", [1, 2])
@pytest.mark.parametrize("bn", attacks.BN_POLICIES)
@pytest.mark.parametrize("name", ATTACKS)
def test_leaves_no_trace_after_an_exception(name, bn, at_call, batch, device):
    if at_call == 2 and "fgsm" in name and name != "mifgsm":
        pytest.skip("calls the model once")
    x, y = batch
    model = mixed_modes(small_net().to(device))
    calls = []

    def fail(module, inputs):
        calls.append(1)
        if len(calls) == at_call:
            raise KeyboardInterrupt

    model[5].register_forward_pre_hook(fail)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        ATTACKS[name](bn=bn)(model, x, target_for(name, y))
    assert len(calls) == at_call
    assert_same_snapshot(before, snapshot(model), buffers=bn != "train")


@pytest.mark.parametrize("name", ATTACKS)
def test_leaves_no_trace_after_an_exception_in_the_backward_pass(name, batch, device):
    x, y = batch
    model = mixed_modes(small_net().to(device))

    def fail(grad):
        raise KeyboardInterrupt

    def watch(module, inputs, output):
        if output.requires_grad:
            output.register_hook(fail)

    model[1].register_forward_hook(watch)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        ATTACKS[name]()(model, x, target_for(name, y))
    assert_same_snapshot(before, snapshot(model))


@pytest.mark.parametrize("name", ATTACKS)
def test_random_numbers_used(name, batch, device):
    """One draw from torch's generator without a seed, none with one, none without noise. Python's is left alone."""
    x, y = batch
    model = small_net().to(device)
    attack, target = ATTACKS[name](), target_for(name, y)
    state = rng_state(device)
    attack(model, x, target, seed=1)
    assert rng_state(device).equal(state)
    attack(model, x, target)
    after = rng_state(device)
    if name in WITHOUT_NOISE:
        assert after.equal(state)
    else:
        (torch.set_rng_state if device.type == "cpu" else torch.cuda.set_rng_state)(state)
        torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=device)
        assert after.equal(rng_state(device)) and not after.equal(state)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_seed_decides(name, batch, device):
    x, y = batch
    model = small_net().to(device)
    attack, target = ATTACKS[name](), target_for(name, y)
    once = attack(model, x, target, seed=3)
    # A tensor is the same seed as an int; float32 convolutions repeat their bits on one device.
    torch.testing.assert_close(attack(model, x, target, seed=torch.tensor([3], device=device)), once, rtol=0, atol=1e-6)
    assert attack(model, x, target, seed=4).equal(once) == (name in WITHOUT_NOISE)


@pytest.mark.parametrize("name", ATTACKS)
def test_inside_no_grad_and_inference_mode(name, batch, device):
    x, y = batch
    model = small_net().to(device)
    attack, target = ATTACKS[name](), target_for(name, y)
    expected = attack(model, x, target, seed=2)
    with torch.no_grad():
        inside = attack(model, x, target, seed=2)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(inside, expected)
    with torch.inference_mode():
        mask = torch.ones_like(x, dtype=torch.bool)
        ids = torch.arange(6, device=device)
        result = attack(model, x.clone(), target.clone(), seed=2, mask=mask, sample_ids=ids)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("name", ATTACKS)
def test_weights_get_no_gradient_work(name, batch, device):
    x, _ = batch
    model = nn.Sequential(small_net()[0], nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 10)).to(device)
    y = model(x).argmax(1)
    wanted = []

    class RecordConvolutions(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution_backward.default:
                wanted.append(tuple(args[-1]))
            return func(*args, **(kwargs or {}))

    with RecordConvolutions():
        ATTACKS[name]()(model, x, target_for(name, y))
    assert wanted and set(wanted) == {(True, False, False)}
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_iterate_in_float32(name, dtype, batch, device):
    x, y = batch
    model = small_net().to(device)
    with torch.autocast(device.type, dtype):
        assert model(x).dtype == dtype
        x_adv = ATTACKS[name]()(model, x, target_for(name, y))
    assert x_adv.dtype == torch.float32 and not x_adv.isnan().any()
    assert not x_adv.equal(x) and not x_adv.equal(x_adv.to(dtype).float())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ATTACKS)
def test_layouts(name, memory_format, batch, device):
    """The result has the layout of the images, and does not depend on it."""
    x, y = batch
    model = small_net().to(device)
    attack, target = ATTACKS[name](), target_for(name, y)
    expected = attack(model, x, target, seed=5)
    x_adv = attack(model, x.contiguous(memory_format=memory_format), target, seed=5)
    assert x_adv.is_contiguous(memory_format=memory_format)
    # A gradient of another rounding may flip a sign near zero in single pixels.
    assert (x_adv - expected).abs().gt(1e-5).float().mean() < 0.02
    strided = torch.empty(6, 3, 12, 6, device=device)[:, :, ::2].copy_(x)
    assert (attack(model, strided, target, seed=5) - expected).abs().gt(1e-5).float().mean() < 0.02


@pytest.mark.parametrize("name", ATTACKS)
def test_empty_batch(name, device):
    x = torch.empty(0, 3, 6, 6, device=device)
    y = torch.empty(0, dtype=torch.int64, device=device)
    target = torch.empty(0, 10, device=device) if name == "kl" else y
    assert ATTACKS[name]()(small_net().to(device), x, target).shape == x.shape
