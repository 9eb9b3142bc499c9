"""The package in other processes: pickled functions and modules, and workers of a DataLoader, forked and spawned."""

import copy
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from ard_fast import attacks, losses
from ard_fast import functional as F

IMAGES = torch.arange(4 * 3 * 32 * 32, dtype=torch.float32).reshape(4, 3, 32, 32) / (4 * 3 * 32 * 32)


class Perturbed(Dataset):
    """Operators called in the worker, on more than one thread if it is allowed."""

    def __init__(self, threads=1):
        self.threads = threads

    def __len__(self):
        return 4

    def __getitem__(self, index):
        torch.set_num_threads(self.threads)
        x = IMAGES.repeat(16, 1, 1, 1)  # enough elements for several threads
        x_adv = F.random_start(x, eps=0.1, seed=index)
        F.pgd_linf_step_(x_adv, x - 0.5, x, step_size=0.05, eps=0.1)
        return x_adv, F.kl_distill_loss(x_adv.flatten(1), x.flatten(1))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader(method):
    expected = [Perturbed()[index] for index in range(4)]  # uses the threads of this process before it forks
    loader = DataLoader(Perturbed(), batch_size=None, num_workers=1, multiprocessing_context=method, timeout=120)
    for got, wanted in zip(loader, expected, strict=True):
        assert all(a.equal(b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies(copied):
    """What a user would send to another process."""
    x, y = IMAGES[:, :, :8, :8], torch.tensor([0, 1, 2, 3])
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
    logits, teacher = model(x).detach(), torch.randn(4, 5)
    for name in F.__all__:
        assert copied(getattr(F, name)) is getattr(F, name)
    loss = losses.ARDLoss(alpha=0.5, temperature=3.0)
    given = {"teacher_logits": teacher, "student_logits": logits, "labels": y}
    assert copied(loss)(logits, **given).equal(loss(logits, **given))
    for attack in (
        attacks.PGD(eps=0.1, step_size=0.02, steps=2, restarts=2),
        attacks.APGD(eps=0.1, steps=3),
        attacks.MIFGSM(eps=0.1, step_size=0.02, steps=2),
    ):
        assert copied(attack)(model, x, y, seed=1).equal(attack(model, x, y, seed=1))
    gradient = F.attack_gradient(logits, y, with_rows=True)
    assert all(a.equal(b) for a, b in zip(copied(gradient), gradient, strict=True))
    run = F.APGDRun(x, x, eps=0.1, steps=2)
    arguments = x - 0.5, torch.zeros(4), torch.ones(4, dtype=torch.bool)
    run.step(*arguments)
    other = copied(run)
    assert other.step(*arguments).equal(run.step(*arguments))
