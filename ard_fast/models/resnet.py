"""ResNet-18, plain and with pre-activation blocks, in the CIFAR form: a 3x3 stem, no max pooling."""

from __future__ import annotations

import torch
import torch.nn.functional as tf
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a residual, projected by a 1x1 where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016), CIFAR form; 11,173,962 parameters at 10 classes and width 64.

    `width` is the number of channels of the first stage; the later stages have 2, 4 and 8 times as many.
    Parameter names are those of the public CIFAR implementation, so its state dicts load.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, 1)
        self.layer2 = self._stage(width, 2 * width, 2)
        self.layer3 = self._stage(2 * width, 4 * width, 2)
        self.layer4 = self._stage(4 * width, 8 * width, 2)
        self.linear = nn.Linear(8 * width, num_classes)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(in_channels, out_channels, stride), BasicBlock(out_channels, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of pixels `[B, in_channels, H, W]` in [0, 1]."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(tf.adaptive_avg_pool2d(out, 1).flatten(1))


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice; where the shape changes, the shortcut is a 1x1 without batch norm.

    `activated_shortcut` says what that 1x1 reads: the activated input, or the block's input as it came.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, activated_shortcut: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.activated_shortcut = activated_shortcut
        self.shortcut = nn.Sequential()  # a Sequential for the published names
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        activated = torch.relu(self.bn1(x))
        out = self.conv2(torch.relu(self.bn2(self.conv1(activated))))
        if not self.shortcut:
            return out + x
        return out + self.shortcut(activated if self.activated_shortcut else x)

    def extra_repr(self) -> str:
        return f"activated_shortcut={self.activated_shortcut}"


class PreActResNet18(nn.Module):
    """PreAct ResNet-18 (He et al. 2016, "Identity mappings"), CIFAR form; 11,172,170 parameters at 10 classes.

    Two forms are in use, and their weights are not interchangeable. The usual one (robust_overfitting, AWP and most
    RobustBench entries) reads the shortcuts from the activated input and ends with BN-ReLU. The one of fast_adversarial
    (Wong2020Fast, Andriushchenko2020Understanding) does neither: `activated_shortcut=False, final_bn=False`.
    Parameter names are the published ones.

    Args:
        num_classes: the number of logits.
        in_channels: the channels of its images.
        width: channels of the first stage; the later ones have 2, 4 and 8 times as many.
        activated_shortcut: what the projecting shortcuts read.
        final_bn: BN-ReLU before the pooling.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 64,
        activated_shortcut: bool = True,
        final_bn: bool = True,
    ) -> None:
        super().__init__()

        def stage(channels: int, out_channels: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                PreActBlock(channels, out_channels, stride, activated_shortcut),
                PreActBlock(out_channels, out_channels, 1, activated_shortcut),
            )

        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.layer1 = stage(width, width, 1)
        self.layer2 = stage(width, 2 * width, 2)
        self.layer3 = stage(2 * width, 4 * width, 2)
        self.layer4 = stage(4 * width, 8 * width, 2)
        self.bn = nn.BatchNorm2d(8 * width) if final_bn else None
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of pixels `[B, in_channels, H, W]` in [0, 1]."""
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if self.bn is not None:
            out = torch.relu(self.bn(out))
        return self.linear(tf.adaptive_avg_pool2d(out, 1).flatten(1))
