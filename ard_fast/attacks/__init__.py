"""Attacks: small classes that turn (model, images, labels) into adversarial images and leave the model as it was."""

from ard_fast.attacks.model_state import BN_POLICIES, attack_mode
from ard_fast.attacks.pgd import PGD

__all__ = ["BN_POLICIES", "PGD", "attack_mode"]
