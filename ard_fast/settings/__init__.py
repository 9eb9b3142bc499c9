"""The fields of a run's configuration, a dataclass a subject; `ard_fast.config.TrainConfig` joins them.

Every field is a YAML key and a command-line flag at once. A new one needs nothing but its line here.
"""

from ard_fast.settings.data import DataSettings
from ard_fast.settings.evaluation import EvaluationSettings
from ard_fast.settings.machine import GRAPHS, MachineSettings
from ard_fast.settings.networks import NetworkSettings
from ard_fast.settings.optimiser import OptimiserSettings
from ard_fast.settings.output import OutputSettings
from ard_fast.settings.teachers import TeacherSettings
from ard_fast.settings.weights import WeightSettings
from ard_fast.settings.what import COMPARE, WhatSettings

__all__ = [
    "COMPARE",
    "GRAPHS",
    "DataSettings",
    "EvaluationSettings",
    "MachineSettings",
    "NetworkSettings",
    "OptimiserSettings",
    "OutputSettings",
    "TeacherSettings",
    "WeightSettings",
    "WhatSettings",
]
