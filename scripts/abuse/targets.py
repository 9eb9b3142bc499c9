"""All targets."""

from __future__ import annotations

from abuse import attack_targets, config_targets, functional_targets, op_targets
from abuse.target import Target


def all_targets() -> list[Target]:
    """Every public function that `scripts/bad_calls.py` calls."""
    parts = (functional_targets, op_targets, attack_targets, config_targets)
    return [target for part in parts for target in part.targets()]
