"""Adversarial images as they are stored, the accuracy of each class, and the figures of an evaluation."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from evaluation_fakes import LEVELS, FirstPixel, Lighten, dark_images, single
from matplotlib.image import imread

from ard_fast import _figures
from ard_fast._figures import eps_text
from ard_fast.data import Split
from ard_fast.evaluation import figures
from ard_fast.evaluation.evaluator import Evaluator
from ard_fast.evaluation.export import round_into_ball, save_images
from ard_fast.evaluation.report import per_class, worst_class
from ard_fast.functional._levels import levels_within, whole_radius
from ard_fast.training.report import legend_columns


def evaluated(split, *attacks, levels=LEVELS, norm="linf", eps=0.5, classes=2):
    made = Evaluator(FirstPixel(classes), split, levels=levels, norm=norm, eps=eps, batch_size=4)
    made.clean()
    for name, attack in attacks:
        made.run(single(name, attack))
    return made


# ---- whole pixel levels inside the ball ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eps", "levels", "most"),
    [(0.031, 255, 7), (0.0313725, 255, 8), (0.2, 16, 3), (0.24, 16, 3), (0.25, 16, 4), (0.0, 255, 0), (1.0, 255, 255)],
)
def test_the_levels_inside_a_radius(eps, levels, most):
    assert levels_within(eps, levels) == most and whole_radius(eps, levels) == most / levels
    original = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)  # an attack of 8-bit images is saved as it is
    moved = torch.full((1, 1, 2, 2), most / levels)
    assert int(round_into_ball(moved, original, levels=levels, norm="linf", eps=eps).max()) == most
    assert all(levels_within(k / 255, 255) == k for k in range(256))


def random_pairs(norm, eps, levels, count=60, shape=(3, 5, 5)):
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
    [("linf", 8 / 255, 255), ("linf", 0.031, 255), ("linf", 0.2, 16), ("l2", 0.5, 255), ("l2", 0.03, 255)],
)
def test_rounding_stays_inside_in_exact_arithmetic(norm, eps, levels):
    original, x_adv = random_pairs(norm, eps, levels)
    rounded = round_into_ball(x_adv, original, levels=levels, norm=norm, eps=eps)
    assert rounded.dtype == torch.uint8 and rounded.shape == original.shape and int(rounded.max()) <= levels
    moved = rounded.numpy().astype(object) - original.numpy().astype(object)  # Python's whole numbers
    for row in moved.reshape(len(moved), -1):
        if norm == "linf":
            assert max(abs(step) for step in row) / levels <= eps
        else:
            assert sum(step * step for step in row) <= (eps * levels) ** 2 * (1 + 1e-15)
    nearest = (x_adv.double() * levels).round()
    if norm == "linf":  # every pixel is the nearest level, or the outermost one inside
        most = levels_within(eps, levels)
        wanted = torch.minimum(torch.maximum(nearest, original.double() - most), original.double() + most)
        assert torch.equal(rounded.double(), wanted)
        return
    assert (rounded.double() - nearest).abs().max() <= 1
    corrected = 0  # no more taken back than needed: with the last of these pixels at its nearest level the ball is left
    for row in range(len(rounded)):
        back = (rounded[row].double() != nearest[row]).flatten().nonzero()[:, 0].tolist()
        corrected += bool(back)
        sizes = []
        for pixel in back:
            other = rounded[row].double().flatten()
            other[pixel] = nearest[row].flatten()[pixel]
            sizes.append((other - original[row].double().flatten()).norm() / levels)
        assert not back or max(sizes) > eps
    assert corrected


def test_what_is_written_can_be_checked_by_anybody(tmp_path):
    split = dark_images(10, wrong=(8, 9))
    attacks = (
        ("strong", Lighten({100, 101}, to=0.6)),
        ("barely", Lighten({102}, to=0.52)),  # 0.52 rounds to 0.5, which is class 0 again
        ("weak", Lighten({103}, to=0.4)),
    )
    export = save_images(evaluated(split, *attacks, eps=0.3), tmp_path)
    assert (export.images, export.fooled, export.still_fooled, export.largest) == (10, 3, 2, 0.3)
    with np.load(tmp_path / "adversarial.npz") as arrays:  # allow_pickle stays off
        stored = dict(arrays)
    assert stored["original"].dtype == stored["adversarial"].dtype == np.uint8
    assert np.array_equal(stored["original"], split.images.numpy())
    assert np.array_equal(stored["labels"], split.labels.numpy())
    assert np.array_equal(stored["ids"], np.arange(100, 110))
    assert stored["fooled_by"].tolist() == ["strong", "strong", "barely", "", "", "", "", "", "clean", "clean"]
    assert (int(stored["levels"]), float(stored["eps"]), str(stored["norm"])) == (LEVELS, 0.3, "linf")
    moved = stored["adversarial"].astype(int) - stored["original"].astype(int)
    assert moved[:4, 0, 0, 0].tolist() == [3, 3, 2, 1] and not moved[4:].any()
    assert stored["predicted_adversarial"].tolist() == [1, 1] + [0] * 8
    assert stored["predicted"].tolist() == [0] * 10


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sample_pictures_hold_the_exact_levels(tmp_path, channels):
    split = dark_images(20)
    split = Split((split.images * 20).repeat(1, channels, 1, 1), split.labels, split.ids)
    made = evaluated(split, ("all", Lighten(range(100, 120), to=0.7)), levels=255)
    assert save_images(made, tmp_path).still_fooled == 20
    files = sorted(tmp_path.glob("samples/*.png"))
    assert len(files) == 16 and files[0].name == "id100-label0-taken-for1.png"
    stored = np.load(tmp_path / "adversarial.npz")["adversarial"][0].transpose(1, 2, 0)
    pixels = np.round(imread(files[0])[:, :, :3] * 255).astype(int)
    assert np.array_equal(pixels, np.broadcast_to(stored, pixels.shape))


# ---- figures ------------------------------------------------------------------------------------------------------


def test_figures_show_fooled_images_first_and_classes_in_turn():
    made = evaluated(dark_images(12, wrong=(1,)), ("attack", Lighten((100, 103, 105), to=0.7)))
    chosen = figures._choose(made)
    assert chosen[:3] == [0, 3, 5] and len(chosen) == figures.PICTURES and 1 not in chosen
    made = evaluated(dark_images(6), ("attack", Lighten(range(100, 106), to=0.7)))
    made.split.labels[:] = torch.tensor([0, 0, 0, 1, 1, 2])
    assert figures._choose(made) == [0, 3, 5, 1, 4, 2]


def test_perturbations_are_scaled_to_the_whole_range():
    difference = torch.zeros(4, 1, 5, 5)
    difference[0, 0, 0, 0] = 0.25
    for norm, factor in (("linf", 1.0), ("l2", 2.0)):
        assert figures._visible(difference, evaluated(dark_images(2), norm=norm))[0] == pytest.approx(factor)
    assert figures._visible(torch.zeros(2, 1, 3, 3), evaluated(dark_images(2), norm="l2"))[0] == 1.0


def test_figures_are_drawn_as_png_and_pdf(tmp_path):
    made = evaluated(dark_images(9, wrong=(1,)), ("attack", Lighten((100, 103), to=0.7)), classes=3)
    names = ("zero", "one", "two")
    assert figures.draw_pictures(tmp_path / "pictures.png", made, class_names=names)
    figures.plot_classes(tmp_path / "classes.png", per_class(made, names), robust="under attack")
    figures.plot_confusion(tmp_path / "confusion.png", made, class_names=names)
    curves = {name: [{0.0: 90.0, 8 / 255: 40.0 + seed} for seed in range(3)] for name in "abcdefgh"}
    curves["one radius"] = [{8 / 255: 20.0}]
    figures.plot_curves(tmp_path / "curves.png", curves, attack="pgd20", norm="linf", eps=8 / 255)
    for name in ("pictures", "classes", "confusion", "curves"):
        assert float(imread(tmp_path / f"{name}.png")[:, :, :3].std()) > 0.03
        pdf = (tmp_path / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF") and b"/FontFile2" in pdf and b"/Type3" not in pdf  # TrueType
    nothing = evaluated(dark_images(3, wrong=(0, 1, 2)), ("attack", Lighten(())))
    assert not figures.draw_pictures(tmp_path / "none.png", nothing, class_names=("a", "b"))
    assert len(list(tmp_path.iterdir())) == 8


def test_the_figures_of_each_class():
    split = dark_images(10, wrong=(8, 9))  # eight of class 0; two images of class 0 are labelled 2
    split.labels[8:] = 2
    made = evaluated(split, ("a", Lighten((100, 101))), ("b", Lighten((101, 102))), classes=3)
    rows = per_class(made, ("zero", "one", "two"))
    assert rows == [
        {"class": "zero", "images": 8, "clean_acc": 100.0, "worst_case_acc": 62.5, "attacks": {"a": 75.0, "b": 75.0}},
        {"class": "two", "images": 2, "clean_acc": 0.0, "worst_case_acc": 0.0, "attacks": {"a": 0.0, "b": 0.0}},
    ]
    assert figures.confusion(made, 3).tolist() == [[5, 3, 0], [0, 0, 0], [2, 0, 0]]
    assert worst_class(rows)["clean"] == worst_class(rows)["a"] == 0.0
    assert worst_class(rows[:1]) == {"clean": 100.0, "worst_case": 62.5, "a": 75.0, "b": 75.0}
    many = [{"worst_case_acc": (7 * place) % 100, "clean_acc": 0} for place in range(100)]
    assert [row["worst_case_acc"] for row in figures.worst_classes(many)] == list(range(10))
    assert figures.worst_classes(rows) == rows


def test_names_are_spelt_as_in_papers():
    assert [eps_text(eps) for eps in (8 / 255, 0.031, 0.2, 0.0)] == ["8/255", "0.031", "0.2", "0"]
    names = ("pgd20", "apgd-ce", "autoattack", "mine:Attack", "pgd20 from at", "mine:Attack from a:b")
    titles = ["PGD-20", "APGD-CE", "AutoAttack", "mine:Attack", "PGD-20 from at", "mine:Attack from a:b"]
    assert [figures.attack_title(name) for name in names] == titles


def test_the_legend_of_a_comparison_leaves_room_for_its_figure():
    few = ["clean", "PGD-20", "CW-20", "APGD-CE", "AutoAttack"]
    assert legend_columns(few) == 5 and legend_columns(["clean"]) == 1
    assert legend_columns([*few, *(f"{name} from natural" for name in few)]) == 3
    assert legend_columns([f"package.module:AttackOfMyOwn{place}" for place in range(9)]) == 1


def test_names_of_lines_do_not_overlap(tmp_path):
    ends = {f"m{place}": (1, 50 + place // 18) for place in range(21)}  # most end at the same height
    with _figures.figure(tmp_path / "lines.png", 3.4, 3.2) as grid:
        grid[0][0].set(xlim=(0, 1), ylim=(0, 100))
        _figures.name_lines(grid[0][0], ends, dict.fromkeys(ends, "black"))
        heights = sorted(text.xyann[1] for text in grid[0][0].texts)
        point = 72 / grid[0][0].figure.dpi * grid[0][0].get_window_extent().height / 100
    assert len(heights) == 21 and 0 <= heights[0] < heights[-1] <= 100
    assert min((above - below) * point for below, above in pairwise(heights)) > 7  # the size of the letters
