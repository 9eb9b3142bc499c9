"""Which images of a training step a process takes."""

from __future__ import annotations

from typing import NamedTuple


class Share(NamedTuple):
    """One process's part of a micro-batch.

    Attributes:
        images: positions in the epoch's order; never empty.
        global_size: images of the whole step, over all processes and micro-batches.
        offset: of the first image inside the step.
        filler: whether the part was empty; `images` is then the step's first image, which must not count.
    """

    images: slice
    global_size: int
    offset: int
    filler: bool


def share(count: int, index: int, parts: int) -> tuple[int, int]:
    """Start and end of the contiguous part `index` of `count` things; sizes differ by at most one, larger first."""
    size, larger = divmod(count, parts)
    start = index * size + min(index, larger)
    return start, start + size + (index < larger)


def share_of_step(
    count: int,
    step: int,
    *,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    micro_batch: tuple[int, int] = (0, 1),
    steps: int | None = None,
) -> Share:
    """A process's part of a micro-batch of a step.

    A step's images are cut into micro-batches first and these among the processes, so that what a micro-batch holds
    (and with it synchronised batch statistics) does not depend on the number of processes.

    Args:
        count: images an epoch.
        step: from 0.
        batch_size: images a step, over all processes; the last step takes what is left.
        shard: (rank, processes).
        micro_batch: (index, micro-batches a step).
        steps: of the epoch; None for as many as hold at most `batch_size` images. One less makes the last one larger.
    """
    first = step * batch_size
    size = count - first if steps is not None and step == steps - 1 else min(batch_size, count - first)
    start, end = share(size, *micro_batch)
    lower, upper = share(end - start, *shard)
    if lower == upper:
        return Share(slice(first, first + 1), size, 0, filler=True)
    return Share(slice(first + start + lower, first + start + upper), size, start + lower, filler=False)
