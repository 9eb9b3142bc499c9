"""Which operations of a traced network are put together, and that those that must not be are not."""

import pytest
import torch
import torch.nn.functional as tf
from folded_cases import assert_same_function, images, trained
from torch import nn

from ard_fast.folding import FoldedNetwork
from ard_fast.folding.layers import Affine, Convolution


class Net(nn.Module):
    """Two convolutions with batch norm; what lies between is `body`, called with the module and the image."""

    def __init__(self, body, **conv):
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 6, 3, 1, 1, **conv), nn.BatchNorm2d(6)
        self.c2, self.b2 = nn.Conv2d(6, 6, 3, 1, 1), nn.BatchNorm2d(6, affine=False)
        self.relu, self.relu_, self.body = nn.ReLU(), nn.ReLU(inplace=True), body
        self.scale, self.linear = nn.Parameter(torch.tensor(1.5)), nn.Linear(6, 4)

    def forward(self, x):
        return self.linear(self.body(self, x).mean((2, 3)))


def residual_module(m, x):
    x = m.relu(m.b1(m.c1(x)))
    return m.relu(m.b2(m.c2(x)) + x)


def residual_in_place(m, x):
    x = m.relu_(m.b1(m.c1(x)))
    out = m.b2(m.c2(x))
    out += x
    return tf.relu(out, inplace=True)


def residual_methods(m, x):
    x = tf.relu(m.b1(m.c1(x)))
    return m.b2(m.c2(x)).add_(x).relu_()


def residual_other_side(m, x):
    x = torch.relu_(m.b1(m.c1(x)))
    return torch.add(x, m.b2(m.c2(x))).relu()


def no_last_relu(m, x):
    x = tf.relu_(m.b1(m.c1(x)))
    return torch.add(x, m.b2(m.c2(x)))


def two_convolutions_added(m, x):
    x = torch.relu(m.b1(m.c1(x)))
    return torch.relu(m.b2(m.c2(x)) + m.c2(torch.tanh(x)))


def three_added(m, x):
    x = m.b1(m.c1(x))
    return m.b2(m.c2(x)) + m.c2(torch.tanh(x)) + x


def alone(m, x):
    return torch.relu(torch.sigmoid(torch.relu(m.b1(torch.sin(x.repeat(1, 2, 1, 1))))) - 0.6)


def norm_added(m, x):
    x = m.c1(x)
    return torch.relu(m.b2(torch.tanh(x)) + x)


# Of these some part must not be put together.


def scaled_addition(m, x):
    x = m.relu(m.b1(m.c1(x)))
    return m.relu(torch.add(m.b2(m.c2(x)), x, alpha=2))


def broadcast_addition(m, x):
    x = m.relu(m.b1(m.c1(x)))
    return m.relu(m.b2(m.c2(x)) + x.mean((2, 3), keepdim=True)) + 0.5


def doubled(m, x):
    x = m.b1(m.c1(x))
    return m.relu(x + x)


def read_twice(m, x):
    out = m.c1(x)
    normed = m.b1(out)
    return m.relu(normed) + torch.tanh(normed) + out.sin()


def in_place_read_before_and_after(m, x):
    out = m.b1(m.c1(x))
    before = out + 0.5
    rectified = m.relu_(out)
    return before + 2 * out + rectified


def in_place_without_result(m, x):
    out = m.b1(m.c1(x))
    out.mul_(2)
    out -= 0.3
    out *= 1.5
    tf.relu(out, inplace=True)
    return out


def one_convolution_twice(m, x):
    x = m.relu(m.b1(m.c1(x)))
    return m.relu(m.b2(m.c2(x))) + m.b1(m.c2(x)) + m.c2(x)


def parameter_of_the_network(m, x):
    return m.relu(m.b1(m.c1(x * m.scale)) + m.scale)


def nothing_between(m, x):
    return m.c2(m.c1(x))


CASES = {  # convolutions, passes that stand alone
    residual_module: (2, 0),
    residual_in_place: (2, 0),
    residual_methods: (2, 0),
    residual_other_side: (2, 0),
    no_last_relu: (2, 0),
    two_convolutions_added: (3, 0),
    three_added: (3, 0),
    alone: (0, 2),
    norm_added: (1, 1),
    scaled_addition: (2, 1),
    broadcast_addition: (2, 1),
    doubled: (1, 1),
    read_twice: (1, 2),
    in_place_read_before_and_after: (1, 1),
    in_place_without_result: (1, 1),
    one_convolution_twice: (4, 0),
    parameter_of_the_network: (1, 1),
    nothing_between: (2, 0),
}


def layers(folded):
    modules = list(folded._traced.children())
    return tuple(sum(isinstance(module, kind) for module in modules) for kind in (Convolution, Affine))


@pytest.mark.parametrize("body", CASES, ids=lambda body: body.__name__)
@pytest.mark.parametrize("bias", [True, False])
def test_what_is_put_together(body, bias):
    network = Net(body, bias=bias)
    network, x = trained(network).train(), images(4, size=9)
    folded = FoldedNetwork(network, x)
    assert layers(folded) == CASES[body]
    assert_same_function(folded, network, x)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.2).add_(0.05)
        network.b1.running_mean.add_(0.3)
    folded.refresh()
    assert_same_function(folded, network, x)


@pytest.mark.parametrize(
    ("conv", "folds"),
    [
        ({"padding": "same"}, True),
        ({"padding": "valid", "stride": 2}, True),
        ({"padding": (2, 0), "dilation": (2, 1)}, True),
        ({"groups": 3, "stride": (1, 2), "padding": 1}, True),
        ({"kernel_size": (3, 1), "padding": "same"}, True),
        ({"kernel_size": 1, "bias": False}, True),
        pytest.param(
            {"kernel_size": 2, "padding": "same"}, False, marks=pytest.mark.filterwarnings("ignore:Using pad")
        ),
        ({"padding_mode": "reflect", "padding": 1}, False),
    ],
    ids=str,
)
def test_geometries(conv, folds):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 6, **{"kernel_size": 3, **conv})
    network = trained(nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)))
    x = images(3, size=9)
    network.eval()(x)
    folded = FoldedNetwork(network, x)
    assert layers(folded) == ((1, 0) if folds else (0, 1)) and folded.folded == (1, 1)
    assert_same_function(folded, network, x)


def test_layers_that_do_more_than_they_look_like():
    """Hooks, parametrisations and norms of the batch itself are called as they are."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4 * 25, 3),
    )
    network[0].register_forward_hook(lambda module, inputs, output: 2 * output + 1)
    network[6].register_forward_pre_hook(lambda module, inputs: (inputs[0].sin(),))
    network, x = trained(network), images(4, size=9)
    folded = FoldedNetwork(network, x)
    assert layers(folded) == (1, 2) and folded.folded == (1, 3)  # the first norm, the ReLU, the last convolution
    assert_same_function(folded, network, x)


def test_where_every_size_is_1_and_the_layout_ambiguous():
    network = trained(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU(), nn.Flatten(), nn.Linear(1, 2)))
    with torch.no_grad():
        network[1].bias.fill_(2.0)
    x = images(3, channels=1, size=1)
    assert_same_function(FoldedNetwork(network, x), network, x)
