"""Each kind of data set from the command line: trained on, and evaluated from the run's own settings."""

import json
import shutil

import pytest
from mnist_files import fake_mnist
from test_folder import make_folder
from test_npz import arrays, save

from ard_fast import evaluate, train
from ard_fast.data import load_dataset
from ard_fast.data.splits import pixels
from ard_fast.models import build_model
from ard_fast.training.checkpoint import load_network, save_weights

TRAINING = ["--method", "natural", "--student", "digits-student", "--epochs", "1", "--batch-size", "8"]
TRAINING += ["--crop-padding", "0", "--val-steps", "1", "--threads", "1"]
EVALUATION = ["--attacks", "fgsm", "--eps-curve", "none"]


def a_folder(root):
    make_folder(root, size=(12, 10))
    return root, ["--image-size", "8"]


def an_npz_file(root):
    return save(root, arrays(shape=(8, 8, 3))), []


def mnist_files(root):
    fake_mnist(root, count=20)
    return root, ["--student", "mnist-student"]


@pytest.mark.parametrize(
    ("name", "make", "val_size", "tested"),
    [("folder", a_folder, 6, 18), ("npz", an_npz_file, 6, 24), ("mnist", mnist_files, 10, 20)],
)
def test_train_and_evaluate(tmp_path, capsys, name, make, val_size, tested):
    path, settings = make(tmp_path)
    out = str(tmp_path / "run")
    arguments = ["--dataset", name, "--data-dir", str(path), "--val-size", str(val_size), "--out", out]
    assert train.main([*TRAINING, *arguments, *settings]) == 0, capsys.readouterr().err
    assert f"{val_size} validation, {tested} test" in capsys.readouterr().out
    assert evaluate.main([out, *EVALUATION]) == 0, capsys.readouterr().err
    assert f"{tested} test images of {name}" in capsys.readouterr().out


def test_arguments_of_other_data_sets_are_refused_before_any_work(tmp_path, capsys):
    for arguments, message in (
        (["--image-size", "8"], "image_size: only for dataset folder, not digits"),
        (["--image-cache", "x"], "image_cache: only for dataset folder, not digits"),
        (
            ["--download", "true"],
            "download: only cifar10, cifar100, mnist, fashion-mnist can be downloaded, not digits",
        ),
        (["--dataset", "folder"], "data_dir: folder needs --data-dir"),
        (["--dataset", "folder", "--data-dir", "x", "--image-size", "0"], "image_size: expected 1 to 4096"),
    ):
        assert train.main([*TRAINING, *arguments, "--out", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_of_test_images_has_the_labels_of_the_checkpoint(tmp_path, capsys):
    path, settings = a_folder(tmp_path / "data")
    run = tmp_path / "run"
    arguments = [*TRAINING, "--dataset", "folder", "--data-dir", str(path), *settings, "--out", str(run)]
    assert train.main(arguments) == 0, capsys.readouterr().err
    network = load_network(run, num_classes=3, in_channels=3)
    images = load_dataset("folder", data_dir=path, image_size=8).test
    right = network(pixels(images.images, 255)).argmax(1) == images.labels

    def evaluated(name):
        capsys.readouterr()
        code = evaluate.main([str(run), "--attacks", "clean", "--eps-curve", "none", "--out", str(tmp_path / name)])
        return code, capsys.readouterr()

    for folder in (path / "train", path / "test" / "cat"):
        shutil.rmtree(folder)
    code, printed = evaluated("without cats")
    assert code == 0 and "12 test images of folder, 2 of 3 classes" in printed.out, printed.err
    share = 100 * float(right[images.labels > 0].float().mean())
    assert json.loads((tmp_path / "without cats" / "results.json").read_text())["clean_acc"] == pytest.approx(share)

    (path / "test" / "newt").rename(path / "test" / "axolotl")
    code, printed = evaluated("strangers")
    assert code == 2 and "data_dir: axolotl is not a class of the checkpoint, which has cat, dog, newt" in printed.err

    make_folder(path, ("train",), size=(12, 10))  # the classes are known again, and others than in training
    (path / "train" / "newt").rename(path / "train" / "axolotl")
    code, printed = evaluated("renamed")
    assert (
        code == 0
        and "warning: classes: the checkpoint's classes are cat, dog, newt, the folder's axolotl, cat, dog"
        in (printed.out)
    )


def test_class_folders_are_counted_where_the_checkpoint_has_no_names(tmp_path, capsys):
    make_folder(tmp_path, ("test",), size=(8, 8))
    network = build_model("resnet18-tiny", 4, 3)
    save_weights(tmp_path / "w.safetensors", network, name="resnet18-tiny", num_classes=4, in_channels=3)
    arguments = [str(tmp_path / "w.safetensors"), "--dataset", "folder", "--data-dir", str(tmp_path), *EVALUATION]
    assert evaluate.main(arguments) == 2
    assert "3 class folders, and the checkpoint has 4 classes without names: put the" in capsys.readouterr().err
    (tmp_path / "test" / "zebra").mkdir()
    assert evaluate.main(arguments) == 0, capsys.readouterr().err
    assert "3 of 4 classes" in capsys.readouterr().out
