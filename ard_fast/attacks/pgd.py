"""Projected gradient descent on the fused operators, and what differs from it in loss, start or momentum only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from ard_fast._typing import known
from ard_fast.attacks.base import GradientAttack, Problem
from ard_fast.functional._arguments import nonnegative, positive_int, seed_tensor
from ard_fast.functional.gradients import AttackGradient, attack_gradient
from ard_fast.functional.steps import mifgsm_step_, pgd_l2_step_, pgd_linf_step_, select_best_


@dataclass(eq=False, repr=False)
class PGD(GradientAttack):
    """PGD (Madry, Makelov, Schmidt, Tsipras, Vladu; ICLR 2018): K gradient steps in the eps-ball around each image.

    Weight gradients are not computed, nor is the loss: the fused operator gives its gradient at the logits, which is
    backpropagated. The gradient is that of the batch's summed loss. Without `seed`, one number is drawn from torch's
    generator of the images' device. In float16 a confident model is attacked as well as in float32, see
    `ard_fast.attacks.base`; but where images see one another (`bn` other than "eval", or batch norms without running
    statistics) the gradients of images that the model is sure of may still underflow.

    Args:
        eps: radius of the ball in pixel units, a number or a tensor `[B]`.
        step_size: step in pixel units, likewise.
        steps: K, at least 1.
        norm: "linf": signed steps; "l2": normalised ones. Of the ball, too.
        loss: "ce": cross-entropy at the labels. "kl": KL(target || model) at target logits (TRADES, RSLAD). "margin":
            -max(z_y - max_{j!=y} z_j + kappa, 0) (Carlini and Wagner 2017 under PGD). "dlr", "dlr_targeted": the
            difference-of-logits ratios (Croce and Hein 2020, equations 6 and 7 with targets).
        random_start: start at noise instead of at the image.
        restarts: independent random starts; the iterate with the highest final loss is kept for each sample (lowest
            if targeted), at the price of one more forward pass a restart.
        targeted: move towards the labels instead of away from them.
        bn: mode of the model during the attack: "eval", "train" or "train_frozen", see `attack_mode`.
        bounds: lowest and highest pixel value.
        clamp_start: clamp the random start to `bounds`; the published ARD code does not.
        init: the noise of the start: "uniform" in the ball, "normal" (`std` * N(0, 1)), or on its "surface".
        std: standard deviation of the normal noise, in pixel units.
        eot: forward and backward passes whose gradients are summed for each step, for models that are random.
        kappa: of the loss "margin": how far beyond the boundary it still pushes; inf for without end.
        temperature: of the loss "kl", for both distributions.
        levels: None, or the stored level that stands for 1.0, 255 for images of 8 bits. Every pixel of every iterate is
            then k / levels for a whole k, with the bits of `pixels.float() / levels` on a CPU: saved as uint8 and read
            again it is the same image. eps is taken down to whole levels and the step size up, and both are replaced by
            what they become. `x` must hold whole levels, and is taken at them if its last digits
            differ. L-infinity and bounds (0, 1) only.

    Raises:
        ValueError: an argument is out of range; the message names it.

    Example:
        >>> attack = PGD(eps=8 / 255, step_size=2 / 255, steps=10)
        >>> x_adv = attack(model, x, y)
    """

    scale_free = True

    def search(self, problem: Problem, seed: int | Tensor | None) -> Tensor:
        """One run, or the best of all restarts for each sample."""
        if self.restarts == 1:
            return self.run(problem, seed)[0]
        seed = seed_tensor(seed, problem.x.device)
        best, _ = self.run(problem, seed)
        best_loss, _ = self.rows(problem, best)
        for restart in range(1, self.restarts):
            x_adv, _ = self.run(problem, seed + restart)
            loss, _ = self.rows(problem, x_adv)
            best_loss = select_best_(best, best_loss, x_adv, loss, lower=self.targeted)
        return best

    def step(self, x_adv: Tensor, outcome: AttackGradient, problem: Problem, state: Any) -> Tensor:
        """Step, projection onto the ball and clamp to the pixel range in one pass, in place."""
        how: dict[str, Any] = {"step_size": known(self.step_size), "eps": self.eps, "targeted": self.targeted}
        how |= {"bounds": self.bounds, "check_bounds": False}
        if self.norm == "l2":
            return pgd_l2_step_(x_adv, outcome.grad, problem.x, **how)
        return pgd_linf_step_(x_adv, outcome.grad, problem.x, levels=self.levels, **how)


@dataclass(eq=False, repr=False)
class KLPGD(PGD):
    """PGD that raises T^2 KL(target^T || model^T), from a start of small normal noise.

    What the call's `y` is decides the problem: target logits `[B, C]` stay fixed (RSLAD: the teacher at the clean
    images); None takes the model's own logits at the clean images (TRADES; Zhang et al., ICML 2019); a model is
    evaluated at every iterate, in eval mode and left without a trace, and its gradient flows too (AdaAD; Huang et al.,
    CVPR 2023).

    Args:
        random_start: start at x + `std` * N(0, 1), not clamped unless `clamp_start`.
        temperature: T.
        Others: as for `PGD`.
    """

    accepts_target_model = True
    scale_free = True

    loss: str = field(default="kl", init=False)
    kappa: float = field(default=50.0, init=False)
    clamp_start: bool = field(default=False, kw_only=True)
    init: str = field(default="normal", kw_only=True)

    def differentiate(self, logits: Tensor, probe: Tensor, problem: Problem, with_rows: bool) -> AttackGradient:
        """Through the model and, if the target is a model whose logits depend on the iterate, through that as well."""
        if isinstance(problem.y, Tensor):
            return super().differentiate(logits, probe, problem, with_rows)
        target = self.forward(problem.y, probe)
        if not target.requires_grad:
            return super().differentiate(logits, probe, replace(problem, y=target), with_rows)
        grad, grad_target, scale = attack_gradient(
            logits.detach(),
            target.detach(),
            loss="kl",
            temperature=self.temperature,
            with_target_grad=True,
            scaled=True,
        )
        gradients = cast("list[Tensor]", [grad, grad_target])
        images = self.back_to_images([logits, target], probe, gradients, cast("Tensor", scale), problem)
        return AttackGradient(images, None, None)

    def rows(self, problem: Problem, x_adv: Tensor) -> tuple[Tensor, Tensor | None]:
        """The divergence of each sample at the iterate."""
        if isinstance(problem.y, Tensor):
            return super().rows(problem, x_adv)
        with torch.no_grad():
            return super().rows(replace(problem, y=self.forward(problem.y, x_adv)), x_adv)


@dataclass(eq=False, repr=False)
class CWLinf(PGD):
    """CW-infinity as robust-training papers evaluate it: PGD on the margin loss of Carlini and Wagner (2017).

    The gradient is that of -max(z_y - max_{j!=y} z_j + kappa, 0): it vanishes once the image is beyond the boundary by
    `kappa`.

    Args:
        kappa: at least 0, or inf for a loss that is never switched off; the published codes take 50.
        Others: as for `PGD`.
    """

    steps: int = 30
    norm: str = field(default="linf", init=False)
    loss: str = field(default="margin", init=False)
    temperature: float = field(default=1.0, init=False)


@dataclass(eq=False, repr=False)
class MIFGSM(PGD):
    """MI-FGSM (Dong, Liao, Pang, Su, Zhu, Hu, Li; CVPR 2018), L-infinity.

    The momentum adds up gradients, each divided by its L1 norm; steps follow its sign.

    Args:
        step_size: step in pixel units, a number or a tensor `[B]`; None for eps / steps, as in the paper.
        decay: of the momentum, at least 0; the paper takes 1.
        Others: as for `PGD`.
    """

    scale_free = True

    step_size: float | Tensor | None = None
    norm: str = field(default="linf", init=False)
    random_start: bool = False
    decay: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        if self.step_size is None:
            eps = self.eps if isinstance(self.eps, Tensor) else nonnegative(self.eps, "eps")
            self.step_size = eps / positive_int(self.steps, "steps")
        super().__post_init__()
        self.decay = nonnegative(self.decay, "decay")

    def begin(self, problem: Problem, x_adv: Tensor) -> Tensor:
        """The momentum, zero."""
        return torch.zeros_like(x_adv)

    def step(self, x_adv: Tensor, outcome: AttackGradient, problem: Problem, state: Any) -> Tensor:
        """Momentum, signed step, projection and clamp in one operator, in place."""
        return mifgsm_step_(
            x_adv,
            state,
            outcome.grad,
            problem.x,
            step_size=known(self.step_size),
            eps=self.eps,
            decay=self.decay,
            targeted=self.targeted,
            bounds=self.bounds,
            levels=self.levels,
            check_bounds=False,
        )
