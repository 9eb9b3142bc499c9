"""Strategies for tensors: shapes, values with edge cases among them, and any layout in memory.

A tensor is drawn as a few numbers and a seed. So an example is cheap, and one that fails shrinks to a small shape, a
plain layout and no edge values.
"""

import math
from dataclasses import dataclass

import hypothesis_profiles  # noqa: F401
import torch
from hypothesis import strategies as st

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# NaN, infinities, zeros, subnormals of float32 and float16, a rounding step, the largest of each dtype.
EDGES = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, -1e-40, 6e-8, 1.1754944e-38, 1.0, -1.0, 1 + 2**-23, 65504.0,
         3.4028235e38, -3.4028235e38)  # fmt: skip
UNIT = 2.0**-24  # of float32, half the distance from 1 to the next number

seeds = st.integers(0, 2**31)
floats = st.sampled_from(FLOATS)
# Of the elements, how many are edge values; mostly none, so that other tests are not all of NaN.
shares = st.sampled_from((0.0, 0.0, 0.02, 0.3))
# Radii and steps: none, the least there is, what people use, more than the range of the pixels.
sizes = st.one_of(st.sampled_from((0.0, 1e-45, 1e-7, 2 / 255, 8 / 255, 0.5, 1.0, 300.0)), st.floats(0.0, 2.0))
bounds = st.sampled_from(((0.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.25, 0.5), (-math.inf, math.inf)))


@st.composite
def shapes(draw, *, least=1, most=5, batch=None):
    """Shapes of `least` to `most` dimensions, empty ones among them, at most 6,000 elements or so."""
    dims = draw(st.integers(least, most))
    lead = draw(st.integers(0, 5) if batch is None else batch)
    rest = [draw(st.sampled_from((1, 2, 3, 4, 5, 7, 8, 0))) for _ in range(dims - 1)]
    if dims == 2 and draw(st.booleans()):  # rows beyond one vector, one block, one thread's share
        rest = [draw(st.sampled_from((15, 16, 17, 33, 127, 1024, 1030)))]
    return (lead, *rest)


@dataclass(frozen=True)
class Layout:
    """Where a tensor's elements lie.

    Attributes:
        kind: "plain"; "permuted", dense in another order of the dimensions; "sliced", with gaps; "reversed", permuted
            with gaps.
        order: seed of the order.
        offset: elements between the start of the memory and the tensor, so that no address is aligned.
        keep_batch: leave the first dimension outermost.
    """

    kind: str
    order: int
    offset: int
    keep_batch: bool

    def place(self, values):
        """The same values in other memory, in this layout."""
        dims = values.dim()
        order = torch.arange(dims)
        if self.kind in ("permuted", "reversed"):
            order = torch.randperm(dims, generator=torch.Generator().manual_seed(self.order))
            if self.keep_batch and dims:
                order = torch.cat((order[order == 0], order[order != 0]))
        order = order.tolist()
        shape = [values.shape[d] for d in order]
        gaps = self.kind in ("sliced", "reversed") and dims > 0
        room = [*shape[:-1], 2 * shape[-1]] if gaps else shape
        count = math.prod(room)
        memory = torch.zeros(self.offset + count + 8, dtype=values.dtype, device=values.device)
        view = memory[self.offset : self.offset + count].view(room)
        if gaps:
            view = view[..., ::2]
        back = sorted(range(dims), key=order.__getitem__)
        return view.permute(back).copy_(values)


def layouts(*, dense=False, keep_batch=False):
    """Layouts, without gaps if `dense`."""
    kinds = ("plain", "permuted") if dense else ("plain", "permuted", "sliced", "reversed")
    return st.builds(Layout, st.sampled_from(kinds), seeds, st.sampled_from((0, 0, 1, 3)), st.just(keep_batch))


def untouched_around(tensor):
    """Whether the memory that `Layout.place` gave it still holds zeros everywhere else."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    memory = tensor.as_strided((count,), (1,), 0).clone()
    memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).zero_()
    return bool((memory == 0).all())


def with_edges(values, share, edges, generator):
    """Some of the values replaced by edge values."""
    picked = torch.tensor(edges, dtype=values.dtype)[torch.randint(len(edges), values.shape, generator=generator)]
    return torch.where(torch.rand(values.shape, generator=generator) < share, picked, values)


def same(actual, expected):
    """Equal as numbers, NaN equal to NaN, and of one shape and dtype."""
    return (
        actual.shape == expected.shape
        and actual.dtype == expected.dtype
        and bool(((actual == expected) | (actual.isnan() & expected.isnan())).all())
    )


def over(values, x):
    """Values `[B]` shaped to broadcast over x."""
    return values.reshape(-1, *(1,) * (x.dim() - 1))


def permutation(count, seed):
    """An order of that many."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
