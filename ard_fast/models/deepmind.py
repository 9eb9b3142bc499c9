"""The SiLU networks of the DeepMind line of RobustBench teachers, which normalise their input themselves.

Gowal et al. 2020 and 2021, Rebuffi et al. 2021, Rade and Moosavi-Dezfooli 2021, Pang et al. 2022, Wang et al. 2023.
Their strided convolutions pad at the bottom and right only, as TensorFlow's SAME does on even sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as tf
from torch import Tensor, nn

# As in RobustBench, for files whose state dict does not carry them.
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
_CIFAR100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


class _Normalising(nn.Module):
    """Holds the `mean` and `std` buffers `[C, 1, 1]` under their published names."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, num_classes: int, in_channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> None:
        super().__init__()
        default = _CIFAR100 if num_classes == 100 else _CIFAR10
        if in_channels != 3:
            default = ((0.0,) * in_channels, (1.0,) * in_channels)  # other images: none unless given
        for name, given, usual in (("mean", mean, default[0]), ("std", std, default[1])):
            values = torch.tensor(usual if given is None else tuple(given), dtype=torch.float32)
            if values.numel() != in_channels:
                raise ValueError(f"{name}: expected {in_channels} numbers, one for each channel, got {values.numel()}")
            self.register_buffer(name, values.view(in_channels, 1, 1))

    def normalise(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def _pad_same(x: Tensor, stride: int) -> Tensor:
    return tf.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))


class _WideBlock(nn.Module):
    """BN-SiLU-conv twice; where the channels change, a 1x1 on the activated input is the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(in_channels)
        self.conv_0 = nn.Conv2d(in_channels, out_channels, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(out_channels)
        self.conv_1 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = tf.silu(self.batchnorm_0(x))
        out = self.conv_0(_pad_same(activated, self.stride))
        out = self.conv_1(tf.silu(self.batchnorm_1(out)))
        return out + (x if self.shortcut is None else self.shortcut(activated))


class _WideStage(nn.Module):
    """`count` blocks. (A module only for the published names.)"""

    def __init__(self, count: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        blocks = [_WideBlock(in_channels, out_channels, stride)]
        blocks += [_WideBlock(out_channels, out_channels, 1) for _ in range(count - 1)]
        self.block = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class DMWideResNet(_Normalising):
    """WideResNet with SiLU and built-in normalisation, as RobustBench loads it; as many parameters as `WideResNet`.

    Args:
        num_classes: the number of logits.
        in_channels: the channels of its images.
        depth: 6 n + 4.
        widen: the widening factor.
        mean: of each channel; None takes CIFAR-100's at 100 classes, else CIFAR-10's. Loaded weights replace them.
        std: likewise.

    Raises:
        ValueError: another depth, or numbers that do not match the channels.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        depth: int = 28,
        widen: int = 10,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(num_classes, in_channels, mean, std)
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth: expected 6 n + 4 with n >= 1 (10, 16, 22, 28, 34, ...), got {depth}")
        count = (depth - 4) // 6
        self.init_conv = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.layer = nn.Sequential(
            _WideStage(count, 16, 16 * widen, 1),
            _WideStage(count, 16 * widen, 32 * widen, 2),
            _WideStage(count, 32 * widen, 64 * widen, 2),
        )
        self.batchnorm = nn.BatchNorm2d(64 * widen)
        self.logits = nn.Linear(64 * widen, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of pixels `[B, in_channels, H, W]` in [0, 1]."""
        out = tf.silu(self.batchnorm(self.layer(self.init_conv(self.normalise(x)))))
        return self.logits(tf.adaptive_avg_pool2d(out, 1).flatten(1))


class _PreActBlock(nn.Module):
    """BN-SiLU-conv twice; where the shape changes, the shortcut is a 3x3 on the input as it came."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(in_channels)
        self.conv_2d_1 = nn.Conv2d(in_channels, out_channels, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(out_channels)
        self.conv_2d_2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 3, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv_2d_1(_pad_same(tf.silu(self.batchnorm_0(x)), self.stride))
        out = self.conv_2d_2(tf.silu(self.batchnorm_1(out)))
        return out + (x if self.shortcut is None else self.shortcut(_pad_same(x, self.stride)))


class DMPreActResNet18(_Normalising):
    """PreAct ResNet-18 with SiLU and built-in normalisation, as RobustBench loads it (Rebuffi, Rade, Gowal: "R18").

    Args: as for `DMWideResNet`; `width` is the number of channels of the first stage.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 64,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(num_classes, in_channels, mean, std)

        def stage(channels: int, out_channels: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                _PreActBlock(channels, out_channels, stride), _PreActBlock(out_channels, out_channels, 1)
            )

        self.conv_2d = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.layer_0 = stage(width, width, 1)
        self.layer_1 = stage(width, 2 * width, 2)
        self.layer_2 = stage(2 * width, 4 * width, 2)
        self.layer_3 = stage(4 * width, 8 * width, 2)
        self.batchnorm = nn.BatchNorm2d(8 * width)
        self.logits = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of pixels `[B, in_channels, H, W]` in [0, 1]."""
        out = self.layer_3(self.layer_2(self.layer_1(self.layer_0(self.conv_2d(self.normalise(x))))))
        return self.logits(tf.adaptive_avg_pool2d(tf.silu(self.batchnorm(out)), 1).flatten(1))
