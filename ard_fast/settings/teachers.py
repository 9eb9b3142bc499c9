"""How teachers are trained and asked."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast.methods import METHODS
from ard_fast.options import option


@dataclass(frozen=True)
class TeacherSettings:
    """What concerns teachers beside their names."""

    teacher_method: str = option("at", "how a teacher given by name is trained", "teacher", tuple(METHODS))
    teacher_epochs: int | None = option(None, "epochs of a teacher trained first; default as epochs", "teacher")
    teacher_lr: float | None = option(None, "learning rate of such a teacher; default its method's", "teacher")
