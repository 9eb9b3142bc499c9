"""Networks: shapes, parameter counts and names of the published ones; factories, timm, and what is neither."""

import sys
import types
from functools import partial

import pytest
import torch
import torch.nn.functional as tf
from torch import nn

from ard_fast.models import MODELS, build_model, count_parameters, find_model
from ard_fast.training.checkpoint import load_network

# The wide ones are tested narrow: a narrow network of the same depth has the same layers.
NARROW = {name: {"depth": 10, "widen": 1} if "wrn" in name else {} for name in MODELS}


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("mobilenetv2", 10, 2_296_922),
        ("mobilenetv2", 100, 2_412_212),
        ("mobilenetv2-tiny", 10, 253_070),
        ("resnet18", 10, 11_173_962),
        ("resnet18", 100, 11_220_132),
        ("digits-teacher", 10, 23_034),
        ("digits-student", 10, 4_258),
        ("mnist-teacher", 10, 3_274_634 + 2 * (32 + 64) - 32 - 64),  # of Madry's, batch norm instead of two biases
        ("mnist-student", 10, 10_074),
        ("wrn-34-10", 10, 46_160_474),  # without the 2.1 M of sub_block1 that the published forward never uses
        ("wrn-28-10", 10, 36_479_194),
        ("wrn-34-20", 10, 184_531_674),
        ("wrn-70-16", 10, 266_796_506),
        ("wrn-70-16", 100, 266_888_756),
        ("dm-wrn-28-10", 10, 36_479_194),
        ("dm-wrn-34-10", 10, 46_160_474),
        ("dm-wrn-34-20", 10, 184_531_674),
        ("dm-wrn-70-16", 100, 266_888_756),
        ("preactresnet18", 10, 11_172_170),
        ("preactresnet18-fast", 10, 11_171_146),  # no batch norm before the pooling
        ("dm-preactresnet18", 10, 12_548_426),  # its shortcuts are 3x3
    ],
)
def test_published_parameter_counts(name, classes, parameters):
    with torch.device("meta"):
        assert count_parameters(build_model(name, classes)) == parameters


@pytest.mark.parametrize("name", sorted(MODELS))
def test_logits_shape_and_gradient_of_every_parameter(name):
    spec = MODELS[name]
    size = spec.image_size or 32
    model = build_model(name, num_classes=7, **NARROW[name])
    logits = model(torch.rand(2, spec.in_channels, size, size))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    dead = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert dead == []


def test_published_names_of_state_dicts():
    assert "layers.0.shortcut.0.weight" in build_model("mobilenetv2").state_dict()
    assert "layer2.0.shortcut.1.running_mean" in build_model("resnet18-narrow").state_dict()
    assert "block2.layer.0.convShortcut.weight" in build_model("wrn-34-10", depth=10, widen=2).state_dict()
    assert "layer4.0.shortcut.0.weight" in build_model("preactresnet18", width=8).state_dict()
    names = build_model("dm-wrn-28-10", depth=10, widen=1).state_dict()
    assert {"mean", "std", "init_conv.weight", "layer.1.block.0.shortcut.weight", "logits.bias"} <= names.keys()
    names = build_model("dm-preactresnet18", width=8).state_dict()
    assert {
        "conv_2d.weight",
        "layer_3.1.conv_2d_2.weight",
        "layer_2.0.shortcut.weight",
        "batchnorm.bias",
    } <= names.keys()


def test_one_class_and_wrong_depth_are_refused():
    with pytest.raises(ValueError, match="num_classes: expected at least 2, got 1"):
        build_model("resnet18", num_classes=1)
    with pytest.raises(ValueError, match="depth: expected 6 n"):
        build_model("wrn-34-10", depth=33)
    with pytest.raises(ValueError, match="depth: expected 6 n"):
        build_model("dm-wrn-28-10", depth=12)


@pytest.mark.parametrize("name", ["preactresnet18", "preactresnet18-fast", "dm-preactresnet18"])
def test_the_shortcut_reads_what_its_form_says(name):
    """A block whose residual branch is switched off is its shortcut alone, of the activated input or of the input."""
    torch.manual_seed(0)
    block = (build_model(name, width=8).layer_1 if name.startswith("dm") else build_model(name, width=8).layer2)[0]
    last, norm = (block.conv_2d_2, block.batchnorm_0) if name.startswith("dm") else (block.conv2, block.bn1)
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 8, 8, 8)
    with torch.no_grad():
        out = block(x)
        seen = torch.relu(norm(x)) if name == "preactresnet18" else x
        if name.startswith("dm"):  # 3x3, padded at the bottom and right
            expected = tf.conv2d(tf.pad(x, (0, 1, 0, 1)), block.shortcut.weight, None, 2)
        else:
            expected = tf.conv2d(seen, block.shortcut[0].weight, None, 2)
    torch.testing.assert_close(out, expected)


def test_dm_networks_normalise_pixels():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 32, 32)
    plain = build_model("dm-preactresnet18", width=8, mean=(0.0,) * 3, std=(1.0,) * 3).eval()
    usual = build_model("dm-preactresnet18", width=8).eval()
    usual.load_state_dict({**plain.state_dict(), "mean": usual.mean, "std": usual.std})
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)))
    torch.testing.assert_close(usual(x), plain((x - mean) / std))
    assert build_model("dm-preactresnet18", 100, width=8).mean.flatten()[0] == torch.tensor(0.5071)
    assert build_model("dm-preactresnet18", in_channels=1, width=8).std.flatten().tolist() == [1.0]
    with pytest.raises(ValueError, match="mean: expected 3 numbers, one for each channel, got 2"):
        build_model("dm-preactresnet18", width=8, mean=(0.5, 0.5))


# ---- factories and timm -------------------------------------------------------------------------------------------

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


@pytest.fixture
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
    assert network is not build_model(f"{module}:{name}", 7, in_channels)  # no weights shared between runs


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
        ("factories_of_others.py:make", r"expected package.module:factory \(without .py\)"),
        ("factories_of_other:make", "student: cannot import 'factories_of_other'"),
        ("resnet-18", "unknown student 'resnet-18'; did you mean 'resnet18'"),
        ("wrn-34-11", "unknown student 'wrn-34-11'; did you mean 'wrn-34-10'"),
    ],
)
def test_what_is_no_factory(module, path, message):
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


@pytest.mark.parametrize(
    ("name", "classes", "asked"),
    [
        ("Wong2020Fast", 10, ("Wong2020Fast", "cifar10", "Linf")),
        ("Wong2020Fast", 100, ("Wong2020Fast", "cifar100", "Linf")),
        ("cifar10/l2/Wong2020Fast", 10, ("Wong2020Fast", "cifar10", "L2")),
        ("Wong2020Fast", 7, "teacher: no benchmark has 7 classes; name robustbench:DATASET/THREAT/Wong2020Fast"),
        ("cifar/l2/Wong2020Fast", 10, "teacher: expected robustbench:NAME or .* got 'cifar/l2/Wong2020Fast'"),
        ("Wong2020", 10, "teacher: robustbench:Wong2020.* no such network of cifar10; "),
    ],
)
def test_robustbench(monkeypatch, tmp_path, name, classes, asked):
    """Its networks are trained and take pixels: they are not normalised a second time."""
    path = f"robustbench:{name}"
    monkeypatch.setitem(sys.modules, "robustbench", None)  # as if it were not installed
    with pytest.raises(ValueError, match=rf"student: {path} needs robustbench \(pip install robustbench\)"):
        find_model(path, argument="student")
    (tmp_path / "robustbench").mkdir()
    (tmp_path / "robustbench" / "__init__.py").touch()
    (tmp_path / "robustbench" / "utils.py").write_text(
        "from torch import nn\n"
        "def load_model(model_name, dataset, threat_model):\n"
        "    network = {'Wong2020Fast': nn.Sequential(nn.Flatten(), nn.Linear(12, 10))}[model_name]\n"
        "    network.asked = model_name, dataset, threat_model\n"
        "    return network\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("robustbench", "robustbench.utils"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    load = partial(load_network, path, num_classes=classes, in_channels=3)
    if isinstance(asked, str):
        with pytest.raises(ValueError, match=asked):
            load()
        return
    network = load()
    assert network.asked == asked and not network.training
    with pytest.raises(ValueError, match="teacher: the network normalises its input itself; leave mean and std out"):
        load(mean=(0.5,), std=(0.5,))


def test_timm_that_is_not_there_or_broken(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"student: timm:resnet18 needs timm \(pip install timm\)"):
        find_model("timm:resnet18", argument="student")
