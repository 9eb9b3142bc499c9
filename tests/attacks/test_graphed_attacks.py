"""Attacks as graphs: on CUDA as CUDA graphs, on the CPU on recorded ones."""

import copy
import gc
import pickle
import threading
import warnings
import weakref

import pytest
import torch
from attack_cases import ATTACKS, small_net, target_for
from tape_graphs import TapeGraphs
from torch import nn

from ard_fast import attacks
from ard_fast.attacks import GraphedPGD
from ard_fast.attacks.cuda_graph import CudaGraphs, GraphWarning
from ard_fast.folding import FoldedNetwork
from ard_fast.methods.fair_ard import CountingPGD

WAITING = ("apgd restarts", "apgd-t", "in turn")


@pytest.fixture(autouse=True)
def no_surprise():
    """A warning that a test does not expect fails it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", GraphWarning)
        yield


def backend_for(device):
    return CudaGraphs() if device.type == "cuda" else TapeGraphs()


def graph_of(attack, device, warm_up=1):
    return GraphedPGD(attack, backend=backend_for(device), warm_up=warm_up)


def batch(device, size=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(size, 3, 6, 6, generator=generator), torch.randint(10, (size,), generator=generator)
    return x.to(device), y.to(device)


def check(graphed, model, calls, *, size=6, target=None, memory_format=torch.contiguous_format, **options):
    """Some calls of it give what the attack gives, with a training step after each."""
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for call in range(calls):
        x, y = batch(device, size, seed=call)
        x = x.contiguous(memory_format=memory_format)
        y = y if target is None else target(y)
        twin = copy.deepcopy(model)
        expected = graphed.attack(twin, x, y, seed=call, **options)
        got = graphed(model, x, y, seed=call, **options)
        assert torch.equal(got, expected), call
        assert got.stride() == expected.stride() and not got.requires_grad
        for (name, ours), theirs in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs), name
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(got), y if y.dim() == 1 else y.argmax(1)).backward()
        optimizer.step()


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in WAITING])
def test_equals_the_attack(name, device):
    for bn in attacks.BN_POLICIES if name in ("pgd", "kl", "apgd") else ("train",):
        graphed = graph_of(ATTACKS[name](bn=bn), device)
        check(graphed, small_net().to(device), 3, target=lambda y: target_for(name, y))
        assert graphed.replays == 2


def test_layouts_masks_ids_classes_and_autocast(device):
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.bool, device=device)
    mask[..., 2:4] = True
    last = torch.channels_last
    for name, options in (
        ("pgd", {"memory_format": last}),
        ("apgd", {"memory_format": last}),
        ("pgd", {"mask": mask, "sample_ids": torch.arange(6, device=device) + 100}),
        ("pgd dlr_targeted", {"mask": mask, "target_classes": torch.full((6,), 3, device=device)}),
    ):
        graphed = graph_of(ATTACKS[name](), device)
        model = small_net().to(device, memory_format=options.get("memory_format", torch.contiguous_format))
        check(graphed, model, 3, **options)
        assert graphed.replays == 2
    graphed = graph_of(ATTACKS["pgd"](), device)
    with torch.autocast(device.type, torch.bfloat16):
        check(graphed, small_net().to(device), 3)
    assert graphed.replays == 2


@pytest.mark.parametrize("name", ["kl", "pgd", "pgd dlr_targeted"])
def test_the_models_own_predictions_as_targets(name, device):
    model, graphed = small_net().to(device), graph_of(ATTACKS[name](), device)
    for call in range(3):
        x, _ = batch(device, seed=call)
        assert torch.equal(graphed(model, x, seed=call), graphed.attack(model, x, seed=call))
    assert graphed.replays == 2


def test_a_target_model_whose_weights_move(device):
    model, teacher = small_net().to(device), small_net(1).to(device)
    graphed = graph_of(ATTACKS["kl"](), device)
    for call in range(4):
        x, _ = batch(device, seed=call)
        assert torch.equal(graphed(model, x, teacher, seed=call), graphed.attack(model, x, teacher, seed=call))
        if call == 2:
            teacher[5].weight.data = torch.randn_like(teacher[5].weight)
    assert graphed.replays == 3
    assert teacher.training


def test_starts_differ_without_a_seed_and_follow_torchs_generator(device):
    model, graphed = small_net().to(device), graph_of(ATTACKS["pgd"](), device)
    x, y = batch(device)
    torch.manual_seed(0)
    replayed = [graphed(model, x, y) for _ in range(4)]
    torch.manual_seed(0)
    for one in replayed:  # each the caller's own, not the graph's memory
        assert torch.equal(one, graphed.attack(model, x, y))
    assert not torch.equal(replayed[-1], replayed[-2])


def test_changes_of_the_attack_the_modes_and_the_weights_are_captured_anew(device):
    eps = torch.linspace(0.0, 0.2, 6, device=device)
    model, graphed = small_net().to(device), graph_of(attacks.PGD(eps=eps, steps=3, bn="train"), device)
    check(graphed, model, 2)
    eps.mul_(0.5)  # in place: the same graph
    check(graphed, model, 1)
    assert graphed.replays == 2
    graphed.attack.step_size = 0.001
    check(graphed, model, 2)
    assert graphed.replays == 3
    model[1].eval()
    check(graphed, model, 2)
    assert graphed.replays == 4
    model[0].weight.data = torch.randn_like(model[0].weight)
    check(graphed, model, 1)
    model[5] = nn.Linear(288, 10, device=device)
    check(graphed, model, 1)
    model[1].running_mean = torch.randn(8, device=device)
    check(graphed, model, 1)
    assert graphed.replays == 7  # captured in the same call, and replayed
    model[1].eps = 0.5  # no tensor: has to be said
    graphed.forget()
    check(graphed, model, 2)


def test_each_size_of_batch_and_each_model_is_a_kind(device):
    models, graphed = [small_net(seed).to(device) for seed in range(3)], graph_of(ATTACKS["pgd"](), device)
    for _ in range(3):
        for model in models:
            check(graphed, model, 1)
    for size in (2, 6, 2):
        check(graphed, models[0], 1, size=size)
    assert graphed.replays == 8
    assert graphed(models[0], *batch(device, 0)).shape == (0, 3, 6, 6)


def test_a_dead_model_takes_its_graphs_along(device):
    model, graphed = small_net().to(device), graph_of(ATTACKS["pgd"](), device)
    check(graphed, model, 3)
    gone, weight = weakref.ref(model), weakref.ref(model[0].weight)
    gc.disable()
    try:
        del model
        assert gone() is None and weight() is None
        assert not graphed._functions
    finally:
        gc.enable()


def test_in_threads_they_take_turns(device):
    model, graphed = small_net().to(device).eval(), graph_of(ATTACKS["pgd"](), device)
    expected = {seed: graphed.attack(model, *batch(device, seed=seed), seed=seed) for seed in range(8)}
    failures = []

    def work(first):
        try:
            stream = torch.cuda.Stream(device) if device.type == "cuda" else None
            with torch.cuda.stream(stream):
                for seed in range(first, 8, 2):
                    assert torch.equal(graphed(model, *batch(device, seed=seed), seed=seed), expected[seed])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and graphed.replays == 7


def test_copies_hold_the_attack_only(device):
    graphed = graph_of(ATTACKS["pgd"](), device)
    check(graphed, small_net().to(device), 2)
    for twin in (copy.deepcopy(graphed), pickle.loads(pickle.dumps(graphed))):
        assert repr(twin) == repr(graphed) == f"GraphedPGD({graphed.attack!r})"
        assert twin.replays == 0 and not twin._functions


@pytest.mark.parametrize(
    "attack, error, reason",
    [
        (attacks.APGD(restarts=2), ValueError, "it waits for the device between restarts"),
        (attacks.APGD(drop_every=5), ValueError, "it waits for the device to drop samples"),
        (attacks.APGDT(), ValueError, "it waits for the device between targets"),
        (CountingPGD(), ValueError, "it leaves steps_correct on itself"),
        (attacks.InTurn([attacks.FGSM()]), TypeError, "it must be a GradientAttack"),
        (nn.Identity(), TypeError, "it must be a GradientAttack"),
    ],
)
def test_what_cannot_be_captured_is_refused_by_name(attack, error, reason):
    with pytest.raises(error, match=rf"attack cannot be captured: {reason}.*got {type(attack).__name__}\("):
        GraphedPGD(attack)
    assert attacks.as_graph(attack) is attack


class Wrapped:
    """A model that is no module and says what it reads."""

    def __init__(self, model):
        self.model = model

    def __call__(self, x):
        return self.model(x)

    def fixed_tensors(self):
        return [*self.model.parameters(), *self.model.buffers()]


def test_a_callable_is_captured_if_it_says_what_it_reads_else_attacked_eagerly_after_one_warning(device):
    model, graphed = small_net().to(device).eval(), graph_of(ATTACKS["pgd"](), device)
    wrapped = Wrapped(model)
    for call in range(4):
        x, y = batch(device, seed=call)
        assert torch.equal(graphed(wrapped, x, y, seed=call), graphed.attack(model, x, y, seed=call))
        if call == 1:
            model[0].weight.data = torch.randn_like(model[0].weight)
    assert graphed.replays == 3
    expected = graphed.attack(model, x, y, seed=1)
    with pytest.warns(GraphWarning, match="function is not a module, so that its modes and weights") as caught:
        for _ in range(3):
            assert torch.equal(graphed(lambda images: model(images), x, y, seed=1), expected)
    assert len(caught) == 1 and caught[0].filename == __file__ and graphed.replays == 3


def test_a_folded_network_and_its_refresh(device):
    """Of a norm that stands alone, too."""
    model = nn.Sequential(nn.BatchNorm2d(3), *small_net()).to(device)
    graphed = graph_of(ATTACKS["pgd"](), device)
    folded = FoldedNetwork(model, batch(device)[0])
    for call in range(4):
        x, y = batch(device, seed=call)
        assert torch.equal(graphed(folded, x, y, seed=call), graphed.attack(folded, x, y, seed=call))
        with torch.no_grad():
            model[1].weight.add_(torch.randn_like(model[1].weight), alpha=0.1)
        folded.refresh()
    assert graphed.replays == 3


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"y": [1, 2]}, "y must be a tensor"),
        ({"mask": True}, "mask must be a bool tensor"),
        ({"mask": torch.ones(6, 1, 1, 1, dtype=torch.bool, device="meta")}, "mask must be on the device of x"),
        ({"seed": "one"}, "seed must be an int"),
    ],
)
def test_wrong_arguments_are_the_attacks_errors(arguments, error, device):
    graphed, model = graph_of(ATTACKS["pgd"](), device), small_net().to(device)
    x, y = batch(device)
    for _ in range(3):
        with pytest.raises((TypeError, ValueError), match=error):
            graphed(model, x, **{"y": y, **arguments})
    check(graphed, model, 2)


def test_a_model_that_waits_is_attacked_eagerly_after_one_warning(device):
    class Waits(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_net()

        def forward(self, x):
            return self.net(x) * (1.0 + x.amax().item())

    model, graphed = Waits().to(device), graph_of(ATTACKS["pgd"](), device)
    x, y = batch(device)
    expected = graphed.attack(model, x, y, seed=1)
    assert torch.equal(graphed(model, x, y, seed=1), expected)
    with pytest.warns(GraphWarning, match=r"PGD\(.*runs without a CUDA graph: its capture failed with NotCapturable"):
        assert torch.equal(graphed(model, x, y, seed=1), expected)
    # The state of the generator and of the device is that of a run in which nothing was tried.
    torch.manual_seed(0)
    first = graphed(model, x, y)
    torch.manual_seed(0)
    assert torch.equal(first, graphed.attack(model, x, y))
    assert model.training and graphed.replays == 0
