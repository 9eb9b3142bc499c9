"""Trained networks that provide soft labels, and the cache of their logits."""

from ard_fast.teachers.cache import CACHE_AUTO, CACHE_DTYPES, CacheWarning, LogitsCache, Views
from ard_fast.teachers.inference import PRECISIONS, InferenceNetwork
from ard_fast.teachers.teacher import Teacher, build_teacher

__all__ = [
    "CACHE_AUTO",
    "CACHE_DTYPES",
    "PRECISIONS",
    "CacheWarning",
    "InferenceNetwork",
    "LogitsCache",
    "Teacher",
    "Views",
    "build_teacher",
]
