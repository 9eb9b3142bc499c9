"""Two processes that train together, kept from test to test: only their start is slow."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
from short_runs import short_digits
from torch import multiprocessing, nn

from ard_fast.train import main
from ard_fast.training import runs, trainer
from ard_fast.training.distributed import connect


def make_quick() -> None:
    """Cut this process's runs down to what is tested: few images to evaluate, no report."""
    runs.load_dataset = short_digits
    trainer.write_run_report = lambda *args, **settings: None


def plain_network() -> nn.Module:
    """A student without batch norm, for `--student process_pair:plain_network`."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def train(arguments: list[str], sigterm_at: dict[int, int] | None = None) -> tuple[int, str]:
    """Run the command; its exit code and what it printed.

    Args:
        arguments: of the command.
        sigterm_at: {rank: the number of steps after which that process sends itself SIGTERM}.
    """
    progress = trainer.Progress
    real, done = progress.step, 0
    last = (sigterm_at or {}).get(int(os.environ.get("RANK", "0")))

    def step(self: Any) -> None:
        nonlocal done
        done += 1
        if done == last:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self)

    progress.step = step
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = main(arguments)
    finally:
        progress.step = real
    return code, printed.getvalue()


def with_world(work: Callable[..., Any], *arguments: Any) -> Any:
    """`work(world, *arguments)`."""
    with connect() as world:
        return work(world, *arguments)


def _serve(rank: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    make_quick()
    while (job := pipe.recv()) is not None:
        work, arguments, port, environment = job
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", **environment)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        try:
            pipe.send((None, work(*arguments)))
        except BaseException:
            pipe.send((traceback.format_exc(), None))
        for name in environment:
            del os.environ[name]


class Pair:
    """Two processes that wait for work."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(2):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, there), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)

    def run(self, work: Callable[..., Any], *arguments: Any, **environment: str) -> list[Any]:
        """What `work(*arguments)` returns in each of them; both run it at the same time, as torchrun's children."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for pipe in self.pipes:
            pipe.send((work, arguments, port, environment))
        outcomes = []
        for pipe in self.pipes:
            if not pipe.poll(120):
                raise TimeoutError("a process does not answer")
            outcomes.append(pipe.recv())
        for error, _ in outcomes:
            if error is not None:
                raise AssertionError(error)
        return [value for _, value in outcomes]

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join(10)
            if process.is_alive():
                process.kill()
