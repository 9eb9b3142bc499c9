"""The Auto-PGD step by the CUDA kernels, on the host emulator."""

from __future__ import annotations

import emulator
import torch


def apgd_step_(
    x_adv: torch.Tensor,
    x_prev: torch.Tensor,
    x_best: torch.Tensor,
    grad_best: torch.Tensor,
    x_fooled: torch.Tensor,
    state: torch.Tensor,
    state_out: torch.Tensor,
    grad: torch.Tensor | None,
    x: torch.Tensor,
    loss_rows: torch.Tensor,
    correct: torch.Tensor,
    eps_per_sample: torch.Tensor | None,
    eps: float,
    l2: bool,
    first: bool,
    window: int,
    rho: float,
    momentum: float,
    lower: float,
    upper: float,
    *,
    cluster: int = 0,
    threads: int = 0,
    cached: bool = True,
) -> None:
    """With the parameters of the operator ``apgd_step_``.

    In L2, `cluster` blocks of `threads` own a sample, which they keep in shared memory where it is `cached`; a cluster
    of 0 leaves all that to the launch plan.
    """
    flat = emulator._flat
    emulator.load().apgd_step_(
        x_adv=flat(x_adv),
        x_prev=flat(x_prev),
        x_best=flat(x_best),
        grad_best=flat(grad_best),
        x_fooled=flat(x_fooled),
        state=flat(state),
        state_out=flat(state_out),
        grad=None if grad is None else flat(grad),
        grad_dtype=emulator._dtype(grad_best),
        x=flat(x),
        loss_rows=loss_rows.numpy(),
        correct=correct.numpy(),
        eps_per_sample=None if eps_per_sample is None else eps_per_sample.numpy(),
        batch=x_adv.shape[0],
        eps=eps,
        first=first,
        window=window,
        rho=rho,
        momentum=momentum,
        lower=lower,
        upper=upper,
        l2=l2,
        cluster=cluster,
        threads=threads,
        cached=cached,
    )
