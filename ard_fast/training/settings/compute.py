"""Where a run computes. Nothing here is meant to change its result beyond rounding."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast._precision import AUTO, PRECISIONS
from ard_fast.data.loader import RESIDENT
from ard_fast.training.options import option

SWITCH = (AUTO, "true", "false")
GRAPHS = (AUTO, "off", "attack", "iteration")


@dataclass(frozen=True)
class MachineSettings:
    """Device, arithmetic, layout and threads."""

    device: str = option(
        AUTO, "cpu, cuda, cuda:N, or auto: cuda where there is one; under torchrun cuda is one GPU a process", "machine"
    )
    sync_bn: bool = option(
        True,
        "several processes: batch statistics over the whole batch, as one process has them; false: over each process's "
        "images, running statistics averaged after every step",
        "machine",
    )
    precision: str = option(
        AUTO,
        "arithmetic of the training step: fp32 (TF32 off), tf32, bf16 (autocast; iterates, losses and weights stay "
        "fp32); auto: bf16 on GPUs that have it, else fp32. Evaluation is always in fp32",
        "machine",
        PRECISIONS,
    )
    channels_last: str = option(
        AUTO,
        "keep images and weights in channels-last layout; auto: yes, but for networks that do not run in it",
        "machine",
        SWITCH,
    )
    fold: str = option(
        AUTO,
        "make attacks in eval mode on a form of the student with batch norm folded into the convolutions, refreshed "
        "once an update; auto: yes",
        "machine",
        SWITCH,
    )
    graph: str = option(
        AUTO,
        "replay the training step as a CUDA graph: the whole iteration, the attack only, or off; auto: on CUDA the "
        "iteration, with several processes the attack where it exchanges nothing. Nothing changes but the time",
        "machine",
        GRAPHS,
    )
    compile: bool = option(
        False, "torch.compile the student's forward: the update's, and the attack's where that is not folded", "machine"
    )
    threads: int = option(0, "CPU threads; 0: OMP_NUM_THREADS, else the physical cores one may use", "machine")
    resident: str = option(
        "auto",
        "training images on the device: always, never (streamed from the host), or when they take at most half of its "
        "free memory",
        "machine",
        RESIDENT,
    )
