"""Batches: the same bits resident and streamed, for any shard split, on replay and on resume; nothing dropped."""

import dataclasses
import threading
import warnings

import numpy as np
import pytest
import torch

from ard_fast import functional as F
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


def assert_same(a, b):
    """Every field of two batches, to the bit, on one device."""
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, torch.Tensor):
            assert x.device == y.device and x.dtype == y.dtype and x.stride() == y.stride()
            assert x.equal(y), field.name
        else:
            assert x == y, field.name


def assert_all_same(a, b):
    for x, y in zip(a, b, strict=True):
        assert_same(x, y)


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_form(kind, device):
    """Every image once, its view drawn from (seed, epoch, id), the last batch short."""
    split = a_split()
    batches = list(loader_of(kind, split, device).batches(4))
    assert [len(batch.y) for batch in batches] == [5, 5, 5, 5, 3]
    assert sorted(torch.cat([batch.ids for batch in batches]).tolist()) == sorted(split.ids.tolist())
    plan = EpochPlan.draw(len(split), seed=3, epoch=4, steps=5)
    for step, batch in enumerate(batches):
        positions = plan.order[5 * step : 5 * step + 5]
        x, views = reference.crop_flip(
            split.images, positions, padding=2, levels=255, seed=plan.view_seed.item(), ids=split.ids
        )
        assert batch.x.cpu().equal(x) and batch.views.cpu().equal(views)
        assert batch.y.cpu().equal(split.labels[positions]) and batch.ids.cpu().equal(split.ids[positions])
        assert batch.seed.shape == (1,) and batch.seed.cpu().equal(plan.attack_seeds[step])
        assert (batch.global_size, batch.offset, batch.filler) == (len(positions), 0, False)
        assert batch.share == 1.0
    assert len(torch.cat([batch.views for batch in batches]).unique()) > 10


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch_size", [1, 5, 23, 64])
def test_resident_and_streamed_give_the_same_bits(batch_size, layout, device):
    split = a_split()
    resident, streamed = (loader_of(kind, split, device, batch_size=batch_size, layout=layout) for kind in KINDS)
    assert resident.steps == streamed.steps == -(-23 // batch_size)
    for epoch in (0, 1, 9):
        assert_all_same(list(resident.batches(epoch)), list(streamed.batches(epoch)))
    assert next(streamed.batches(0)).x.is_contiguous(memory_format=layout)


def test_streamed_batches_outlive_the_buffers(device):
    """More batches kept than there are buffers: none is overwritten by a later one."""
    split = a_split(count=60)
    kept = list(loader_of(StreamedLoader, split, device, batch_size=2).batches(0))
    assert_all_same(kept, loader_of(ResidentLoader, split, device, batch_size=2).batches(0))


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_is_replayed(kind, device):
    split = a_split()
    loader = loader_of(kind, split, device)
    first, second = list(loader.batches(0)), list(loader.batches(1))
    assert_all_same(first, loader.batches(0))
    assert_all_same(second, loader_of(kind, split, device).batches(1))
    assert not torch.cat([b.ids for b in first]).equal(torch.cat([b.ids for b in second]))
    # By its views alone, too.
    for batch in first:
        positions = torch.stack([(split.ids == i).nonzero()[0, 0] for i in batch.ids.cpu()]).to(device)
        x, views = F.crop_flip(split.images.to(device), positions, padding=2, levels=255, views=batch.views)
        assert x.equal(batch.x) and views.equal(batch.views)


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_goes_on_from_any_step(kind, device):
    loader = loader_of(kind, a_split(), device)
    whole = list(loader.batches(2))
    for first_step in range(loader.steps + 1):
        assert_all_same(list(loader.batches(2, first_step)), whole[first_step:])


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_gives_other_batches(kind, device):
    split = a_split()
    a, b = (next(loader_of(kind, split, device, seed=seed, batch_size=23).batches(0)) for seed in (3, 4))
    assert not a.ids.equal(b.ids) and not a.seed.equal(b.seed)
    order_a, order_b = a.ids.argsort(), b.ids.argsort()
    assert not a.views[order_a].equal(b.views[order_b])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
def test_the_processes_together_see_what_one_would(kind, processes, accumulate, device):
    split = a_split()
    alone = list(loader_of(ResidentLoader, split, device).batches(1))
    shards = [
        list(loader_of(kind, split, device, shard=(rank, processes), accumulate=accumulate).batches(1))
        for rank in range(processes)
    ]
    assert {len(batches) for batches in shards} == {len(alone) * accumulate}
    for step, whole in enumerate(alone):
        parts = [batches[step * accumulate + index] for index in range(accumulate) for batches in shards]
        real = [part for part in parts if not part.filler]
        for name in ("x", "y", "ids", "views"):
            assert torch.cat([getattr(part, name) for part in real]).equal(getattr(whole, name)), name
        assert [part.offset for part in real] == np.cumsum([0, *(len(part.y) for part in real)])[:-1].tolist()
        assert sum(part.share for part in parts) == pytest.approx(1.0)
        for part in parts:
            assert part.global_size == len(whole.y) and part.seed.equal(whole.seed) and len(part.y) > 0
            if part.filler:
                assert part.count == 0 and part.x.equal(whole.x[:1]) and part.views.equal(whole.views[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_without_augmentation_the_pixels_come_unchanged(kind, device):
    split = a_split()
    loader = loader_of(kind, split, device, padding=0, flip=False, batch_size=23, levels=17)
    batch = next(loader.batches(0))
    positions = EpochPlan.draw(23, seed=3, epoch=0, steps=1).order
    assert batch.x.cpu().equal(split.images[positions].to(torch.float32) / 17)
    assert batch.views.eq(0).all()


@pytest.mark.parametrize("mode", ["r", "c"])
def test_images_in_a_mapped_file(tmp_path, mode, device):
    split = a_split()
    path = tmp_path / "images.npy"
    np.save(path, split.images.numpy())
    mapped = np.load(path, mmap_mode=mode)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, once a process: it has no read-only tensors
        images = torch.from_numpy(mapped)
    on_disk = dataclasses.replace(split, images=images)
    expected = list(loader_of(ResidentLoader, split, device).batches(0))
    assert_all_same(loader_of(StreamedLoader, on_disk, device).batches(0), expected)
    assert_all_same(loader_of(ResidentLoader, on_disk, device).batches(0), expected)


# ---- the thread -----------------------------------------------------------------------------------------------------


def prefetch_threads():
    return [t for t in threading.enumerate() if t.name == "ard_fast prefetch"]


def test_stopping_early_ends_the_thread(device):
    loader = loader_of(StreamedLoader, a_split(), device, batch_size=1)
    for step, _ in enumerate(loader.batches(0)):
        if step == 2:
            break
    assert not prefetch_threads()
    with pytest.raises(ZeroDivisionError):
        for _ in loader.batches(0):
            1 / 0  # noqa: B018
    assert not prefetch_threads()


def test_two_iterators_of_one_loader_do_not_disturb_each_other(device):
    loader = loader_of(StreamedLoader, a_split(), device, batch_size=2)
    expected = [list(loader.batches(epoch)) for epoch in (0, 1)]
    pairs = list(zip(loader.batches(0), loader.batches(1), strict=True))
    for epoch in (0, 1):
        assert_all_same([pair[epoch] for pair in pairs], expected[epoch])


def test_an_error_in_the_thread_reaches_the_consumer(device, monkeypatch):
    loader = loader_of(StreamedLoader, a_split(), device)
    take, calls = np.take, []

    def failing(*arguments, **options):
        calls.append(0)
        if len(calls) == 3:
            raise OSError("the disk is gone")
        return take(*arguments, **options)

    monkeypatch.setattr(np, "take", failing)
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        for batch in loader.batches(0):
            seen.append(batch)
    assert len(seen) == 2 and not prefetch_threads()


# ---- which one ------------------------------------------------------------------------------------------------------


def test_the_loader_is_chosen_by_size(device, monkeypatch):
    split = a_split()
    settings = {"device": device, "levels": 255, "seed": 0, "batch_size": 5, "padding": 0, "flip": False}
    assert type(make_loader(split, resident="always", **settings)) is ResidentLoader
    assert type(make_loader(split, resident="never", **settings)) is StreamedLoader
    bytes_needed = split.images.numel()
    for free, kind in ((2 * bytes_needed, ResidentLoader), (2 * bytes_needed - 1, StreamedLoader)):
        monkeypatch.setattr(loader_module, "_memory", lambda _, free=free: free)
        assert type(make_loader(split, **settings)) is kind
    with pytest.raises(ValueError, match="resident must be one of 'auto', 'always', 'never', got 'yes'"):
        make_loader(split, resident="yes", **settings)


def test_the_machines_memory_is_known(device):
    assert loader_module._memory(device) > 2**26


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_images_on_the_gpu_stay_there():
    split = a_split().to(torch.device("cuda"))
    settings = {"device": torch.device("cuda"), "levels": 255, "seed": 0, "batch_size": 5, "padding": 0, "flip": False}
    loader = make_loader(split, **settings)
    assert loader.images.data_ptr() == split.images.data_ptr()
    with pytest.raises(ValueError, match=r"split: expected uint8 images on the CPU, got torch\.uint8 on cuda"):
        make_loader(split, resident="never", **settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_streaming_on_a_busy_gpu():
    """A stream that is far behind: no buffer is written to before the work that reads it is done."""
    device, split = torch.device("cuda"), a_split(count=400, size=32)
    expected = list(loader_of(ResidentLoader, split, device, batch_size=8).batches(0))
    got = []
    for batch in loader_of(StreamedLoader, split, device, batch_size=8).batches(0):
        torch.cuda._sleep(2_000_000)
        got.append(batch)
    assert_all_same(got, expected)


# ---- seeds ----------------------------------------------------------------------------------------------------------


def test_plans_repeat_and_differ_by_seed_and_epoch():
    plan = EpochPlan.draw(200, seed=3, epoch=5, steps=7)
    again = EpochPlan.draw(200, seed=3, epoch=5, steps=7)
    others = [EpochPlan.draw(200, seed=3, epoch=6, steps=7), EpochPlan.draw(200, seed=4, epoch=5, steps=7)]
    for name in ("order", "view_seed", "attack_seeds"):
        assert torch.equal(getattr(plan, name), getattr(again, name))
        for other in others:
            assert not torch.equal(getattr(plan, name), getattr(other, name))
    assert plan.attack_seeds.shape == (7, 1) and len(plan.attack_seeds.unique()) == 7


def test_near_keys_give_unrelated_seeds():
    seeds = {derive_seed(seed, purpose, epoch) for seed in range(4) for purpose in range(3) for epoch in range(4)}
    assert len(seeds) == 48 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("batch_size must be an int of at least 1, got 0", {"batch_size": 0}),
        ("accumulate must be an int of at least 1, got 0", {"accumulate": 0}),
        ("shard: number of processes must be an int of at least 1, got 0", {"shard": (0, 0)}),
        ("shard: rank must be an int from 0 to 1, got 2", {"shard": (2, 2)}),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_settings(kind, message, changes):
    with pytest.raises(ValueError, match=message):
        loader_of(kind, a_split(), torch.device("cpu"), **changes)
