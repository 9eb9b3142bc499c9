"""A teacher: a frozen network in eval mode, and its logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ard_fast.data import Batch
from ard_fast.models.trial import Form, InForm, frozen
from ard_fast.teachers.cache import LogitsCache
from ard_fast.teachers.form import LeanNetwork


class Teacher:
    """Soft labels of a trained network. See `build_teacher` for one that is made from settings.

    Args:
        network: put in eval mode and frozen here. Methods that differentiate through a teacher use `.attacked`.
        lean: the same network in its fastest form; None computes everything with `network`.
        cache: opens the table of logits at clean images, when the first are asked for; may return None.
        form: in which the network itself is run, where that is another than the run's; None: it is called as it is.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        lean: LeanNetwork | None = None,
        cache: Callable[[], LogitsCache | None] | None = None,
        form: Form | None = None,
    ) -> None:
        self.network = frozen(network)
        self._called = network if form is None else InForm(network, form).eval()
        self.lean = lean
        self.cache: LogitsCache | None = None
        self._opener = cache

    @property
    def attacked(self) -> Callable[[Tensor], Tensor]:
        """Logits of any images, differentiable in these, as far as there is a lean form in that."""
        folded = None if self.lean is None else self.lean.differentiable
        return self._called if folded is None else folded

    def __call__(self, x: Tensor) -> Tensor:
        """Logits, float32 `[B, num_classes]`, of any images; without a graph."""
        if self.lean is not None:
            return self.lean(x)
        with torch.no_grad():
            return self._called(x).float()

    def clean(self, batch: Batch) -> Tensor:
        """Logits, float32 `[B, num_classes]`, of the batch's own images: what it brings along (`Batch.taught`), or from
        the cache where that knows their views."""
        if self in batch.taught:
            return batch.taught[self]
        if batch.views is None:
            return self(batch.x)
        cache = self.open_cache()
        if cache is None:
            return self(batch.x)
        return cache.logits(batch.ids, batch.views, lambda positions: self(batch.x[positions]))

    def open_cache(self) -> LogitsCache | None:
        """The cache, opened by the first who asks; None without."""
        if self._opener is not None:
            self.cache, self._opener = self._opener(), None
        return self.cache

    def conventions(self) -> list[str]:
        """How it computes, and what the cache has done so far, in words."""
        lines = [] if self.lean is None else [self.lean.facts]
        return lines if self.cache is None else [*lines, self.cache.describe()]

    def report(self) -> dict[str, float]:
        """Figures since the last report; none without a cache in use."""
        return {} if self.cache is None else self.cache.report()
