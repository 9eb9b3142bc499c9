"""A network on a few images before any work: does it keep the contract, in which layout and precision does it run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ard_fast._devices import AUTO, autocast, full_precision

TRIAL_IMAGES = 4
# Of the largest logit, and of the length of the input gradient: by how much two forms of a network may differ.
# Rounding is four orders below the first; it makes a few ReLUs switch, which the second leaves room for. A layer
# that is put together wrongly is far above both. Elsewhere than on a CPU there may be TensorFloat-32.
_TOLERANCES = {"cpu": (1e-3, 2e-2), "other": (1e-2, 0.2)}
_SUM_TOLERANCE = 1e-4  # of rows of probabilities


class Form(NamedTuple):
    """How a network is run.

    Attributes:
        layout: of images and weights.
        precision: "fp32", "tf32" or "bf16".
        notes: what was wanted and cannot be, a line each.
    """

    layout: torch.memory_format
    precision: str
    notes: tuple[str, ...] = ()


class InForm(nn.Module):
    """A network that gets images in the form's layout and runs under the form's precision, whatever is around it."""

    def __init__(self, network: nn.Module, form: Form) -> None:
        super().__init__()
        self.network, self.form = network, form

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pixels in [0, 1]."""
        with autocast(self.form.precision, x.device):
            return self.network(x.contiguous(memory_format=self.form.layout))


def layout_name(layout: torch.memory_format) -> str:
    """In words."""
    return "channels_last" if layout == torch.channels_last else "contiguous"


def reason(error: BaseException) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RuntimeError) and lines and lines[0].startswith("The following operation failed"):
        lines = lines[-1:]  # TorchScript: the cause stands below its own traceback
    text = lines[0] if lines else ""
    kind = type(error).__name__
    if len(text) > 300:
        text = f"{text[:300]} ..."
    return text if text.startswith(f"{kind}:") else f"{kind}: {text}"


def copied(student: nn.Module, argument: str, advice: str) -> nn.Module:
    """A copy of the student in its place and layout.

    Args:
        student: is only read.
        argument: which setting wants one, for errors.
        advice: what to do where there can be none.

    Raises:
        ValueError: it cannot be copied.
    """
    try:
        return copy.deepcopy(student)
    except Exception as error:  # a lock, TorchScript: somebody else's module may fail in any way
        raise ValueError(f"{argument}: the student cannot be copied ({reason(error)}); {advice}") from error


def frozen(network: nn.Module) -> nn.Module:
    """The network, in eval mode and without trainable parameters."""
    for parameter in network.parameters():  # TorchScript has no requires_grad_ of whole modules
        parameter.requires_grad_(False)
    return network.eval()


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Put parameters, buffers, attributes and modes of all modules and torch's random state back on leaving."""
    modules = list(network.modules())
    modes = [(module, module.training) for module in modules]
    plain = [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    slots: list[dict[str, Any]] = []
    for module in plain:
        slots += [vars(module), module._parameters, module._buffers, module._modules]
    contents = [dict(slot) for slot in slots]
    tensors = [
        (tensor, tensor.detach().clone())
        for tensor in (*network.parameters(), *network.buffers())
        if not is_lazy(tensor)
    ]
    devices = sorted({tensor.device.index for tensor, _ in tensors if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for slot, content in zip(slots, contents, strict=True):
                slot.clear()
                slot.update(content)
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for tensor, before in tensors:
                    if not torch.equal(tensor, before):
                        tensor.copy_(before)


def initialise_lazily(network: nn.Module, image_shape: tuple[int, int, int], label: str) -> None:
    """Give lazy modules their parameters, from torch's random state; nothing is done where there are none.

    Raises:
        ValueError: the network cannot take images of that shape.
    """
    if not any(is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
        return
    training = network.training
    with torch.no_grad():
        _called(network.eval(), torch.zeros(2, *image_shape), label, "eval")
    network.train(training)


def check_logits(model: Callable[[Tensor], Any], x: Tensor, num_classes: int, label: str, mode: str = "eval") -> Tensor:
    """The logits `[B, num_classes]` of a batch.

    Args:
        model: in the mode it is to be called in.
        x: float32 `[B, C, H, W]`.
        num_classes: of the data set.
        label: how messages begin.
        mode: what they call the mode.

    Raises:
        ValueError: it fails, or returns something else; the message says what to change.
    """
    logits = _called(model, x, label, mode)
    wanted, where = f"logits [{len(x)}, {num_classes}] for {len(x)} images", f" in {mode} mode" * (mode == "train")
    if not isinstance(logits, Tensor):
        kind = type(logits).__name__
        got = f"{kind} of {len(logits)}" if isinstance(logits, (tuple, list)) else kind
        keys = f" with {', '.join(map(repr, list(logits)[:4]))}" if isinstance(logits, dict) else ""
        hint = "return the logits alone, from a module around it if its code is not yours"
        raise ValueError(f"{label}: must return {wanted}, got {got}{keys}{where}; {hint}")
    if logits.dim() != 2 or len(logits) != len(x):
        raise ValueError(f"{label}: must return {wanted}, got {list(logits.shape)}{where}")
    if logits.shape[1] != num_classes:
        hint = "give its factory a parameter num_classes, which is filled in, or replace its last layer"
        if logits.shape[1] == 1:
            hint = "one logit z of two classes is written cat([0, z])" if num_classes == 2 else hint
        returned = f"{logits.shape[1]} class{'es' * (logits.shape[1] != 1)}"
        raise ValueError(f"{label}: returns {returned}{where}, the data set has {num_classes}; {hint}")
    if not logits.is_floating_point():
        raise ValueError(f"{label}: must return {wanted} of a floating dtype, got {logits.dtype}{where}")
    finite = torch.isfinite(logits).all(1)
    if not finite.all():
        bad = int((~finite).sum())
        raise ValueError(f"{label}: logits of {bad} of {len(x)} clean images are not finite{where}")
    return logits


def are_probabilities(logits: Tensor) -> bool:
    """Whether what should be logits `[B, C]` looks like the output of a softmax."""
    low, high = float(logits.min()), float(logits.max())
    inside = low >= -_SUM_TOLERANCE and high <= 1.0 + _SUM_TOLERANCE
    return inside and float((logits.float().sum(1) - 1.0).abs().max()) <= _SUM_TOLERANCE


def try_network(
    network: nn.Module,
    x: Tensor,
    *,
    num_classes: int,
    label: str,
    channels_last: str = AUTO,
    precision: str = "fp32",
    fixed_precision: bool = False,
    trained: bool = False,
) -> Form:
    """Run a network on a few images, and leave it as it was: weights, buffers, attributes, modes, random state.

    It must do in the plain way: contiguous, float32, in eval mode, and in train mode with gradients of its weights if
    it is to be trained. The layout and the precision that are wanted are then tried, forward and backward; what fails
    or gives other figures is not used.

    Args:
        network: on the device of x.
        x: float32 `[B, C, H, W]` images in [0, 1], a few.
        num_classes: of the data set.
        label: what messages call it: "student", "model".
        channels_last: "auto" tries it, "true" insists on it, "false" does without.
        precision: "fp32", "tf32" or "bf16".
        fixed_precision: insist on it.
        trained: whether it will be.

    Raises:
        ValueError: it cannot be used, or not as insisted on; one line that begins with `label`.
    """
    trial = _Trial(network, x.contiguous(), num_classes, label, trained)
    with untouched(network):
        network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        plain = trial.check_contract()
        notes = list(trial.notes)
        if precision == "bf16" and (why := trial.fails("bf16")):
            if fixed_precision:
                raise ValueError(f"{label}: cannot run under precision bf16 ({why}); use fp32")
            precision = "fp32"
            notes.append(f"{label}: runs in float32: it fails under bfloat16 autocast ({why})")
        layout = torch.contiguous_format
        if channels_last != "false":
            why = trial.fails_in_channels_last(plain, precision)
            if why and channels_last == "true":
                raise ValueError(f"{label}: cannot run with channels_last true ({why}); use auto or false")
            if why:
                notes.append(f"{label}: runs contiguous: its forward does not take channels_last images ({why})")
            else:
                layout = torch.channels_last
    return Form(layout, precision, tuple(notes))


_Pass = tuple[Tensor, Tensor | None]
"""What a network made of the images in a mode: logits, and their gradient for the images, None where there is none."""


class _Trial:
    def __init__(self, network: nn.Module, x: Tensor, num_classes: int, label: str, trained: bool) -> None:
        self.network, self.x, self.num_classes, self.label = network, x, num_classes, label
        self.notes: list[str] = []
        self.modes = ["eval"]
        # torch's own SyncBatchNorm waits in train mode for processes that are not in the trial
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        if trained and (alone or not any(isinstance(part, nn.SyncBatchNorm) for part in network.modules())):
            self.modes.append("train")

    def check_contract(self) -> _Pass:
        """Run it in the plain way and return what it made of the images in eval mode."""
        names = {name for name, _ in self.network.named_parameters()}
        before, some = self.x.clone(), self.x[: max(len(self.x) - 1, 1)]
        self.network.eval()
        with torch.no_grad(), full_precision():
            whole = check_logits(self.network, self.x, self.num_classes, self.label)
            if not torch.equal(before, self.x):
                raise ValueError(f"{self.label}: changes its images in place; let its forward work on a copy")
            part = check_logits(self.network, some, self.num_classes, self.label)
        plain = self._run("eval", "fp32")
        if "train" in self.modes:
            self._run("train", "fp32")
        if new := sorted({name for name, _ in self.network.named_parameters()} - names):
            hint = "make them in __init__, or as lazy modules of torch.nn"
            raise ValueError(f"{self.label}: its forward makes parameters, {', '.join(new[:3])}; {hint}")
        if "train" in self.modes and are_probabilities(whole):
            self.notes.append(
                f"{self.label}: warning: its output looks like probabilities; the losses apply a softmax of their "
                "own, so it learns little: return logits, without the softmax"
            )
        if differs((part, None), (whole[: len(part)], None)) and not self._is_random(plain):
            self.notes.append(
                f"{self.label}: in eval mode an image's logits depend on the other images of its batch (batch "
                "statistics?), so figures depend on the batch size"
            )
        return plain

    def fails(self, precision: str) -> str | None:
        """Why it does not run under a precision; None where it does."""
        try:
            for mode in self.modes:
                self._run(mode, precision)
        except Exception as error:  # somebody else's forward may fail in any way
            return _inner_reason(error, self.label)
        return None

    def fails_in_channels_last(self, plain: _Pass, precision: str) -> str | None:
        """Why it does not run in that layout, with the same figures as `plain`."""
        contiguous, self.x = self.x, self.x.contiguous(memory_format=torch.channels_last)
        try:
            self.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            other = differs(self._run("eval", "fp32"), plain)
            why = self.fails("fp32") or (precision == "bf16" and self.fails("bf16")) or None
        except Exception as error:
            return _inner_reason(error, self.label)
        finally:
            self.x = contiguous
            self.network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        return why or (f"it {other}" if other and not self._is_random(plain) else None)

    def _is_random(self, plain: _Pass) -> bool:
        """Whether the same images give other logits a second time, so that no two passes can be compared."""
        return differs(self._run("eval", "fp32"), plain) is not None

    def _run(self, mode: str, precision: str) -> _Pass:
        """Forward and backward in a mode; in train mode the weights' gradients, too."""
        device = self.x.device
        self.network.train(mode == "train")
        with full_precision(), torch.inference_mode(False), torch.enable_grad():
            probe = self.x.detach().clone().requires_grad_()
            with autocast(precision, device):
                logits = check_logits(self.network, probe, self.num_classes, self.label, mode)
            weights = [weight for weight in self.network.parameters() if weight.requires_grad] * (mode == "train")
            gradients: list[Tensor | None] = [None]
            if logits.requires_grad:
                try:
                    gradients = _gradients(logits, [probe, *weights])
                except Exception as error:
                    shape = list(probe.shape)
                    raise ValueError(
                        f"{self.label}: its backward fails on images {shape} in {mode} mode: {reason(error)}"
                    ) from error
            if mode == "train" and all(gradient is None for gradient in gradients[1:]):
                raise ValueError(
                    f"{self.label}: its logits have no gradient for any of its weights in train mode (frozen weights, "
                    "no_grad or detach inside?)"
                )
        return logits.detach().float(), gradients[0]


def logits_and_gradient(model: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 logits, and the gradient of a weighted sum of them for the images."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        probe = x.clone().requires_grad_()
        logits = model(probe).float()
        (gradient,) = _gradients(logits, [probe], allow_unused=False)
    assert gradient is not None
    return logits.detach(), gradient


def differs(found: _Pass, expected: _Pass) -> str | None:
    """How logits and input gradients differ by more than rounding explains, in words; None where they do not."""
    (logits, gradient), (others, other_gradient) = found, expected
    for_logits, for_gradient = _TOLERANCES["cpu" if logits.device.type == "cpu" else "other"]
    if logits.shape != others.shape:
        return f"gives logits of another shape ({list(logits.shape)}, not {list(others.shape)})"
    difference, largest = (logits - others).abs().max().item(), others.abs().max().item()
    if not difference <= for_logits * largest:
        return f"gives other logits (by {difference:.2g}, the largest is {largest:.2g})"
    if gradient is None or other_gradient is None:
        return None
    apart, length = (gradient - other_gradient).norm().item(), other_gradient.norm().item()
    if not apart <= for_gradient * length:
        return f"gives another input gradient (by {apart:.2g}, its length is {length:.2g})"
    return None


def _gradients(logits: Tensor, inputs: list[Tensor], *, allow_unused: bool = True) -> list[Tensor | None]:
    directions = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype, device=logits.device).view_as(logits)
    return list(torch.autograd.grad([logits], inputs, [directions], allow_unused=allow_unused))


def _called(model: Callable[[Tensor], Any], x: Tensor, label: str, mode: str) -> Any:
    try:
        return model(x)
    except Exception as error:  # somebody else's forward may fail in any way
        raise ValueError(
            f"{label}: cannot take images of shape {list(x.shape)} in {mode} mode: {reason(error)}"
        ) from error


def _inner_reason(error: Exception, label: str) -> str:
    """Of an exception that may be one of this module's complaints."""
    if isinstance(error, ValueError) and error.__cause__ is not None:
        return reason(error.__cause__)
    return str(error).removeprefix(f"{label}: ") if isinstance(error, ValueError) else reason(error)
