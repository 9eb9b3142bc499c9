"""Our attacks behind the interfaces of torchattacks and foolbox, and theirs behind ours.

Neither package is imported unless one of its objects is used.
"""

from ard_fast.adapters.foolbox import FoolboxAdapter, FromFoolbox
from ard_fast.adapters.torchattacks import FromTorchattacks, TorchattacksAdapter

__all__ = ["FoolboxAdapter", "FromFoolbox", "FromTorchattacks", "TorchattacksAdapter"]
