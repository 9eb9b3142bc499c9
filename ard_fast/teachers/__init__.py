"""Trained networks that give soft labels."""

from ard_fast.teachers.teacher import Teacher

__all__ = ["Teacher"]
