"""Trained networks that give soft labels."""

from ard_fast.teachers.build import Views, build_teacher
from ard_fast.teachers.cache import CacheWarning, LogitsCache
from ard_fast.teachers.lean import LeanNetwork
from ard_fast.teachers.teacher import Teacher

__all__ = ["CacheWarning", "LeanNetwork", "LogitsCache", "Teacher", "Views", "build_teacher"]
