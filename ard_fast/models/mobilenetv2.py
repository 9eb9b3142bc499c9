"""MobileNetV2 in the CIFAR form of the ARD paper's code."""

from __future__ import annotations

import torch
import torch.nn.functional as tf
from torch import Tensor, nn

# (expansion, output channels, blocks, stride of the first block). Against the ImageNet network the stem and the
# second stage keep stride 1, so that a 32x32 image reaches the pooling layer as 4x4.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """Expand with a 1x1, filter with a depthwise 3x3, project with a 1x1 that has no activation.

    At stride 1 the input is added, through a 1x1 convolution where the channel count changes (as published for CIFAR;
    the ImageNet network adds it only where the counts agree).
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.residual = stride == 1
        self.shortcut = nn.Sequential()
        if self.residual and in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return out + self.shortcut(x) if self.residual else out


class MobileNetV2(nn.Module):
    """MobileNetV2, ReLU, 2,296,922 parameters at 10 classes (Sandler et al. 2018; CIFAR form as in the ARD code).

    Parameter names are those of the public CIFAR implementation, so its state dicts load.

    Args:
        num_classes: the number of logits.
        in_channels: the channels of its images.
        width: multiplies the channels of all convolutions but the last, which keeps its 1280 (so do Sandler et al.,
            section 4, for multipliers below one).
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        channels = int(32 * width)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        blocks = []
        for expansion, full, count, stride in _STAGES:
            for index in range(count):
                out_channels = int(full * width)
                blocks.append(InvertedResidual(channels, out_channels, expansion, stride if index == 0 else 1))
                channels = out_channels
        self.layers = nn.Sequential(*blocks)
        self.conv2 = nn.Conv2d(channels, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of pixels `[B, in_channels, H, W]` in [0, 1]."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(self.layers(out))))
        return self.linear(tf.adaptive_avg_pool2d(out, 1).flatten(1))
