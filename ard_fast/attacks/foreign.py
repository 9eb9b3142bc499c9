"""Attacks of other packages, run as ours are: what all of their wrappers share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ard_fast.attacks.inputs import check_images, check_targets
from ard_fast.attacks.model_mode import attack_mode, without_gradient_sync
from ard_fast.functional._arguments import check_precondition, seed_tensor

if TYPE_CHECKING:
    from ard_fast.attacks.base import Model


class Foreign:
    """Somebody else's attack run with the care that ours take: model and random state are as before afterwards."""

    attack: Any

    def __call__(
        self,
        model: nn.Module | Model,
        x: Tensor,
        y: Tensor,
        *,
        seed: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Adversarial images.

        The model is in eval mode with its parameters frozen meanwhile, so that `.grad` is not written. `seed` seeds
        torch's generators for the call, without one they are used as the attack uses them; noise is not keyed by
        `sample_ids`. Waits for the device.

        Raises:
            ValueError: there is a mask, which the attack does not know, or x is not inside its bounds.
        """
        if mask is not None:
            raise ValueError(f"mask must be None: {type(self.attack).__name__} has no way to keep pixels as they are")
        model = without_gradient_sync(model)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        check_images(x)
        if y is None:
            raise TypeError("y must be a tensor of labels [B], got None")
        check_targets(y, x)
        seed = self._own_seed() if seed is None else seed
        if seed is not None and seed_tensor(seed, x.device).numel() != 1:
            raise ValueError(f"seed must have one element, got {list(cast('Tensor', seed).shape)}")
        bounds = self._pixel_bounds()
        if bounds is not None:
            check_precondition(x, 0.0, bounds, None)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            attack_mode(model, "eval"),
            torch.random.fork_rng([x.device] if x.device.type == "cuda" else [], enabled=seed is not None),
        ):
            try:
                for parameter in trainable:
                    parameter.requires_grad_(False)
                if seed is not None:
                    torch.manual_seed(int(seed))
                return self._run(model, x.detach().clone(), y).detach()
            finally:
                for parameter in trainable:
                    parameter.requires_grad_(True)

    def _own_seed(self) -> Tensor | None:
        """For a call without one; None: torch's generators are used as they are."""
        return None

    def _pixel_bounds(self) -> tuple[float, float] | None:
        """Of the images of a call; None for normalised ones."""
        raise NotImplementedError

    def _run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError
