"""The training attacks that several methods share, from their settings."""

from __future__ import annotations

from ard_fast.attacks import KLPGD, PGD
from ard_fast.methods.settings import MethodSettings


def ce_attack(settings: MethodSettings) -> PGD:
    """PGD on the cross-entropy from a uniform start (Madry et al. 2018; the inner problem of ARD)."""
    return PGD(
        eps=settings.eps,
        step_size=settings.step_size,
        steps=settings.steps,
        bn=settings.attack_bn,
        clamp_start=settings.clamp_start,
    )


def kl_attack(settings: MethodSettings) -> KLPGD:
    """PGD on the KL from small normal noise (Zhang et al. 2019; the inner problem of TRADES, RSLAD and AdaAD)."""
    return KLPGD(
        eps=settings.eps,
        step_size=settings.step_size,
        steps=settings.steps,
        bn=settings.attack_bn,
        clamp_start=settings.clamp_start,
    )
