"""Work recorded once as a CUDA graph and run again without the cost of its launches."""

from ard_fast.attacks.graphs.capture import GraphBackend, GraphedFunction, GraphWarning
from ard_fast.attacks.graphs.cuda import CudaGraphs
from ard_fast.attacks.graphs.network import network_modes, network_tensors
from ard_fast.attacks.graphs.watch import CaptureWatch, NotCapturable

__all__ = [
    "CaptureWatch",
    "CudaGraphs",
    "GraphBackend",
    "GraphWarning",
    "GraphedFunction",
    "NotCapturable",
    "network_modes",
    "network_tensors",
]
