"""What --graph comes to: by device, processes and method."""

import pytest
import torch
from distillation_cases import make_method, make_teacher

from ard_fast.attacks import GraphedPGD
from ard_fast.training.config import resolve
from ard_fast.training.distributed import World
from ard_fast.training.graph_choice import choose_graph, graph_attack

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
ALONE, TWO = World(), World(rank=0, size=2)


def choose(wanted="auto", *, device=CUDA, world=ALONE, name="at", sync_bn=True, **settings):
    teachers = [make_teacher()] if name in ("ard", "fair-ard", "fast-ard") else []
    return choose_graph(wanted, device, make_method(name, *teachers, **settings), world, sync_bn=sync_bn)


def test_auto():
    assert choose(device=CPU).mode == "off"
    assert choose().mode == "iteration"
    assert choose(name="free").mode == "iteration" and choose(name="natural").mode == "iteration"
    assert choose(world=TWO).mode == "attack"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"attack_bn": "train"}, "exchanges statistics"),
        ({"attack_bn": "train_frozen"}, "exchanges statistics"),
        ({"name": "fair-ard"}, "steps_correct"),
        ({"name": "free"}, "no attack apart from its update"),
        ({"name": "natural"}, "no attack apart from its update"),
    ],
)
def test_several_processes_go_without_where_an_attack_cannot_be_captured(settings, why):
    choice = choose(world=TWO, **settings)
    assert choice.mode == "off" and why in choice.describe()
    with pytest.raises(ValueError, match=f"graph: the attack of method .* cannot be captured: .*{why}"):
        choose("attack", world=TWO, **settings)


def test_without_synchronised_batch_norm_an_attack_exchanges_nothing():
    assert choose(world=TWO, sync_bn=False, attack_bn="train").mode == "attack"


def test_what_is_asked_for():
    assert choose("off").mode == "off" and choose("off", device=CPU).mode == "off"
    assert choose("attack").mode == "attack" and choose("attack", attack_bn="train").mode == "attack"
    assert choose("iteration").mode == "iteration"
    for wanted in ("attack", "iteration"):
        with pytest.raises(ValueError, match=f"graph: expected auto or off on device cpu.*'{wanted}'"):
            choose(wanted, device=CPU)
    with pytest.raises(ValueError, match="graph: iteration needs a run of one process, got 2"):
        choose("iteration", world=TWO)
    with pytest.raises(ValueError, match="graph: unknown value 'iterations'; did you mean 'iteration'"):
        resolve({"method": "at", "graph": "iterations"})


def test_the_words():
    assert choose(device=CPU).describe() == "no CUDA graph (the device is not a GPU)"
    assert "the whole step is one CUDA graph" in choose().describe()
    assert choose(world=TWO).describe() == "the attack is one CUDA graph (2 processes)"


def test_an_attack_is_put_into_a_graph_where_it_can_be():
    method = make_method("n-fgsm")
    words = method.conventions()
    assert graph_attack(method) and isinstance(method.inner_attack, GraphedPGD)
    assert method.conventions() == words
    for name in ("fair-ard", "fast-ard"):
        assert not graph_attack(make_method(name, make_teacher()))
