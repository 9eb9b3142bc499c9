"""Attacks by name: `make` takes every name, `STANDARDS` has the attacks that papers report, `PRESETS` names those of
published code with its quirks.

`STANDARDS["pgd20"](8 / 255)` makes an attack for a radius, `STANDARDS["pgd20"](0.5, "l2")` in another norm. Step sizes
are the published ones at eps = 8/255 and in proportion elsewhere. All attack the model in eval mode. `repr` of an
attack states every parameter in one line.

- "fgsm": one step of eps, no random start
- "pgd10", "pgd20": cross-entropy, steps of eps/4 (2/255), uniform start; "PGD_SAT" of the RSLAD tables
- "pgd20-trades": cross-entropy, 20 steps of .003 at 8/255, uniform start; "PGD_TRADES", weaker by 1.5 to 2 points
- "pgd50-10": 50 steps of eps/4, 10 restarts (fast_adversarial, N-FGSM, GradAlign)
- "cw20", "cw30": margin loss with kappa 50 under PGD, steps of eps/4, uniform start
- "mifgsm": 10 steps of eps/10, decay 1, no random start (Dong et al. 2018)
- "apgd-ce", "apgd-dlr", "apgd-t": as in AutoAttack, 100 iterations, one restart, rho .75; "apgd-t" uses the targeted
  DLR loss for 9 classes. Misclassified samples leave the batch after every 5 iterations: the same accuracy in fewer
  passes

A name may have other numbers of steps N and restarts R: pgdN, pgdN-R, pgdN-trades, pgdN-R-trades, cwN, cwN-R, mifgsmN
(steps of eps/N), apgd-ceN, apgd-ceN-R, and likewise apgd-dlr and apgd-t. It may end in "-linf" or "-l2", the norm of
the ball, and in L-infinity in "-8bit", which makes every iterate an 8-bit image (`levels=255`, see `PGD`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from ard_fast._names import unknown
from ard_fast.attacks.apgd import APGD, APGDT
from ard_fast.attacks.autoattack import FABT, STAGES, Square, require_pyautoattack
from ard_fast.attacks.base import GradientAttack
from ard_fast.attacks.one_step import FGSM
from ard_fast.attacks.pgd import KLPGD, MIFGSM, PGD, CWLinf
from ard_fast.attacks.sequences import InTurn
from ard_fast.attacks.settings import NORMS
from ard_fast.functional._arguments import one_of, positive_int


def ard() -> PGD:
    """The training attack of ARD (goldblum/AdversariallyRobustDistillation, main.py) and IAD.

    * The uniform start is not clamped to the pixel range before the first forward pass.
    * The student is in train mode: batch statistics on every iterate, running ones updated by each pass.
    * Cross-entropy at the hard labels, summed; eps 8/255, 10 steps of 2/255.
    """
    return PGD(eps=8 / 255, step_size=2 / 255, steps=10, clamp_start=False, bn="train")


def trades() -> KLPGD:
    """The training attack of TRADES (yaodongyu/TRADES, trades.py). Call it without `y`.

    * KL from the model's own distribution at the clean images; computed once, where the code repeats that forward pass
      in every step (in eval mode, so the numbers are the same).
    * Start x + 0.001 N(0, 1), not clamped.
    * Eval mode; eps .031 and steps of .007, not 8/255 and 2/255.
    """
    return KLPGD(eps=0.031, step_size=0.007, steps=10)


def rslad() -> KLPGD:
    """The training attack of RSLAD (zibojia/RSLAD, rslad_loss.py). Call it with the teacher's clean logits as `y`.

    * KL from the teacher at the clean images, at temperature 1.
    * Start x + 0.001 N(0, 1), not clamped; eval mode; eps 8/255, 10 steps of 2/255.
    * The code adds 1e-5 inside the target's logarithm, which has no gradient and is left out.
    """
    return KLPGD(eps=8 / 255, step_size=2 / 255, steps=10)


def adaad() -> KLPGD:
    """The training attack of AdaAD (boyellow/AdaAD). Call it with the teacher, in eval mode, as `y`.

    * KL between teacher and student, both at the iterate; the gradient flows through both.
    * Start x + 0.001 N(0, 1), not clamped; student in eval mode; eps 8/255, 10 steps of 2/255 as its README says (the
      default of its command line is eps 16/255).
    """
    return KLPGD(eps=8 / 255, step_size=2 / 255, steps=10)


def torchattacks() -> PGD:
    """`torchattacks.PGD` with its defaults.

    * Uniform start, clamped; eval mode; eps 8/255, 10 steps of 2/255.
    * Its projection adds clamp(x_adv - x) to x, which rounds: pixels may differ by 6e-8 from ours.
    """
    return PGD(eps=8 / 255, step_size=2 / 255, steps=10)


_PRESETS: dict[str, Callable[[], PGD]] = {
    function.__name__: function for function in (ard, trades, rslad, adaad, torchattacks)
}
PRESETS = tuple(_PRESETS)


GRAMMAR = (
    "pgdN, cwN, mifgsmN, apgd-ceN, apgd-dlrN, apgd-tN with N steps, -R for R restarts (pgd50-10), -trades for the "
    "small steps of TRADES (pgd40-trades), -linf or -l2 for the norm of the ball, -8bit for 8-bit images (pgd20-8bit)"
)
_NAME = re.compile(
    r"(?P<kind>fgsm|pgd|cw|mifgsm|apgd-ce|apgd-dlr|apgd-t)(?P<steps>\d+)?(?:-(?P<restarts>\d+))?(?P<trades>-trades)?"
    r"(?:-(?P<norm>linf|l2))?(?P<eight>-8bit)?"
)
_APGD = ("apgd-ce", "apgd-dlr", "apgd-t")
_STEPS = {"fgsm": 1, "mifgsm": 10, **dict.fromkeys(_APGD, 100)}  # where the name does not say
_LINF_ONLY = ("cw", "mifgsm")
_STEP, _TRADES_STEP = 0.25, 0.003 * 255 / 8  # of eps; .003 at 8/255
_DROP_EVERY = 5


@dataclass(frozen=True)
class Standard:
    """What a name stands for; called with a radius, and with a norm where the name has none, it makes the attack.

    Attributes:
        name: as it was given.
        kind: "fgsm", "pgd", "cw", "mifgsm", "apgd-ce", "apgd-dlr" or "apgd-t".
        steps, restarts: of the attack.
        trades: whether steps are .003 at 8/255 instead of 2/255.
        norm: "linf" or "l2" where the name says it, else None.
        levels: 255 for images of 8 bits, else None.
    """

    name: str
    kind: str
    steps: int
    restarts: int = 1
    trades: bool = False
    norm: str | None = None
    levels: int | None = None

    def __call__(self, eps: float, norm: str | None = None) -> GradientAttack:
        """The attack in the ball of radius `eps`, pixels in [0, 1]; None is the name's norm, else L-infinity.

        Raises:
            ValueError: the attack does not exist in this norm, or its name says another.
        """
        norm = one_of(norm or self.norm or "linf", "norm", NORMS)
        if self.norm not in (None, norm):
            raise ValueError(f"norm must be {self.norm!r} for the attack {self.name}, got {norm!r}")
        if norm != "linf" and (self.kind in _LINF_ONLY or self.levels):
            raise ValueError(f"norm must be 'linf' for the attack {self.name}, which is not defined for {norm!r}")
        same: dict[str, Any] = {"eps": eps, "levels": self.levels}
        if self.kind == "fgsm":
            return FGSM(norm=norm, **same)
        same["steps"] = self.steps
        if self.kind == "mifgsm":
            return MIFGSM(**same)
        same["restarts"] = self.restarts
        if self.kind == "pgd":
            step_size = eps * (_TRADES_STEP if self.trades else _STEP)
            return PGD(step_size=step_size, norm=norm, **same)
        if self.kind == "cw":
            return CWLinf(step_size=eps * _STEP, **same)
        if self.kind == "apgd-t":
            return APGDT(norm=norm, drop_every=_DROP_EVERY, **same)
        return APGD(norm=norm, loss=self.kind.removeprefix("apgd-"), drop_every=_DROP_EVERY, **same)


def read_name(name: str) -> Standard | None:
    """What the name of an attack stands for, or None where it is no name of this kind.

    Raises:
        ValueError: it is one, but a number is missing, 0 or out of place.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    kind, norm, trades = match["kind"], match["norm"], match["trades"] is not None
    steps, restarts = (int(match[key]) if match[key] else None for key in ("steps", "restarts"))
    if restarts is not None and steps is None and kind != "fgsm":
        both = f"{kind}{_STEPS.get(kind, 20)}-{restarts}"
        raise ValueError(f"attack {name!r}: {kind}{restarts} has {restarts} steps, {both} has {restarts} restarts")
    if steps is None and kind not in _STEPS:
        raise ValueError(f"attack {name!r}: the number of steps is missing, as in {kind}20")
    if kind == "fgsm" and (steps, restarts) != (None, None):
        raise ValueError(f"attack {name!r}: fgsm is one step without a random start; pgdN has N")
    if kind == "mifgsm" and restarts is not None:
        raise ValueError(f"attack {name!r}: mifgsm has no random start, so every restart would be the same")
    if trades and kind != "pgd":
        raise ValueError(f"attack {name!r}: -trades is a step size of pgd only")
    if match["eight"] and norm == "l2":
        raise ValueError(f"attack {name!r}: -8bit is of the L-infinity ball only")
    for number, what in ((steps, "steps"), (restarts, "restarts")):
        if number is not None:
            positive_int(number, f"attack {name!r}: {what}")
    levels = 255 if match["eight"] else None
    return Standard(name, kind, _STEPS[kind] if steps is None else steps, restarts or 1, trades, norm, levels)


class _Standards(dict[str, Standard]):
    """The attacks by name; others of the same kinds are made where they are asked for."""

    def __missing__(self, name: str) -> Standard:
        found = read_name(name)
        if found is None:
            raise ValueError(f"{unknown('attack', name, self)}, and {GRAMMAR}")
        return found


_NAMES = ("fgsm", "pgd10", "pgd20", "pgd20-trades", "pgd50-10", "cw20", "cw30", "mifgsm", *_APGD)
STANDARDS: dict[str, Standard] = _Standards({name: _Standards()[name] for name in _NAMES})


_EXTERNAL = {"fab-t": FABT, "square": Square}
PYAUTOATTACK = (*_EXTERNAL, "autoattack")


def make(
    name: str, eps: float | Tensor | None = None, norm: str | None = None, **changes: Any
) -> GradientAttack | FABT | Square | InTurn:
    """The attack of a name: any that `ard_fast.evaluate --attacks` takes, or the training attack of a published code.

    Args:
        name: one of `STANDARDS` or of its form, such as "pgd20", "pgd50-10-l2" or "apgd-ce"; "fab-t", "square" or
            "autoattack" (APGD-CE, APGD-T, FAB-T, Square), which need the package pyautoattack; or one of `PRESETS`,
            "ard", "trades", "rslad", "adaad" or "torchattacks": the functions of this module.
        eps: radius, for pixels in [0, 1]. None takes the radius of a published code; the others have none of their own.
            At another radius than its own the step of a published code keeps its ratio to it.
        norm: "linf" or "l2"; None is that of the name, else "linf".
        changes: other arguments of the attack's class, such as `steps`.

    Raises:
        ValueError: no such name (with the nearest one), no radius, no such attack in this norm, an argument out of
            range, or pyautoattack is missing.
        TypeError: the attack has no such argument.

    Example:
        >>> attack = make("pgd20", eps=8 / 255)
        >>> x_adv = attack(model, x, y)
    """
    if name in PRESETS:
        attack = _PRESETS[name]()
        changes = changes if norm is None else {"norm": norm, **changes}
        return attack.replace(**changes) if eps is None else attack.at_eps(eps, **changes)
    if not isinstance(name, str) or (name not in PYAUTOATTACK and read_name(name) is None):
        known = dict.fromkeys((*STANDARDS, *PYAUTOATTACK, *PRESETS))
        raise ValueError(f"name: {unknown('attack', str(name), known)}, and {GRAMMAR}")
    if eps is None:
        raise ValueError(f"eps must be the radius of the attack {name}, such as 8/255, got None")
    if name == "autoattack":
        return InTurn([make(stage, eps, norm, **changes) for stage in STAGES])
    if name in _EXTERNAL:
        require_pyautoattack(name)
        return _EXTERNAL[name](cast("float", eps), norm or "linf", **changes)
    attack = STANDARDS[name](cast("float", eps), norm)
    return attack.replace(**changes) if changes else attack
