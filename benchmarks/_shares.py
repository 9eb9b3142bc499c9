"""Which part of a call takes how much of it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


class Shares:
    """Seconds by part; what a part calls of another one counts for the other only.

    On CUDA the device is waited for at every border, so that the parts are what they are one after the other.

    Args:
        device: where the work is done.
        rest: the name of what belongs to no part.
    """

    def __init__(self, device: torch.device, rest: str) -> None:
        self.device, self.rest = device, rest
        self.seconds: dict[str, float] = defaultdict(float)

    def of(
        self, call: Callable[[], object], parts: Sequence[tuple[object, str, str]], calls: int = 1
    ) -> dict[str, float]:
        """Shares in percent of `calls` calls.

        Args:
            call: what is looked at.
            parts: (object, attribute, name): calls of the attribute belong to the name.
            calls: how many.
        """
        self.seconds.clear()
        self._current, self._since = self.rest, self._now()
        with ExitStack() as stack:
            for owner, attribute, name in parts:
                stack.enter_context(self._watched(owner, attribute, name))
            for _ in range(calls):
                call()
            self._switch(self.rest)
        total = sum(self.seconds.values())
        return {name: 100 * seconds / total for name, seconds in self.seconds.items()}

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _switch(self, name: str) -> str:
        """Charge the time up to now to the current part and go on with another; returns the former one."""
        now = self._now()
        self.seconds[self._current] += now - self._since
        former, self._current, self._since = self._current, name, now
        return former

    @contextmanager
    def _watched(self, owner: Any, attribute: str, name: str) -> Iterator[None]:
        inner, own = getattr(owner, attribute), attribute in vars(owner)

        def timed(*args: Any, **kwargs: Any) -> Any:
            former = self._switch(name)
            try:
                return inner(*args, **kwargs)
            finally:
                self._switch(former)

        setattr(owner, attribute, timed)
        try:
            yield
        finally:
            if own:
                setattr(owner, attribute, inner)
            else:
                delattr(owner, attribute)
