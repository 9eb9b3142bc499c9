"""`ard_fast.train.run`: networks, torch data sets and losses that are objects in memory."""

import numpy as np
import own_losses
import pytest
import torch
from short_runs import assert_same_run, small_and_tidy, stop_after
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SubsetRandomSampler, TensorDataset

from ard_fast import compare, evaluate
from ard_fast.data.given import read_dataset
from ard_fast.train import main, run

__all__ = ["small_and_tidy"]  # a fixture


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))


def by_brightness():
    """A teacher: the class whose mean brightness is the nearest."""
    means = torch.tensor([45.0, 125.0, 205.0]) / 255
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    teacher[1].weight.data[:], teacher[1].bias.data = means[:, None] / 32 * 50, -means.square() * 50
    return teacher


class Pairs(list):
    """A data set as people write them."""

    classes = ("a", "b", "c", "d")


def images(count, seed=0):
    """uint8 images of three classes that differ in brightness, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    return (rng.random((count, 1, 8, 8)) * 90 + labels[:, None, None, None] * 80).astype(np.uint8), labels


X, Y = images(66)
SETTINGS = {"epochs": 2, "batch_size": 16, "eps": 0.05, "steps": 2, "val_steps": 1, "val_size": 6, "device": "cpu"}


def torch_set(x, y):
    return TensorDataset(torch.from_numpy(x).float() / 255, torch.from_numpy(y))


TRAIN, TEST = torch_set(X[:48], Y[:48]), torch_set(X[48:], Y[48:])


def test_torch_data_give_the_run_of_the_command(tmp_path, capsys):
    np.savez(tmp_path / "i.npz", x_train=X[:48], y_train=Y[:48], x_test=X[48:], y_test=Y[48:])
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    flags += ["--dataset", "npz", "--data-dir", str(tmp_path / "i.npz"), "--student", "digits-student"]
    assert main(["--method", "at", *flags, "--out", str(tmp_path / "command")]) == 0
    loader = DataLoader(TRAIN, batch_size=7, shuffle=True)
    result = run("at", student="digits-student", train=loader, test=TEST, out=tmp_path / "python", **SETTINGS)
    assert_same_run(tmp_path / "command", result.folder)
    with torch.no_grad():
        right = result.student(TEST.tensors[0]).argmax(1) == TEST.tensors[1]
    assert result.summary["clean_acc"] == pytest.approx(100 * right.float().mean().item())
    assert result.summary["dataset"] == "given:TensorDataset"
    assert evaluate.main([str(result.folder)]) == 2
    assert "was trained on images of a Python program; name a data set with --dataset" in capsys.readouterr().err
    (result.folder / "last.safetensors").unlink()  # the best weights are returned
    again = run("at", student="digits-student", train=loader, test=TEST, out=result.folder, resume=True, **SETTINGS)
    assert all(map(torch.equal, again.student.parameters(), result.student.parameters()))


def test_objects_in_memory_stopped_and_resumed(tmp_path, monkeypatch, capsys):
    student, teacher = network(), by_brightness()
    about = {"student": student, "teacher": teacher, "train": TRAIN, "test": TEST, **SETTINGS}
    run(own_losses.distil, out=tmp_path / "whole", **about)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(KeyboardInterrupt, match=r"checkpoint written.*resume=True"):
            run(own_losses.distil, out=tmp_path / "stopped", **about)
    assert main(["--resume", str(tmp_path / "stopped")]) == 2
    assert "method: given:distil was an object of a Python program; go on there" in capsys.readouterr().err
    run(own_losses.distil, out=tmp_path / "stopped", resume=True, **about)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert compare.main([str(tmp_path)]) == 0
    assert all(torch.equal(one, other) for one, other in zip(student.parameters(), network().parameters(), strict=True))
    with pytest.raises(FileExistsError, match="already holds a run; choose another folder or resume=True"):
        run("at", out=tmp_path / "whole")


def test_classes_and_channels_of_a_data_set():
    pairs = Pairs((image, int(label)) for image, label in zip(X[:6], Y[:6], strict=True))
    data = read_dataset(DataLoader(pairs, batch_size=4), pairs)
    assert (data.name, data.num_classes, data.class_names) == ("Pairs", 4, Pairs.classes)
    assert torch.equal(data.train.images, torch.from_numpy(X[:6])) and data.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    batches = BatchSampler(SubsetRandomSampler([1, 4]), 1, drop_last=False)
    assert read_dataset(DataLoader(pairs, batch_sampler=batches), pairs).train.labels.tolist() == [1, 1]
    with pytest.warns(UserWarning, match="test: pixels are rounded to 256 levels, by up to 0.00"):
        read_dataset(pairs, TensorDataset(torch.full((2, 1, 8, 8), 0.501), torch.zeros(2, dtype=torch.int64)))


class Random(TensorDataset):
    def __getitem__(self, index):
        return torch.rand(1, 8, 8), 0


def of(x, y=None):
    return TensorDataset(x, torch.arange(len(x)) % 3 if y is None else y)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (of((torch.rand(4, 1, 8, 8) - 0.5) / 0.25), r"got -\d.* to .*Normalised images\? Leave .* student_mean"),
        (of(torch.rand(4, 1, 8, 8) * 255), r"expected pixels in \[0, 1\], got .*Divide them by their largest value"),
        (of(torch.full((4, 1, 8, 8), float("nan"))), r"expected pixels in \[0, 1\], got nan"),
        (of(torch.zeros(4, 1, 8, 8, dtype=torch.int64)), "expected images in uint8, or floating"),
        (of(torch.rand(4, 8, 8, 3)), r"expected images \[C, H, W\], channels first, got \[8, 8, 3\]"),
        (of(torch.rand(4, 64)), r"expected images \[C, H, W\], channels first, got \[64\]"),
        (of(torch.rand(4, 1, 8, 8), torch.rand(4)), "expected labels that are whole numbers from 0, got torch.float32"),
        (of(torch.rand(4, 1, 8, 8), torch.arange(4) - 1), "expected labels .* least -1"),
        (TensorDataset(torch.rand(4, 1, 8, 8)), "expected pairs of image and label, got list of 1"),
        (Random(torch.rand(4, 1, 8, 8)), "an image differs each time it is read; leave random transforms out"),
        ([(object(), 0)], "cannot be read"),
        ([], "it is empty"),
        (5, "expected a map-style data set or a loader, got int"),
        (of(torch.rand(4, 3, 8, 8)), "expected images of one shape in all splits"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*rounded to 256 levels")
def test_data_that_cannot_be_used_are_refused(data, message):
    with pytest.raises(ValueError, match=f"^train: .*{message}"):
        read_dataset(data, TEST)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"epoch": 3}, "unknown key 'epoch'; did you mean 'epochs'"),
        ({"method": "compare"}, "method: expected a single one"),
        ({"train": TRAIN}, "test: train and test go together"),
        ({"val": TEST}, "test: train and test go together, and val with both"),
        ({"train": TRAIN, "test": TEST, "dataset": "mnist"}, "dataset: expected none beside train and test, got mnist"),
        ({"train": TRAIN, "test": TEST, "val": of(torch.zeros(3, 3, 8, 8))}, "train: expected images of one shape in"),
        ({"student": network}, r"student: expected a name or a network \(torch.nn.Module\), got network"),
        ({"method": "kd", "teacher": network(), "student": network(), "train": TRAIN, "test": TEST}, "is untrained: "),
        (
            {"method": own_losses.detached, "student": network(), "train": TRAIN, "test": TEST},
            "method: given:detached: the loss has no gradient",
        ),
        ({"method": own_losses.other_names}, r"method: given:other_names takes \(model, x_adv, y\)"),
    ],
)
def test_what_cannot_run_is_refused(tmp_path, about, message):
    settings = {
        name: value for name, value in SETTINGS.items() if name == "device" or (about.get("train") and name != "steps")
    }
    with pytest.raises(ValueError, match=message):
        run(**{"method": "at", **settings, **about}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
