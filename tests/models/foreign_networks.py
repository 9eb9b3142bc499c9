"""Networks as others write them, for grey images of 8x8 and 10 classes: each runs in plain torch, most of them with
something that an optimisation may trip over. `foreign_networks:NAME` is a factory for the commands."""

import threading
from functools import partial

import torch
import torch.nn.functional as tf
from torch import nn
from torch.nn.utils import weight_norm


class LeNet(nn.Module):
    """Flattens with `view`, which takes no channels_last activations."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3)
        self.fc1, self.fc2 = nn.Linear(8 * 3 * 3, 20), nn.Linear(20, 10)

    def forward(self, x):
        x = tf.max_pool2d(tf.relu(self.conv2(tf.relu(self.conv1(x)))), 2)
        return self.fc2(tf.relu(self.fc1(x.view(x.size(0), -1))))


class ViewFlatten(nn.Module):
    def forward(self, x):
        return x.view(x.size(0), -1)


class InPlace(nn.Module):
    """ReLU in place on a residual, addition in place."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.bn1, self.bn2, self.relu = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(x))
        out += x
        return self.fc(self.relu(out).mean((2, 3)))


class BatchStatistics(nn.Module):
    """Statistics of the batch in eval mode, too."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


def OldNorms():
    """The same as hooks, which replace the weight by a plain attribute at each call."""
    with_weight_norm = weight_norm(nn.Conv2d(1, 8, 3))
    with_spectral_norm = nn.utils.spectral_norm(nn.Conv2d(8, 8, 3))
    return nn.Sequential(
        with_weight_norm, nn.BatchNorm2d(8), nn.ReLU(), with_spectral_norm, ViewFlatten(), nn.Linear(128, 10)
    )


class Counting(nn.Module):
    """Changes a buffer in place, replaces another, and counts, in each mode."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.calls = nn.Conv2d(1, 8, 3), nn.Linear(8, 10), 0
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average", torch.zeros(8))

    def forward(self, x):
        self.calls += 1
        self.seen += len(x)
        x = self.conv(x).relu().mean((2, 3))
        self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        return self.fc(x)


class Strided(nn.Module):
    """Takes its activations' memory for contiguous: other layouts give other logits, without an error."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 8, 3), nn.Linear(8 * 36, 10)

    def forward(self, x):
        x = self.conv(x)
        return self.fc(torch.relu(x.as_strided((len(x), 8 * 36), (8 * 36, 1))))


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(10)

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).flatten(1))


def Scripted():
    return torch.jit.script(LeNet())


class Tied(nn.Module):
    """One weight in two layers, one layer twice, and a weight that is used outside its layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.second.weight = self.first.weight
        self.stem, self.fc, self.out = nn.Conv2d(1, 8, 3), nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.second(torch.relu(self.first(self.first(x))))).mean((2, 3))
        return self.out(torch.relu(self.fc(x)) @ self.fc.weight)


class Uncopyable(nn.Module):
    """Has a lock, so no copy; and a branch on values, so no graph."""

    def __init__(self):
        super().__init__()
        self.lock, self.conv, self.bn = threading.Lock(), nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        with self.lock:
            x = torch.relu(self.bn(self.conv(x))).mean((2, 3))
            return self.fc(x if x.mean() < 1e6 else -x)


class Checked(torch.autograd.Function):
    """A square whose backward pass takes contiguous gradients only."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad.view(-1).view(x.shape)


class Backward(nn.Module):
    """Fails in channels_last in the backward pass only."""

    def __init__(self):
        super().__init__()
        self.conv, self.other, self.fc = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.other(Checked.apply(self.conv(x))).mean((2, 3)))


class Float32Only(nn.Module):
    """Fails under autocast: it insists on float32 activations."""

    def __init__(self):
        super().__init__()
        self.conv, self.weight = nn.Conv2d(1, 8, 3), nn.Parameter(torch.randn(8, 10) * 0.3)

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        assert x.dtype == torch.float32, "expected float32 activations"
        return x @ self.weight


CONTIGUOUS = {"LeNet", "OldNorms", "Strided", "Scripted", "Backward"}
NAMES = """
    LeNet InPlace BatchStatistics OldNorms Counting Strided Lazy Scripted Tied Uncopyable Backward Float32Only
""".split()  # noqa: SIM905


# ---- networks that do not keep the contract ------------------------------------------------------------------------


class Odd(nn.Module):
    """Returns what `answer` makes of it and the images."""

    def __init__(self, answer):
        super().__init__()
        self.fc, self.answer = nn.Linear(64, 10), answer

    def logits(self, x):
        return self.fc(x.flatten(1))

    def forward(self, x):
        return self.answer(self, x)


Auxiliary = partial(Odd, lambda m, x: (m.logits(x), m.logits(x)) if m.training else m.logits(x))
Named = partial(Odd, lambda m, x: {"logits": m.logits(x), "features": x})
ThousandClasses = partial(Odd, lambda m, x: m.logits(x).repeat(1, 100))
FixedBatch = partial(Odd, lambda m, x: m.fc(x.view(4, 64)))
NotANumberInTraining = partial(Odd, lambda m, x: m.logits(x) / (0.0 if m.training else 1.0))
Integers = partial(Odd, lambda m, x: m.logits(x).long())
ThreeChannels = partial(Odd, lambda m, x: tf.conv2d(x, torch.ones(10, 3, 8, 8)).flatten(1))
Overwriting = partial(Odd, lambda m, x: m.logits(x.sub_(0.5)))
Frozen = partial(Odd, lambda m, x: m.logits(x).detach())


class Growing(nn.Linear):
    """Makes a layer in its forward, which no optimiser would be told of."""

    def __init__(self):
        super().__init__(64, 10)

    def forward(self, x):
        if not hasattr(self, "late"):
            self.late = nn.Linear(10, 10)
        return self.late(super().forward(x.flatten(1)))
