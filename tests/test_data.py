"""Data sets by name, the digits, and batches: fixed disjoint splits, crops and flips."""

import pytest
import torch

from ard_fast.data import EpochPlan, Split, load_dataset, make_batch
from ard_fast.data.batches import derive_seed, pad_images

CPU = torch.device("cpu")


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


# ---- batches ------------------------------------------------------------------------------------------------------


def a_split(count=6, channels=3, size=8):
    images = torch.arange(count * channels * size * size, dtype=torch.int64).remainder(251).to(torch.uint8)
    return Split(images.view(count, channels, size, size), torch.arange(count) % 10, torch.arange(count) + 100)


def plan_for(split, **changes):
    settings = {"seed": 3, "epoch": 5, "batch_size": 4, "padding": 2, "flip": True, "device": CPU, **changes}
    return EpochPlan.draw(len(split), **settings)


def test_crop_and_flip_equal_the_plain_form():
    split = a_split()
    plan = plan_for(split)
    padded = torch.nn.functional.pad(split.images, (2, 2, 2, 2))
    for step in range(plan.steps):
        batch = make_batch(split, pad_images(split, 2), plan, step, levels=255)
        for row, position in enumerate(plan.order[step * 4 : step * 4 + 4].tolist()):
            place = step * 4 + row
            top, left = plan.shift[place].tolist()
            expected = padded[position, :, top : top + 8, left : left + 8]
            if plan.flip[place]:
                expected = expected.flip(-1)
            assert torch.equal(batch.x[row], expected.float() / 255)
            assert batch.y[row] == split.labels[position] and batch.ids[row] == split.ids[position]


def test_an_epoch_serves_every_image_once_and_the_last_batch_is_short():
    split = a_split()
    plan = plan_for(split)
    batches = [make_batch(split, pad_images(split, 2), plan, step, levels=255) for step in range(plan.steps)]
    assert [len(batch.y) for batch in batches] == [4, 2]
    assert sorted(torch.cat([batch.ids for batch in batches]).tolist()) == split.ids.tolist()
    assert batches[0].seed.shape == (1,) and batches[0].seed != batches[1].seed


def test_plans_repeat_and_differ_by_seed_and_epoch():
    split = a_split(count=200)
    plan = plan_for(split)
    again, other_epoch, other_seed = plan_for(split), plan_for(split, epoch=6), plan_for(split, seed=4)
    for name in ("order", "shift", "flip", "attack_seeds"):
        assert torch.equal(getattr(plan, name), getattr(again, name))
        assert not torch.equal(getattr(plan, name), getattr(other_epoch, name))
        assert not torch.equal(getattr(plan, name), getattr(other_seed, name))
    assert set(plan.shift.unique().tolist()) == {0, 1, 2, 3, 4}
    assert 60 < plan.flip.sum() < 140


def test_without_augmentation_the_pixels_come_unchanged():
    split = a_split()
    plan = plan_for(split, padding=0, flip=False, batch_size=6)
    batch = make_batch(split, pad_images(split, 0), plan, 0, levels=16)
    assert torch.equal(batch.x * 16, split.images[plan.order].float())


def test_channels_last_batches_hold_the_same_pixels():
    split = a_split()
    plan, padded = plan_for(split), pad_images(split, 2)
    plain = make_batch(split, padded, plan, 0, levels=255).x
    other = make_batch(split, padded, plan, 0, levels=255, layout=torch.channels_last).x
    assert other.is_contiguous(memory_format=torch.channels_last) and torch.equal(plain, other)


def test_near_keys_give_unrelated_seeds():
    seeds = {derive_seed(seed, purpose, epoch) for seed in range(4) for purpose in range(2) for epoch in range(4)}
    assert len(seeds) == 32 and all(0 <= seed < 2**63 for seed in seeds)
