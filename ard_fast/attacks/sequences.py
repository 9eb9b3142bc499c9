"""Several attacks in sequence, each on the samples that none before it has fooled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ard_fast.attacks.base import GradientAttack, Model, check_model
from ard_fast.attacks.inputs import as_mask, check_images, check_integers, check_logits, check_targets
from ard_fast.attacks.model_mode import attack_mode, without_gradient_sync
from ard_fast.attacks.settings import Configured

if TYPE_CHECKING:
    from ard_fast.attacks.autoattack import FABT, Square


@dataclass(eq=False, repr=False)
class InTurn(Configured):
    """Attacks run one after another, each only on the samples that the model still classifies correctly in eval mode.

    This is how AutoAttack combines its attacks; `InTurn([make("apgd-ce", eps), make("apgd-t", eps)])` is the half of it
    that needs no other package. Waits for the GPU between them. The images are the clean ones where the model errs on
    those already, the first adversarial ones found, and the last attack's attempt where none was found.

    Args:
        attacks: untargeted attacks on labels, at least one; also `FABT` and `Square` of `ard_fast.attacks.autoattack`.

    Raises:
        ValueError: no attacks, or one that is targeted.
    """

    attacks: Sequence[GradientAttack | FABT | Square | InTurn]

    def __post_init__(self) -> None:
        attacks = self.attacks
        if callable(attacks) or isinstance(attacks, Tensor) or not isinstance(attacks, Iterable):
            raise TypeError(f"attacks must be a sequence of attacks, got {type(attacks).__name__}")
        self.attacks = attacks = tuple(attacks)
        if not attacks:
            raise ValueError("attacks must be at least one, got none")
        for attack in attacks:
            if not isinstance(attack, Configured):
                raise TypeError(f"attacks must be attacks of ard_fast.attacks, got {type(attack).__name__}")
            if isinstance(attack, GradientAttack) and attack.targeted:
                raise ValueError(f"attacks must be untargeted, got {attack!r}")

    def at_eps(self, eps: float | Tensor, **changes: Any) -> InTurn:
        """All of the attacks at another radius."""
        return InTurn([attack.at_eps(eps, **changes) for attack in self.attacks])

    def for_samples(self, index: Tensor) -> InTurn:
        """All of the attacks on some samples of a batch."""
        return InTurn([attack.for_samples(index) for attack in self.attacks])

    def replace(self, **changes: Any) -> InTurn:
        """The same with arguments of all the attacks changed; `attacks` itself is one, too."""
        attacks = changes.pop("attacks", self.attacks)
        return InTurn([attack.replace(**changes) for attack in attacks])

    def __call__(
        self,
        model: nn.Module | Model,
        x: Tensor,
        y: Tensor | None = None,
        *,
        seed: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attack the images; arguments, result and errors as for each of the attacks."""
        check_model(model)
        model = without_gradient_sync(model)
        check_images(x)
        check_targets(y, x)
        if sample_ids is not None:
            check_integers(sample_ids, "sample_ids", x)
        for attack in self.attacks:
            if isinstance(attack, GradientAttack):
                attack.check_pixels(x)
        mask = as_mask(mask, x)
        with torch.inference_mode(False):
            x = x.detach()
            x_adv = x.clone()
            if not len(x):
                return x_adv
            y = self._predicted(model, x) if y is None else y
            ids = torch.arange(len(x), device=x.device) if sample_ids is None else sample_ids
            for attack in self.attacks:
                left = (self._predicted(model, x_adv) == y).nonzero()[:, 0]
                if not len(left):
                    break
                x_adv[left] = attack.for_samples(left)(
                    model,
                    x[left],
                    y[left],
                    seed=seed,
                    sample_ids=ids[left],
                    mask=None if mask is None else mask[left],
                )
            return x_adv

    def _predicted(self, model: Model, x: Tensor) -> Tensor:
        with attack_mode(model, "eval"), torch.no_grad():
            logits = model(x)
            # Of all attacks, whichever of them will have images left to attack.
            check_logits(logits, x, *self._losses())
            return logits.argmax(1)

    def _losses(self) -> list[str]:
        losses: list[str] = []
        for attack in self.attacks:
            if isinstance(attack, InTurn):
                losses += attack._losses()
            elif isinstance(attack, GradientAttack):
                losses.append(attack.loss)
        return losses
