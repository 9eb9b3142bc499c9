"""Student and teachers."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast.models import MODELS
from ard_fast.training.options import option

_NAMES = f"{', '.join(MODELS)}, timm:NAME or package.module:factory"
_MEAN = "means of the channels of pixels in [0, 1], comma-separated, taken off inside the network"


@dataclass(frozen=True)
class NetworkSettings:
    """Names, files and normalisers of the networks. Images are pixels in [0, 1] outside them, always."""

    student: str = option("mobilenetv2", f"network to train: {_NAMES}", "networks")
    student_mean: tuple[float, ...] | None = option(None, f"student: {_MEAN}", "networks")
    student_std: tuple[float, ...] | None = option(None, "student: standard deviations likewise", "networks")
    teacher: str | None = option(
        None,
        "a network's name (trained first, by --teacher-method), a run's folder, a checkpoint file, or a "
        "package.module:factory that makes a trained one",
        "networks",
    )
    teacher_model: str | None = option(
        None, "the network of a checkpoint file that does not say, named as the student's", "networks"
    )
    teacher_mean: tuple[float, ...] | None = option(None, f"teacher: {_MEAN}", "networks")
    teacher_std: tuple[float, ...] | None = option(None, "teacher: standard deviations likewise", "networks")
    teacher_weights: str | None = option(
        None, "of several sets of weights in the checkpoint file the one to take, by its key: ema", "networks"
    )
    clean_teacher: str | None = option(
        None, "mtard, iad-ii: the second teacher, likewise; a network named here is trained on clean images", "networks"
    )
    clean_teacher_model: str | None = option(None, "as teacher_model, for clean_teacher", "networks")
    clean_teacher_mean: tuple[float, ...] | None = option(None, "as teacher_mean, for clean_teacher", "networks")
    clean_teacher_std: tuple[float, ...] | None = option(None, "as teacher_std, for clean_teacher", "networks")
    clean_teacher_weights: str | None = option(None, "as teacher_weights, for clean_teacher", "networks")
