"""Values that are wrong, or odd, in the place of good ones."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Described = tuple[str, Any]
TensorChange = Callable[[Tensor, random.Random], Tensor]

_DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
)
_ODD = (math.nan, math.inf, -math.inf, -0.0, 3e38, -3e38, 1e-45, 1e-38)


def _with_some(t: Tensor, rng: random.Random) -> Tensor:
    """Odd values in some places; for integers the largest and negative ones."""
    t = t.detach().clone()
    if t.numel() and t.dtype != torch.bool:
        if t.is_floating_point():
            odd = rng.choice(_ODD)
        else:
            limits = torch.iinfo(t.dtype)
            odd = rng.choice((limits.min, limits.max, 77, limits.min // 2))
        t[torch.rand(t.shape) < 0.5] = odd
    return t


def _expanded(t: Tensor, rng: random.Random) -> Tensor:
    """The same shape, all entries of the first dimension one in memory."""
    return t.detach()[:1].expand(t.shape) if t.dim() else t


def _overlapping(t: Tensor, rng: random.Random) -> Tensor:
    """The same shape, its elements sharing memory."""
    return t.detach().flatten()[: max(t.numel(), 1)].as_strided(t.shape, [1] * t.dim()) if t.numel() else t


def _from_larger(t: Tensor, rng: random.Random) -> Tensor:
    """A view with gaps."""
    return torch.stack([t.detach(), t.detach()], -1)[..., 0]


def _shifted(t: Tensor, rng: random.Random) -> Tensor:
    """At an address that is not a multiple of 16 bytes."""
    flat = torch.cat([t.detach().flatten()[:1], t.detach().flatten()])
    return flat[1:].view(t.shape) if t.numel() else t


def _negative_view(t: Tensor, rng: random.Random) -> Tensor:
    return torch._neg_view(t.detach()) if t.is_floating_point() else t


CHANGES: dict[str, TensorChange] = {
    "another dtype": lambda t, rng: t.detach().to(rng.choice(_DTYPES)),
    "a dimension less": lambda t, rng: t.detach()[0] if t.dim() and t.shape[0] else t.new_zeros(()),
    "a dimension more": lambda t, rng: t.detach().unsqueeze(rng.randint(0, t.dim())),
    "one more in a dimension": lambda t, rng: t.new_zeros([n + (d == 0) for d, n in enumerate(t.shape)] or [2]),
    "one more in the last": lambda t, rng: t.new_zeros([*t.shape[:-1], t.shape[-1] + 1] if t.dim() else [3]),
    "transposed": lambda t, rng: t.detach().transpose(0, -1) if t.dim() else t,
    "permuted memory": lambda t, rng: t.detach().transpose(0, -1).contiguous().transpose(0, -1) if t.dim() else t,
    "empty": lambda t, rng: t.new_zeros([0, *t.shape[1:]]),
    "an empty dimension": lambda t, rng: t.new_zeros([*t.shape[:-1], 0] if t.dim() else [0]),
    "a scalar": lambda t, rng: t.new_zeros(()),
    "one element": lambda t, rng: t.new_zeros([1] * max(t.dim(), 1)),
    "many dimensions": lambda t, rng: t.new_zeros([1] * 20),
    "on meta": lambda t, rng: t.detach().to("meta"),
    "expanded": _expanded,
    "overlapping": _overlapping,
    "with gaps": _from_larger,
    "at an odd address": _shifted,
    "odd values": _with_some,
    "requiring grad": lambda t, rng: t.detach().clone().requires_grad_() if t.is_floating_point() else t,
    "sparse": lambda t, rng: t.detach().to_sparse() if t.dim() else t,
    "a parameter": lambda t, rng: nn.Parameter(t.detach().clone(), requires_grad=False),
    "a negative view": _negative_view,
    "an inference tensor": lambda t, rng: _inference(t),
}

# Before an operator of ours sees them torch tries to make ordinary ones of these, and says what it cannot.
KINDS_FOR_TORCH = ("sparse", "a negative view", "an inference tensor")

_NEVER = (
    None,
    "0.1",
    "",
    b"x",
    [],
    {},
    [1.0, "a"],
    (),
    object(),
    1j,
    print,
    float,
    ...,
    set(),
    np.float32(0.1),
    np.zeros((2, 3)),
)
_NUMBERS = (
    math.nan,
    math.inf,
    -math.inf,
    -1,
    -0.0,
    0,
    1,
    2,
    0.5,
    1e300,
    -1e300,
    1e-300,
    10**400,
    2**63,
    -(2**63) - 1,
    2**31,
    True,
    Fraction(1, 3),
    torch.tensor(0.1),
    torch.ones(2),
    torch.tensor([]),
    np.float64(0.1),
    1e39,
)
_NAMES = (
    "",
    "nope",
    "CE",
    "linf ",
    "mean\0",
    "x" * 5000,
    "auto",
    "none",
    "1/0",
    "8/255",
    "1,2",
    "-3",
    "nan",
    "inf",
    "true",
)
_PAIRS = (
    (1.0, 0.0),
    (0.0,),
    (0.0, 1.0, 2.0),
    (math.nan, 1.0),
    (0.0, math.nan),
    (0.5, 0.5),
    (-math.inf, math.inf),
    ("a", "b"),
    (0.0, 1e300),
    (0, 10**400),
    "01",
    "ab",
    5,
    {0.0: 1.0},
)


def _inference(t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t.clone()


def _bad_models(rng: random.Random) -> list[Described]:
    class Bad(nn.Module):
        def __init__(self, forward: Callable[[Tensor], Any]) -> None:
            super().__init__()
            self.answer = forward

        def forward(self, x: Tensor) -> Any:
            return self.answer(x)

    answers = {
        "a list": lambda x: [x],
        "no batch": lambda x: x.sum(),
        "images": lambda x: x,
        "one class": lambda x: x.flatten(1)[:, :1],
        "no class": lambda x: x.flatten(1)[:, :0],
        "detached": lambda x: x.detach().flatten(1),
        "float64": lambda x: x.flatten(1).double(),
        "whole numbers": lambda x: x.flatten(1).long(),
        "NaN": lambda x: x.flatten(1) * math.nan,
        "complex": lambda x: x.flatten(1) + 0j,
        "on meta": lambda x: x.flatten(1).to("meta"),
        "half a batch": lambda x: x.flatten(1)[:1],
        "nothing": lambda x: None,
    }
    return [(f"a model that returns {what}", Bad(answer)) for what, answer in answers.items()]


def bad_value(value: Any, rng: random.Random) -> Described:
    """Something else for `value`, in words and itself."""
    if isinstance(value, nn.Module):
        return rng.choice(
            [*_bad_models(rng), ("None", None), ("a text", "resnet"), ("a class", nn.Linear), ("a number", 3)]
        )
    if isinstance(value, Tensor) and rng.random() < 0.8:
        name = rng.choice(list(CHANGES))
        return name, CHANGES[name](value, rng)
    if isinstance(value, (list, tuple)) and value and rng.random() < 0.7:
        return _bad_sequence(value, rng)
    kinds: list[tuple[Any, ...]] = [_NEVER, _NUMBERS, _NAMES, _PAIRS]
    if value is None:
        kinds.append((torch.rand(3), torch.arange(3), torch.rand(2, 3)))
    if isinstance(value, (bool, int, float)):
        kinds += [_NUMBERS] * 4
    if isinstance(value, str):
        kinds += [_NAMES] * 3
    chosen = rng.choice(rng.choice(kinds))
    return in_words(chosen), chosen


def _bad_sequence(value: list | tuple, rng: random.Random) -> Described:
    items = list(value)
    how = rng.choice(("an item less", "an item more", "another item", "items swapped"))
    where = rng.randrange(len(items))
    if how == "an item less":
        del items[where]
    elif how == "an item more":
        items.insert(where, items[where])
    elif how == "another item":
        words, items[where] = bad_value(items[where], rng)
        how = f"item {where}: {words}"
    else:
        items.reverse()
    return how, type(value)(items)


def in_words(value: Any) -> str:
    """Short text of any value."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} {value.dtype}"
    text = repr(value)
    return text if len(text) < 40 else f"{text[:20]}... ({len(text)} characters)"
