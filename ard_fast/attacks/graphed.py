"""An attack whose whole loop is one CUDA graph."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Hashable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ard_fast.attacks.base import GradientAttack, Model
from ard_fast.attacks.graphs.capture import GraphBackend, GraphedFunction, GraphWarning
from ard_fast.attacks.graphs.cuda import CudaGraphs
from ard_fast.attacks.graphs.network import network_modes, network_tensors
from ard_fast.attacks.modules import is_fixed
from ard_fast.functional._arguments import positive_int, seed_tensor

_OPTIONAL = ("sample_ids", "mask", "target_classes")


class GraphedPGD:
    """An attack that is called like itself, and on CUDA replays its K steps as one CUDA graph.

    Random start, K times forward, gradient and step: what an eager attack launches one by one is launched at once. The
    results are to the bit those of the attack. Without `seed` each call starts at other noise, drawn from torch's
    generator as the attack draws it.

    The first three calls of a kind are eager, the fourth is captured. Calls are of one kind if model, shapes, layouts,
    dtypes, autocast, the attack's own attributes and, unless it attacks in eval mode, the modes of the model's modules
    agree; graphs of up to four kinds of a model are kept, a smaller last batch being a kind of its own. Weights updated
    in place are seen; weights put elsewhere (`.data =`, `model.to()`) are noticed and captured anew. Other changes to
    the model, such as to a dropout rate, are not: call `forget` after them. On a CPU, inside another capture, and if
    the capture fails (one `GraphWarning`), it runs the attack.

    May be called from several threads, which take turns. Models are held weakly; copies and pickles hold the
    attack only.

    Args:
        attack: any that does not wait for the device, see `GradientAttack.why_eager`.
        backend: what captures; None takes CUDA graphs.
        warm_up: eager calls of each kind before its capture, at least 1.

    Raises:
        TypeError: not a gradient attack.
        ValueError: the attack cannot be captured; the message says why. Or `warm_up` is out of range.

    Example:
        >>> attack = GraphedPGD(PGD(eps=8 / 255, step_size=2 / 255, steps=10, bn="train"))
        >>> x_adv = attack(model, x, y)
    """

    def __init__(self, attack: GradientAttack, *, backend: GraphBackend | None = None, warm_up: int = 3) -> None:
        if not isinstance(attack, GradientAttack):
            raise TypeError(f"attack cannot be captured: it must be a GradientAttack, got {attack!r}")
        if attack.why_eager is not None:
            raise ValueError(f"attack cannot be captured: {attack.why_eager}, got {attack!r}")
        self.attack = attack
        self._warm_up = positive_int(warm_up, "warm_up")
        self._backend: GraphBackend = CudaGraphs() if backend is None else backend
        self._pairs: dict[tuple[int, int], _Pair] = {}
        self._turn = threading.Lock()
        self._warned = False
        self.replays = 0
        """How many calls were replays."""

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
        target = None if isinstance(y, Tensor) else y
        with self._turn:
            graphed = self._pair(model, target).graphed
            before = graphed.replays
            result = graphed(inputs, self._key(model))
            self.replays += graphed.replays - before
            # Nothing else may run in between: the next call overwrites it.
            with torch.inference_mode(False):
                return result.clone()

    def forget(self) -> None:
        """Drop all graphs and their memory; the next calls warm up and capture anew."""
        with self._turn:
            self._pairs.clear()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.attack!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"attack": self.attack, "warm_up": self._warm_up}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["attack"], warm_up=state["warm_up"])

    def _to_be_graphed(self, model: Any, x: Any, y: Any, seed: Any, options: dict[str, Any]) -> bool:
        """Whether a graph can do it; what is wrong in the arguments is for the attack to say."""
        given = [value for value in (x, y, seed, *options.values()) if isinstance(value, Tensor)]
        if not isinstance(x, Tensor) or not self._backend.usable(x.device) or not x.numel():
            return False
        if any(tensor.device != x.device for tensor in given):
            return False
        if any(not isinstance(value, Tensor) for value in options.values() if value is not None):
            return False
        target = None if isinstance(y, Tensor) else y
        if target is not None and not (callable(target) and self.attack.accepts_target_model):
            return False
        unseen = [each for each in (model, target) if each is not None and not _seen(each)]
        if unseen and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.attack!r} runs without a CUDA graph: {type(unseen[0]).__name__} is not a module, so that its "
                "modes and weights cannot be seen",
                GraphWarning,
                stacklevel=3,
            )
        return not unseen

    def _pair(self, model: Any, target: Any) -> _Pair:
        key = (id(model), id(target))
        pair = self._pairs.get(key)
        if pair is None:
            pairs = self._pairs

            def gone(_: Any) -> None:
                pairs.pop(key, None)

            pair = pairs[key] = _Pair(self, model, target, gone)
        return pair

    def _key(self, model: Any) -> Hashable:
        modes = network_modes(model) if self.attack.bn != "eval" and isinstance(model, nn.Module) else ()
        return modes, tuple((name, _hashable(value)) for name, value in vars(self.attack).items())


def as_graph(attack: Any) -> Any:
    """The attack as a `GraphedPGD` where that can be, else itself: for whoever calls it with one model many times."""
    capturable = isinstance(attack, GradientAttack) and attack.why_eager is None
    return GraphedPGD(attack) if capturable else attack


class _Pair:
    """The graphs of a model and, if there is one, a target model; neither is kept alive by them."""

    def __init__(self, owner: GraphedPGD, model: Any, target: Any, gone: Any) -> None:
        attack = owner.attack
        first = weakref.ref(model, gone)
        second = _Nothing() if target is None else weakref.ref(target, gone)

        def run(inputs: dict[str, Tensor]) -> Tensor:
            inputs.setdefault("y", cast("Tensor", second()))
            return attack(cast("nn.Module", first()), **inputs)

        self.graphed = GraphedFunction(
            run,
            name=repr(attack),
            backend=owner._backend,
            warm_up=owner._warm_up,
            fixed=lambda: [*_tensors_of(first()), *_tensors_of(second())],
        )


class _Nothing:
    def __call__(self) -> None:
        return None


def _seen(model: Any) -> bool:
    return isinstance(model, nn.Module) or is_fixed(model)


def _tensors_of(model: Any) -> list[Tensor]:
    if model is None:
        return []
    return network_tensors(model) if isinstance(model, nn.Module) else model.fixed_tensors()


def _hashable(value: Any) -> Hashable:
    """What tells two values of an attribute apart."""
    if isinstance(value, Tensor):
        return value.data_ptr(), value.shape, value.stride(), value.dtype, value.device
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value
