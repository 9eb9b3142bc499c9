"""The model's mode during an attack, put back afterwards whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BN_POLICIES = ("eval", "train", "train_frozen")


@contextmanager
def attack_mode(model: Callable[[Tensor], Tensor], bn: str) -> Iterator[None]:
    """Put `model` in the mode of the policy, and every module's mode back on leaving.

    Args:
        model: a module; any other callable is left alone.
        bn: "eval": all modules in eval mode, running statistics used and unchanged. "train": the model in train mode,
            batch statistics used, running statistics updated by every forward pass (what the published ARD code does).
            "train_frozen": the same without the update. Under the last two a model that is in train mode already is
            left as it is, so that modules its owner keeps in eval mode stay so.

    Raises:
        ValueError: no such policy.
    """
    if not isinstance(bn, str) or bn not in BN_POLICIES:
        raise ValueError(f"bn must be one of {', '.join(map(repr, BN_POLICIES))}, got {bn!r}")
    if not isinstance(model, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    tracking: list[_BatchNorm] = []
    try:
        if bn == "eval":
            if any(training for _, training in modes):
                model.eval()
        elif not model.training:
            model.train()
        if bn == "train_frozen":
            for module, _ in modes:
                if isinstance(module, _BatchNorm) and module.training and module.track_running_stats:
                    tracking.append(module)
                    module.track_running_stats = False
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
        for module, training in modes:
            module.training = training
