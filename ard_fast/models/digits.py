"""A small network for 8x8 images, in two sizes: the teacher and the student of the digits."""

from __future__ import annotations

from torch import Tensor, nn


class DigitsNet(nn.Module):
    """Three 3x3 convolutions with batch norm and one or two linear layers, for `[B, in_channels, 8, 8]`.

    At 10 classes and one channel it has 23,034 parameters as the teacher (width 16, hidden 64) and 4,258 as the
    student (width 8, hidden 0).

    Args:
        num_classes: the number of logits.
        in_channels: the channels of its images.
        width: channels of the first convolution; the others have twice as many.
        hidden: units of a hidden linear layer; 0 for none.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, width: int = 8, hidden: int = 0) -> None:
        super().__init__()
        features = 8 * width  # 2 * width channels of 2x2
        self.features = nn.Sequential(
            *_conv(in_channels, width, stride=1),
            *_conv(width, 2 * width, stride=2),
            *_conv(2 * width, 2 * width, stride=1),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        if hidden:
            self.classifier = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))
        else:
            self.classifier = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of pixels `[B, in_channels, 8, 8]` in [0, 1]."""
        return self.classifier(self.features(x))


def _conv(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]
