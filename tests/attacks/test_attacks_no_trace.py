"""No attack leaves a trace: modes, gradients, buffers, random state, inputs; also after an exception."""

import functools
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from attack_cases import ATTACKS, WITHOUT_NOISE, assert_same_snapshot, rng_state, small_net, snapshot, target_for
from torch import nn

from ard_fast import attacks
from ard_fast.attacks.adapters import TorchattacksAdapter


@pytest.fixture
def batch(device):
    """Images, and labels that the small net gets right: those it gets wrong APGD-T leaves alone."""
    x = torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(1)).to(device)
    return x, small_net().to(device).eval()(x).argmax(1)


def mixed_modes(model: nn.Module, frozen: int) -> nn.Module:
    """In train mode but for one frozen module, one parameter that is not trained, one with a gradient already."""
    model.train()
    model[frozen].eval()
    model[0].weight.requires_grad_(False)
    model[5].weight.grad = torch.ones_like(model[5].weight)
    return model


class Stop(BaseException):
    """As an interrupt."""


def fail_in_a_pass(model, at_call):
    """In the forward pass of that number, or "backward" in the first backward pass; returns the hook."""
    calls = []

    def forward(module, inputs, output):
        calls.append(1)
        if len(calls) == at_call:
            raise Stop
        if at_call == "backward" and output.requires_grad:
            output.register_hook(backward)

    def backward(grad):
        raise Stop

    return model[1].register_forward_hook(forward)


@pytest.mark.parametrize("bn", attacks.BN_POLICIES)
@pytest.mark.parametrize("name", ATTACKS)
def test_leaves_no_trace(name, bn, batch, device):
    """Under "train" with a batch norm that its owner has frozen."""
    x, y = batch
    model = mixed_modes(small_net().to(device), frozen=1 if bn == "train" else 3)
    target = target_for(name, y)
    before, image, label = snapshot(model), x.clone(), target.clone()
    x_adv = ATTACKS[name](bn=bn)(model, x, target)
    assert_same_snapshot(before, snapshot(model))
    assert x.equal(image) and target.equal(label) and not x.requires_grad
    assert not x_adv.requires_grad and x_adv.grad_fn is None and not x_adv.is_inference()
    assert x_adv.data_ptr() != x.data_ptr() and x_adv.shape == x.shape and x_adv.dtype == torch.float32
    assert not x_adv.equal(x)
    for at_call in (1, "backward") if name.startswith("fgsm") or name == "n-fgsm" else (1, 2, "backward"):
        before = snapshot(model)
        hook = fail_in_a_pass(model, at_call)
        with pytest.raises(Stop):
            ATTACKS[name](bn=bn)(model, x, target)
        hook.remove()
        assert_same_snapshot(before, snapshot(model))


@pytest.mark.parametrize("name", ATTACKS)
def test_the_seed_decides_and_without_one_a_number_is_drawn(name, batch, device):
    x, y = batch
    model = small_net().to(device)
    attack, target = ATTACKS[name](), target_for(name, y)
    state = rng_state(device)
    once = attack(model, x, target, seed=3)
    # A tensor is the same seed as an int; float32 convolutions repeat their bits on one device.
    torch.testing.assert_close(attack(model, x, target, seed=torch.tensor([3], device=device)), once, rtol=0, atol=1e-6)
    assert attack(model, x, target, seed=4).equal(once) == (name in WITHOUT_NOISE)
    assert rng_state(device).equal(state)
    attack(model, x, target)
    after = rng_state(device)
    (torch.set_rng_state if device.type == "cpu" else torch.cuda.set_rng_state)(state)
    if name not in WITHOUT_NOISE:
        torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=device)
    assert after.equal(rng_state(device))
    # What is around the call does not reach in, inference tensors are taken.
    with torch.no_grad():
        torch.testing.assert_close(attack(model, x, target, seed=3), once)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        mask, ids = torch.ones_like(x, dtype=torch.bool), torch.arange(6, device=device)
        result = attack(model, x.clone(), target.clone(), seed=3, mask=mask, sample_ids=ids)
    torch.testing.assert_close(result, once)


@pytest.mark.parametrize("name", ["pgd", "kl", "apgd"])
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
def test_autocast_layouts_and_empty_batches(name, batch, device):
    """The iterate stays float32 under autocast; the result has the layout of the images, and does not depend on it."""
    x, y = batch
    model = small_net().to(device)
    attack, target = ATTACKS[name](), target_for(name, y)
    with torch.autocast(device.type, torch.bfloat16):
        x_adv = attack(model, x, target)
    assert x_adv.dtype == torch.float32 and not x_adv.isnan().any()
    assert not x_adv.equal(x) and not x_adv.equal(x_adv.bfloat16().float())
    expected = attack(model, x, target, seed=5)
    last = attack(model, x.contiguous(memory_format=torch.channels_last), target, seed=5)
    assert expected.is_contiguous() and last.is_contiguous(memory_format=torch.channels_last)
    # A gradient of another rounding may flip a sign near zero in single pixels.
    assert (last - expected).abs().gt(1e-5).float().mean() < 0.02
    strided = torch.empty(6, 3, 12, 6, device=device)[:, :, ::2].copy_(x)
    assert (attack(model, strided, target, seed=5) - expected).abs().gt(1e-5).float().mean() < 0.02
    assert attack(model, x[:0], target[:0]).shape == (0, 3, 6, 6)


class Around:
    """What people write around a network."""

    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net(x)

    def predict(self, x):
        return self.net(x)


@dataclass(slots=True)
class Slots:
    net: object

    def __call__(self, x):
        return self.net(x)


class Hidden(nn.Module):
    """Keeps what it calls out of its state dict, by a private list or behind the back of `Module`."""

    def __init__(self, **kept):
        super().__init__()
        self.__dict__.update(kept)

    def forward(self, x):
        (kept,) = (value for name, value in vars(self).items() if name.startswith("_kept"))
        return kept[0](x) if isinstance(kept, list) else kept(x)


class Trainer:
    """A network among much else, and an error of its own for names it does not know."""

    def __init__(self, net):
        self.net = net
        self.other = nn.Linear(2, 2)
        self.data = {number: [[] for _ in range(60)] for number in range(60)}

    def __getattr__(self, name):
        return {}[name]

    def __call__(self, x):
        return self.net(x)


named_net = None  # as a notebook has it


def undecorated(x):
    return named_net(x)


def decorated(net):
    @torch.compiler.disable
    def call(x, scale=1.0):
        return scale * net(x)

    return call


CALLABLES = {
    "global": lambda net: lambda x: named_net(x),
    "function of a function": lambda net: lambda x: undecorated(x),
    "comprehension": lambda net: lambda x: sum(each(x) for each in (named_net,)),
    "closure": lambda net: lambda x: net(x),
    "default": lambda net: lambda x, each=net: each(x),
    "decorated": decorated,
    "partial": lambda net: functools.partial(lambda each, x: each(x), net),
    "forward": lambda net: net.forward,
    "method": lambda net: Around(net).predict,
    "slots": Slots,
    "nested": lambda net: Around(Around({"nets": [lambda x: net(x)]}["nets"][0])),
    "module with a private list": lambda net: Hidden(_kept=[net]),
    "module with a hidden module": lambda net: Hidden(_kept=net),
    "module with a function": lambda net: Hidden(_kept=lambda x: net(x)),
    "trainer": Trainer,
}


@pytest.mark.parametrize("name", CALLABLES)
def test_the_modules_behind_a_callable_are_the_model(name, batch, device, monkeypatch):
    x, y = batch
    net = small_net(dropout=0.5).to(device).train()
    monkeypatch.setitem(globals(), "named_net", net)
    model = CALLABLES[name](net)
    for attack in (attacks.PGD(steps=3), attacks.InTurn([attacks.PGD(steps=3)])):
        expected = attack(net, x, y, seed=1)
        before = snapshot(net)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="bn=")
            assert attack(model, x, y, seed=1).equal(expected)
        assert_same_snapshot(before, snapshot(net))
    assert net.training
    moved = net[1].running_mean.clone()
    attacks.PGD(steps=1, bn="train")(CALLABLES[name](net.eval()), x, y)
    assert not net[1].running_mean.equal(moved) and not net.training


def test_all_of_an_ensemble_and_a_target_behind_a_callable(batch, device):
    x, _ = batch
    nets = [small_net(seed, dropout=0.5).to(device) for seed in range(3)]
    before = [snapshot(net) for net in nets]
    attack = attacks.KLPGD(steps=3)
    first = attack(lambda x: sum(net(x) for net in nets[:2]), x, lambda x: nets[2](x), seed=1)
    for net, snap in zip(nets, before, strict=True):
        assert_same_snapshot(snap, snapshot(net))
        net.eval()
    assert first.equal(attack(lambda x: sum(net(x) for net in nets[:2]), x, nets[2], seed=1))


def test_a_model_without_modules_is_said_once(batch):
    x, y = batch
    weights = torch.rand(108, 10)
    attack = attacks.PGD(steps=1)
    with pytest.warns(UserWarning, match="bn='eval' cannot be applied: no torch.nn.Module was found") as said:
        for _ in range(3):
            attack(lambda x: x.flatten(1) @ weights, x, y)
    assert len(said) == 1 and said[0].filename == __file__
    with pytest.warns(UserWarning, match="bn='eval' cannot be applied.* behind the target model"):
        attacks.KLPGD(steps=1)(small_net(), x, lambda x: x.flatten(1) @ weights)


def test_a_child_that_its_owner_keeps_in_eval_mode_is_no_model_of_its_own():
    net = small_net().train()
    net[1].eval()
    with (
        attacks.attack_mode(lambda x: net[2:](net[1](net[0](x))), "train"),
        attacks.attack_mode([net, net[1]].copy, "train"),
    ):
        assert net.training and not net[1].training


def test_a_frozen_network_beside_one_in_train_mode_stays_frozen(batch, device):
    x, y = batch
    student, teacher = small_net().to(device).train(), small_net(seed=5).to(device).eval()
    before, moved = snapshot(teacher), student[1].running_mean.clone()
    attacks.make("ard")(lambda x: student(x) + teacher(x), x, y)
    assert_same_snapshot(before, snapshot(teacher))
    assert not student[1].running_mean.equal(moved)


def test_a_child_that_refers_to_its_owner_is_attacked_alone():
    owner = nn.Module()
    owner.norm, owner.child = nn.BatchNorm2d(3), Hidden(_kept=[owner])
    owner.child.eval()
    with attacks.attack_mode(owner.child, "train"):
        assert owner.child.training
    owner.child.train()
    with attacks.attack_mode(owner.child, "eval"):
        assert owner.norm.training and not owner.child.training


def in_another_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@pytest.mark.parametrize("bn", attacks.BN_POLICIES)
def test_the_last_thread_out_puts_the_mode_back(bn):
    net = small_net().eval() if bn != "eval" else small_net()
    before = snapshot(net)
    with ThreadPoolExecutor(1) as other:
        inside = attacks.attack_mode(net, bn)
        with attacks.attack_mode(net, bn):
            other.submit(inside.__enter__).result()
            with attacks.attack_mode(net, bn):  # the same thread once more
                pass
        assert all(module.training == (bn != "eval") for module in net.modules())
        assert net[1].track_running_stats == (bn != "train_frozen")
        other.submit(inside.__exit__, None, None, None).result()
    assert_same_snapshot(before, snapshot(net))


def test_another_thread_may_put_the_mode_back():
    """The end of a generator, or of what a pool of threads took up."""
    net = small_net()
    before = snapshot(net)
    inside = attacks.attack_mode(net, "eval")
    inside.__enter__()
    in_another_thread(lambda: inside.__exit__(None, None, None))
    assert_same_snapshot(before, snapshot(net))
    with attacks.attack_mode(net, "train"):
        assert net.training


def test_two_policies_at_once_are_refused():
    net = small_net()
    before = snapshot(net)

    def attack():
        with attacks.attack_mode(lambda x: net[1](x), "train"):  # a part of it
            pass

    with attacks.attack_mode(net, "eval"):
        with pytest.raises(RuntimeError, match="bn='train' now: another thread is attacking it with bn='eval'"):
            in_another_thread(attack)
        assert not net.training
        with attacks.attack_mode(net, "train"):  # the same thread may
            assert net.training
            with pytest.raises(RuntimeError, match="bn='eval' now"):
                in_another_thread(lambda: attacks.attack_mode(net, "eval").__enter__())
        assert not net.training
    assert_same_snapshot(before, snapshot(net))
    in_another_thread(attack)


@pytest.mark.parametrize("name", ["pgd", "apgd-t", "in turn", "kl"])
def test_data_parallel_wrappers_are_attacked_without_their_collectives(name, batch, device, tmp_path):
    x, y = batch
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = small_net().to(device)
        model = nn.parallel.DistributedDataParallel(net)
        passes = []
        model.register_forward_pre_hook(lambda *_: passes.append(1))
        target = target_for(name, y)
        assert ATTACKS[name]()(model, x, target, seed=1).equal(ATTACKS[name]()(net, x, target, seed=1))
        adapter = TorchattacksAdapter(model, attacks.PGD(steps=2))
        adapter.set_normalization_used([0.5] * 3, [0.25] * 3)
        adapter.set_mode_targeted_least_likely(quiet=True)
        adapter((x - 0.5) / 0.25, y)
        assert not passes and net.training
        model(x).sum().backward()  # its averaging is where it was
        assert passes and net[0].weight.grad is not None
    finally:
        torch.distributed.destroy_process_group()
