"""Networks: shapes, parameter counts of the published ones, and the registry's errors."""

import pytest
import torch
import torch.nn.functional as tf

from ard_fast.models import MODELS, build_model, count_parameters

# The wide ones are tested narrow: a narrow network of the same depth has the same layers.
NARROW = {name: {"depth": 10, "widen": 1} if "wrn" in name else {} for name in MODELS}


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("mobilenetv2", 10, 2_296_922),
        ("mobilenetv2", 100, 2_412_212),
        ("resnet18", 10, 11_173_962),
        ("resnet18", 100, 11_220_132),
        ("digits-teacher", 10, 23_034),
        ("digits-student", 10, 4_258),
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


def test_wide_resnet_downsamples_twice():
    model = build_model("wrn-34-10", depth=10, widen=1)
    shapes = []
    model.block3.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    assert shapes == [(1, 64, 8, 8)]


def test_mobilenetv2_keeps_cifar_resolution():
    model = build_model("mobilenetv2").eval()
    shapes = []
    model.conv2.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    model(torch.rand(1, 3, 32, 32))
    assert shapes == [(1, 1280, 4, 4)]


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


def test_narrow_resnet_is_a_width_option():
    assert count_parameters(build_model("resnet18-narrow")) == count_parameters(build_model("resnet18", width=16))
    assert count_parameters(build_model("resnet18", width=32)) < 3_000_000


def test_student_is_much_smaller_than_its_teacher():
    teacher, student = (count_parameters(build_model(name)) for name in ("digits-teacher", "digits-student"))
    assert 5 * student < teacher


def test_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="unknown model 'resnet-18'; did you mean 'resnet18'"):
        build_model("resnet-18")


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
            expected = torch.nn.functional.conv2d(
                torch.nn.functional.pad(x, (0, 1, 0, 1)), block.shortcut.weight, None, 2
            )
        else:
            expected = tf.conv2d(seen, block.shortcut[0].weight, None, 2)
    torch.testing.assert_close(out, expected)


def test_strided_convolutions_of_the_dm_networks_pad_at_the_end():
    model = build_model("dm-wrn-28-10", depth=10, widen=1)
    block = model.layer[1].block[0]
    assert block.conv_0.stride == (2, 2) and block.conv_0.padding == (0, 0)
    assert block(torch.randn(1, 16, 8, 8)).shape == (1, 32, 4, 4)


def test_dm_networks_normalise_pixels():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 32, 32)
    plain = build_model("dm-preactresnet18", width=8, mean=(0.0,) * 3, std=(1.0,) * 3).eval()
    usual = build_model("dm-preactresnet18", width=8).eval()
    usual.load_state_dict({**plain.state_dict(), "mean": usual.mean, "std": usual.std})
    seen = (x - torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)) / torch.tensor([0.2471, 0.2435, 0.2616]).view(
        3, 1, 1
    )
    torch.testing.assert_close(usual(x), plain(seen))
    assert build_model("dm-preactresnet18", 100, width=8).mean.flatten()[0] == torch.tensor(0.5071)
    assert build_model("dm-preactresnet18", in_channels=1, width=8).std.flatten().tolist() == [1.0]
    with pytest.raises(ValueError, match="mean: expected 3 numbers, one for each channel, got 2"):
        build_model("dm-preactresnet18", width=8, mean=(0.5, 0.5))
