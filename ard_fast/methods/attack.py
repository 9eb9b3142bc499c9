"""The training attacks that several methods share, from their settings."""

from __future__ import annotations

from ard_fast.attacks import FGSMRS, KLPGD, PGD
from ard_fast.methods.settings import FilledSettings


def ce_attack(settings: FilledSettings, init: str = "uniform") -> PGD:
    """PGD on the cross-entropy.

    Args:
        settings: of the method.
        init: the start: "uniform" in the ball (Madry et al. 2018; the inner problem of ARD) or "normal", noise of
            0.001 (MART, MTARD).
    """
    return PGD(
        eps=settings.eps,
        step_size=settings.step_size,
        steps=settings.steps,
        bn=settings.attack_bn,
        clamp_start=settings.clamp_start,
        init=init,
    )


def kl_attack(settings: FilledSettings) -> KLPGD:
    """PGD on the KL from small normal noise (Zhang et al. 2019; the inner problem of TRADES, RSLAD and AdaAD)."""
    return KLPGD(
        eps=settings.eps,
        step_size=settings.step_size,
        steps=settings.steps,
        bn=settings.attack_bn,
        clamp_start=settings.clamp_start,
    )


def fgsm_rs_attack(settings: FilledSettings) -> FGSMRS:
    """One step on the cross-entropy from a uniform start (Wong et al. 2020)."""
    return FGSMRS(eps=settings.eps, relative_step=relative_step(settings), bn=settings.attack_bn)


def relative_step(settings: FilledSettings) -> float:
    """The attack's step in units of eps; 0 where eps is 0."""
    return settings.step_size / settings.eps if settings.eps else 0.0
