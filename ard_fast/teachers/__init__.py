"""Trained networks that give soft labels."""

from ard_fast.teachers.ahead import CudaStreams, Streams, TeacherAhead
from ard_fast.teachers.alongside import TeacherAlongside
from ard_fast.teachers.build import CACHE_AUTO, CACHE_DTYPES, Views, build_teacher
from ard_fast.teachers.cache import CacheWarning, LogitsCache
from ard_fast.teachers.form import PRECISIONS, LeanNetwork
from ard_fast.teachers.teacher import Teacher

__all__ = [
    "CACHE_AUTO",
    "CACHE_DTYPES",
    "PRECISIONS",
    "CacheWarning",
    "CudaStreams",
    "LeanNetwork",
    "LogitsCache",
    "Streams",
    "Teacher",
    "TeacherAhead",
    "TeacherAlongside",
    "Views",
    "build_teacher",
]
