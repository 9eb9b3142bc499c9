"""An attack whose whole loop is one CUDA graph."""

from __future__ import annotations

import functools
import threading
import warnings
import weakref
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ard_fast.attacks.base import GradientAttack, Model
from ard_fast.attacks.cuda_graph import CudaGraphs, GraphedFunction, GraphWarning, Inputs
from ard_fast.attacks.model_mode import is_fixed, network_modules, network_tensors
from ard_fast.functional._arguments import positive_int, seed_tensor


class GraphedPGD:
    """Wraps an attack: same call, same results, and on CUDA its K steps are replayed as one CUDA graph.

    The random start and K times forward, gradient and step become one launch. Results are those of the attack, bit for
    bit. Without `seed` each call starts at new noise from torch's generator, as the attack does.

    The first three calls of a kind are eager, the fourth is captured. Calls are of one kind if model, shapes, layouts,
    dtypes, autocast, the attack's own attributes and, unless it attacks in eval mode, the modes of the model's modules
    agree; graphs of up to four kinds of a model are kept, and a smaller last batch is a kind of its own. Weights
    updated in place take effect; weights moved elsewhere (`.data =`, `model.to()`) lead to a new capture. Other changes
    to the model, such as to a dropout rate, go unnoticed: call `forget` after them. On a CPU, inside another capture,
    and if the capture fails (one `GraphWarning`), it runs the attack.

    May be called from several threads, which take turns. Models are held weakly; copies and pickles hold the
    attack only.

    Args:
        attack: any that does not wait for the device, see `GradientAttack.why_eager`.
        backend: what captures; None takes CUDA graphs.
        warm_up: eager calls of each kind before its capture, at least 1.

    Attributes:
        replays: how many calls were replays.
        failed: why calls are eager, once a capture has failed or a model cannot be seen into, else None.

    Raises:
        TypeError: not a gradient attack.
        ValueError: the attack cannot be captured; the message says why. Or `warm_up` is out of range.

    Example:
        >>> attack = GraphedPGD(PGD(eps=8 / 255, step_size=2 / 255, steps=10, bn="train"))
        >>> x_adv = attack(model, x, y)
    """

    def __init__(self, attack: GradientAttack, *, backend: CudaGraphs | None = None, warm_up: int = 3) -> None:
        if not isinstance(attack, GradientAttack):
            raise TypeError(f"attack cannot be captured: it must be a GradientAttack, got {attack!r}")
        if attack.why_eager is not None:
            raise ValueError(f"attack cannot be captured: {attack.why_eager}, got {attack!r}")
        self.attack = attack
        self.replays = 0
        self._warm_up = positive_int(warm_up, "warm_up")
        self._backend = CudaGraphs() if backend is None else backend
        self._functions: dict[tuple[int, int], GraphedFunction] = {}
        self._turn = threading.Lock()
        self.failed: str | None = None

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
        """Attack the images; arguments, result and errors as for the attack itself.

        A model, or target model as `y`, that is not a module shows neither its modes nor its weights: it is attacked
        eagerly, after one `GraphWarning`, unless it has a method `fixed_tensors` that returns all the tensors it reads.
        """
        options = {"sample_ids": sample_ids, "mask": mask, "target_classes": target_classes}
        if not self._to_be_graphed(model, x, y, seed, options):
            return self.attack(model, x, y, seed=seed, **options)
        given = {"x": x, "y": y if isinstance(y, Tensor) else None, **options}
        given["seed"] = None if seed is None else seed_tensor(seed, x.device)
        inputs = {name: value for name, value in given.items() if value is not None}
        with self._turn:
            graphed = self._function(model, None if isinstance(y, Tensor) else y)
            before = graphed.replays
            result = graphed(inputs, self._key(model))
            self.replays += graphed.replays - before
            self.failed = self.failed or graphed.failed
            # Nothing else may run in between: the next call overwrites it.
            with torch.inference_mode(False):
                return result.clone()

    def forget(self) -> None:
        """Drop all graphs and their memory; the next calls warm up and capture anew."""
        with self._turn:
            self._functions.clear()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.attack!r})"

    def __reduce__(self) -> Any:
        return functools.partial(type(self), warm_up=self._warm_up), (self.attack,)

    def _to_be_graphed(self, model: Any, x: Any, y: Any, seed: Any, options: dict[str, Any]) -> bool:
        """Whether a graph can do it; what is wrong in the arguments is for the attack to say."""
        if not isinstance(x, Tensor) or not self._backend.usable(x.device) or not x.numel():
            return False
        given = [value for value in options.values() if value is not None]
        given += [value for value in (y, seed) if isinstance(value, Tensor)]
        if any(not isinstance(value, Tensor) or value.device != x.device for value in given):
            return False
        networks = [model] if y is None or isinstance(y, Tensor) else [model, y]
        if len(networks) > 1 and not (callable(y) and self.attack.accepts_target_model):
            return False
        unseen = [each for each in networks if not (isinstance(each, nn.Module) or is_fixed(each))]
        if unseen and self.failed is None:
            self.failed = f"{type(unseen[0]).__name__} is not a module, so that its modes and weights cannot be seen"
            warnings.warn(f"{self.attack!r} runs without a CUDA graph: {self.failed}", GraphWarning, stacklevel=3)
        return not unseen

    def _function(self, model: Any, target: Any) -> GraphedFunction:
        """The graphs of a model and, if there is one, a target model; neither is kept alive by them."""
        key = (id(model), id(target))
        if key not in self._functions:
            functions, attack = self._functions, self.attack

            def gone(_: Any) -> None:  # before another network can have its id
                functions.pop(key, None)

            networks: list[Any] = [weakref.ref(each, gone) for each in (model, target) if each is not None]

            def run(inputs: Inputs) -> Tensor:
                if len(networks) > 1:
                    inputs.update(y=networks[1]())
                return attack(networks[0](), **inputs)

            def fixed() -> Iterator[Tensor]:
                for network in (each() for each in networks):
                    yield from network_tensors(network) if isinstance(network, nn.Module) else network.fixed_tensors()

            functions[key] = GraphedFunction(
                run, name=repr(attack), backend=self._backend, warm_up=self._warm_up, fixed=fixed
            )
        return self._functions[key]

    def _key(self, model: Any) -> Hashable:
        modes = ()
        if self.attack.bn != "eval" and isinstance(model, nn.Module):
            modes = tuple([module.training for module in network_modules(model)])
        return modes, tuple((name, _hashable(value)) for name, value in vars(self.attack).items())


def as_graph(attack: Any) -> Any:
    """The attack as a `GraphedPGD` if it can be captured, else unchanged. For repeated calls with one model."""
    capturable = isinstance(attack, GradientAttack) and attack.why_eager is None
    return GraphedPGD(attack) if capturable else attack


def _hashable(value: Any) -> Hashable:
    """What tells two values of an attribute apart."""
    if isinstance(value, Tensor):
        return value.data_ptr(), value.shape, value.stride(), value.dtype, value.device
    return value if isinstance(value, Hashable) else repr(value)
