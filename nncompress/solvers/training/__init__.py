"""Training by minibatches, for every solver that does: schedules, optimisers, epochs."""

from nncompress.solvers.training.descent import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    MultiStep,
    Schedule,
    StepDecay,
    WarmUp,
)  # fmt: skip
from nncompress.solvers.training.minibatches import Minibatches, epoch

__all__ = [
    "Constant", "Cosine", "Exponential", "Linear", "Minibatches", "MultiStep", "Schedule", "StepDecay", "WarmUp",
    "epoch",
]  # fmt: skip
