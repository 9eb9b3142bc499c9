"""Data sets: fixed disjoint splits, both CIFAR-10 layouts, damaged files, crops and flips."""

import os
import pickle

import numpy as np
import pytest
import torch

from ard_fast.data import EpochPlan, Split, load_dataset, make_batch
from ard_fast.data.batches import derive_seed, pad_images
from ard_fast.data.cifar10 import load_cifar10

CPU = torch.device("cpu")
FILES = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]


def fake_cifar(root, count=40, layout="bin", seed=0):
    """The official files with `count` random images each; returns {file: (images [N, 3072], labels)}."""
    rng = np.random.default_rng(seed)
    folder = root / f"cifar-10-batches-{layout}"
    folder.mkdir(parents=True)
    content = {}
    for name in FILES:
        images = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        content[name] = images, labels
        if layout == "bin":
            np.concatenate([labels[:, None], images], axis=1).tofile(folder / f"{name}.bin")
        else:
            batch = {b"batch_label": name.encode(), b"labels": labels.tolist(), b"data": images}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return content


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


# ---- CIFAR-10 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["bin", "py"])
def test_both_layouts_give_the_written_pixels(tmp_path, layout):
    content = fake_cifar(tmp_path, layout=layout)
    data = load_cifar10(tmp_path, val_size=20)
    assert (len(data.train), len(data.val), len(data.test)) == (180, 20, 40)
    assert data.test.images.shape == (40, 3, 32, 32) and data.test.images.dtype == torch.uint8
    images, labels = content["test_batch"]
    assert np.array_equal(data.test.images.numpy().reshape(40, 3072), images)
    assert np.array_equal(data.test.labels.numpy(), labels)
    everything = np.concatenate([content[name][0] for name in FILES[:5]])
    for split in (data.train, data.val):
        assert np.array_equal(split.images.numpy().reshape(len(split), 3072), everything[split.ids.numpy()])
    assert not set(data.train.ids.tolist()) & set(data.val.ids.tolist())
    assert torch.bincount(data.val.labels).tolist() == [2] * 10


def test_the_layout_folder_itself_may_be_named(tmp_path):
    fake_cifar(tmp_path, layout="py")
    assert len(load_cifar10(tmp_path / "cifar-10-batches-py", val_size=20).train) == 180


def test_layouts_agree(tmp_path):
    fake_cifar(tmp_path / "a", layout="bin")
    fake_cifar(tmp_path / "b", layout="py")
    a, b = load_cifar10(tmp_path / "a", val_size=20), load_cifar10(tmp_path / "b", val_size=20)
    assert torch.equal(a.train.images, b.train.images) and torch.equal(a.val.labels, b.val.labels)


def test_missing_data_is_said(tmp_path):
    with pytest.raises(ValueError, match="data_dir: cifar10 needs --data-dir"):
        load_dataset("cifar10")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_cifar10(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no cifar-10-batches-bin/ or cifar-10-batches-py/ in .*folder exists"):
        load_cifar10(tmp_path)
    fake_cifar(tmp_path)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3\.bin is missing"):
        load_cifar10(tmp_path, val_size=20)


@pytest.mark.parametrize("val_size", [0, 9, 191, 1000])
def test_val_size_must_leave_images_on_both_sides(tmp_path, val_size):
    fake_cifar(tmp_path)
    with pytest.raises(ValueError, match=f"val_size: expected 10 to 190 for 200 training images, got {val_size}"):
        load_cifar10(tmp_path, val_size=val_size)


def test_binary_file_cut_short_or_with_wrong_labels(tmp_path):
    fake_cifar(tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"data_batch_2\.bin: 122919 bytes is not a positive multiple of 3073"):
        load_cifar10(tmp_path, val_size=20)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="0 bytes"):
        load_cifar10(tmp_path, val_size=20)
    path.write_bytes(bytes([10]) + whole[1:])
    with pytest.raises(ValueError, match=r"labels must be 0\.\.9, found 10"):
        load_cifar10(tmp_path, val_size=20)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_malicious_pickle_is_refused_and_runs_nothing(tmp_path):
    fake_cifar(tmp_path, layout="py")
    mark = tmp_path / "ran"
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(pickle.dumps({b"data": Malicious(str(mark)), b"labels": []}, protocol=2))
    with pytest.raises(ValueError, match=r"data_batch_1: not a CIFAR-10 batch \(UnpicklingError: refused to load"):
        load_cifar10(tmp_path, val_size=20)
    assert not mark.exists()
    pickle.loads(path.read_bytes())  # the file is what it claims to be: plain pickle would have run it
    assert mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a pickle", "not a CIFAR-10 batch"),
        (pickle.dumps([1, 2], 2), r"expected b'data' as uint8 \[N, 3072\], got NoneType"),
        (pickle.dumps({b"data": np.zeros((4, 3072), np.float32)}, 2), r"got float32 \[4, 3072\]"),
        (pickle.dumps({b"data": np.zeros((4, 100), np.uint8)}, 2), r"got uint8 \[4, 100\]"),
        (pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [1, 2]}, 2), "a list of 4, got list of 2"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 77]}, 2), r"labels must be whole"),
    ],
)
def test_damaged_python_files_are_said(tmp_path, content, message):
    fake_cifar(tmp_path, layout="py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").write_bytes(content)
    with pytest.raises(ValueError, match="data_batch_4.*" + message):
        load_cifar10(tmp_path, val_size=20)


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
