"""ard-fast: kernels, attacks and a trainer for adversarially robust distillation.

`ard_fast.functional` holds the operators, `ard_fast.attacks` the attacks, `python -m ard_fast.train` trains. Importing
the package loads the compiled operators; it never builds anything and needs no GPU.
"""

from ard_fast import attacks, functional
from ard_fast._version import __version__

__all__ = ["__version__", "attacks", "functional"]
