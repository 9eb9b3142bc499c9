"""State dicts under the names and wrappers of published files, and files that are none."""

import argparse
import gzip
import io
import os
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ard_fast.models import Normalised, build_model
from ard_fast.models.registry import MODELS, ModelSpec
from ard_fast.models.wideresnet import WideResNet
from ard_fast.training.checkpoint import load_network, save_weights

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """A WideResNet of few parameters, found by name as the published ones are."""
    monkeypatch.setitem(MODELS, "wrn-10-1", ModelSpec(WideResNet, options={"depth": 10, "widen": 1}))


def trained(name, **options):
    """A network whose every tensor, buffers too, is unlike a fresh one's."""
    torch.manual_seed(1)
    network = build_model(name, **options)
    for key, value in network.state_dict().items():
        if value.is_floating_point() and key not in ("mean", "std"):
            value.uniform_(0.1, 0.9)
    return network.eval()


def load(path, name="wrn-10-1", **more):
    return load_network(path, num_classes=10, in_channels=3, model=name, **more)


def same(a, b, x=None):
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(3)) if x is None else x
    with torch.no_grad():
        return torch.equal(a(x), b(x))


# ---- published forms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "nesting"),
    [
        ("", ()),
        ("module.", ("state_dict",)),
        ("module.model.", ("model",)),
        ("_orig_mod.", ("last", "state_dict")),
        ("module.1.module.", ("checkpoint", "weights", "network")),
        ("1.", ("my_own_key",)),
        ("model.", ("ema",)),
    ],
)
def test_wrappers(tmp_path, prefix, nesting):
    network = trained("wrn-10-1")
    content = {prefix + key: value for key, value in network.state_dict().items()}
    for key in nesting:
        content = {key: content, "epoch": 76, "optimizer": {"lr": 0.1}, "args": argparse.Namespace(lr=0.1)}
        content |= {"best_acc": np.float64(51.2), "acc": np.float32(3)}
    torch.save(content, tmp_path / "published.pt")
    loaded = load(tmp_path / "published.pt")
    assert same(loaded, network) and not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_unused_weights_are_dropped(tmp_path, prefix):
    """The TRADES WideResNet registers a stage that its forward never uses; weight averages carry a counter."""
    network = trained("wrn-10-1")
    unused = {f"sub_block1.{key}": torch.full_like(value, 9) for key, value in network.block1.state_dict().items()}
    content = {prefix + key: value for key, value in {**network.state_dict(), **unused}.items()}
    torch.save({**content, "n_averaged": torch.tensor(5)}, tmp_path / "trades.pt")
    assert same(load(tmp_path / "trades.pt"), network)
    with pytest.raises(ValueError, match=r"does not fit wrn-10-1 .*1 unexpected: .*sub_block2"):
        torch.save({**content, prefix + "sub_block2.bias": torch.zeros(1)}, tmp_path / "other.pt")
        load(tmp_path / "other.pt")


@pytest.mark.parametrize("name", ["dm-preactresnet18", "preactresnet18-fast", "resnet18", "mobilenetv2"])
def test_every_published_network_comes_back(tmp_path, monkeypatch, name):
    spec = MODELS[name]
    if "resnet18" in name:
        monkeypatch.setitem(MODELS, name, ModelSpec(spec.build, options={**spec.options, "width": 4}))
    network = trained(name)
    weights = {f"module.{key}": value for key, value in network.state_dict().items()}
    weights = {key: value for key, value in weights.items() if "num_batches" not in key}  # as of torch before 0.4.1
    torch.save({"state_dict": weights}, tmp_path / "w.pt")
    assert same(load(tmp_path / "w.pt", name), network)


def test_dm_networks_take_their_normalisation_from_the_file_or_keep_their_own(tmp_path, monkeypatch):
    spec = MODELS["dm-wrn-28-10"]
    monkeypatch.setitem(MODELS, "dm-wrn-28-10", ModelSpec(spec.build, options={"depth": 10, "widen": 1}))
    network = trained("dm-wrn-28-10")
    network.mean.fill_(0.25)
    torch.save(network.state_dict(), tmp_path / "with.pt")
    assert same(load(tmp_path / "with.pt", "dm-wrn-28-10"), network)
    torch.save({k: v for k, v in network.state_dict().items() if k not in ("mean", "std")}, tmp_path / "without.pt")
    loaded = load(tmp_path / "without.pt", "dm-wrn-28-10")
    assert torch.equal(loaded.mean.flatten(), torch.tensor(MEAN)) and not same(loaded, network)
    with pytest.raises(ValueError, match="normalises its input itself"):
        load(tmp_path / "with.pt", "dm-wrn-28-10", mean=MEAN, std=STD)


def other_weights(network):
    """An average of the weights: the same shapes, other values."""
    return {key: value + 0.01 if value.is_floating_point() else value for key, value in network.state_dict().items()}


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_of_two_sets_of_weights_the_trained_one_is_taken_and_the_other_named(tmp_path, flat, order):
    network = trained("wrn-10-1")
    wrapper = "" if flat else "module."  # where "ema" is shorter than "model", that is no reason to take it
    parts = {"model": network.state_dict(), "ema": {f"{wrapper}{k}": v for k, v in other_weights(network).items()}}
    parts["ema"]["n_averaged"] = torch.tensor(7)
    parts = dict(sorted(parts.items(), reverse=order))
    flattened = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    torch.save(flattened if flat else {**parts, "epoch": 1}, tmp_path / "w.pt")
    with pytest.warns(UserWarning, match=r"teacher: the file holds 2 sets of weights: 'model' is taken, not 'ema"):
        assert same(load(tmp_path / "w.pt"), network)
    averaged = trained("wrn-10-1")
    averaged.load_state_dict(other_weights(network))
    assert same(load(tmp_path / "w.pt", weights="ema"), averaged)  # and no warning, which would be an error
    assert same(load(tmp_path / "w.pt", weights="model"), network)
    with pytest.raises(ValueError, match=r"weights: .*w\.pt holds 'model', 'ema.*', not 'swa'"):
        load(tmp_path / "w.pt", weights="swa")


def test_what_does_not_fit_is_one_line(tmp_path):
    state = trained("wrn-10-1").state_dict()
    wrong = {key: value for key, value in state.items() if not key.startswith("block3")}
    wrong["fc.weight"] = torch.zeros(1000, 64)
    torch.save({**wrong, "head.bias": torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="does not fit wrn-10-1 with 10 classes: ") as caught:
        load(tmp_path / "w.pt")
    text = str(caught.value)
    assert "keys missing: block3.layer.0.bn1.weight, block3" in text and "1 unexpected: head.bias" in text
    assert "1 of another shape (size mismatch): fc.weight [1000, 64], not [10, 64]" in text
    assert "\n" not in text and len(text) < 500 + len(str(tmp_path))


# ---- the normaliser -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (("mu", "sigma"), ""),
        (("normalize.mean", "normalize.std"), "model."),
        (("module.0.mean", "module.0.std"), "module.1."),
    ],
)
def test_a_normaliser_in_the_file_comes_with_the_network(tmp_path, names, prefix):
    network = trained("wrn-10-1")
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    content = {prefix + key: value for key, value in network.state_dict().items()}
    torch.save({**content, names[0]: mean, names[1]: std}, tmp_path / "w.pt")
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "w.pt")(x), network((x - mean) / std))


def test_a_normaliser_beside_the_file(tmp_path):
    network = trained("wrn-10-1")
    torch.save(network.state_dict(), tmp_path / "w.pt")
    loaded = load(tmp_path / "w.pt", mean=MEAN, std=STD)
    assert same(loaded, Normalised(network, MEAN, STD)) and not same(loaded, network)
    one = load(tmp_path / "w.pt", mean=[0.5], std=[0.5])  # 2x - 1
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(one(x), network((x - 0.5) / 0.5))


def test_a_normalised_network_survives_its_own_file(tmp_path):
    network = Normalised(trained("wrn-10-1"), MEAN, STD)
    save_weights(tmp_path / "w.safetensors", network, name="wrn-10-1", num_classes=10, in_channels=3)
    assert same(load(tmp_path / "w.safetensors", None), network)
    assert same(load(tmp_path / "w.safetensors", None, mean=MEAN, std=STD), network)  # says the same again
    with pytest.raises(ValueError, match="the file has a mean and std of its own"):
        load(tmp_path / "w.safetensors", mean=(0.5,) * 3, std=STD)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (MEAN, None, "teacher_mean: mean and std go together"),
        ((0.5, 0.5), (0.5, 0.5), "expected 3 numbers as mean and as std, got 2"),
        (MEAN, (0.2, 0.0, 0.2), "std: expected numbers above 0"),
        ((0.5, float("nan"), 0.5), STD, "mean: expected a finite number"),
    ],
)
def test_normalisers_that_are_none(tmp_path, mean, std, message):
    torch.save(trained("wrn-10-1").state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "w.pt", mean=mean, std=std)


# ---- files that are damaged or hostile ----------------------------------------------------------------------------


class Touch:
    """A pickle that makes a file when it is opened carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Elsewhere(nn.Linear):
    """A class of somebody's code."""


def test_pickles_of_other_objects_run_nothing(tmp_path):
    evil = Touch(tmp_path / "ran")
    for content in (evil, {"state_dict": evil}, {"model": Elsewhere(2, 2), "epoch": 3}):
        torch.save(content, tmp_path / "evil.pt")
        expected = (
            r"^teacher: cannot read .* as a state dict: it holds objects of \S*(system|Elsewhere), .*state_dict\(\)"
        )
        with pytest.raises(ValueError, match=expected) as caught:
            load(tmp_path / "evil.pt")
        assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


endless = {}
endless["model"] = endless


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (endless, "holds no state dict of tensors"),
        ([1, 2], "holds no state dict of tensors; it is of type list"),
        ({}, "holds no state dict of tensors"),
        ({"fc.bias": 3.0, "x": torch.zeros(1)}, "no state dict of tensors; beside tensors it holds 'fc.bias': float"),
        ({1: torch.zeros(1)}, "holds no state dict of tensors"),
        ({"fc.weight": torch.eye(64)[:10].to_sparse()}, "a tensor that no network has"),
        ({"fc.weight": torch.zeros(10, 64, dtype=torch.complex64)}, "a tensor that no network has"),
        ({"fc.weight": torch.zeros(9, 64)}, "does not fit"),
    ],
)
def test_files_without_weights_are_reported(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"teacher: .*w\.pt .*{message}"):
        load(tmp_path / "w.pt")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    torch.save({**trained("wrn-10-1").state_dict(), "fc.bias": torch.full((10,), float("nan"))}, tmp_path / "nan.pt")
    with pytest.raises(ValueError, match=r"holds values that are not finite, in fc\.bias"):
        load(tmp_path / "nan.pt")


def as_zip(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), "x")  # without the time, which would be in the ids of tests
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_program_is_called_that(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt is a TorchScript program.*torch.jit.load"):
        load(tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is an empty file"),
        (b"\n<!DOCTYPE html>\n<html><title>Google Drive - Virus scan warning</title>", "is an HTML page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "is a Git LFS pointer.*git lfs"),
        (b'{"error": "Repository not found"}', "is a JSON text, not weights"),
        (gzip.compress(b"x", mtime=0), "is a packed archive: unpack it first"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (as_zip("readme.txt", "a/b.png"), "is a zip archive of something else"),
        (as_zip("x/data.pkl")[:60], "is cut short"),
        (b"hello", "(is neither a file of torch.save nor safetensors|cannot be read|is cut short)"),
    ],
)
def test_files_that_are_something_else_are_called_that(tmp_path, content, message, suffix):
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^teacher: .*w{suffix} {message}") as caught:
        load(tmp_path / f"w{suffix}")
    assert "\n" not in str(caught.value)


def test_the_content_decides_what_a_file_is(tmp_path):
    network = trained("wrn-10-1")
    save_file(network.state_dict(), tmp_path / "w.bin")
    assert same(load(tmp_path / "w.bin"), network)
    torch.save(network.state_dict(), tmp_path / "w.safetensors")
    assert same(load(tmp_path / "w.safetensors"), network)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_and_altered_files(tmp_path, suffix):
    network = trained("wrn-10-1")
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pt":
        torch.save(network.state_dict(), whole)
    else:
        save_weights(whole, network, name="wrn-10-1", num_classes=10, in_channels=3)
    content = whole.read_bytes()
    assert same(load(whole), network)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (content[:8], content[:200], content[:-5], bytes(flipped)):
        whole.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"teacher: .*whole{suffix} .*(cut short|damaged|cannot be read)"):
            load(whole)


def test_metadata_runs_no_code(tmp_path, monkeypatch):
    """A file may say that a factory makes its network; only the caller can allow that to run."""
    (tmp_path / "surprise_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef make(): return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    state, path = trained("wrn-10-1").state_dict(), tmp_path / "w.safetensors"
    save_file(state, path, metadata={"model": "surprise_module:make"})
    with pytest.raises(ValueError, match=r"needs the code of surprise_module:make; allow .* --teacher-model"):
        load(path, None)
    assert not (tmp_path / "ran").exists()
    for metadata, message in (
        ({"model": "wrn-10-2"}, "did you mean 'wrn-10-1'"),
        ({"model": "wrn-10-1", "num_classes": "many"}, "has num_classes many, the data set needs 10"),
        ({"model": "wrn-10-1", "in_channels": "1"}, "has in_channels 1, the data set needs 3"),
    ):
        save_file(state, path, metadata=metadata)
        with pytest.raises(ValueError, match=message):
            load(path, None)


# ---- factories ----------------------------------------------------------------------------------------------------


def test_weights_of_a_factory_and_a_factory_that_is_trained(tmp_path, monkeypatch):
    (tmp_path / "makes_networks.py").write_text(
        "from torch import nn\n"
        "def make(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(4 * in_channels, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), torch.rand(2, 3, 2, 2)
    save_weights(tmp_path / "w.safetensors", network, name="makes_networks:make", num_classes=10, in_channels=3)
    assert same(load(tmp_path / "w.safetensors", "makes_networks:make"), network, x)
    torch.save({"model": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "w.pt")
    assert same(load(tmp_path / "w.pt", "makes_networks:make"), network, x)
    made = load("makes_networks:make", None, mean=MEAN, std=STD)
    assert isinstance(made, Normalised) and not made.training and made(x).shape == (2, 10)
    assert not made(x).requires_grad
    with pytest.raises(ValueError, match="timm:resnet18 has no weights"):
        load("timm:resnet18", None)
    with pytest.raises(ValueError, match="teacher: cannot import 'nowhere'"):
        load("nowhere:make", None)
