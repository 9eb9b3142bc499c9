"""The evaluation: right counts, no trace left, independence of the batch size."""

import pytest
import torch
from tape_graphs import TapeGraphs
from torch import nn

from ard_fast.attacks import PGD
from ard_fast.data import Split
from ard_fast.evaluation import evaluate
from ard_fast.models import build_model

PGD3 = PGD(eps=0.1, step_size=0.05, steps=3, bn="eval")


def digits_like(count=23):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 17, (count, 1, 8, 8), generator=generator).to(torch.uint8)
    return Split(images, torch.randint(0, 10, (count,), generator=generator), torch.arange(count))


class Brightness(nn.Module):
    """Says class 1 where the mean pixel is above one half, else class 0: its robust accuracy is known."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


def test_counts_are_exact_where_the_answer_is_known():
    # Means 4/16, 7.5/16, 9/16, 16/16 with labels 0, 0, 1, 0: the last is wrong; eps 0.05 < 1/16 moves 7.5/16 across.
    images = torch.tensor([4, 7, 9, 16], dtype=torch.uint8).view(4, 1, 1, 1).repeat(1, 1, 8, 8)
    images[1, 0, :4] = 8
    split = Split(images, torch.tensor([0, 0, 1, 0]), torch.arange(4))
    attack = PGD(eps=0.05, step_size=0.02, steps=10, bn="eval")
    assert evaluate(Brightness(), split, levels=16, attack=attack) == (75.0, 50.0)
    assert evaluate(Brightness(), split, levels=16, attack=attack, batch_size=3) == (75.0, 50.0)


def test_nothing_is_left_changed():
    model = build_model("resnet18", in_channels=1, width=4).train()
    model.layer2.eval()
    model.layer3[0].conv1.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    evaluate(model, digits_like(), levels=16, attack=PGD3, batch_size=10)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.layer3[0].conv1.weight.requires_grad and model.conv1.weight.requires_grad
    assert torch.equal(state, torch.get_rng_state())


def test_modes_come_back_after_an_exception():
    model = build_model("digits-teacher").train()

    def stop():
        raise RuntimeError("asked to stop")

    with pytest.raises(RuntimeError, match="asked to stop"):
        evaluate(model, digits_like(), levels=16, attack=PGD3, between_batches=stop)
    assert all(module.training for module in model.modules())


def test_the_batch_size_changes_nothing():
    torch.manual_seed(0)
    model, split = build_model("digits-teacher"), digits_like(64)
    results = {evaluate(model, split, levels=16, attack=PGD3, batch_size=size, seed=5) for size in (64, 7, 1)}
    assert len(results) == 1


def test_an_empty_split_is_refused():
    split = digits_like()
    with pytest.raises(ValueError, match="split: expected at least one image"):
        evaluate(Brightness(), split.take(torch.tensor([], dtype=torch.long)), levels=16, attack=PGD3)


def test_on_a_graph_the_result_is_the_same(monkeypatch):
    model, split = build_model("digits-teacher"), digits_like(70)
    eager = evaluate(model, split, levels=16, attack=PGD3, batch_size=10)
    tape = TapeGraphs()
    monkeypatch.setattr("ard_fast.attacks.graphed.CudaGraphs", lambda: tape)
    assert evaluate(model, split, levels=16, attack=PGD3, batch_size=10) == eager
    assert (tape.warmed_up, tape.replays) == (3, 4)
