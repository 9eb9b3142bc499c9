"""foolbox 3 (bethgelab/foolbox): our attacks in its interface, and its attacks in ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ard_fast.attacks.adapters.foreign import check_attack, check_foreign_call, refuse_mask, undisturbed
from ard_fast.attacks.base import GradientAttack, Model
from ard_fast.attacks.inputs import check_images
from ard_fast.attacks.model_state import attack_mode
from ard_fast.attacks.modules import without_gradient_sync
from ard_fast.functional._arguments import bounds_pair, flag, nonnegative


class FoolboxAdapter:
    """An attack of ours that is used like one of foolbox: `raw, clipped, is_adv = attack(fmodel, x, y, epsilons=...)`.

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
        check_attack(attack)
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
        attack = self.attack
        raw: list[Any] = []
        clipped: list[Any] = []
        success: list[Tensor] = []
        for eps in radii:
            if eps is None:
                raise TypeError("epsilons must be numbers, got None: this attack has a fixed radius")
            eps = nonnegative(eps, "epsilons")
            found = attack.at_eps(eps, **settings)(network, x, y, **kwargs)
            inside = _clip(found, x, eps, attack.norm)
            with attack_mode(network, "eval"), torch.no_grad():
                success.append(_is_adversarial(criterion, inside, network(inside), y))
            raw.append(wrap(found))
            clipped.append(wrap(inside))
        if several:
            return raw, clipped, wrap(torch.stack(success))
        return raw[0], clipped[0], wrap(success[0])

    def __repr__(self) -> str:
        return f"FoolboxAdapter({self.attack!r})"


class FromFoolbox:
    """An attack of foolbox that is called like ours, for instance by the evaluation.

    The model is in eval mode with its parameters frozen meanwhile, because foolbox writes `.grad`.

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
        """Adversarial images within `eps`.

        `seed` seeds torch's generator for the call; noise is not keyed by `sample_ids`.

        Raises:
            ValueError: there is a mask, which foolbox does not know, or x is not inside `bounds`.
        """
        import foolbox

        refuse_mask(mask, self.attack)
        model = without_gradient_sync(model)
        check_foreign_call(model, x, y, seed, self.bounds)
        criterion = foolbox.criteria.TargetedMisclassification if self.targeted else foolbox.criteria.Misclassification
        with undisturbed(model, x, seed):
            fmodel = foolbox.PyTorchModel(model, bounds=self.bounds, device=x.device)
            _, clipped, _ = self.attack(fmodel, x.detach().clone(), criterion(y), epsilons=self.eps)
        return clipped.detach()

    def __repr__(self) -> str:
        return f"foolbox.{self.attack!r}, eps={self.eps}, targeted={self.targeted}, bounds={self.bounds}"


def _unwrapped(inputs: Any, name: str) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The torch tensor inside, and what puts another one into the same type."""
    if isinstance(inputs, Tensor):
        return inputs, _itself
    if not isinstance(getattr(inputs, "raw", None), Tensor):
        raise TypeError(f"{name} must be a tensor of torch or eagerpy, got {type(inputs).__name__}")
    return inputs.raw, cast("Callable[[Tensor], Any]", type(inputs))


def _itself(tensor: Tensor) -> Tensor:
    return tensor


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


def _is_adversarial(criterion: Any, x_adv: Tensor, logits: Tensor, y: Tensor) -> Tensor:
    if callable(criterion):
        return cast("Tensor", criterion(x_adv, logits))
    return logits.argmax(1) != y


def _clip(x_adv: Tensor, x: Tensor, eps: float, norm: str) -> Tensor:
    """The perturbation cut to the radius as foolbox cuts it."""
    delta = x_adv - x
    if norm == "linf":
        return x + delta.clamp(-eps, eps)
    length = cast("Tensor", delta.flatten(1).norm(dim=1)).clamp(min=1e-12)
    return x + delta * (eps / length).clamp(max=1.0).view(-1, *(1,) * (x.dim() - 1))
