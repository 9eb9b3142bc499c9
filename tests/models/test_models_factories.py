"""`package.module:factory` and `timm:NAME` as networks. timm itself is not needed: its two calls are stood in for."""

import sys
import types

import pytest
import torch
from torch import nn

from ard_fast.models import build_model, find_model

MODULE = """
from torch import nn

def both(num_classes, in_channels=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))

def classes(*, num_classes=5):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

def neither():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

def options(num_classes, **kwargs):
    assert "in_channels" not in kwargs
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes, **kwargs))

class Net(nn.Sequential):
    def __init__(self, num_classes=10, in_channels=1):
        super().__init__(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))

ready = neither()
constant = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "factories_of_others.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "factories_of_others"
    sys.modules.pop("factories_of_others", None)


@pytest.mark.parametrize(
    ("name", "in_channels", "classes"),
    [("both", 2, 7), ("classes", 1, 7), ("neither", 1, 3), ("options", 1, 7), ("Net", 2, 7), ("ready", 1, 3)],
)
def test_a_factory_is_told_what_it_asks_for(module, name, in_channels, classes):
    network = build_model(f"{module}:{name}", 7, in_channels)
    assert network(torch.rand(2, in_channels, 8, 8)).shape == (2, classes)


def test_options_reach_the_factory(module):
    assert build_model(f"{module}:options", 4, 1, bias=False)[1].bias is None
    with pytest.raises(ValueError, match=r"model: .*:both\(\) failed \(TypeError"):
        build_model(f"{module}:both", 4, 1, depth=3)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("factories_of_others:bohth", "student: 'factories_of_others' has no 'bohth'; did you mean .*:both"),
        ("factories_of_others:constant", "must be a function or a network, got int"),
        ("factories_of_others:", "expected package.module:factory"),
        (":make", "expected package.module:factory"),
        ("factories_of_other:make", "student: cannot import 'factories_of_other'"),
        ("wrn-34-11", "unknown student 'wrn-34-11'; did you mean 'wrn-34-10'"),
    ],
)
def test_what_is_no_factory(path, message):
    with pytest.raises(ValueError, match=message):
        find_model(path, argument="student")


def test_timm(monkeypatch):
    """What is asked of timm: the name among its own (nothing that it would download), no weights, classes, channels."""
    asked = {}

    def create_model(name, **options):
        asked.update(name=name, **options)
        return nn.Sequential(nn.Flatten(), nn.Linear(48, options["num_classes"]))

    timm = types.ModuleType("timm")
    timm.is_model = lambda name: name == "resnet26"
    timm.list_models = lambda: ["resnet26"]
    timm.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert build_model("timm:resnet26", 7, img_size=4)(torch.rand(2, 3, 4, 4)).shape == (2, 7)
    assert asked == {"name": "resnet26", "pretrained": False, "num_classes": 7, "in_chans": 3, "img_size": 4}
    with pytest.raises(ValueError, match="model: timm has no network 'resnet-26'; did you mean timm:resnet26"):
        build_model("timm:resnet-26")
    with pytest.raises(ValueError, match="timm has no network 'hf-hub:someone/net'"):
        build_model("timm:hf-hub:someone/net")


def test_timm_that_is_not_there_or_broken(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"student: timm:resnet18 needs timm \(pip install timm\)"):
        find_model("timm:resnet18", argument="student")
