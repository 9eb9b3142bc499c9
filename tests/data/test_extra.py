"""Extra training images: read, refused where they do not fit, and a share of every batch."""

import numpy as np
import pytest
import torch
from test_loaders import a_split, loader_of

from ard_fast.data import ResidentLoader, add_extra, load_dataset


def save(path, image=None, label=None, **more):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 17, (30, 8, 8, 1), np.uint8) if image is None else image
    label = np.arange(len(image)) % 10 if label is None else label
    np.savez(path, **{name: value for name, value in {"image": image, "label": label, **more}.items() if len(value)})
    return path


def test_extra_images_come_after_the_training_images(tmp_path):
    digits = load_dataset("digits", subset=50)
    image = np.random.default_rng(1).integers(0, 17, (30, 8, 8, 1), np.uint8)
    more = add_extra(digits, save(tmp_path / "more.npz", image))
    assert torch.equal(more.train.images, digits.train.images) and torch.equal(more.val.images, digits.val.images)
    assert torch.equal(more.pool.images[:50], digits.train.images) and len(more.pool) == 80
    assert np.array_equal(more.pool.images[50:, 0].numpy(), image[..., 0])
    assert torch.equal(more.pool.labels, torch.cat((digits.train.labels, torch.arange(30) % 10)))
    assert len(more.pool.ids.unique()) == 80 and int(more.pool.ids[50:].min()) > 1797


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"image": np.zeros((4, 9, 8, 1), np.uint8)},
            r"expected images of \[1, 8, 8\] .* as in digits, got \[1, 9, 8\]",
        ),
        ({"image": np.full((4, 8, 8), 17, np.uint8)}, "expected pixels 0 to 16 as in digits, got 17"),
        ({"image": np.zeros((4, 8, 8))}, "image: expected uint8 images, 0 to 255, got float64"),
        ({"label": np.arange(30) % 11}, "expected labels 0 to 9, got 0 to 10"),
        ({"label": np.arange(30) - 1}, "expected labels 0 to 9, got -1 to 28"),
        ({"label": np.arange(9)}, "expected a label for each of the 30 images, got 9"),
        ({"label": np.linspace(0, 1, 30)}, "label: expected whole-numbered labels, got float64"),
        ({"label": []}, "label is missing; the file holds image"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"^extra_data: .*more.npz.*{message}"):
        add_extra(load_dataset("digits"), save(tmp_path / "more.npz", **content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="extra_data: expected the path"):
        add_extra(load_dataset("digits"), tmp_path / "none.npz")


def test_every_batch_has_its_share_and_nothing_is_drawn_twice_before_all_have_been():
    """15 own and 8 extra images: 3 steps an epoch, 2 + 3 images a step; 40 epochs are 16 and 45 times all of them."""
    split = a_split()
    loader = loader_of(ResidentLoader, split, torch.device("cpu"), extra=8, extra_fraction=0.6)
    assert (loader.steps, loader.count) == (3, 15)
    seen, places = [], torch.zeros(5)
    for epoch in range(40):
        batches = list(loader.batches(epoch))
        is_extra = torch.stack([torch.isin(batch.ids, split.ids[15:]) for batch in batches])
        assert is_extra.shape == (3, 5) and (is_extra.sum(1) == 3).all()
        places += is_extra.sum(0)
        seen += [batch.ids for batch in batches]
    assert (places - 72).abs().max() < 20  # mixed inside the batches, of whose places micro-batches are made
    ids = torch.cat(seen)
    for own, each in ((split.ids[:15], 6), (split.ids[15:], 9)):  # drawn in an epoch
        drawn = ids[torch.isin(ids, own)]
        assert len(drawn) == 40 * each
        counts = [int((drawn == one).sum()) for one in own]
        assert len(set(counts)) == 1
        assert len(drawn[: len(own) // each * each].unique()) == len(own) // each * each


def test_the_last_batch_is_whole_and_the_seed_decides_the_order():
    orders = []
    for seed in (3, 3, 4):
        loader = loader_of(
            ResidentLoader, a_split(), torch.device("cpu"), extra=8, extra_fraction=0.5, batch_size=4, seed=seed
        )
        batches = list(loader.batches(0))
        assert loader.count == 16 and [len(batch.y) for batch in batches] == [4] * 4  # 15 own images
        orders.append([batch.ids.sort().values.tolist() for batch in batches])
    assert orders[0] == orders[1] != orders[2]


def test_a_share_that_leaves_a_kind_out_is_refused():
    with pytest.raises(ValueError, match="extra_fraction: expected at least one image of each kind in a batch of 5"):
        loader_of(ResidentLoader, a_split(), torch.device("cpu"), extra=8, extra_fraction=0.95)
