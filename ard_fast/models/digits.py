"""Small networks for 8x8 images: a teacher and a much smaller student."""

from __future__ import annotations

from torch import Tensor, nn


class DigitsTeacher(nn.Module):
    """Three convolutions and two linear layers for `[B, in_channels, 8, 8]`; 22,954 parameters at 10 classes.

    No normalisation layers: at this size a batch-norm layer would cost as much time as a convolution, and the attack's
    batch-norm policy has no effect.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, width: int = 16, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of pixels `[B, in_channels, 8, 8]` in [0, 1]."""
        return self.layers(x)


class DigitsStudent(nn.Module):
    """Two convolutions and one linear layer for `[B, in_channels, 8, 8]`."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * width, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of pixels `[B, in_channels, 8, 8]` in [0, 1]."""
        return self.layers(x)
