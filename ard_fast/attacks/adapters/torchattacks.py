"""torchattacks (Harry24k/adversarial-attacks-pytorch): our attacks in its interface, and its attacks in ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from ard_fast.attacks.adapters.foreign import check_attack, check_foreign_call, refuse_mask, undisturbed
from ard_fast.attacks.base import GradientAttack
from ard_fast.attacks.inputs import check_images, check_label_tensor, check_labels, check_logits, check_model
from ard_fast.attacks.model_state import attack_mode
from ard_fast.attacks.modules import without_gradient_sync
from ard_fast.functional._arguments import positive_int

TargetFunction = Callable[[Tensor, Tensor], Tensor]


class TorchattacksAdapter:
    """An attack of ours that is used like one of torchattacks: `atk = ...(model, attack); atk(images, labels)`.

    Args:
        model: the model to attack.
        attack: an attack on labels. Its `bn` says in which mode the model is attacked.

    Example:
        >>> atk = TorchattacksAdapter(model, PGD(eps=8 / 255, step_size=2 / 255, steps=10))
        >>> atk.set_normalization_used(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
        >>> adv_images = atk(images, labels)
    """

    def __init__(self, model: nn.Module, attack: GradientAttack) -> None:
        check_model(model)
        check_attack(attack)
        self.model = model
        self.attack = attack
        self.attack_mode = "default"
        self._targets: TargetFunction | None = None
        self._normalization: tuple[Tensor, Tensor] | None = None

    def __call__(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """Adversarial images for `inputs` `[B, C, H, W]`, normalised as those are.

        Args:
            inputs: images in the attack's bounds, or normalised if `set_normalization_used` was called.
            labels: int64 `[B]`; None for the model's own predictions.
        """
        check_images(inputs, "inputs")
        check_label_tensor(labels, inputs, "labels")
        if self._normalization is None:
            return self._attack(self.model, inputs, labels)
        if inputs.dim() != 4:
            raise ValueError(f"inputs must have shape [B, C, H, W] to be normalised, got {tuple(inputs.shape)}")
        if inputs.shape[1] != self._normalization[0].numel() != 1:
            channels = self._normalization[0].numel()
            raise ValueError(f"inputs must have the {channels} channels of mean and std, got {inputs.shape[1]}")
        mean, std = (value.to(inputs.device) for value in self._normalization)
        pixels = self._attack(_Normalized(without_gradient_sync(self.model), mean, std), inputs * std + mean, labels)
        return (pixels - mean) / std

    def set_normalization_used(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Say that inputs are (pixels - mean) / std, channel by channel, and that the model expects such."""
        means, stds = _channel_values(mean, "mean"), _channel_values(std, "std")
        if len(means) != len(stds):
            raise ValueError(f"mean and std must have one value a channel each, got {len(means)} and {len(stds)}")
        if not all(0 < value < math.inf for value in stds):
            raise ValueError(f"std must be finite and above 0, got {stds}")
        shape = (1, -1, 1, 1)
        self._normalization = (torch.tensor(means).reshape(shape), torch.tensor(stds).reshape(shape))

    def get_mode(self) -> str:
        """ "default", or "targeted(...)"."""
        return self.attack_mode

    def set_mode_default(self) -> None:
        """Attack away from the labels."""
        self.attack_mode, self._targets = "default", None

    def set_mode_targeted_by_label(self, quiet: bool = False) -> None:
        """Attack towards the labels of the call."""
        self._target("targeted(label)", lambda inputs, labels: labels, quiet)

    def set_mode_targeted_by_function(self, target_map_function: TargetFunction, quiet: bool = False) -> None:
        """Attack towards target_map_function(inputs, labels), int64 `[B]`."""
        self._target("targeted(custom)", target_map_function, quiet)

    def set_mode_targeted_least_likely(self, kth_min: int = 1, quiet: bool = False) -> None:
        """Attack towards the class with the k-th smallest logit among those other than the label."""
        positive_int(kth_min, "kth_min")

        def least_likely(inputs: Tensor, labels: Tensor) -> Tensor:
            logits = self._logits(inputs)
            check_labels(labels, logits, "labels")
            if kth_min >= logits.shape[1]:
                raise ValueError(f"kth_min must be below the {logits.shape[1]} classes of the model, got {kth_min}")
            others = logits.scatter(1, labels[:, None], float("inf"))
            return others.argsort(dim=1, stable=True)[:, kth_min - 1]

        self._target("targeted(least-likely)", least_likely, quiet)

    def set_mode_targeted_random(self, quiet: bool = False) -> None:
        """Attack towards a random class other than the label, from torch's generator."""

        def random_class(inputs: Tensor, labels: Tensor) -> Tensor:
            classes = self._logits(inputs).shape[1]
            return (labels + torch.randint(1, classes, labels.shape, device=labels.device)) % classes

        self._target("targeted(random)", random_class, quiet)

    def __repr__(self) -> str:
        normalized = self._normalization is not None
        return f"TorchattacksAdapter({self.attack!r}, mode={self.attack_mode!r}, normalization_used={normalized})"

    def _target(self, mode: str, function: TargetFunction, quiet: bool) -> None:
        self.attack.replace(targeted=True)  # says so now if the attack cannot be targeted
        self.attack_mode, self._targets = mode, function
        if not quiet:
            print(f"Attack mode is changed to '{mode}.'")

    def _attack(self, model: Callable[[Tensor], Tensor], pixels: Tensor, labels: Tensor | None) -> Tensor:
        if self._targets is None:
            return self.attack(model, pixels, labels)
        if labels is None:
            labels = self._logits(pixels).argmax(1)
        return self.attack.replace(targeted=True)(model, pixels, self._targets(pixels, labels))

    def _logits(self, pixels: Tensor) -> Tensor:
        if self._normalization is not None:
            mean, std = (value.to(pixels.device) for value in self._normalization)
            pixels = (pixels - mean) / std
        model = without_gradient_sync(self.model)
        with attack_mode(model, "eval"), torch.no_grad():
            logits = model(pixels)
        check_logits(logits, pixels)
        return logits


class FromTorchattacks:
    """An attack of torchattacks that is called like ours, for instance by the evaluation.

    It attacks the model of the call, not the one it was made with, in eval mode; parameters are frozen meanwhile.

    Args:
        attack: a `torchattacks.attack.Attack`. Its mode (targeted or not) is respected.
    """

    def __init__(self, attack: Any) -> None:
        self.attack = attack

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        seed: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Adversarial images. `seed` seeds torch's generator for the call; noise is not keyed by `sample_ids`.

        Raises:
            ValueError: there is a mask, which torchattacks does not know, or x is not inside [0, 1] without its
                `set_normalization_used`.
        """
        refuse_mask(mask, self.attack)
        attack, model = self.attack, without_gradient_sync(model)
        normalised = getattr(attack, "normalization_used", None) is not None
        check_foreign_call(model, x, y, seed, None if normalised else (0.0, 1.0))
        before = attack.model, attack.device
        try:
            attack.set_model(model)
            attack.set_device(x.device)
            with undisturbed(model, x, seed):
                return attack(x.detach().clone(), y).detach()
        finally:
            attack.set_model(before[0])
            attack.set_device(before[1])

    def __repr__(self) -> str:
        return f"torchattacks.{self.attack!r}"


def _channel_values(values: Sequence[float], name: str) -> list[float]:
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name} must be numbers, one a channel, got {shorten(repr(values), 80)}") from None


class _Normalized(nn.Module):
    """The model behind the normalisation that it expects."""

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, mean, std

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model((pixels - self.mean) / self.std)
