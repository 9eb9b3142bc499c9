"""Data sets by name, and the digits: fixed disjoint splits."""

import zlib

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ard_fast.data import Split, load_dataset
from ard_fast.data.splits import hold_out, pixels

# ---- digits -------------------------------------------------------------------------------------------------------


class _Divisors(TorchDispatchMode):
    """Keeps what tensors were divided by."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.div.Tensor:
            self.found.append(args[1])
        return func(*args, **(kwargs or {}))


def test_pixels_have_the_same_bits_on_every_device(device):
    images = torch.arange(256, dtype=torch.uint8, device=device)
    for levels in (1, 16, 100, 255):
        with _Divisors() as divisors:
            x = pixels(images, levels)
        assert x.dtype == torch.float32
        assert (x.cpu().numpy() == np.arange(256, dtype=np.float32) / np.float32(levels)).all()
        # CUDA kernels multiply by the reciprocal of a number, which gives other bits
        assert [divisor.device.type for divisor in divisors.found] == [device.type]


def test_digits_splits_are_disjoint_stratified_and_whole():
    digits = load_dataset("digits")
    ids = [set(split.ids.tolist()) for split in (digits.train, digits.val, digits.test)]
    assert [len(part) for part in ids] == [1078, 269, 450]
    assert len(set.union(*ids)) == 1797
    for split in (digits.val, digits.test):
        share = torch.bincount(split.labels, minlength=10) / len(split)
        assert (share - 0.1).abs().max() < 0.01
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.images.max() == digits.levels == 16
    assert digits.image_shape == (1, 8, 8)


def test_digits_split_never_changes():
    digits = load_dataset("digits")
    # A change here makes every figure measured before incomparable.
    assert digits.test.ids[:8].tolist() == [3, 6, 8, 15, 40, 42, 45, 46]
    assert digits.val.ids[:8].tolist() == [2, 7, 10, 18, 27, 48, 50, 66]
    assert zlib.crc32(digits.test.images.numpy().tobytes() + digits.test.labels.numpy().tobytes()) == 500746989


@pytest.mark.parametrize(("argument", "part"), [("subset", "train"), ("test_subset", "test")])
def test_subsets_are_samples_of_one_split(argument, part):
    whole, less = load_dataset("digits"), load_dataset("digits", **{argument: 100})
    full = {name: len(getattr(whole, name)) for name in ("train", "val", "test")}
    assert {name: len(getattr(less, name)) for name in full} == {**full, part: 100}
    assert torch.equal(getattr(less, part).ids, getattr(whole, part).sample(100).ids)
    for count in (0, 2000):
        with pytest.raises(ValueError, match=f"{argument}: expected 1 to {full[part]} .* of digits, got {count}"):
            load_dataset("digits", **{argument: count})


def sorted_split(*counts):
    """Images whose labels lie class by class, as those of a folder do."""
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    return Split(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), labels, torch.arange(len(labels)))


@pytest.mark.parametrize("counts", [(300, 300), (500, 100), (7, 1, 92), (3, 3, 3), (1000, *[1] * 4)])
def test_a_sample_has_every_class_in_proportion(counts):
    split = sorted_split(*counts)
    before = set()
    for count in sorted(count for count in {1, 2, 3, 5, 9, 40, 90, len(split)} if count <= len(split)):
        sample = split.sample(count)
        ids = sample.ids.tolist()
        assert len(ids) == count and ids == sorted(set(ids)) and before <= set(ids)  # in order, each within the next
        before = set(ids)
        got = torch.bincount(sample.labels, minlength=len(counts))
        exact = torch.tensor(counts) * count / len(split)
        assert (got - exact).abs().max() <= 1.0 + 1e-9
    assert split.sample(len(split)) is split


def test_samples_never_change():
    # A change here makes every figure measured before on a part of the images incomparable.
    assert load_dataset("digits", test_subset=8).test.ids.tolist() == [91, 711, 878, 1329, 1547, 1616, 1638, 1710]
    assert torch.equal(sorted_split(40, 40).sample(10).ids, sorted_split(40, 40).sample(10).ids)
    _, val = hold_out(sorted_split(40, 40), 8, num_classes=2)
    assert val.ids.tolist() == [9, 21, 25, 38, 43, 60, 65, 69]


def test_unknown_dataset_gets_the_nearest():
    with pytest.raises(ValueError, match="unknown dataset 'cifar-10'; did you mean 'cifar10'"):
        load_dataset("cifar-10")
