"""How many CPU threads torch uses."""

from __future__ import annotations

import os

import torch

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def set_threads(count: int) -> None:
    """Let torch's operators use `count` threads; 0: one for each physical core that this process may use.

    Under 0 an OMP_NUM_THREADS or MKL_NUM_THREADS of the environment is left to hold, as torchrun sets it. The cores are
    those of the machine, cut to the process's affinity and to the CPU quota of its container, beyond which threads
    only wait for each other.
    """
    if count == 0:
        if any(os.environ.get(name) for name in _VARIABLES):
            return
        import joblib  # asks the machine for a hundredth of a second: not at import

        count = joblib.cpu_count(only_physical_cores=True)
    torch.set_num_threads(count)
