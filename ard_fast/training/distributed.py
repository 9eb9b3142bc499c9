"""The processes of one run as torchrun starts them. A process alone is a world of one, and all of this is free."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
_abandoned: list[Any] = []
"""Process groups of runs that failed, kept. Dropping the last reference to one joins its threads and holds the GIL
meanwhile, which a thread that is just done with a gradient needs to let go of it: the process would hang for good."""
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class LostProcess(RuntimeError):
    """Another process of the run died, hangs or cannot be reached."""


@dataclass(eq=False)
class World:
    """The processes of a run. Every method that mentions them must be called by all, in the same order.

    Attributes:
        rank: of this process, from 0.
        local_rank: on its machine; the index of its GPU.
        size: number of processes.
        restarts: how often torchrun has started this run again after a failure.
        max_restarts: how often it may.
        idle: set while the process works on a filler batch, whose sums must not count.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    restarts: int = 0
    max_restarts: int = 0
    idle: bool = False
    _vote: tuple[Any, Tensor] | None = field(default=None, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0

    def __deepcopy__(self, memo: dict[int, Any]) -> World:
        return self  # copies of a network stay in the same world

    # ---- tensors ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def counting(self, counted: bool) -> Iterator[None]:
        """While inside, this process is idle unless its images count."""
        before, self.idle = self.idle, not counted
        try:
            yield
        finally:
            self.idle = before

    def all_reduce(self, value: Tensor) -> Tensor:
        """The sum over the processes, in place, without waiting for a GPU."""
        if self.size > 1:
            with _reporting_loss():
                dist.all_reduce(value)
        return value

    def sum_counted(self, value: Tensor) -> Tensor:
        """The same, where a process that is idle adds zero: for sums over a batch's images."""
        if self.size > 1 and self.idle:
            value = torch.zeros_like(value)
        return self.all_reduce(value)

    def all_min(self, value: Tensor) -> Tensor:
        """The least over the processes, in place, without waiting for a GPU."""
        if self.size > 1:
            with _reporting_loss():
                dist.all_reduce(value, op=dist.ReduceOp.MIN)
        return value

    def average_(self, tensors: Sequence[Tensor], weight: float | None = None) -> None:
        """Replace tensors of one dtype and device by their mean over the processes, in one message.

        Args:
            tensors: of the same shapes in every process.
            weight: of this process; the weights add up to 1. None weighs all alike.
        """
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).mul_(1 / self.size if weight is None else weight)
        self.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    # ---- decisions --------------------------------------------------------------------------------------------

    def barrier(self) -> None:
        """Wait for every process."""
        self._gather(None)

    def any_soon(self, *flags: bool) -> tuple[bool, ...]:
        """For each of up to 8 flags, whether any process has it up, the same answer for all.

        It is the answer to the call before, which has travelled meanwhile: nobody waits for the network. Whoever has
        acted on it is asked afresh. A process alone gets its own flags back at once.
        """
        if self.size == 1:
            return flags
        before, votes = self._vote, torch.zeros(8, dtype=torch.uint8)
        votes[: len(flags)] = torch.tensor(flags)
        with _reporting_loss():
            if before is not None:
                before[0].wait()
            self._vote = dist.all_reduce(votes, op=dist.ReduceOp.MAX, async_op=True), votes
        return (False,) * len(flags) if before is None else tuple(map(bool, before[1][: len(flags)].tolist()))

    def from_main(self, work: Callable[[], T]) -> T:
        """What `work` returns on the main process, on all of them; or what it raises."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except Exception as error:  # raised below, on all processes
                outcome[1] = error
        with _reporting_loss():
            dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def in_turns(self, work: Callable[[], T]) -> T:
        """Each process's own `work`: the main process first, then one on each other machine, then the rest.

        For what the first to come puts into a cache. If one fails, all do, with its error.
        """
        turn = 0 if self.is_main else 1 if self.local_rank == 0 else 2
        result: Any = None
        for current in range(3 if self.size > 1 else 1):
            result = self._together(work) if turn == current else self._together(lambda done=result: done)
        return result

    def _together(self, work: Callable[[], T]) -> T:
        if self.size == 1:
            return work()
        result: Any = None
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:  # raised below, on all processes
            failure = error
        for rank, error in enumerate(self._gather(failure)):
            if error is not None:
                if rank:
                    error.args = (f"process {rank}: {error}",)
                raise error
        return result

    def _gather(self, value: Any) -> list[Any]:
        if self.size == 1:
            return [value]
        values = [None] * self.size
        with _reporting_loss():
            dist.all_gather_object(values, value)
        return values

    # ---- networks and devices ---------------------------------------------------------------------------------

    def device_name(self, name: str) -> str:
        """The device of this process when the run was asked to use `name`.

        Raises:
            ValueError: one GPU for several processes, or fewer GPUs than processes.
        """
        if self.size == 1 or name == "cpu":
            return name
        if name != "cuda":
            raise ValueError(f"device: expected cpu or cuda with {self.size} processes, one GPU each; got {name!r}")
        if self.local_rank >= torch.cuda.device_count() > 0:
            raise ValueError(
                f"device: process {self.local_rank} of this machine needs a GPU of its own; torch sees "
                f"{torch.cuda.device_count()}; lower --nproc-per-node"
            )
        return f"cuda:{self.local_rank}"

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network as `DistributedDataParallel`, which averages gradients over the processes; alone, itself.

        Buffers are left to the caller. The first process's weights are copied to all.
        """
        if self.size == 1:
            return network
        wrapper = nn.parallel.DistributedDataParallel
        known = inspect.signature(wrapper).parameters
        no_broadcasts = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # torch 2.11
        device_ids = [device.index] if device.type == "cuda" else None
        no_broadcast: dict[str, Any] = {no_broadcasts: False}
        return wrapper(network, device_ids=device_ids, **no_broadcast)

    @contextlib.contextmanager
    def one_voice(self) -> Iterator[None]:
        """While inside, only the main process prints."""
        with contextlib.ExitStack() as stack:
            if not self.is_main:
                silent = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(silent))
                stack.enter_context(contextlib.redirect_stderr(silent))
            yield


@contextlib.contextmanager
def connect(timeout: timedelta = TIMEOUT) -> Iterator[World]:
    """Join the other processes that torchrun has started, and leave them at the end; without torchrun, be alone.

    Tensors on GPUs travel by NCCL, those on the CPU by Gloo.

    Args:
        timeout: how long a process waits for the others before it gives up.

    Raises:
        LostProcess: the others cannot be reached.
    """
    if any(name not in os.environ for name in _VARIABLES) or os.environ["WORLD_SIZE"] == "1":
        yield World(restarts=_count("RESTART_COUNT"), max_restarts=_count("MAX_RESTARTS"))
        return
    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    local_rank = int(os.environ["LOCAL_RANK"])
    if nccl and local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    with _reporting_loss():
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
        # torchrun may keep one store through its restarts, which still holds the addresses of the attempt before.
        store = dist.PrefixStore(f"ard_fast/attempt{_count('RESTART_COUNT')}of{size}", store)
        backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    try:
        yield World(dist.get_rank(), local_rank, dist.get_world_size(), _count("RESTART_COUNT"), _count("MAX_RESTARTS"))
    except BaseException:
        _abandoned.append(dist.group.WORLD)
        raise
    finally:
        dist.destroy_process_group()


def lost_process(error: BaseException) -> LostProcess | None:
    """`error` as the loss of another process, if that is what it says."""
    if isinstance(error, LostProcess):
        return error
    text = str(error)
    if not isinstance(error, dist.DistError) and not any(sign in text for sign in ("gloo", "Gloo", "NCCL")):
        return None
    rank, address = (os.environ.get(name, "?") for name in ("RANK", "MASTER_ADDR"))
    return LostProcess(
        f"process {rank} lost the others (met at {address}): one failed, see its own message, or did not answer "
        f"in time ({text.splitlines()[0]})"
    )


@contextlib.contextmanager
def _reporting_loss() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        lost = lost_process(error)
        if lost is None:
            raise
        raise lost from error


def _count(name: str) -> int:
    return int(os.environ.get(f"TORCHELASTIC_{name}", "0"))
