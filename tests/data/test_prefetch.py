"""Work ahead in a thread: order, bounds, exceptions, and no thread left behind."""

import subprocess
import sys
import threading
import time

import pytest

from ard_fast.data import prefetch
from ard_fast.data.prefetch import Prefetcher


def threads():
    return [t for t in threading.enumerate() if t.name == "ard_fast prefetch"]


def wait_until(condition, seconds=60.0):
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.01)
    assert condition()


def test_items_come_in_order_and_the_thread_ends():
    with Prefetcher(iter(range(50)), 3) as ready:
        assert list(ready) == list(range(50))
    assert not threads()


def test_nothing_at_all():
    with Prefetcher(iter(()), 2) as ready:
        assert list(ready) == []


@pytest.mark.parametrize("depth", [1, 3])
def test_it_runs_so_far_ahead_and_no_further(depth):
    asked = []

    def items():
        for k in range(20):
            asked.append(k)
            yield k

    with Prefetcher(items(), depth) as ready:
        wait_until(lambda: len(asked) == depth + 1)  # one in hand, for which there is no room
        time.sleep(0.05)
        assert len(asked) == depth + 1
        for k in ready:
            # Item k is in use; so item k + depth + 2, which would take its buffer, must not have been begun.
            time.sleep(0.01)
            assert max(asked) <= k + depth + 1
    assert asked == list(range(20))


def test_an_exception_reaches_the_consumer_after_the_items_before_it():
    def items():
        yield 1
        raise OSError("the disk is gone")

    seen = []
    with Prefetcher(items(), 4) as ready:
        time.sleep(0.05)
        with pytest.raises(OSError, match="the disk is gone"):
            for item in ready:
                seen.append(item)
    assert seen == [1] and not threads()


def test_leaving_early_ends_the_thread_and_the_iterator():
    ended = threading.Event()

    def items():
        try:
            while True:
                yield 0
        finally:
            ended.set()

    with pytest.raises(KeyError), Prefetcher(items(), 2) as ready:
        next(iter(ready))
        raise KeyError
    assert not threads()
    assert ended.wait(5)


SCRIPTS = {
    "left without a word": "iterator = iter(Prefetcher(iter(int, 1), 2)); next(iterator)",
    "an exception": "iterator = iter(Prefetcher(iter(int, 1), 2)); next(iterator); raise SystemExit(3)",
    "sys.exit in the loop": "\nwith Prefetcher(iter(int, 1), 2) as ready:\n    for _ in ready: raise SystemExit(3)",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_interpreter_ends(script):
    """An endless iterator in the thread does not keep the process alive."""
    # By its path: importing the package would take seconds, and the module needs nothing of it.
    code = f"from runpy import run_path\nPrefetcher = run_path({prefetch.__file__!r})['Prefetcher']\n{SCRIPTS[script]}"
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert done.returncode == (0 if script == "left without a word" else 3), done.stderr
    assert done.stderr == ""
