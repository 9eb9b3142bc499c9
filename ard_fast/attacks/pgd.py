"""Projected gradient descent (Madry, Makelov, Schmidt, Tsipras, Vladu; ICLR 2018) on the fused operators."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ard_fast import functional as F
from ard_fast._arguments import bounds_pair, nonnegative, seed_tensor
from ard_fast.attacks.model_state import BN_POLICIES, attack_mode

_LOSSES = ("ce", "kl")


class PGD:
    """L-infinity PGD: K signed gradient steps inside the eps-ball around each image.

    The attack leaves no trace: every module's mode, `requires_grad`, `.grad` and (except under `bn="train"`) all
    buffers are as before, after an exception too. Weight gradients are not computed. Without `seed`, one number is
    drawn from torch's generator of the images' device. Under autocast the model runs in autocast; the iterate stays
    float32 and the loss is summed over the batch in float32, so that half-precision gradients do not underflow.

    Args:
        eps: radius of the ball in pixel units, a number or a tensor `[B]`.
        step_size: step in pixel units, likewise.
        steps: K, at least 1.
        norm: "linf".
        loss: "ce": cross-entropy at the labels. "kl": KL(target || model) at target logits (TRADES, RSLAD).
        random_start: start at uniform noise in the ball instead of at the image.
        clamp_start: clamp the random start to `bounds`; the published ARD code does not.
        restarts: independent random starts; the iterate with the highest final loss is kept for each sample (lowest
            if targeted), at the price of one more forward pass a restart.
        targeted: move towards the labels instead of away from them.
        bn: mode of the model during the attack: "eval", "train" or "train_frozen", see `attack_mode`.
        bounds: lowest and highest pixel value.

    Raises:
        ValueError: an argument is out of range; the message names it.

    Example:
        >>> attack = PGD(eps=8 / 255, step_size=2 / 255, steps=10)
        >>> x_adv = attack(model, x, y)
    """

    def __init__(
        self,
        eps: float | Tensor = 8 / 255,
        step_size: float | Tensor = 2 / 255,
        steps: int = 10,
        norm: str = "linf",
        loss: str = "ce",
        random_start: bool = True,
        restarts: int = 1,
        targeted: bool = False,
        bn: str = "eval",
        bounds: tuple[float, float] = (0.0, 1.0),
        *,
        clamp_start: bool = True,
    ) -> None:
        if norm != "linf":
            raise ValueError(f"norm must be 'linf', got {norm!r}")
        if loss not in _LOSSES:
            raise ValueError(f"loss must be one of {', '.join(map(repr, _LOSSES))}, got {loss!r}")
        if bn not in BN_POLICIES:
            raise ValueError(f"bn must be one of {', '.join(map(repr, BN_POLICIES))}, got {bn!r}")
        for name, count in (("steps", steps), ("restarts", restarts)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {count!r}")
        if restarts > 1 and not random_start:
            raise ValueError("restarts must be 1 without random_start: every restart would be the same")
        for name, number in (("eps", eps), ("step_size", step_size)):
            if not isinstance(number, Tensor):
                nonnegative(number, name)
        self.eps = eps
        self.step_size = step_size
        self.steps = steps
        self.loss_name = loss
        self.random_start = random_start
        self.clamp_start = clamp_start
        self.restarts = restarts
        self.targeted = targeted
        self.bn = bn
        self.bounds = bounds_pair(bounds)

    def __call__(
        self,
        model: nn.Module | Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        *,
        seed: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        """Attack the images.

        Args:
            model: maps `[B, ...]` to logits `[B, C]`.
            x: clean images `[B, ...]`, float32, inside `bounds`.
            y: labels, int64 `[B]`, for loss "ce"; target logits `[B, C]` for "kl".
            seed: of the random start: an int, an int64 tensor with one element, or None. Restart r uses seed + r.
            sample_ids: int64 `[B]`, what the noise of each sample is keyed by; None takes its position.

        Returns:
            Adversarial images like `x`, detached.

        Raises:
            TypeError: x is not float32, or y not of the dtype the loss needs.
            ValueError: shapes of x, y or the logits do not fit.
        """
        self._check_inputs(x, y)
        # Neither no_grad nor inference_mode around the caller reaches into the attack.
        with torch.inference_mode(False), torch.enable_grad():
            x, y = _outside_inference(x.detach()), _outside_inference(y.detach())
            if x.shape[0] == 0:
                return x.clone()
            with attack_mode(model, self.bn):
                if self.restarts == 1:
                    return self._run(model, x, y, seed, sample_ids)
                return self._best_of_restarts(model, x, y, seed, sample_ids)

    def loss(self, logits: Tensor, y: Tensor, reduction: str = "none") -> Tensor:
        """The loss, float32, that the attack raises (lowers if targeted): of each sample `[B]`, or their "sum"."""
        if self.loss_name == "ce":
            return torch.nn.functional.cross_entropy(logits.float(), y, reduction=reduction)
        return F.kl_distill_loss(logits, y, temperature=1.0, reduction=reduction)

    def _run(self, model: Callable, x: Tensor, y: Tensor, seed: int | Tensor | None, ids: Tensor | None) -> Tensor:
        """One start and K steps."""
        if self.random_start:
            x_adv = F.random_start(
                x, eps=self.eps, clamp=self.clamp_start, bounds=self.bounds, seed=seed, sample_ids=ids
            )
        else:
            x_adv = x.clone()
        for _ in range(self.steps):
            probe = x_adv.detach().requires_grad_()
            loss = self.loss(self._logits(model, probe), y, reduction="sum")
            (grad,) = torch.autograd.grad(loss, [probe])
            F.pgd_linf_step_(
                x_adv,
                grad,
                x,
                step_size=self.step_size,
                eps=self.eps,
                targeted=self.targeted,
                bounds=self.bounds,
            )
        return x_adv

    def _best_of_restarts(
        self, model: Callable, x: Tensor, y: Tensor, seed: int | Tensor | None, ids: Tensor | None
    ) -> Tensor:
        seed = seed_tensor(seed, x.device)
        best = best_loss = None
        for restart in range(self.restarts):
            x_adv = self._run(model, x, y, seed + restart, ids)
            with torch.no_grad():
                loss = self.loss(self._logits(model, x_adv), y)
            if best is None:
                best, best_loss = x_adv, loss
                continue
            better = loss < best_loss if self.targeted else loss > best_loss
            best_loss = torch.where(better, loss, best_loss)
            best = torch.where(better.view(-1, *(1,) * (x.dim() - 1)), x_adv, best)
        return best

    def _logits(self, model: Callable, x: Tensor) -> Tensor:
        logits = model(x)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != x.shape[0]:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"model must return logits of shape [{x.shape[0]}, C], got {got}")
        return logits

    def _check_inputs(self, x: Tensor, y: Tensor) -> None:
        if x.dtype != torch.float32:
            raise TypeError(
                f"x must be float32, got {x.dtype}: iterates stay in full precision; for a half-precision model use "
                "torch.autocast or a model that casts its input"
            )
        if x.dim() < 2:
            raise ValueError(f"x must have shape [B, ...], got {tuple(x.shape)}")
        if self.loss_name == "ce":
            if y.dtype != torch.int64:
                raise TypeError(f"y must be int64 labels for loss='ce', got {y.dtype}")
            expected = f"[{x.shape[0]}]"
            fits = y.dim() == 1
        else:
            if not y.is_floating_point():
                raise TypeError(f"y must be target logits [B, C] for loss='kl', got {y.dtype}")
            expected = f"[{x.shape[0]}, C]"
            fits = y.dim() == 2
        if not fits or y.shape[0] != x.shape[0]:
            raise ValueError(f"y must have shape {expected} for loss={self.loss_name!r}, got {tuple(y.shape)}")


def _outside_inference(tensor: Tensor) -> Tensor:
    """A tensor that autograd may save: inference tensors cannot be."""
    return tensor.clone() if tensor.is_inference() else tensor
