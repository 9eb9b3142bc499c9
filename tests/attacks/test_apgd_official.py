"""Auto-PGD against the authors' code (package pyautoattack): the same points, iteration by iteration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ard_fast import functional as F

official = pytest.importorskip("pyautoattack.autopgd_base", reason="pyautoattack is not installed")


class Recorder(nn.Module):
    """A small network that keeps every input it sees."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(75, 40), nn.Tanh(), nn.Linear(40, 30), nn.Tanh())
        self.head = nn.Linear(30, 6)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        # Steep enough for the loss to overshoot, so that step sizes are halved.
        return 8.0 * self.head(self.net(8.0 * x))


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, equation 6)."""
    top = logits.topk(3, dim=1).values
    label = logits.gather(1, y[:, None])[:, 0]
    is_top = logits.argmax(1) == y
    other = torch.where(is_top, top[:, 1], top[:, 0])
    return -(label - other) / (top[:, 0] - top[:, 2] + 1e-12)


LOSSES = {"ce": nn.CrossEntropyLoss(reduction="none"), "dlr": dlr}


@pytest.mark.filterwarnings("ignore:there are")
@pytest.mark.parametrize("steps", [1, 4, 12, 100])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("norm, eps", [("linf", 0.05), ("l2", 0.6)])
def test_the_same_run(norm, eps, loss, steps):
    model = Recorder()
    torch.manual_seed(steps)
    x = torch.rand(40, 3, 5, 5)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::9] = (y[::9] + 1) % 6  # wrong from the start
    start = F.random_start(x, eps=eps / (1 if norm == "linf" else 9), seed=1)

    model.seen.clear()
    theirs = official.APGDAttack(model, n_iter=steps, norm=norm.replace("linf", "Linf").replace("l2", "L2"), eps=eps)
    theirs.loss = loss
    theirs.init_hyperparam(x)
    x_best, acc, loss_best, x_fooled = theirs.attack_single_run(x, y, x_init=start)
    expected = list(model.seen)

    run = F.APGDRun(x, start, eps=eps, norm=norm, steps=steps)
    sizes = []
    for i in range(steps + 1):
        if norm == "linf":
            assert run.x_adv.equal(expected[i]), i
        else:
            # The norms round differently. Going on from the authors' point keeps one step's difference from growing.
            torch.testing.assert_close(run.x_adv, expected[i], rtol=0, atol=3e-6 * eps)
            run.x_adv.copy_(expected[i])
        probe = run.x_adv.detach().clone().requires_grad_()
        logits = model(probe)
        rows = LOSSES[loss](logits, y)
        grad = torch.autograd.grad(rows.sum(), probe)[0]
        correct = logits.argmax(1) == y
        if i < steps:
            run.step(grad, rows, correct)
            sizes.append(run.step_size.clone())
        else:
            run.finish(rows, correct)

    assert len(expected) == steps + 1
    assert run.x_best.equal(x_best) and run.loss_best.equal(loss_best) and run.x_fooled.equal(x_fooled)
    assert run.fooled.equal(acc == 0)
    sizes = torch.stack(sizes)
    if steps == 100:
        assert (sizes[-1] < sizes[0] / 4).any(), "the case does not exercise the halving"
