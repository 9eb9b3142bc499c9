"""Our attacks behind the interfaces of torchattacks and foolbox, and theirs behind ours.

Neither package is imported unless one of its objects is used.
"""

from ard_fast.attacks.adapters.foolbox import FoolboxAdapter, FromFoolbox
from ard_fast.attacks.adapters.torchattacks import FromTorchattacks, TorchattacksAdapter

__all__ = ["FoolboxAdapter", "FromFoolbox", "FromTorchattacks", "TorchattacksAdapter"]
