"""WideResNet in the form of the TRADES code, the ARD paper's strong teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as tf
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice; where the shape changes, the shortcut is a 1x1 on the activated input."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.convShortcut = None  # the published name
        if in_channels != out_channels:
            self.convShortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = torch.relu(self.bn1(x))
        out = self.conv2(torch.relu(self.bn2(self.conv1(activated))))
        return out + (x if self.convShortcut is None else self.convShortcut(activated))


class Stage(nn.Module):
    """`count` blocks, the first of which changes channels and stride. (A module only for the published names.)"""

    def __init__(self, count: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        blocks = [PreActBlock(in_channels, out_channels, stride)]
        blocks += [PreActBlock(out_channels, out_channels, 1) for _ in range(count - 1)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WideResNet (Zagoruyko and Komodakis 2016), no dropout; WRN-34-10 has 46,160,474 parameters at 10 classes.

    Parameter names are those of the TRADES code. Its checkpoints also carry 2.1 M parameters below `sub_block1.`, which
    its forward never uses: they are not registered here, and `ard_fast.training.checkpoint` drops them on loading.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, depth: int = 34, widen: int = 10) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth: expected 6 n + 4 with n >= 1 (10, 16, 22, 28, 34, ...), got {depth}")
        count = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.block1 = Stage(count, 16, 16 * widen, 1)
        self.block2 = Stage(count, 16 * widen, 32 * widen, 2)
        self.block3 = Stage(count, 32 * widen, 64 * widen, 2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He initialisation over the fan-out, as published
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of pixels `[B, in_channels, H, W]` in [0, 1]."""
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(tf.adaptive_avg_pool2d(torch.relu(self.bn1(out)), 1).flatten(1))
