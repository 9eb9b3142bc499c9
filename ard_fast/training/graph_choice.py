"""How much of a training step is captured as a CUDA graph."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ard_fast.attacks import GraphedPGD
from ard_fast.attacks.base import GradientAttack
from ard_fast.attacks.cuda_graph import CudaGraphs
from ard_fast.methods import Method
from ard_fast.training.distributed import World


class GraphChoice(NamedTuple):
    """What `--graph` comes to.

    Attributes:
        mode: "off", "attack" or "iteration".
        why: in words.
    """

    mode: str
    why: str

    def describe(self) -> str:
        """A line for people."""
        what = {
            "off": "no CUDA graph",
            "attack": "the attack is one CUDA graph",
            "iteration": "the whole step is one CUDA graph, but for smaller batches and the first steps of a phase",
        }[self.mode]
        return f"{what} ({self.why})"


def choose_graph(wanted: str, device: torch.device, method: Method, world: World, *, sync_bn: bool) -> GraphChoice:
    """What is captured in a run.

    "auto" is the whole step on CUDA with one process; with several the attack, where it exchanges nothing, since the
    gradients travel in the middle of a step; nothing on a CPU.

    Args:
        wanted: of `GRAPHS`.
        device: of the run.
        method: what is trained.
        world: the processes that share each step.
        sync_bn: whether batch statistics are those of all processes.

    Raises:
        ValueError: what is wanted cannot be captured.
    """
    if wanted == "off":
        return GraphChoice("off", "as asked")
    if device.type != "cuda":
        if wanted != "auto":
            raise ValueError(
                f"graph: expected auto or off on device {device}, which has no CUDA graphs, got {wanted!r}"
            )
        return GraphChoice("off", "the device is not a GPU")
    obstacle = _why_no_attack(method, world, sync_bn)
    if world.size == 1 and wanted != "attack":
        return GraphChoice("iteration", "one process")
    if wanted == "iteration":
        raise ValueError(
            f"graph: iteration needs a run of one process, got {world.size}: gradients travel in the middle of a step"
        )
    if obstacle is None:
        return GraphChoice("attack", "as asked" if wanted == "attack" else f"{world.size} processes")
    if wanted == "attack":
        raise ValueError(f"graph: the attack of method {method.name} cannot be captured: {obstacle}")
    return GraphChoice("off", f"{world.size} processes, and {obstacle}")


def _why_no_attack(method: Method, world: World, sync_bn: bool) -> str | None:
    attack = getattr(method, "inner_attack", None)
    if not isinstance(attack, GradientAttack):
        return "it has no attack apart from its update"
    if attack.why_eager is not None:
        return attack.why_eager
    if world.size > 1 and sync_bn and attack.bn != "eval":
        return "its batch norm exchanges statistics between the processes"
    return None


def graph_attack(method: Method, backend: CudaGraphs | None = None) -> bool:
    """Let a method's attack be replayed as a graph; whether that is possible."""
    attack = getattr(method, "inner_attack", None)
    if not isinstance(attack, GradientAttack) or attack.why_eager is not None:
        return False
    setattr(method, "inner_attack", GraphedPGD(attack, backend=backend))  # noqa: B010 - only some methods have one
    return True
