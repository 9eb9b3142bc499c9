"""Finished runs side by side: read, grouped over seeds, as table, plot and JSON."""

from ard_fast.training.comparison.groups import Group, group_runs
from ard_fast.training.comparison.runs import FinishedRun, expand, read_run
from ard_fast.training.comparison.table import Comparison

__all__ = ["Comparison", "FinishedRun", "Group", "expand", "group_runs", "read_run"]
