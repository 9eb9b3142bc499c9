"""State dicts as published, put under a network's own names, and a network with the normalisation of its input inside.

Published files wrap the same network in many ways: `module.` (DataParallel), `model.`, `1.` or `network.` (behind a
normaliser), `_orig_mod.` (torch.compile), and any of them inside another; and they carry weights that no forward uses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Registered by a published network, used by none of its forwards: the spare stage of the TRADES WideResNet and the
# hooks' copies of the first layer in some PreActResNet-18 files; the counter of a weight average.
_UNUSED = ("sub_block1.", "model_preact_hl1.", "n_averaged")
_MEAN_NAMES, _STD_NAMES = ("mean", "mu"), ("std", "sigma")
# What a file may leave out: torch < 0.4.1 had no such counter, and not every file carries the normalisation.
_OPTIONAL = ("num_batches_tracked", "mean", "std")


# Names of other weights than those that were trained: averages of them, teachers.
COPIES = re.compile(r"ema|swa|averag|avg|teacher|shadow")


class Matched(NamedTuple):
    """Weights under a network's own names.

    Attributes:
        weights: what `load_state_dict` takes; what the file left out of the optional ones is the network's own.
        normaliser: (mean, std) that the file carries beside the network's weights, `[C]` each, or None.
        name: the wrapper below which the weights were found, such as "module.model".
        others: wrappers below which the network's keys are all there, too: those of averages and teachers.
    """

    weights: dict[str, Tensor]
    normaliser: tuple[Tensor, Tensor] | None
    name: str = ""
    others: tuple[str, ...] = ()


def match_published(weights: Mapping[str, Tensor], network: nn.Module, name: str | None = None) -> Matched:
    """Strip wrappers, drop unused weights, and set apart a normaliser that the network itself does not have.

    Nothing is checked: what does not fit is left for `load_state_dict` to refuse.

    Args:
        weights: a state dict as read from a file.
        network: what they are for.
        name: the wrapper to take, whole or one of its parts, of several below which the network's keys are all there.
    """
    own = network.state_dict()
    prefix, others = _wrapper(weights, own, name)
    weights = {key: value for key, value in weights.items() if not _is_of(key, others, prefix, own)}
    inside = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    outside = {key: value for key, value in weights.items() if not key.startswith(prefix)}
    inside = {key: value for key, value in inside.items() if key in own or not key.startswith(_UNUSED)}
    # beside the network's keys, or among them where nothing wraps it (`mu` and `sigma` in RobustBench)
    beside = {**outside, **{key: value for key, value in inside.items() if key not in own}}
    beside = {
        key: value
        for key, value in beside.items()
        if not (_last(key, prefix).startswith(_UNUSED) or key.endswith(".n_averaged"))
    }
    mean = [key for key in beside if key.rpartition(".")[2] in _MEAN_NAMES]
    std = [key for key in beside if key.rpartition(".")[2] in _STD_NAMES]
    normaliser = None
    if len(mean) == len(std) == 1:
        normaliser = beside.pop(mean[0]).flatten(), beside.pop(std[0]).flatten()
    matched = {key: value for key, value in inside.items() if key in own}
    for key, value in own.items():
        if key not in matched and key.rpartition(".")[2] in _OPTIONAL:
            matched[key] = value
    return Matched(
        {**matched, **beside}, normaliser, prefix.removesuffix("."), tuple(o.removesuffix(".") for o in others)
    )


def _last(key: str, prefix: str) -> str:
    """The key without wrappers, for one that is not below `prefix` but may be below a part of it."""
    for part in prefix.split("."):
        key = key.removeprefix(part + ".") if part else key
    return key


def _wrapper(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str | None) -> tuple[str, list[str]]:
    """The prefix below which the file has the most of the network's keys, the shortest of equals, copies last; and the
    other ones that have all of them."""
    needed = [key for key in own if key.rpartition(".")[2] not in _OPTIONAL]
    prefixes = {""}
    for probe in needed[:1] + needed[-1:]:  # a prefix that fits all fits these
        prefixes |= {key[: -len(probe)] for key in weights if key.endswith("." + probe)}
    ranked = sorted(prefixes, key=lambda prefix: (COPIES.search(prefix.lower()) is not None, len(prefix), prefix))
    counts = {prefix: sum(prefix + key in weights for key in needed) for prefix in ranked}
    whole = [prefix for prefix in ranked if needed and counts[prefix] == len(needed)]
    if name is not None:
        named = [prefix for prefix in whole if name in (prefix.removesuffix("."), *prefix.split("."))]
        if named:
            return named[0], [prefix for prefix in whole if prefix != named[0]]
    chosen = max(ranked, key=lambda prefix: counts[prefix])
    others = [prefix for prefix in whole if prefix != chosen]
    # Parts of another network may look alike, too; then what is left over is for `load_state_dict` to refuse.
    return chosen, others if all(COPIES.search(prefix.lower()) for prefix in others) else []


def _is_of(key: str, others: list[str], prefix: str, own: Mapping[str, Tensor]) -> bool:
    """Whether a key belongs to one of the other sets of weights, not to the one below `prefix`."""
    for other in others:
        if key.startswith(other) and (key.removeprefix(other) in own or not prefix.startswith(other)):
            return not (key.startswith(prefix) and key.removeprefix(prefix) in own)
    return False


class Normalised(nn.Module):
    """`network((x - mean) / std)` for pixels x in [0, 1], so that eps stays in these.

    Its state dict holds `mean`, `std` and the network's keys behind `network.`; `ard_fast.training.checkpoint` reads it
    back into this wrapper, and reads the network's bare keys into `network`.

    Args:
        network: what takes normalised images `[B, C, H, W]`.
        mean: in pixels of [0, 1], one number for each channel or one for all.
        std: likewise, above 0.

    Raises:
        ValueError: not finite, not above 0, or different counts.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float] | float, std: Sequence[float] | float) -> None:
        super().__init__()
        means, stds = _numbers(mean, "mean"), _numbers(std, "std")
        if len(means) != len(stds):
            raise ValueError(f"std: expected as many numbers as mean has ({len(means)}), got {len(stds)}")
        if min(stds) <= 0.0:
            raise ValueError(f"std: expected numbers above 0, got {stds}")
        self.network = network
        self.register_buffer("mean", torch.tensor(means, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(stds, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pixels in [0, 1]."""
        return self.network((x - self.mean) / self.std)

    def extra_repr(self) -> str:
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


def _numbers(values: Sequence[float] | float, name: str) -> list[float]:
    try:
        numbers = [float(value) for value in (values if isinstance(values, Sequence) else [values])]
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected a number for each channel, got {values!r}") from None
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{name}: expected a finite number for each channel, got {values!r}")
    return numbers
