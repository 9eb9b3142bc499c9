"""Work done ahead in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_POLL_S = 0.1


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Prefetcher(Generic[T]):
    """Runs an iterator in a thread, at most `depth` finished items ahead of the consumer.

    A context manager, which ends the thread. An exception of the iterator is raised at the consumer, after the items
    before it. A consumer that never closes does not keep the interpreter alive: the thread also ends when the main
    thread does.

    Item k is asked for only after the consumer has asked for item k - depth - 1: of `depth + 2` buffers used in turn,
    none is written to while the consumer is still at the item in it.

    Args:
        items: run in the thread; what it holds is released there.
        depth: at least 1.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._ready: queue.Queue[T | _End] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), name="ard_fast prefetch")
        self._thread.start()

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[T]:
        while True:
            item = self._ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

    def close(self) -> None:
        """End the thread, once it is through with the item it is at."""
        self._stop.set()
        self._thread.join()

    def _run(self, items: Iterator[T]) -> None:
        error = None
        try:
            for item in items:
                if not self._put(item):
                    return
        except BaseException as raised:
            error = raised
        self._put(_End(error))

    def _put(self, item: T | _End) -> bool:
        """False when nobody will ask for it any more."""
        while not self._stop.is_set() and threading.main_thread().is_alive():
            try:
                self._ready.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False
