"""The learning-compression algorithm, and the baselines it is compared with."""

from nncompress.solvers.lc.baselines import IDC, DCRetrain, DirectCompression, Distillation
from nncompress.solvers.lc.direct_learning import DirectLearning
from nncompress.solvers.lc.lc import LC

__all__ = ["IDC", "LC", "DCRetrain", "DirectCompression", "DirectLearning", "Distillation"]
