"""Networks: shapes, parameter counts of the published ones, and the registry's errors."""

import pytest
import torch

from ard_fast.models import MODELS, build_model, count_parameters


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
    ],
)
def test_published_parameter_counts(name, classes, parameters):
    with torch.device("meta"):
        assert count_parameters(build_model(name, classes)) == parameters


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"wrn-34-10"}))
def test_logits_shape_and_gradient_of_every_parameter(name):
    spec = MODELS[name]
    size = spec.image_size or 32
    model = build_model(name, num_classes=7)
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
