"""The fields of a run's configuration, a dataclass a subject; `ard_fast.training.config.TrainConfig` joins them.

Every field is a YAML key and a command-line flag at once. A new one needs nothing but its line here.
"""

from ard_fast.training.settings.compute import GRAPHS, MachineSettings
from ard_fast.training.settings.data import DataSettings
from ard_fast.training.settings.evaluation import EvaluationSettings
from ard_fast.training.settings.networks import NetworkSettings
from ard_fast.training.settings.optimiser import OptimiserSettings
from ard_fast.training.settings.output import OutputSettings
from ard_fast.training.settings.teachers import TeacherSettings
from ard_fast.training.settings.weights import WeightSettings
from ard_fast.training.settings.what import COMPARE, WhatSettings

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
