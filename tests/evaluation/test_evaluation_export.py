"""Adversarial images at whole pixel levels: inside the ball, judged again, written as they are said to be."""

import numpy as np
import pytest
import torch
from evaluation_fakes import LEVELS, FirstPixel, Lighten, dark_images, single

from ard_fast.evaluation.export import levels_within, round_into_ball, save_images
from ard_fast.evaluation.runner import Evaluator


@pytest.mark.parametrize(
    ("eps", "levels", "most"),
    [(8 / 255, 255, 8), (0.031, 255, 7), (0.2, 16, 3), (0.24, 16, 3), (0.25, 16, 4), (0.0, 255, 0), (1.0, 255, 255)],
)
def test_the_levels_inside_a_radius(eps, levels, most):
    assert levels_within(eps, levels) == most
    assert most / levels <= eps < (most + 1) / levels


@pytest.mark.parametrize("k", range(1, 65))
def test_radii_written_in_levels_are_kept_whole(k):
    assert levels_within(k / 255, 255) == k


def random_pairs(norm, eps, levels, count=200, shape=(3, 5, 5)):
    """Originals, and points on the ball's surface clamped to [0, 1]."""
    generator = torch.Generator().manual_seed(7)
    # L2 stays clear of black and white: there clamping, not rounding, would decide.
    low, high = (0, levels + 1) if norm == "linf" else (levels // 3, levels - levels // 3)
    original = torch.randint(low, high, (count, *shape), generator=generator).to(torch.uint8)
    direction = torch.randn(count, *shape, generator=generator)
    if norm == "linf":
        step = eps * direction.sign()
    else:
        step = eps * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return original, (original.float() / levels + step).clamp(0, 1)


@pytest.mark.parametrize(
    ("norm", "eps", "levels"),
    [
        ("linf", 8 / 255, 255),
        ("linf", 0.031, 255),
        ("linf", 0.2, 16),
        ("l2", 0.5, 255),
        ("l2", 0.03, 255),
        ("l2", 1.0, 16),
    ],
)
def test_rounding_stays_inside_in_exact_arithmetic(norm, eps, levels):
    original, x_adv = random_pairs(norm, eps, levels)
    rounded = round_into_ball(x_adv, original, levels=levels, norm=norm, eps=eps)
    assert rounded.dtype == torch.uint8 and rounded.shape == original.shape
    assert int(rounded.max()) <= levels
    moved = rounded.numpy().astype(object) - original.numpy().astype(object)  # Python's whole numbers
    for row in moved.reshape(len(moved), -1):
        if norm == "linf":
            assert max(abs(step) for step in row) / levels <= eps
        else:
            assert sum(step * step for step in row) <= (eps * levels) ** 2 * (1 + 1e-15)
    nearest = (x_adv.double() * levels).round()
    assert (rounded.double() - nearest).abs().max() <= 1
    if norm == "linf":  # every pixel is the nearest level, or the outermost one inside
        most = levels_within(eps, levels)
        wanted = torch.minimum(torch.maximum(nearest, original.double() - most), original.double() + most)
        assert torch.equal(rounded.double(), wanted)
    else:  # no more taken back than needed: without the last pixel taken back the ball would have been left
        corrected = 0
        for row in range(20):
            back = (rounded[row].double() != nearest[row]).flatten().nonzero()[:, 0].tolist()
            corrected += bool(back)
            sizes = []
            for pixel in back:
                other = rounded[row].double().flatten()
                other[pixel] = nearest[row].flatten()[pixel]
                sizes.append((other - original[row].double().flatten()).norm() / levels)
            assert not back or max(sizes) > eps
        assert corrected


def test_an_l2_ball_smaller_than_a_level_gives_the_original():
    original, x_adv = random_pairs("l2", 0.9 / 255, 255)
    assert torch.equal(round_into_ball(x_adv, original, levels=255, norm="l2", eps=0.9 / 255), original)


def test_a_point_far_outside_is_brought_back():
    original = torch.full((2, 1, 4, 4), 100, dtype=torch.uint8)
    for norm, eps in (("linf", 8 / 255), ("l2", 20 / 255)):
        rounded = round_into_ball(torch.ones(2, 1, 4, 4), original, levels=255, norm=norm, eps=eps)
        moved = (rounded.double() - 100).flatten(1) / 255
        size = moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)
        assert (size <= eps).all() and (size > 0.8 * eps).all()


def test_what_is_written_can_be_checked_by_anybody(tmp_path):
    split = dark_images(10, wrong=(8, 9))
    made = Evaluator(FirstPixel(), split, levels=LEVELS, norm="linf", eps=0.3, batch_size=4)
    made.clean()
    made.run(single("strong", Lighten({100, 101}, to=0.6)))
    made.run(single("barely", Lighten({102}, to=0.52)))  # 0.52 rounds to 0.5, which is class 0 again
    made.run(single("weak", Lighten({103}, to=0.4)))
    export = save_images(made, tmp_path)
    assert (export.images, export.fooled, export.still_fooled) == (10, 3, 2)
    assert export.largest == 0.3

    with np.load(tmp_path / "adversarial.npz") as arrays:  # allow_pickle stays off
        stored = dict(arrays)
    assert stored["original"].dtype == stored["adversarial"].dtype == np.uint8
    assert np.array_equal(stored["original"], split.images.numpy())
    assert np.array_equal(stored["labels"], split.labels.numpy())
    assert np.array_equal(stored["ids"], np.arange(100, 110))
    assert stored["fooled_by"].tolist() == ["strong", "strong", "barely", "", "", "", "", "", "clean", "clean"]
    assert (int(stored["levels"]), float(stored["eps"]), str(stored["norm"])) == (LEVELS, 0.3, "linf")
    moved = stored["adversarial"].astype(int) - stored["original"].astype(int)
    assert np.abs(moved).max() == 3
    assert moved[:4, 0, 0, 0].tolist() == [3, 3, 2, 1] and not moved[4:].any()
    with torch.no_grad():
        again = FirstPixel()(torch.from_numpy(stored["adversarial"]).float() / LEVELS).argmax(1)
    assert again.tolist() == stored["predicted_adversarial"].tolist() == [1, 1] + [0] * 8
    assert stored["predicted"].tolist() == [0] * 10


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sample_pictures_hold_the_exact_levels(tmp_path, channels):
    from matplotlib.image import imread

    split = dark_images(30)
    split = type(split)((split.images * 20).repeat(1, channels, 1, 1), split.labels, split.ids)
    made = Evaluator(FirstPixel(), split, levels=255, norm="linf", eps=0.5)
    made.clean()
    made.run(single("all", Lighten(range(100, 130), to=0.7)))
    export = save_images(made, tmp_path)
    assert export.still_fooled == 30
    files = sorted(tmp_path.glob("samples/*.png"))
    assert len(files) == 16 and files[0].name == "id100-label0-taken-for1.png"
    stored = np.load(tmp_path / "adversarial.npz")["adversarial"][0].transpose(1, 2, 0)
    pixels = np.round(imread(files[0])[:, :, :3] * 255).astype(int)
    assert np.array_equal(pixels, np.broadcast_to(stored, pixels.shape))
    assert not list(tmp_path.rglob("*.part"))
