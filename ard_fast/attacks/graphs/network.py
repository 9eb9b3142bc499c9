"""What a graph holds of a network, looked up at every call and therefore fast."""

from __future__ import annotations

from torch import Tensor, nn


def network_tensors(*networks: nn.Module) -> list[Tensor]:
    """Parameters and buffers of all modules; one that is shared may come twice.

    For what a graph's `fixed` returns. `Module.parameters()` and `buffers()` find the same six times slower.
    """
    found: list[Tensor | None] = []
    for module in network_modules(*networks):
        found += module._parameters.values()
        found += module._buffers.values()
    return [tensor for tensor in found if tensor is not None]


def network_modes(*networks: nn.Module) -> tuple[bool, ...]:
    """Whether each module is in train mode."""
    return tuple([module.training for module in network_modules(*networks)])


def network_modules(*networks: nn.Module) -> list[nn.Module]:
    """All modules, each once."""
    left: list[nn.Module | None] = list(networks)
    found: dict[int, nn.Module] = {}
    while left:
        module = left.pop()
        if module is not None and id(module) not in found:
            found[id(module)] = module
            left += module._modules.values()
    return list(found.values())
