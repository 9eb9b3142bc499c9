"""One wrong call: made from a valid one, tried, judged."""

from __future__ import annotations

import random
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from abuse.bad_values import KINDS_FOR_TORCH, bad_value
from abuse.target import Arguments, Target

# What torch says of a call before any operator of ours is reached; it names the operator.
_TORCHS_OWN = ("Could not run 'ard_fast::", "argument(s) but received", "There were no tensor arguments to this")
_FOREIGN = ("torch/nn/modules", "site-packages/foolbox", "site-packages/torchattacks")

_OFTEN = 10  # a count that takes no time


@dataclass(frozen=True)
class BadCall:
    """Arguments and what is wrong with them.

    Attributes:
        arguments: by name.
        changed: the names of those that are wrong.
        words: what was done.
        torchs: torch itself refuses this kind of tensor, in its own words.
    """

    arguments: Arguments
    changed: tuple[str, ...]
    words: str
    torchs: bool = False


def make(target: Target, rng: random.Random) -> BadCall:
    """A valid call with one or two things wrong."""
    arguments = target.arguments(rng)
    names = list(arguments)
    how = rng.random()
    if how < 0.03:
        name = rng.choice(names)
        del arguments[name]
        return BadCall(arguments, (name,), f"{name} missing")
    if how < 0.06:
        return BadCall({**arguments, "no_such_argument": 1}, ("no_such_argument",), "an unknown argument")
    if how < 0.16:
        one, other = rng.choice(names), rng.choice(names)
        what = "in the place of"
        arguments[one] = arguments[other]  # with tensors, two arguments that share memory
        if isinstance(arguments[other], Tensor) and rng.random() < 0.4 and arguments[other].is_contiguous():
            arguments[one], what = _moved(arguments[other]), "moved, in the place of"
        return BadCall(arguments, (one, other), f"{other} {what} {one}")
    changed = rng.sample(names, 2 if rng.random() < 0.2 and len(names) > 1 else 1)
    words, torchs = [], False
    for name in changed:
        text, arguments[name] = _bad_value(target, name, arguments[name], rng)
        words.append(f"{name}: {text}")
        torchs = torchs or text in KINDS_FOR_TORCH
    return BadCall(arguments, tuple(changed), "; ".join(words), torchs)


def _bad_value(target: Target, name: str, value: Any, rng: random.Random) -> tuple[str, Any]:
    while True:
        text, found = bad_value(value, rng)
        if name not in target.counts or not isinstance(found, int) or found < _OFTEN:
            return text, found


def _moved(t: Tensor) -> Tensor:
    """A view of the same memory one element on, as far as there is room."""
    flat = t.detach().reshape(-1)
    if flat.numel() < 2:
        return t
    rest = flat[1:]
    shape = [*t.shape[:-1], t.shape[-1]] if t.dim() else [1]
    return rest[: t.numel() - 1].as_strided(shape, t.stride()) if _fits(rest, t) else rest


def _fits(flat: Tensor, t: Tensor) -> bool:
    return flat.storage_offset() + t.numel() <= flat.untyped_storage().nbytes() // flat.element_size()


def attempt(target: Target, call: BadCall) -> tuple[str, str | None]:
    """Make the call.

    Returns:
        "refused" or "accepted", and what is wrong with the answer or None.
    """
    before = {name: _content(value) for name, value in call.arguments.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.call(**call.arguments)
    except Exception as error:
        return "refused", _unclear(target, call, error) or (None if call.torchs else _written(call, before))
    return "accepted", None


def _unclear(target: Target, call: BadCall, error: Exception) -> str | None:
    if call.torchs or _raised_by_the_callers_own(error):
        return None
    text = str(error)
    shown = f"{type(error).__name__}: {text[:200]}"
    if not isinstance(error, target.refuses):
        return f"not an allowed type: {shown}"
    if "INTERNAL ASSERT" in text:
        return f"an internal error: {shown}"
    names = {alias for name in call.changed for alias in (name, *target.aliases.get(name, ()))}
    if not any(_names(text, name) for name in names) and not any(own in text for own in _TORCHS_OWN):
        return f"does not name {' or '.join(sorted(names))}: {shown}"
    return None


def _raised_by_the_callers_own(error: Exception) -> bool:
    """Whether it came out of the network, the loss, or the attack of another package, that the call handed over."""
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    frames = [code.co_filename for code in codes]
    if any(code.co_name == "<lambda>" and "abuse" in code.co_filename for code in codes):
        return True
    return any(part in name for name in frames for part in _FOREIGN)


def _names(text: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}" + (r"\b" if len(name) < 3 else ""), text) is not None


def _content(value: Any) -> Tensor | None:
    """The bytes of a dense CPU tensor, to see whether they change."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu" or value.is_neg():
        return None
    return value.detach().clone()


def _written(call: BadCall, before: dict[str, Tensor | None]) -> str | None:
    """What a refused call has written to nevertheless."""
    for name, old in before.items():
        if old is None:
            continue
        same = torch.equal(old.nan_to_num(7.0), call.arguments[name].detach().nan_to_num(7.0))
        if not same:
            return f"was refused, but {name} has been written to"
    return None


@dataclass
class Tally:
    """How one function answered.

    Attributes:
        counts: calls "refused" and "accepted".
        unclear: for each answer that will not do the number of the call, what was wrong in it and in the answer.
    """

    counts: Counter
    unclear: list[tuple[int, str, str]]


def one_call(target: Target, seed: int, number: int) -> BadCall:
    """Call `number` of a function: the same for the same seed."""
    torch.manual_seed(number)
    return make(target, random.Random(f"{seed} {target.name} {number}"))


def try_calls(target: Target, numbers: Iterable[int], seed: int) -> Tally:
    """Make the calls of these numbers."""
    tally = Tally(Counter(), [])
    for number in numbers:
        call = one_call(target, seed, number)
        outcome, complaint = attempt(target, call)
        tally.counts[outcome] += 1
        if complaint is not None:
            tally.unclear.append((number, call.words, complaint))
    return tally
