"""Attacks: small classes that turn (model, images, labels) into adversarial images and leave the model unchanged.

All share one loop and its conventions, which `ard_fast.attacks.base` describes together with how to write your own.
"""

from ard_fast.attacks.apgd import APGD, APGDT
from ard_fast.attacks.base import GradientAttack, Problem, differentiated
from ard_fast.attacks.graphed import GraphedPGD, as_graph
from ard_fast.attacks.model_mode import BN_POLICIES, attack_mode
from ard_fast.attacks.one_step import FGSM, FGSMRS, NFGSM
from ard_fast.attacks.pgd import KLPGD, MIFGSM, PGD, CWLinf
from ard_fast.attacks.presets import PRESETS, STANDARDS, make
from ard_fast.attacks.sequences import InTurn

__all__ = [
    "APGD",
    "APGDT",
    "BN_POLICIES",
    "FGSM",
    "FGSMRS",
    "KLPGD",
    "MIFGSM",
    "NFGSM",
    "PGD",
    "PRESETS",
    "STANDARDS",
    "CWLinf",
    "GradientAttack",
    "GraphedPGD",
    "InTurn",
    "Problem",
    "as_graph",
    "attack_mode",
    "differentiated",
    "make",
]
