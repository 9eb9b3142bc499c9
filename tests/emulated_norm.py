"""The CUDA kernels that treat a sample as a whole, on the host emulator: as the operators, on torch CPU tensors."""

from __future__ import annotations

import emulator
import torch
from torch import Tensor

# (blocks of a cluster, threads of a block, sample kept in shared memory); None leaves it to the launcher's plan.
Geometry = tuple[int, int, bool] | None


def pgd_l2_step_(x_adv: Tensor, grad: Tensor, x: Tensor, *, geometry: Geometry = None, **settings) -> Tensor:
    """As `ard_fast.functional.pgd_l2_step_`."""
    emulator.load().pgd_l2_step_(**_arguments(x_adv, grad, x, geometry, **settings))
    return x_adv


def mifgsm_step_(
    x_adv: Tensor, momentum: Tensor, grad: Tensor, x: Tensor, *, decay=1.0, geometry: Geometry = None, **settings
) -> Tensor:
    """As `ard_fast.functional.mifgsm_step_`."""
    arguments = _arguments(x_adv, grad, x, geometry, **settings)
    emulator.load().mifgsm_step_(momentum=emulator._flat(momentum), decay=decay, **arguments)
    return x_adv


def select_best_(best: Tensor, best_loss: Tensor, candidate: Tensor, loss: Tensor, *, lower: bool = False) -> Tensor:
    """As `ard_fast.functional.select_best_`."""
    out = torch.full_like(best_loss, 12345.0)
    emulator.load().select_best_(
        best=emulator._flat(best),
        candidate=emulator._flat(candidate),
        best_loss=best_loss.numpy(),
        loss=loss.numpy(),
        best_loss_out=out.numpy(),
        lower=lower,
    )
    return out


def _arguments(x_adv, grad, x, geometry, *, step_size, eps, targeted=False, bounds=(0.0, 1.0)) -> dict:
    step, steps = emulator._per_sample(step_size)
    radius, radii = emulator._per_sample(eps)
    cluster, threads, cached = geometry or (0, 0, False)
    return {
        "x_adv": emulator._flat(x_adv),
        "grad": emulator._flat(grad),
        "grad_dtype": emulator._dtype(grad),
        "x": emulator._flat(x),
        "step_size_per_sample": steps,
        "eps_per_sample": radii,
        "batch": x_adv.shape[0],
        "step_size": step,
        "eps": radius,
        "direction": -1.0 if targeted else 1.0,
        "lower": bounds[0],
        "upper": bounds[1],
        "cluster": cluster,
        "threads": threads,
        "cached": cached,
    }
