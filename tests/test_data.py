"""Data sets by name, and the digits: fixed disjoint splits."""

import pytest
import torch

from ard_fast.data import load_dataset

# ---- digits -------------------------------------------------------------------------------------------------------


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


def test_subset_takes_the_first_training_images_only():
    whole, part = load_dataset("digits"), load_dataset("digits", subset=100)
    assert torch.equal(part.train.ids, whole.train.ids[:100])
    assert len(part.val) == len(whole.val) and len(part.test) == len(whole.test)
    with pytest.raises(ValueError, match="subset: expected 1 to 1078 training images of digits, got 2000"):
        load_dataset("digits", subset=2000)


def test_test_subset_takes_the_first_test_images_only():
    whole, part = load_dataset("digits"), load_dataset("digits", test_subset=30)
    assert torch.equal(part.test.ids, whole.test.ids[:30])
    assert len(part.train) == len(whole.train) and len(part.val) == len(whole.val)
    with pytest.raises(ValueError, match="test_subset: expected 1 to 450 test images of digits, got 0"):
        load_dataset("digits", test_subset=0)


def test_unknown_dataset_gets_the_nearest():
    with pytest.raises(ValueError, match="unknown dataset 'cifar-10'; did you mean 'cifar10'"):
        load_dataset("cifar-10")
