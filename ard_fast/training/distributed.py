"""The processes of one run, as torchrun starts them."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(eq=False)
class World:
    """The processes of a run. All of them must call its methods, in the same order; with one process nothing is sent.

    Attributes:
        rank: of this process, from 0.
        local_rank: on its machine; the index of its GPU.
        size: number of processes.
        restarts: how often torchrun has started this run again after a failure.
        max_restarts: how often it may.
        padding: set while the process works on a batch of padding, which adds nothing to sums over images.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    restarts: int = 0
    max_restarts: int = 0
    padding: bool = False
    _vote: tuple[Any, Tensor] | None = field(default=None, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0

    # ---- tensors ----------------------------------------------------------------------------------------------

    def all_reduce(self, value: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
        """The sum over the processes, in place, without waiting for a GPU."""
        if self.size > 1:
            dist.all_reduce(value, op=op)
        return value

    def all_min(self, value: Tensor) -> Tensor:
        """The least over the processes, likewise."""
        return self.all_reduce(value, dist.ReduceOp.MIN)

    def sum_over_images(self, value: Tensor) -> Tensor:
        """The sum over the processes of sums over each one's images: padding counts as zero."""
        return self.all_reduce(torch.zeros_like(value) if self.padding else value)

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

    def any_soon(self, *flags: bool) -> tuple[bool, ...]:
        """For each of up to 8 flags whether any process has set it; the same answer in all processes.

        With several processes it is the answer to the call before, which was sent meanwhile, so that no process waits
        for the network.
        """
        if self.size == 1:
            return flags
        before, votes = self._vote, torch.zeros(8, dtype=torch.uint8)
        votes[: len(flags)] = torch.tensor(flags)
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
        dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def main_first(self, work: Callable[[], T]) -> T:
        """Each process's own `work`, after the main process's, which leaves downloads to the others.

        If it fails in one process, all raise its error.
        """
        if self.size == 1:
            return work()
        result: Any = None
        for turn in (True, False):
            failure: Exception | None = None
            if self.is_main == turn:
                try:
                    result = work()
                except Exception as error:  # raised below, on all processes
                    failure = error
            failures: list[Any] = [None] * self.size
            dist.all_gather_object(failures, failure)
            for rank, error in enumerate(failures):
                if error is not None:
                    error.args = (f"process {rank}: {error}",) if rank else error.args
                    raise error
        return result

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
        """The network as `DistributedDataParallel`, which averages gradients over the processes; buffers are left to
        the caller. With one process, the network itself."""
        if self.size == 1:
            return network
        wrapper = nn.parallel.DistributedDataParallel
        newer = "forward_sync_buffers" in inspect.signature(wrapper).parameters  # torch 2.11 has the older name only
        off: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
        return wrapper(network, device_ids=[device.index] if device.type == "cuda" else None, **off)

    def synchronises(self, wanted: bool, device: torch.device) -> bool:
        """Whether batch norms take the statistics of all processes' images; torch's layer does so on GPUs only."""
        return wanted and self.size > 1 and device.type == "cuda"

    @contextlib.contextmanager
    def only_main_prints(self) -> Iterator[None]:
        """While inside, what the other processes print goes nowhere."""
        with contextlib.ExitStack() as stack:
            if not self.is_main:
                silent = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(silent))
                stack.enter_context(contextlib.redirect_stderr(silent))
            yield


@contextlib.contextmanager
def connect() -> Iterator[World]:
    """Join the other processes that torchrun has started, and leave them at the end; without torchrun, one process.

    Tensors on GPUs travel by NCCL, those on the CPU by Gloo.
    """
    restarts, most = (int(os.environ.get(f"TORCHELASTIC_{name}", "0")) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        yield World(restarts=restarts, max_restarts=most)
        return
    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    local_rank = int(os.environ["LOCAL_RANK"])
    if nccl and local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    store, rank, size = next(dist.rendezvous("env://"))
    # torchrun may keep one store through its restarts, which still holds the addresses of the attempt before.
    store = dist.PrefixStore(f"ard_fast/attempt{restarts}", store)
    dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", store=store, rank=rank, world_size=size)
    yield World(rank, local_rank, size, restarts, most)
    dist.destroy_process_group()  # not after a failure: it would wait for processes that are lost


def is_lost_process(error: BaseException) -> bool:
    """Whether torch.distributed says that another process failed, cannot be reached or does not answer."""
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "Gloo", "NCCL"))
