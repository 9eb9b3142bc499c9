"""How teachers are trained and asked."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast._precision import AUTO
from ard_fast.methods import METHODS
from ard_fast.teachers import CACHE_AUTO, CACHE_DTYPES, PRECISIONS
from ard_fast.training.options import option


@dataclass(frozen=True)
class TeacherSettings:
    """What concerns teachers beside their names."""

    teacher_method: str = option("at", "how a teacher given by name is trained", "teacher", tuple(METHODS))
    teacher_epochs: int | None = option(None, "epochs of a teacher trained first; default as epochs", "teacher")
    teacher_lr: float | None = option(None, "learning rate of such a teacher; default its method's", "teacher")
    teacher_precision: str = option(
        AUTO,
        "arithmetic of a teacher's network; its logits stay fp32; auto: bf16 where the training step is, else fp32",
        "teacher",
        (AUTO, *PRECISIONS),
    )
    teacher_cache: str = option(
        CACHE_AUTO,
        "logits of clean images: off; auto (kept in memory for the run where they are few, else in the user's cache "
        "folder for later runs); or a folder",
        "teacher",
    )
    teacher_cache_dtype: str = option(
        "fp32", "fp16 halves that table and rounds the logits, hit or miss", "teacher", CACHE_DTYPES
    )
