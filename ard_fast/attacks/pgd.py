"""Projected gradient descent (Madry, Makelov, Schmidt, Tsipras, Vladu; ICLR 2018) on the fused operators."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ard_fast import functional as F
from ard_fast.attacks.base import GradientAttack, Problem
from ard_fast.functional import AttackGradient
from ard_fast.functional._arguments import nonnegative, seed_tensor


class PGD(GradientAttack):
    """PGD: K gradient steps inside the eps-ball around each image.

    The attack leaves no trace: every module's mode, `requires_grad`, `.grad` and (except under `bn="train"`) all
    buffers are as before, after an exception too. Weight gradients are not computed, nor is the loss: the fused
    operator gives its gradient at the logits, which is backpropagated. Without `seed`, one number is drawn from torch's
    generator of the images' device. Under autocast the model runs in autocast; the iterate stays float32. The gradient
    is that of the batch's summed loss, and each row of it at the logits is scaled by a power of two, so that
    half-precision gradients do not underflow: in float16 a confident model is attacked as well as in float32. Rows have
    one factor in common where images see one another (`bn` other than "eval", or batch norms without running
    statistics): there the gradients of images that the model is sure of may still underflow in float16. The scaled
    gradients are no larger than those of misclassified images, so that none overflows that did not before.

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

    Raises:
        ValueError: an argument is out of range; the message names it.

    Example:
        >>> attack = PGD(eps=8 / 255, step_size=2 / 255, steps=10)
        >>> x_adv = attack(model, x, y)
    """

    scale_free = True

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
        init: str = "uniform",
        std: float = 0.001,
        eot: int = 1,
        kappa: float = 50.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(
            eps=eps,
            steps=steps,
            norm=norm,
            loss=loss,
            random_start=random_start,
            init=init,
            std=std,
            clamp_start=clamp_start,
            restarts=restarts,
            targeted=targeted,
            bn=bn,
            bounds=bounds,
            eot=eot,
            kappa=kappa,
            temperature=temperature,
        )
        self.step_size = step_size if isinstance(step_size, Tensor) else nonnegative(step_size, "step_size")

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
            best_loss = F.select_best_(best, best_loss, x_adv, loss, lower=self.targeted)
        return best

    def step(self, x_adv: Tensor, outcome: AttackGradient, problem: Problem, state: Any) -> Tensor:
        """Step, projection onto the ball and clamp to the pixel range in one pass, in place."""
        step_ = F.pgd_linf_step_ if self.norm == "linf" else F.pgd_l2_step_
        return step_(
            x_adv,
            outcome.grad,
            problem.x,
            step_size=self.step_size,
            eps=self.eps,
            targeted=self.targeted,
            bounds=self.bounds,
            check_bounds=False,
        )
