"""The figures show what they say: which images are chosen, how perturbations are scaled, which radii are named."""

import pytest
import torch
from evaluation_fakes import LEVELS, FirstPixel, Lighten, dark_images, single
from matplotlib.image import imread

from ard_fast.evaluation import figures
from ard_fast.evaluation.runner import Evaluator


def evaluated(norm="linf", eps=0.5, count=12, ids=(100, 103, 105), wrong=(1,), classes=3):
    split = dark_images(count)
    split = type(split)(split.images, split.labels, split.ids)
    split.labels[list(wrong)] = 1
    made = Evaluator(FirstPixel(classes), split, levels=LEVELS, norm=norm, eps=eps)
    made.clean()
    made.run(single("attack", Lighten(ids, to=0.7)))
    return made


def test_fooled_images_come_first_and_wrong_ones_never():
    chosen = figures._choose(evaluated())
    assert chosen[:3] == [0, 3, 5] and len(chosen) == figures.PICTURES and 1 not in chosen


def test_classes_take_turns():
    made = evaluated(count=6, ids=range(100, 106), wrong=())
    made.split.labels[:] = torch.tensor([0, 0, 0, 1, 1, 2])
    made.fooled_by = ["attack"] * 6
    assert figures._choose(made) == [0, 3, 5, 1, 4, 2]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.5), ("l2", 0.5)])
def test_perturbations_are_scaled_to_the_whole_range(norm, eps):
    made = evaluated(norm, eps)
    difference = torch.zeros(4, 1, 5, 5)
    difference[0, 0, 0, 0] = 0.25
    factor, how = figures._visible(difference, made)
    assert factor == pytest.approx(1.0 if norm == "linf" else 2.0) and "grey: unchanged" in how
    assert figures._visible(torch.zeros(2, 1, 3, 3), evaluated("l2"))[0] == 1.0


def test_pictures_and_plot_are_drawn(tmp_path):
    made = evaluated()
    assert figures.draw_pictures(tmp_path / "pictures.png", made, class_names=("zero", "one", "two"))
    settings = {"curve_name": "", "norm": "linf", "eps": 0.5, "levels": LEVELS, "title": "title"}
    figures.plot_accuracy(tmp_path / "plot.png", made.results, [], **settings)
    figures.plot_accuracy(tmp_path / "clean.png", made.results[:1], [], **settings)
    for name in ("pictures", "plot", "clean"):
        assert float(imread(tmp_path / f"{name}.png")[:, :, :3].std()) > 0.03
    assert not list(tmp_path.glob("*.part"))


def test_nothing_right_is_nothing_to_show(tmp_path):
    made = evaluated(count=3, ids=(), wrong=(0, 1, 2))
    assert not figures.draw_pictures(tmp_path / "pictures.png", made, class_names=("a", "b", "c"))
    assert not (tmp_path / "pictures.png").exists()


def test_radii_in_levels_where_there_are_255():
    assert figures._eps_text(8 / 255, 255, "linf") == "8/255"
    assert figures._eps_text(0.031, 255, "linf") == "0.031"
    assert figures._eps_text(8 / 255, 16, "linf") == figures._eps_text(8 / 255, 255, "l2") == "0.03137"
