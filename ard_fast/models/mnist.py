"""A small network for 28x28 images, in two sizes: the teacher and the student of MNIST."""

from __future__ import annotations

from torch import Tensor, nn


class MnistNet(nn.Module):
    """Two strided convolutions with batch norm and one or two linear layers, for `[B, in_channels, 28, 28]`.

    At 10 classes and one channel the teacher (5x5 kernels, widths 32 and 64, hidden 1024) has the parameters of the
    network of Madry et al. (ICLR 2018) for MNIST and those of its batch norm, 3,274,730; its strides of 2 stand in the
    place of max-pooling and take a third of the arithmetic. The student (4x4 kernels, widths 8 and 16, no hidden layer)
    has 10,074.

    Args:
        num_classes: the number of logits.
        in_channels: the channels of its images.
        widths: channels of the two convolutions.
        kernel: side of their kernels.
        hidden: units of a hidden linear layer; 0 for none.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        widths: tuple[int, int] = (8, 16),
        kernel: int = 4,
        hidden: int = 0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((in_channels, widths[0]), (widths[0], widths[1])):
            convolution = nn.Conv2d(before, after, kernel, 2, (kernel - 1) // 2, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Flatten())
        size = 49 * widths[1]  # 7x7 places
        if hidden:
            self.classifier = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))
        else:
            self.classifier = nn.Linear(size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of pixels `[B, in_channels, 28, 28]` in [0, 1]."""
        return self.classifier(self.features(x))
