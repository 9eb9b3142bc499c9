"""The one loop of all gradient attacks: start, then K times gradient, step, projection.

To make an attack of one's own, derive from `PGD` (or `GradientAttack`) and override what differs:

* loss: `logits_gradient`, which gives d(loss)/d(logits), in float32. `differentiated` makes it from any expression in
  the logits::

      class LogitSquare(PGD):
          def logits_gradient(self, logits, problem, with_rows=False):
              return differentiated(lambda z: -z.gather(1, problem.y[:, None])[:, 0] ** 2, logits)

* step: `step`, which moves the iterate and keeps it in the ball and in the pixel range (the fused operators do all
  three). What it carries from one step to the next is made by `begin`.
* projection: `project`, called after the start and after each step, for constraints beyond ball and pixel range::

      class Universal(PGD):  # one perturbation for all images of the batch
          def project(self, x_adv, problem):
              return (problem.x + (x_adv - problem.x).mean(0, keepdim=True)).clamp(*self.bounds)

* settings: fields of a dataclass, which then stand in `repr` and can be changed by `replace`::

      @dataclass(eq=False, repr=False)
      class Shrinking(PGD):
          shrink: float = field(default=0.5, kw_only=True)

* start: `start`. The gradient at an iterate, with its passes through the network: `gradient`, `differentiate`.

Before it is rounded to the dtype of the logits, each row of d(loss)/d(logits) is multiplied by a power of two that
brings its largest entry into [1, 2): the gradients of images that the network is sure of would underflow in float16.
Float32 gradients have the same bits as without, times that power of two. Steps that do not see it (`scale_free`) get
the gradients as they are; for all others it is taken out of them again, in float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import takewhile
from types import FunctionType, MethodType
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ard_fast._typing import known
from ard_fast.attacks.backward import backward
from ard_fast.attacks.inputs import as_mask, check_images, check_integers, check_logits, check_targets
from ard_fast.attacks.model_mode import attack_mode, is_fixed, uses_batch_statistics, without_gradient_sync
from ard_fast.attacks.settings import Configured, Settings
from ard_fast.functional._arguments import check_precondition, is_plain
from ard_fast.functional._levels import check_levels, nearest_levels
from ard_fast.functional.gradients import AttackGradient, attack_gradient, one_scale, scaled_rows
from ard_fast.functional.starts import random_start

_GRADIENT_HOOKS = frozenset(("step", "begin", "gradient", "differentiate", "advance", "run", "search"))
"""What may ask for the size of a gradient."""

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Problem:
    """What one call attacks.

    Attributes:
        model: maps `[B, ...]` to logits `[B, C]`.
        x: clean images `[B, ...]`, float32.
        y: labels `[B]`; target logits `[B, C]` or a target model for the loss "kl".
        target_classes: `[B]`, the classes that the loss "dlr_targeted" moves to, else None.
        mask: bool, of the shape of `x`: where pixels may change; None for everywhere.
        sample_ids: int64 `[B]`, what each sample's noise is keyed by; None for its position.
        coupled: whether the logits of an image depend on the other images of the batch, or may, for all that is seen.
    """

    model: Model
    x: Tensor
    y: Tensor | Model
    target_classes: Tensor | None = None
    mask: Tensor | None = None
    sample_ids: Tensor | None = None
    coupled: bool = False

    def take(self, index: Tensor) -> Problem:
        """The samples at `index`, keeping their noise."""
        ids = torch.arange(self.x.shape[0], device=self.x.device) if self.sample_ids is None else self.sample_ids
        return replace(
            self,
            x=self.x[index],
            y=self.y[index] if isinstance(self.y, Tensor) else self.y,
            target_classes=None if self.target_classes is None else self.target_classes[index],
            mask=None if self.mask is None else self.mask[index],
            sample_ids=ids[index],
        )


class GradientAttack(Settings):
    """Base of all attacks: settings, inputs, the model's state, the gradient. Subclasses search: `search`.

    An attack leaves no trace: every module's mode, `requires_grad`, `.grad` and (except under `bn="train"`) all
    buffers are as before, after an exception too; inputs are not modified and the result is detached. Weight gradients
    are not computed. Under autocast the model runs in autocast; the iterate stays float32. Nothing waits for the GPU
    unless a class says so, except the first call for a shape, which looks at the range of the pixels. Several threads
    may attack one model under the same `bn`.

    Its settings are explained at `PGD`.
    """

    needs_rows: ClassVar[bool] = False
    """Whether `step` needs the loss and the correctness of each sample."""
    accepts_target_model: ClassVar[bool] = False
    """Whether `y` may be a model."""
    scale_free: ClassVar[bool] = False
    """Whether what follows the gradient does the same if that of each image is multiplied by a positive number, as
    signed and normalised steps do. Then its scale stays in it (with `eot=1`). A subclass that overrides `step`, or
    anything else that handles gradients, and says nothing has False."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # Of its own and of mixins: whatever is overridden since the class that says so.
        since = takewhile(lambda base: "scale_free" not in vars(base), cls.__mro__)
        if not all(_GRADIENT_HOOKS.isdisjoint(vars(base)) for base in since):
            cls.scale_free = False

    @property
    def why_eager(self) -> str | None:
        """The reason why a CUDA graph cannot hold a whole call; None if it can. For `GraphedPGD`."""
        return None

    @property
    def takes_target_classes(self) -> bool:
        """Whether a call has `target_classes`."""
        return self.loss == "dlr_targeted"

    def __call__(
        self,
        model: nn.Module | Model,
        x: Tensor,
        y: Tensor | Model | None = None,
        *,
        seed: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
        mask: Tensor | None = None,
        target_classes: Tensor | None = None,
    ) -> Tensor:
        """Attack the images.

        Args:
            model: maps `[B, ...]` to logits `[B, C]`. `bn` applies to all modules behind it: itself, or those of a
                lambda, bound method, partial or object; where none is found a warning says so once.
                `DistributedDataParallel` is attacked through its `.module`.
            x: clean images `[B, ...]`, float32, inside `bounds` (and at whole `levels`). On the CPU every call looks;
                on CUDA, where that waits for the device, this object's first call for a shape and bounds does, and none
                inside a capture.
            y: labels, int64 `[B]` (the classes to move to if targeted); for loss "kl" target logits `[B, C]`. None
                takes what the model itself says of `x` in eval mode.
            seed: of the random start: an int, an int64 tensor with one element, or None. Restart r uses seed + r.
            sample_ids: int64 `[B]`, what the noise of each sample is keyed by; None takes its position.
            mask: bool, `[B, ...]` or broadcastable to it: only pixels where it is True change.
            target_classes: int64 `[B]`, for loss "dlr_targeted" only: the classes to move to. None takes the most
                likely class at `x` other than the label.

        Returns:
            Adversarial images like `x`, detached.

        Raises:
            TypeError: x is not float32, or y, mask or target_classes not of the dtype they need.
            ValueError: shapes of the arguments or of the logits do not fit, x is not inside `bounds`, a tensor eps is
                wider than they are, or y is missing for a targeted attack.
            RuntimeError: another thread is attacking the model under another `bn`.
        """
        check_model(model)
        model, y = without_gradient_sync(model), without_gradient_sync(y)
        check_images(x)
        if y is None and self.targeted:
            raise ValueError("y must be given for a targeted attack: it says where to move to")
        check_targets(y, x, self.loss, model_allowed=self.accepts_target_model)
        if target_classes is not None:
            if not self.takes_target_classes:
                raise ValueError(f"target_classes must be None for {self!r}: they are for loss='dlr_targeted'")
            check_integers(target_classes, "target_classes", x)
        if sample_ids is not None:
            check_integers(sample_ids, "sample_ids", x)
        for name, value in self.settings().items():
            if isinstance(value, Tensor) and value.dim() and value.shape != x.shape[:1]:
                raise RuntimeError(f"{name} must be a number or have shape [{x.shape[0]}], got {tuple(value.shape)}")
        self.check_pixels(x)
        mask = as_mask(mask, x)
        # Neither no_grad nor inference_mode around the caller reaches into the attack.
        with torch.inference_mode(False), torch.enable_grad():
            x = _usable(x)
            if not is_plain(x):
                x = x.contiguous()
            if x.shape[0] == 0:
                return x.clone()
            if self.levels is not None:
                x = nearest_levels(x, self.levels)
            y, target_classes, mask, sample_ids = (_usable(t) for t in (y, target_classes, mask, sample_ids))
            if y is None or (self.takes_target_classes and target_classes is None):
                y, target_classes = self._own_targets(model, x, cast("Tensor | None", y), target_classes)
            with ExitStack() as modes:
                networks = modes.enter_context(attack_mode(model, self.bn))
                seen = self._has_modules(networks, model, self.bn)
                if not isinstance(y, Tensor):
                    targets = modes.enter_context(attack_mode(y, "eval"))
                    seen &= self._has_modules(targets, y, "eval", "target model")
                    networks = [*networks, *targets]
                coupled = self.bn != "eval" or not seen or uses_batch_statistics(networks)
                return self.search(Problem(model, x, y, target_classes, mask, sample_ids, coupled), seed)

    def loss_at(self, logits: Tensor, y: Tensor, target_classes: Tensor | None = None) -> Tensor:
        """The loss of each sample, float32 `[B]`, that the attack raises (lowers if targeted)."""
        at_logits = Problem(lambda z: z, logits, y, target_classes)
        return known(self.logits_gradient(logits.detach(), at_logits, with_rows=True).loss)

    # --- what a subclass may override --------------------------------------------------------------------------------

    def search(self, problem: Problem, seed: int | Tensor | None) -> Tensor:
        """The best adversarial images found in all restarts, `[B, ...]`."""
        raise NotImplementedError

    def start(self, problem: Problem, seed: int | Tensor | None) -> Tensor:
        """The first iterate, a new tensor `[B, ...]`."""
        x, mask = problem.x, problem.mask
        if not self.random_start:
            return x.clone()
        x_adv = random_start(
            x,
            eps=self.eps,
            norm=self.norm,
            init=self.init,
            std=self.std,
            clamp=self.clamp_start,
            bounds=self.bounds,
            seed=seed,
            sample_ids=problem.sample_ids,
            levels=self.levels,
            check_bounds=False,
        )
        return x_adv if mask is None else torch.where(mask, x_adv, x)

    def begin(self, problem: Problem, x_adv: Tensor) -> Any:
        """What `step` carries from one step to the next."""
        return None

    def step(self, x_adv: Tensor, outcome: AttackGradient, problem: Problem, state: Any) -> Tensor:
        """The next iterate, inside the ball and the pixel range; `x_adv` may be overwritten and returned.

        Args:
            x_adv: the iterate `[B, ...]`.
            outcome: the gradient at it (that of each sample times a positive number in a class that is `scale_free`)
                and, where `needs_rows` says so, loss and correctness of each sample.
            problem: what is attacked.
            state: what `begin` made.
        """
        raise NotImplementedError

    def project(self, x_adv: Tensor, problem: Problem) -> Tensor:
        """The iterate under further constraints; ball and pixel range are kept by the start and the step already."""
        return x_adv

    def logits_gradient(self, logits: Tensor, problem: Problem, with_rows: bool = False) -> AttackGradient:
        """d(loss)/d(logits) of the batch's summed loss, which the attack ascends (descends if targeted).

        Args:
            logits: `[B, C]`, detached.
            problem: what is attacked.
            with_rows: whether `loss` and `correct` are wanted too.

        Returns:
            `grad` `[B, C]`, float32, and, if wanted, `loss` `[B]` float32 and `correct` `[B]` bool.
        """
        return self._at_logits(logits.float(), problem, with_rows, False)[0]

    def _at_logits(
        self, logits: Tensor, problem: Problem, with_rows: bool, scaled: bool
    ) -> tuple[AttackGradient, Tensor | None]:
        """`logits_gradient` of the attack's own loss; if scaled in the dtype of the logits, and the factors `[B]`."""
        target, labels = cast("Tensor", problem.y), None
        if self.loss == "dlr_targeted":
            target, labels = known(problem.target_classes), target
        result = attack_gradient(
            logits,
            target,
            loss=self.loss,
            labels=labels,
            temperature=self.temperature,
            kappa=self.kappa,
            with_rows=with_rows,
            scaled=scaled,
        )
        found, scale = cast("tuple[Any, Tensor | None]", result if scaled else (result, None))
        return found if isinstance(found, AttackGradient) else AttackGradient(found, None, None), scale

    def differentiate(self, logits: Tensor, probe: Tensor, problem: Problem, with_rows: bool) -> AttackGradient:
        """From d(loss)/d(logits) back through the network to `grad` = d(loss)/d(probe), `[B, ...]`.

        In a class that is `scale_free` the gradient of each sample is multiplied by a positive number.
        """
        at_logits = logits.detach()
        if getattr(self.logits_gradient, "__func__", None) is GradientAttack.logits_gradient:
            outcome, scale = self._at_logits(at_logits, problem, with_rows, True)
            grad, scale = outcome.grad, known(scale)
        else:
            outcome = self.logits_gradient(at_logits, problem, with_rows)
            grad, scale = scaled_rows(outcome.grad, logits.dtype)
        return outcome._replace(grad=self.back_to_images([logits], probe, [grad], scale, problem))

    def back_to_images(
        self, logits: Sequence[Tensor], probe: Tensor, grads: Sequence[Tensor], scale: Tensor, problem: Problem
    ) -> Tensor:
        """d(loss)/d(probe) `[B, ...]` from gradients at logits `[B, C]` whose rows are multiplied by `scale` `[B]`."""
        if problem.coupled:
            *grads, scale = one_scale(scale, *grads)
        grad = backward(logits, probe, grads)
        if self.scale_free and self.eot == 1:
            return grad
        return grad / scale.view(-1, *[1] * (grad.dim() - 1))

    # --- shared by the searches --------------------------------------------------------------------------------------

    def run(self, problem: Problem, seed: int | Tensor | None) -> tuple[Tensor, Any]:
        """One start and K steps: the last iterate, and the state of the steps."""
        x_adv = self.project(self.start(problem, seed), problem)
        state = self.begin(problem, x_adv)
        for _ in range(self.steps):
            x_adv = self.advance(problem, x_adv, state)
        return x_adv, state

    def advance(self, problem: Problem, x_adv: Tensor, state: Any) -> Tensor:
        """One iteration: gradient, step, projection."""
        return self.project(self.step(x_adv, self.gradient(problem, x_adv), problem, state), problem)

    def gradient(self, problem: Problem, x_adv: Tensor) -> AttackGradient:
        """Gradient of the summed loss at the iterate, and where needed losses, all summed over `eot` passes.

        In a class that is `scale_free`, and with `eot=1`, that of each sample is multiplied by a positive number.
        """
        total = None
        for _ in range(self.eot):  # at least once
            # Shares memory with x_adv; the step may write there once the passes are over.
            probe = x_adv.detach().requires_grad_()
            logits = self.forward(problem.model, probe)
            if not logits.requires_grad:
                raise ValueError("model must be differentiable, but its logits do not depend on x for autograd")
            outcome = self.differentiate(logits, probe, problem, self.needs_rows)
            total = outcome if total is None else _added(total, outcome)
        total = known(total)
        if problem.mask is not None:
            total = total._replace(grad=total.grad * problem.mask)
        return total

    def rows(self, problem: Problem, x_adv: Tensor) -> tuple[Tensor, Tensor | None]:
        """Loss, float32 `[B]`, and correctness, bool `[B]`, of each sample at the iterate, over `eot` passes."""
        total = None
        with torch.no_grad():
            for _ in range(self.eot):
                outcome = self.logits_gradient(self.forward(problem.model, x_adv), problem, with_rows=True)
                total = outcome if total is None else _added(total, outcome)
        total = known(total)
        return known(total.loss), total.correct

    def forward(self, model: Model, x: Tensor) -> Tensor:
        """Logits `[B, C]` of the model, checked."""
        logits = model(x)
        check_logits(logits, x, self.loss)
        return logits.float() if logits.dtype == torch.float64 else logits

    def predictions(self, model: Model, x: Tensor) -> Tensor:
        """Logits of the clean images with the model in eval mode."""
        with attack_mode(model, "eval"), torch.no_grad():
            return self.forward(model, x)

    def check_pixels(self, x: Tensor) -> None:
        """Pixels inside `bounds` (and at whole `levels`), and a ball no wider.

        Looked at in every call on the CPU. On CUDA that waits for the device, so it is done in the first call of this
        attack for a shape and bounds, never inside the capture of a graph or where torch is told to raise on waits.
        """
        kinds, kind = _ONCE.setdefault(self, set()), (x.shape[1:], self.bounds)
        if x.device.type == "cuda":
            raises_on_waits = torch.cuda.get_sync_debug_mode() == 2
            if kind in kinds or raises_on_waits or torch.cuda.is_current_stream_capturing():
                return
        check_precondition(x, self.eps, self.bounds, self.norm)
        if self.levels is not None:
            check_levels(x, self.levels)
        kinds.add(kind)

    def _has_modules(self, found: Sequence[nn.Module], model: Model, bn: str, name: str = "model") -> bool:
        """Whether modules were found behind the model, or none are needed; else a warning, once for a type."""
        if found or is_fixed(model):
            return True
        kind, said = type(model), _ONCE.setdefault(self, set())
        if kind in said:
            return False
        said.add(kind)
        called = model.__qualname__ if isinstance(model, (FunctionType, MethodType)) else kind.__qualname__
        warnings.warn(
            f"bn={bn!r} cannot be applied: no torch.nn.Module was found behind the {name}, {called}. If it uses one, "
            "batch norm and dropout stay as they are and running statistics may move: pass the module, or a "
            "torch.nn.Module around it",
            stacklevel=3,
        )
        return False

    def _own_targets(
        self, model: Model, x: Tensor, y: Tensor | None, target_classes: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """y and target_classes by what the model says of the clean images."""
        logits = self.predictions(model, x)
        if y is None:
            y = logits if self.loss == "kl" else logits.argmax(1)
        if self.takes_target_classes and target_classes is None:
            try:
                target_classes = logits.scatter(1, y[:, None], float("-inf")).argmax(1)
            except RuntimeError as error:  # on the CPU; nothing may be read here to look before
                raise RuntimeError(f"y must be labels in [0, {logits.shape[1]}): {error}") from error
        return y, target_classes


_ONCE: WeakKeyDictionary[GradientAttack, set[Hashable]] = WeakKeyDictionary()
"""What is not done again for an attack: kinds of images on CUDA that were inside the bounds, warnings."""


def check_model(model: Callable[..., Any]) -> None:
    """Anything that can be called; what it returns is checked when it has."""
    if not callable(model) or isinstance(model, (type, Configured)):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"model must map images to logits, got {got}")


def differentiated(loss: Callable[[Tensor], Tensor], logits: Tensor) -> AttackGradient:
    """What `logits_gradient` returns, for a loss of one's own: gradient and losses in float32.

    Args:
        loss: maps logits `[B, C]`, float32, to the loss of each sample `[B]`, differentiably.
        logits: `[B, C]`.
    """
    if not callable(loss) or isinstance(loss, type):
        raise TypeError(f"loss must map logits [B, C] to losses [B], got {type(loss).__name__}")
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a tensor [B, C], got {type(logits).__name__}")
    with torch.inference_mode(False), torch.enable_grad():
        leaf = logits.detach().float().clone().requires_grad_()
        rows = loss(leaf)
        if not isinstance(rows, Tensor) or not rows.requires_grad:
            got = f"a tensor {list(rows.shape)} without a graph" if isinstance(rows, Tensor) else type(rows).__name__
            raise TypeError(f"loss must map logits [B, C] to losses [B] differentiably, got {got}")
        (grad,) = torch.autograd.grad([rows.sum()], [leaf])
    return AttackGradient(grad, rows.detach(), None)


def _added(total: AttackGradient, more: AttackGradient) -> AttackGradient:
    """The passes so far and one more: gradients and losses add up; correct is what the last pass says."""
    loss = None if total.loss is None else total.loss + known(more.loss)
    return AttackGradient(total.grad + more.grad, loss, more.correct)


def _usable(value: Any) -> Any:
    """A tensor that autograd may save (inference tensors cannot be), outside any graph; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    return value.clone() if value.is_inference() else value
