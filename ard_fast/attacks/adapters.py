"""Adapters: our attacks with the interfaces of torchattacks and foolbox 3, and theirs with ours.

Neither package is imported unless one of its objects is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from textwrap import shorten
from typing import Any, cast

import torch
from torch import Tensor, nn

from ard_fast.attacks.base import GradientAttack, Model, check_model
from ard_fast.attacks.foreign import Foreign
from ard_fast.attacks.inputs import check_images, check_labels, check_logits, check_targets
from ard_fast.attacks.model_mode import attack_mode, without_gradient_sync
from ard_fast.functional._arguments import bounds_pair, flag, nonnegative, positive_int

__all__ = ["FoolboxAdapter", "FromFoolbox", "FromTorchattacks", "TorchattacksAdapter"]

TargetFunction = Callable[[Tensor, Tensor], Tensor]


class TorchattacksAdapter:
    """One of our attacks with torchattacks' interface: `atk = ...(model, attack); atk(images, labels)`.

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
        _check_attack(attack)
        self.model, self.attack = model, attack
        self.attack_mode = "default"
        self._targets: TargetFunction | None = None
        self._normalised: _Normalised | None = None

    def __call__(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """Adversarial images for `inputs` `[B, C, H, W]`, normalised as those are.

        Args:
            inputs: images in the attack's bounds, or normalised if `set_normalization_used` was called.
            labels: int64 `[B]`; None for the model's own predictions.
        """
        check_images(inputs, "inputs")
        check_targets(labels, inputs, name="labels")
        if self._normalised is None:
            return self._attack(inputs, labels)
        channels = self._normalised.mean.numel()
        if inputs.dim() != 4 or inputs.shape[1] != channels != 1:
            raise ValueError(
                f"inputs must have shape [B, {channels}, H, W], the channels of mean and std, got {tuple(inputs.shape)}"
            )
        mean, std = self._normalised.mean.to(inputs.device), self._normalised.std.to(inputs.device)
        return (self._attack(inputs * std + mean, labels) - mean) / std

    def set_normalization_used(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Say that inputs are (pixels - mean) / std, channel by channel, and that the model expects such."""
        means, stds = _channel_values(mean, "mean"), _channel_values(std, "std")
        if len(means) != len(stds):
            raise ValueError(f"mean and std must have one value a channel each, got {len(means)} and {len(stds)}")
        if not all(0 < value < math.inf for value in stds):
            raise ValueError(f"std must be finite and above 0, got {stds}")
        self._normalised = _Normalised(without_gradient_sync(self.model), means, stds)

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
        used = self._normalised is not None
        return f"TorchattacksAdapter({self.attack!r}, mode={self.attack_mode!r}, normalization_used={used})"

    def _target(self, mode: str, function: TargetFunction, quiet: bool) -> None:
        self.attack.replace(targeted=True)  # says so now if the attack cannot be targeted
        self.attack_mode, self._targets = mode, function
        if not quiet:
            print(f"Attack mode is changed to '{mode}.'")

    def _of_pixels(self) -> Any:
        return self.model if self._normalised is None else self._normalised

    def _attack(self, pixels: Tensor, labels: Tensor | None) -> Tensor:
        if self._targets is None:
            return self.attack(self._of_pixels(), pixels, labels)
        if labels is None:
            labels = self._logits(pixels).argmax(1)
        return self.attack.replace(targeted=True)(self._of_pixels(), pixels, self._targets(pixels, labels))

    def _logits(self, pixels: Tensor) -> Tensor:
        model = without_gradient_sync(self._of_pixels())
        with attack_mode(model, "eval"), torch.no_grad():
            logits = model(pixels)
        check_logits(logits, pixels)
        return logits


class FoolboxAdapter:
    """One of our attacks with foolbox's interface: `raw, clipped, is_adv = attack(fmodel, x, y, epsilons=...)`.

    Each radius of the call replaces the attack's own, with step sizes in proportion; bounds are those of the foolbox
    model. The network inside it is attacked under the attack's `bn`, and asked in eval mode whether that succeeded.

    Args:
        attack: an attack on labels.

    Example:
        >>> fmodel = foolbox.PyTorchModel(model.eval(), bounds=(0, 1))
        >>> attack = FoolboxAdapter(PGD(eps=8 / 255, step_size=2 / 255, steps=10))
        >>> raw, clipped, is_adv = attack(fmodel, images, labels, epsilons=[2 / 255, 8 / 255])
    """

    def __init__(self, attack: GradientAttack) -> None:
        _check_attack(attack)
        self.attack = attack

    def __call__(
        self, model: Any, inputs: Any, criterion: Any, *, epsilons: float | Iterable[float], **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        """Attack.

        Args:
            model: a `foolbox.PyTorchModel`.
            inputs: images `[B, ...]` inside its bounds, a tensor of torch or eagerpy.
            criterion: labels, int64 `[B]`, or a foolbox criterion with `labels` or `target_classes`.
            epsilons: a radius, or several.
            kwargs: `seed`, `sample_ids`, `mask`, for our attack.

        Returns:
            The images, the same clipped to the radius, and whether they are adversarial `[B]`; for several radii two
            lists and `[K, B]`. In the tensor type of `inputs`.

        Raises:
            TypeError: the criterion has neither labels nor target classes, or a radius is None.
        """
        bounds: Any = getattr(model, "bounds", None)
        if not callable(model) or bounds is None:
            raise TypeError(f"model must be a foolbox.PyTorchModel, got {type(model).__name__}")
        network = cast("Model", model)
        x, wrap = _unwrapped(inputs, "inputs")
        check_images(x)
        y, targeted = _goal(criterion)
        several = isinstance(epsilons, Iterable) and not isinstance(epsilons, str) and getattr(epsilons, "ndim", 1) > 0
        radii = list(cast("Iterable[float]", epsilons)) if several else [cast("float", epsilons)]
        settings: dict[str, Any] = {"bounds": tuple(bounds), **({"targeted": True} if targeted else {})}
        if not radii:
            raise ValueError("epsilons must be at least one, got none")
        raw, clipped, success = [], [], []
        for eps in radii:
            if eps is None:
                raise TypeError("epsilons must be numbers, got None: this attack has a fixed radius")
            eps = nonnegative(eps, "epsilons")
            found = self.attack.at_eps(eps, **settings)(network, x, y, **kwargs)
            inside = _clip(found, x, eps, self.attack.norm)
            with attack_mode(network, "eval"), torch.no_grad():
                logits = network(inside)
                success.append(criterion(inside, logits) if callable(criterion) else logits.argmax(1) != y)
            raw.append(wrap(found))
            clipped.append(wrap(inside))
        if several:
            return raw, clipped, wrap(torch.stack(success))
        return raw[0], clipped[0], wrap(success[0])

    def __repr__(self) -> str:
        return f"FoolboxAdapter({self.attack!r})"


class FromTorchattacks(Foreign):
    """A torchattacks attack with our interface, for example for an evaluation.

    It attacks the model of the call, not the one it was made with. Images are inside [0, 1], or normalised where its
    `set_normalization_used` says so.

    Args:
        attack: a `torchattacks.attack.Attack`. Its mode (targeted or not) is respected.
    """

    def __init__(self, attack: Any) -> None:
        self.attack = attack

    def _pixel_bounds(self) -> tuple[float, float] | None:
        return (0.0, 1.0) if getattr(self.attack, "normalization_used", None) is None else None

    def _run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack = self.attack
        before = attack.model, attack.device
        try:
            attack.set_model(model)
            attack.set_device(x.device)
            return attack(x, y)
        finally:
            attack.set_model(before[0])
            attack.set_device(before[1])

    def __repr__(self) -> str:
        return f"torchattacks.{self.attack!r}"


class FromFoolbox(Foreign):
    """A foolbox attack with our interface, for example for an evaluation.

    Args:
        attack: a `foolbox.attacks` object.
        eps: the radius.
        targeted: whether the labels of a call are those to move to.
        bounds: lowest and highest pixel value.
    """

    def __init__(
        self, attack: Any, eps: float, targeted: bool = False, bounds: tuple[float, float] = (0.0, 1.0)
    ) -> None:
        self.attack = attack
        self.eps = nonnegative(eps, "eps")
        self.targeted = flag(targeted, "targeted")
        self.bounds = bounds_pair(bounds)

    def _pixel_bounds(self) -> tuple[float, float]:
        return self.bounds

    def _run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import foolbox

        criterion = foolbox.criteria.TargetedMisclassification if self.targeted else foolbox.criteria.Misclassification
        fmodel = foolbox.PyTorchModel(model, bounds=self.bounds, device=x.device)
        _, clipped, _ = self.attack(fmodel, x, criterion(y), epsilons=self.eps)
        return clipped

    def __repr__(self) -> str:
        return f"foolbox.{self.attack!r}, eps={self.eps}, targeted={self.targeted}, bounds={self.bounds}"


def _check_attack(attack: GradientAttack) -> None:
    """One of ours."""
    if not isinstance(attack, GradientAttack):
        raise TypeError(f"attack must be a GradientAttack of ard_fast.attacks, got {type(attack).__name__}")


def _channel_values(values: Sequence[float], name: str) -> list[float]:
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name} must be numbers, one a channel, got {shorten(repr(values), 80)}") from None


class _Normalised(nn.Module):
    """The model behind the normalisation that it expects."""

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.mean, self.std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model((pixels - self.mean.to(pixels.device)) / self.std.to(pixels.device))


def _unwrapped(inputs: Any, name: str) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The torch tensor inside, and what puts another one into the same type."""
    if isinstance(inputs, Tensor):
        return inputs, lambda tensor: tensor
    if not isinstance(getattr(inputs, "raw", None), Tensor):
        raise TypeError(f"{name} must be a tensor of torch or eagerpy, got {type(inputs).__name__}")
    return inputs.raw, cast("Callable[[Tensor], Any]", type(inputs))


def _goal(criterion: Any) -> tuple[Tensor, bool]:
    """Labels or target classes `[B]`, and which of the two they are."""
    for attribute, targeted in (("labels", False), ("target_classes", True)):
        if hasattr(criterion, attribute):
            return _unwrapped(getattr(criterion, attribute), f"criterion.{attribute}")[0], targeted
    if isinstance(criterion, Tensor) or isinstance(getattr(criterion, "raw", None), Tensor):
        return _unwrapped(criterion, "criterion")[0], False
    raise TypeError(
        "criterion must be labels, Misclassification(labels) or TargetedMisclassification(target_classes), "
        f"got {type(criterion).__name__}"
    )


def _clip(x_adv: Tensor, x: Tensor, eps: float, norm: str) -> Tensor:
    """The perturbation cut to the radius as foolbox cuts it."""
    delta = x_adv - x
    if norm == "linf":
        return x + delta.clamp(-eps, eps)
    length = cast("Tensor", delta.flatten(1).norm(dim=1)).clamp(min=1e-12)
    return x + delta * (eps / length).clamp(max=1.0).view(-1, *(1,) * (x.dim() - 1))
