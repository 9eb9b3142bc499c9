"""Ctrl-C and SIGTERM as a request that the training loop answers at a safe point."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """Training stopped on request; the message says where the checkpoint is and how to go on."""


class StopRequest:
    """A context in which the first SIGINT or SIGTERM sets `requested`; a second SIGINT interrupts at once.

    Outside the main thread, where Python allows no signal handlers, it does nothing. The former handlers come back at
    the end. `requested` may also be set by hand.
    """

    def __init__(self) -> None:
        self.requested = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
