"""A teacher: a frozen network in eval mode, and its logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ard_fast._names import unknown
from ard_fast.data.batches import Batch
from ard_fast.models.trial import Form, InForm, frozen
from ard_fast.teachers.cache import CACHE_AUTO, CACHE_OFF, DTYPES, LogitsCache, Views, open_cache
from ard_fast.teachers.inference import InferenceNetwork

_SAMPLE = 16  # images on which the inference network is compared with the plain one


class Teacher:
    """Soft labels of a trained network. See `build_teacher` for one that is made from settings.

    Args:
        network: put in eval mode and frozen here. Methods that differentiate through a teacher use `.attacked`.
        inference: the same network in its fastest form; None computes everything with `network`.
        cache: opens the table of logits at clean images, when the first are asked for; may return None.
        form: in which the network itself is run, where that is another than the run's; None: it is called as it is.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        inference: InferenceNetwork | None = None,
        cache: Callable[[], LogitsCache | None] | None = None,
        form: Form | None = None,
    ) -> None:
        self.network = frozen(network)
        self._called = network if form is None else InForm(network, form).eval()
        self.inference = inference
        self.cache: LogitsCache | None = None
        self._opener = cache

    @property
    def attacked(self) -> Callable[[Tensor], Tensor]:
        """Logits of any images, differentiable in these; folded where the network can be."""
        folded = None if self.inference is None else self.inference.differentiable
        return self._called if folded is None else folded

    def __call__(self, x: Tensor) -> Tensor:
        """Logits, float32 `[B, num_classes]`, of any images; without a graph."""
        if self.inference is not None:
            return self.inference(x)
        with torch.no_grad():
            return self._called(x).float()

    def clean(self, batch: Batch) -> Tensor:
        """Logits, float32 `[B, num_classes]`, of the batch's own images: those that it brings along
        (`Batch.teacher_logits`), or from the cache where that knows their views."""
        if self in batch.teacher_logits:
            return batch.teacher_logits[self]
        cache = None if batch.views is None else self.open_cache()
        return self(batch.x) if cache is None else cache.logits(batch)

    def open_cache(self) -> LogitsCache | None:
        """The cache, opened by the first caller; None without."""
        if self._opener is not None:
            self.cache, self._opener = self._opener(), None
        return self.cache

    def conventions(self) -> list[str]:
        """How it computes, and what the cache has done so far, in words."""
        lines = [] if self.inference is None else [self.inference.facts]
        return lines if self.cache is None else [*lines, self.cache.describe()]

    def report(self) -> dict[str, float]:
        """Figures since the last report; none without a cache in use."""
        return {} if self.cache is None else self.cache.report()


def build_teacher(
    network: nn.Module,
    views: Views,
    *,
    precision: str = "fp32",
    cache: str | Path = CACHE_AUTO,
    cache_dtype: str = "fp32",
    layout: torch.memory_format = torch.channels_last,
    form: Form | None = None,
) -> Teacher:
    """The teacher of a run: as an inference network, with a cache of its logits at clean images.

    Args:
        network: on the device of the run.
        views: what its clean images are.
        precision: of the inference network, "fp32" or "bf16".
        cache: "off"; "auto" (in memory, and where the table is not small, also in a file in the user's cache folder for
            later runs); or a folder for that file. A table of more than half of the machine's memory is not used.
        cache_dtype: "fp32" keeps logits as computed, so that the cache changes nothing; "fp16" rounds them, which
            halves the table (CIFAR-10: 162 MB instead of 324 MB).
        layout: of the inference network.
        form: that of the network itself, as in `Teacher`.

    Raises:
        ValueError: an unknown precision or dtype.
    """
    if cache_dtype not in DTYPES:
        raise ValueError(unknown("teacher_cache_dtype", cache_dtype, DTYPES))
    network = frozen(network)
    device = next(iter(network.state_dict().values()), views.split.images).device
    sample = views.split.images[:_SAMPLE].to(device, torch.float32) / views.levels
    inference = InferenceNetwork(network, sample, precision, layout)
    if str(cache) == CACHE_OFF or not inference.by_image:
        return Teacher(network, inference=inference, form=form)
    opener = partial(
        open_cache, network, inference, views, cache=cache, dtype=DTYPES[cache_dtype], device=device, layout=layout
    )
    return Teacher(network, inference=inference, cache=opener, form=form)
