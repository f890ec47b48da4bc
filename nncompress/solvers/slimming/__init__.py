"""Network slimming, proximal and with subgradients."""

from nncompress.solvers.slimming.network_slimming import NetworkSlimming
from nncompress.solvers.slimming.proximal import Slimming

__all__ = ["NetworkSlimming", "Slimming"]
