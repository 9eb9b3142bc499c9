"""Two streams on the CPU: every operation is done at once, and what an asynchronous device might do is worked out.

A vector clock for each stream says which work of the other is certainly done before. An operation that reads what the
other stream wrote, or writes what it read or wrote, without such certainty is a race; memory of one stream that the
other uses must have been lent, or it could be given away too early; an operation whose result the host reads makes the
host wait for the stream it ran on.
"""

from contextlib import contextmanager

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MAIN, SIDE = "main", "side"
_WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2", "aten::equal"}  # and boolean masks


class _Memory:
    def __init__(self, storage, home):
        self.storage, self.home, self.lent, self.wrote, self.read = StorageWeakRef(storage), home, False, None, {}


class TwoStreams(TorchDispatchMode):
    """As `ard_fast.teachers.Streams`, and a watch over every operation within it.

    Attributes:
        clock: for each stream, how many operations of each stream are certainly done before its next one.
        known: how many operations of each stream the host knows to be done.
        faults: what could go wrong on an asynchronous device, in words.
        waits: the streams that operations made the host wait for, as (stream, operation).
    """

    def __init__(self):
        super().__init__()
        self.now = MAIN
        self.clock = {stream: {MAIN: 0, SIDE: 0} for stream in (MAIN, SIDE)}
        self.known = {MAIN: 0, SIDE: 0}
        self.faults, self.waits, self._memory = [], [], {}

    @contextmanager
    def beside(self):
        before, self.now = self.now, SIDE
        try:
            yield
        finally:
            self.now = before

    def record(self):
        return dict(self.clock[self.now])

    def wait(self, mark):
        _merge(self.clock[self.now], mark)

    def wait_on_host(self, mark):
        _merge(self.known, mark)

    def lend(self, tensor):
        assert self.now == MAIN
        self._of(tensor, MAIN).lent = True

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function.name()
        written = {
            id(leaf)
            for argument, value in zip(function._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
            for leaf in tree_leaves(value)
        }
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        for tensor in inputs:
            self._of(tensor, MAIN)  # what was there before was made on the main stream
        self.clock[self.now][self.now] += 1
        for tensor in inputs:
            self._use(tensor, name, writes=id(tensor) in written)
        result = function(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and self._is_new(tensor):
                self._use(tensor, name, writes=True)
        masked = name.startswith("aten::index") and any(tensor.dtype == torch.bool for tensor in inputs[1:])
        if name in _WAITS or masked:
            self.waits.append((self.now, name))
            _merge(self.known, self.clock[self.now])
        return result

    def _is_new(self, tensor):
        found = self._memory.get(tensor.untyped_storage()._cdata)
        return found is None or found.storage.expired()

    def _of(self, tensor, home):
        storage = tensor.untyped_storage()
        if self._is_new(tensor):
            self._memory[storage._cdata] = _Memory(storage, home)
        return self._memory[storage._cdata]

    def _use(self, tensor, name, *, writes):
        memory, mine = self._of(tensor, self.now), self.clock[self.now]
        if memory.home == SIDE and self.now == MAIN and not memory.lent:
            self.faults.append(f"{name} uses memory of the other stream that was not lent")
        earlier = [] if memory.wrote is None else [memory.wrote]
        earlier += memory.read.items() if writes else []
        if any(mine[stream] < count for stream, count in earlier):
            self.faults.append(f"{name} on the {self.now} stream does not wait for the other one")
        if writes:
            memory.wrote, memory.read = (self.now, mine[self.now]), {}
        else:
            memory.read[self.now] = mine[self.now]


def _merge(clock, mark):
    for stream, count in mark.items():
        clock[stream] = max(clock[stream], count)
