"""Batches: the same bits resident and streamed, for any shard split, on replay and on resume; nothing dropped."""

import dataclasses
import threading
import warnings

import numpy as np
import pytest
import torch

from ard_fast import reference
from ard_fast.data import EpochPlan, ResidentLoader, Split, StreamedLoader, make_loader
from ard_fast.data import loader as loader_module
from ard_fast.data.batches import derive_seed

KINDS = [ResidentLoader, StreamedLoader]


def a_split(count=23, channels=3, size=8):
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count) % 10, torch.randperm(count, generator=generator) * 7 + 100)


def loader_of(kind, split, device, **changes):
    settings = {"levels": 255, "seed": 3, "batch_size": 5, "padding": 2, "flip": True, **changes}
    return kind(split, device=device, **settings)


def assert_all_same(a, b):
    """Every field of the batches, to the bit, on one device."""
    for one, other in zip(a, b, strict=True):
        for field in dataclasses.fields(one):
            x, y = getattr(one, field.name), getattr(other, field.name)
            if isinstance(x, torch.Tensor):
                assert x.device == y.device and x.dtype == y.dtype and x.stride() == y.stride()
                assert x.equal(y), field.name
            else:
                assert x == y, field.name


def draw(split, *, seed=3, epoch=0, steps=5, padding=2, flip=True):
    return EpochPlan.draw(split.ids, seed=seed, epoch=epoch, steps=steps, padding=padding, flip=flip)


def test_batches_are_the_images_of_the_plan_seen_through_the_reference(device):
    """Every image once, its view drawn from (seed, epoch, id), the last batch short."""
    split = a_split()
    batches = list(loader_of(ResidentLoader, split, device).batches(4))
    assert [len(batch.y) for batch in batches] == [5, 5, 5, 5, 3]
    assert sorted(torch.cat([batch.ids for batch in batches]).tolist()) == sorted(split.ids.tolist())
    plan, view_seed = draw(split, epoch=4), derive_seed(3, 2, 4)
    for step, batch in enumerate(batches):
        positions = plan.order[5 * step : 5 * step + 5]
        x, views = reference.crop_flip(split.images, positions, padding=2, levels=255, seed=view_seed, ids=split.ids)
        assert batch.x.cpu().equal(x) and batch.views.equal(views) and batch.host_ids.equal(split.ids[positions])
        assert batch.y.cpu().equal(split.labels[positions]) and batch.ids.cpu().equal(split.ids[positions])
        assert batch.seed.shape == (1,) and batch.seed.cpu().equal(plan.attack_seeds[step])
        assert (batch.global_size, batch.offset, batch.is_padding, batch.share) == (len(positions), 0, False, 1.0)
    assert len(torch.cat([batch.views for batch in batches]).unique()) > 10


@pytest.mark.parametrize("settings", [{"cropshift": 3, "cutout": 4}, {"cropshift": 3}, {"cutout": 4}])
def test_shifts_and_cuts_are_drawn_anew_for_each_epoch_and_id(device, settings):
    split, settings = a_split(), {"padding": 0, **settings}
    whole = list(loader_of(ResidentLoader, split, device, **settings).batches(4))
    x = torch.cat([batch.x for batch in whole]).cpu()
    positions = draw(split, epoch=4).order
    how = {"levels": 255, "seed": derive_seed(3, 2, 4), "ids": split.ids, **settings}
    assert x.equal(reference.crop_flip(split.images, positions, **how)[0])
    other = torch.cat([batch.x for batch in loader_of(ResidentLoader, split, device, **settings).batches(5)]).cpu()
    assert not x[positions.argsort()].equal(other[draw(split, epoch=5).order.argsort()])


def test_without_augmentation_the_pixels_come_unchanged(device):
    split = a_split()
    batch = next(loader_of(ResidentLoader, split, device, padding=0, flip=False, batch_size=23, levels=17).batches(0))
    assert batch.x.cpu().equal(split.images[draw(split).order].to(torch.float32) / 17) and batch.views.eq(0).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 1},
        {},
        {"batch_size": 64},
        {"layout": torch.channels_last},
        {"shard": (1, 3), "accumulate": 2},
        {"merge_last": True},
        {"padding": 0, "cropshift": 3, "cutout": 4},
        {"extra": 9, "extra_fraction": 0.6, "shard": (0, 2)},
    ],
)
def test_resident_and_streamed_give_the_same_bits(changes, device):
    split = a_split()
    resident, streamed = (loader_of(kind, split, device, **changes) for kind in KINDS)
    assert resident.steps == streamed.steps
    for epoch in (0, 1):  # the batches are kept, more of them than there are buffers
        assert_all_same(list(resident.batches(epoch)), list(streamed.batches(epoch)))
    assert next(streamed.batches(0)).x.is_contiguous(memory_format=changes.get("layout", torch.contiguous_format))


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_is_replayed_from_any_step(kind, device):
    loader = loader_of(kind, a_split(), device, extra=5)
    whole = list(loader.batches(2))
    for first_step in range(loader.steps + 1):
        assert_all_same(list(loader.batches(2, first_step)), whole[first_step:])
    pairs = list(zip(loader.batches(2), loader.batches(3), strict=True))  # two iterators of one loader
    assert_all_same([pair[0] for pair in pairs], whole)


def test_plans_repeat_and_differ_by_seed_and_epoch():
    split = a_split(200)
    plan, again, others = draw(split), draw(split), [draw(split, epoch=1), draw(split, seed=4)]
    for name in ("order", "views", "attack_seeds"):
        assert torch.equal(getattr(plan, name), getattr(again, name))
        for other in others:
            assert not torch.equal(getattr(plan, name), getattr(other, name))
    by_id = [each.views[each.order.argsort()] for each in (plan, *others)]
    assert not any(torch.equal(by_id[0], other) for other in by_id[1:])
    assert plan.attack_seeds.shape == (5, 1) and len(plan.attack_seeds.unique()) == 5
    seeds = {derive_seed(seed, purpose, epoch) for seed in range(4) for purpose in range(3) for epoch in range(4)}
    assert len(seeds) == 48 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 3), (2, 1), (3, 2), (7, 3)])
def test_the_processes_together_see_what_one_would(processes, accumulate, device):
    split = a_split()
    alone = list(loader_of(ResidentLoader, split, device).batches(1))
    shards = [
        list(loader_of(ResidentLoader, split, device, shard=(rank, processes), accumulate=accumulate).batches(1))
        for rank in range(processes)
    ]
    assert {len(batches) for batches in shards} == {len(alone) * accumulate}
    for step, whole in enumerate(alone):
        parts = [batches[step * accumulate + index] for index in range(accumulate) for batches in shards]
        real = [part for part in parts if not part.is_padding]
        for name in ("x", "y", "ids", "views", "host_ids"):
            assert torch.cat([getattr(part, name) for part in real]).equal(getattr(whole, name)), name
        assert [part.offset for part in real] == np.cumsum([0, *(len(part.y) for part in real)])[:-1].tolist()
        assert sum(part.share for part in parts) == pytest.approx(1.0)
        for part in parts:
            assert part.global_size == len(whole.y) and part.seed.equal(whole.seed) and len(part.y) > 0
            assert not part.is_padding or (part.count == 0 and part.x.equal(whole.x[:1]))


@pytest.mark.parametrize(("batch_size", "sizes"), [(5, [5, 5, 5, 8]), (64, [23])])
def test_a_short_last_step_may_join_the_one_before(batch_size, sizes):
    loader = loader_of(ResidentLoader, a_split(), torch.device("cpu"), batch_size=batch_size, merge_last=True)
    assert [len(batch.y) for batch in loader.batches(0)] == sizes


@pytest.mark.parametrize("mode", ["r", "c"])
def test_images_in_a_mapped_file(tmp_path, mode, device):
    split = a_split()
    np.save(tmp_path / "images.npy", split.images.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, once a process: it has no read-only tensors
        on_disk = dataclasses.replace(split, images=torch.from_numpy(np.load(tmp_path / "images.npy", mmap_mode=mode)))
    expected = list(loader_of(ResidentLoader, split, device).batches(0))
    for kind in KINDS:
        assert_all_same(loader_of(kind, on_disk, device).batches(0), expected)


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ard_fast prefetch")]


def test_stopping_early_ends_the_thread(device):
    batches = loader_of(StreamedLoader, a_split(), device, batch_size=1).batches(0)
    next(batches)
    assert prefetch_threads()
    batches.close()
    assert not prefetch_threads()


def test_an_error_of_reading_reaches_its_batch(device, monkeypatch):
    take, calls = np.take, []

    def failing(*arguments, **options):
        calls.append(0)
        if len(calls) == 3:
            raise OSError("the disk is gone")
        return take(*arguments, **options)

    monkeypatch.setattr(np, "take", failing)
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        for batch in loader_of(StreamedLoader, a_split(), device).batches(0):
            seen.append(batch)
    assert len(seen) == 2 and not prefetch_threads()


def test_the_loader_is_chosen_by_size(device, monkeypatch):
    split = a_split()
    settings = {"device": device, "levels": 255, "seed": 0, "batch_size": 5, "padding": 0, "flip": False}
    assert loader_module._memory(device) > 2**26
    assert type(make_loader(split, resident="always", **settings)) is ResidentLoader
    assert type(make_loader(split, resident="never", **settings)) is StreamedLoader
    for free, kind in ((2 * split.images.numel(), ResidentLoader), (2 * split.images.numel() - 1, StreamedLoader)):
        monkeypatch.setattr(loader_module, "_memory", lambda _, free=free: free)
        assert type(make_loader(split, **settings)) is kind


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("batch_size must be an int of at least 1, got 0", {"batch_size": 0}),
        ("accumulate must be an int of at least 1, got 0", {"accumulate": 0}),
        ("shard: number of processes must be an int of at least 1, got 0", {"shard": (0, 0)}),
        ("shard: rank must be an int from 0 to 1, got 2", {"shard": (2, 2)}),
        ("cropshift must be an int from 0 to 7, got 8", {"cropshift": 8}),
        ("cutout must be an int from 0 to 8, got 9", {"cutout": 9}),
        ("resident must be one of 'auto', 'always', 'never', got 'yes'", {"resident": "yes"}),
    ],
)
def test_bad_settings(message, changes):
    with pytest.raises(ValueError, match=message):
        loader_of(make_loader, a_split(), torch.device("cpu"), **changes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_images_on_the_gpu():
    """They stay where they are; and streamed behind a slow stream no buffer is written to before it has been read."""
    device, split = torch.device("cuda"), a_split(count=400, size=32)
    settings = {"device": device, "levels": 255, "seed": 0, "batch_size": 5, "padding": 0, "flip": False}
    there = split.to(device)
    assert make_loader(there, **settings).images.data_ptr() == there.images.data_ptr()
    with pytest.raises(ValueError, match=r"split: expected uint8 images on the CPU, got torch\.uint8 on cuda"):
        make_loader(there, resident="never", **settings)
    expected = list(loader_of(ResidentLoader, split, device, batch_size=8).batches(0))
    got = []
    for batch in loader_of(StreamedLoader, split, device, batch_size=8).batches(0):
        torch.cuda._sleep(2_000_000)
        got.append(batch)
    assert_all_same(got, expected)
