"""The attacks that papers on robust training report, by name, with their exact parameters.

Each entry of `STANDARDS` makes the attack for a radius: `STANDARDS["pgd20"](8 / 255)`, or with "l2" as the second
argument where the attack exists there. Step sizes are the published ones at eps = 8/255 and in proportion elsewhere.
All attack the model in eval mode. `repr` of the attack states every parameter in one line.

    fgsm          one step of eps, no random start
    pgd10, pgd20  cross-entropy, steps of eps/4 (2/255), uniform start; "PGD_SAT" of the RSLAD tables
    pgd20-trades  cross-entropy, 20 steps of .003 at 8/255, uniform start; "PGD_TRADES", weaker by 1.5 to 2 points
    pgd50-10      50 steps of eps/4, 10 restarts (fast_adversarial, N-FGSM, GradAlign)
    cw20, cw30    margin loss with kappa 50 under PGD, steps of eps/4, uniform start
    mifgsm        10 steps of eps/10, decay 1, no random start (Dong et al. 2018)
    apgd-ce, apgd-dlr, apgd-t
                  as in AutoAttack: 100 iterations, one restart, rho .75; -t: targeted DLR, 9 target classes. Samples
                  that are fooled leave a run after every 5 iterations: the same accuracy for fewer passes
"""

from __future__ import annotations

from collections.abc import Callable

from ard_fast._arguments import one_of
from ard_fast.attacks.apgd import APGD, APGDT
from ard_fast.attacks.base import NORMS, GradientAttack
from ard_fast.attacks.cw import CWLinf
from ard_fast.attacks.mifgsm import MIFGSM
from ard_fast.attacks.one_step import FGSM
from ard_fast.attacks.pgd import PGD

Factory = Callable[..., GradientAttack]

_DROP_EVERY = 5


def _pgd(steps: int, restarts: int = 1, relative_step: float = 0.25) -> Factory:
    def make(eps: float, norm: str = "linf") -> PGD:
        return PGD(eps=eps, step_size=eps * relative_step, steps=steps, norm=norm, restarts=restarts)

    return make


def _apgd(loss: str) -> Factory:
    def make(eps: float, norm: str = "linf") -> APGD:
        return APGD(eps=eps, norm=norm, loss=loss, drop_every=_DROP_EVERY)

    return make


def _fgsm(eps: float, norm: str = "linf") -> FGSM:
    return FGSM(eps=eps, norm=norm)


def _apgd_t(eps: float, norm: str = "linf") -> APGDT:
    return APGDT(eps=eps, norm=norm, drop_every=_DROP_EVERY)


def _linf_only(name: str, make: Callable[[float], GradientAttack]) -> Factory:
    def checked(eps: float, norm: str = "linf") -> GradientAttack:
        if one_of(norm, "norm", NORMS) != "linf":
            raise ValueError(f"norm must be 'linf' for the attack {name}, which is not defined for {norm!r}")
        return make(eps)

    return checked


# The step that is .003 at 8/255.
_TRADES_STEP = 0.003 * 255 / 8

STANDARDS: dict[str, Factory] = {
    "fgsm": _fgsm,
    "pgd10": _pgd(10),
    "pgd20": _pgd(20),
    "pgd20-trades": _pgd(20, relative_step=_TRADES_STEP),
    "pgd50-10": _pgd(50, restarts=10),
    "cw20": _linf_only("cw20", lambda eps: CWLinf(eps=eps, step_size=eps / 4, steps=20)),
    "cw30": _linf_only("cw30", lambda eps: CWLinf(eps=eps, step_size=eps / 4, steps=30)),
    "mifgsm": _linf_only("mifgsm", lambda eps: MIFGSM(eps=eps, steps=10)),
    "apgd-ce": _apgd("ce"),
    "apgd-dlr": _apgd("dlr"),
    "apgd-t": _apgd_t,
}
