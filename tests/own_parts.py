"""Networks, solvers and trackers that tests name by their dotted path (`model._target_=own_parts.Noisy`)."""

import json
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from nncompress.models.mlp import MLP
from nncompress.solvers.sgd.sgd import SGD
from nncompress.tracking.base import About, Tracker


class Noisy(nn.Sequential):
    """A network that draws random numbers in training."""

    def __init__(self, num_classes: int, p: float = 0.5) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, num_classes))


class Normalised(nn.Sequential):
    """A network with batch norm."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes))


class NaN(nn.Sequential):
    """A network with a weight that is no number."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))
        with torch.no_grad():
            self[1].weight[0, 0] = torch.nan


class Conv(nn.Sequential):
    """A network that NN-BCD does not treat."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, num_classes))


class Residual(nn.Module):
    """Convolutions with batch norm and a skip connection."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], width, 3, padding=1)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.out = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.bn(self.conv(x)))
        y: torch.Tensor = self.out(x.mean((2, 3)))
        return y


class Tied(nn.Sequential):
    """A network that uses a weight twice."""

    def __init__(self, num_classes: int) -> None:
        layers = [nn.Linear(64, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, num_classes)]
        super().__init__(nn.Flatten(), *layers)
        self[4].weight = self[2].weight


@dataclass(frozen=True, kw_only=True)
class Started(SGD):
    """Descent that starts from a trained network."""

    from_reference: ClassVar[bool] = True
    lr: float = 0.001


class StartedToo(Started):
    """Another one."""


def lame(num_classes: int) -> MLP:
    """A network that fails in one process of two alone."""
    if os.environ["RANK"] == "1":
        raise RuntimeError("no memory left here")
    return MLP((1, 8, 8), num_classes)


class Failing(Tracker):
    """A tracker of which one method fails, after it drew random numbers."""

    def __init__(self, method: str, error: str = "RuntimeError") -> None:
        self.method, self.error = method, error

    def _reached(self, method: str) -> None:
        random.random()
        np.random.rand()
        torch.rand(1)
        if method == self.method:
            kinds: dict[str, type[BaseException]] = {
                kind.__name__: kind for kind in (RuntimeError, ImportError, KeyboardInterrupt)
            }
            raise kinds[self.error]("no")

    def start(self, about: About) -> Mapping[str, Any]:
        self._reached("start")
        return {}

    def row(self, step: int, figures: Mapping[str, float]) -> None:
        self._reached("row")

    def end(self, status: Mapping[str, Any], summary: Mapping[str, Any] | None) -> None:
        self._reached("end")


class Lacking(Failing):
    """A tracker of an extra."""

    extra = "mlflow"


class Noted(Tracker):
    """A tracker that keeps what it is told in a file of the current folder."""

    def _note(self, *words: Any) -> None:
        with open("told.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(words) + "\n")

    def start(self, about: About) -> Mapping[str, Any]:
        self._note("start", dict(about.known), dict(about.tags), dict(about.config))
        return {"id": about.known.get("id", about.name)}

    def row(self, step: int, figures: Mapping[str, float]) -> None:
        self._note("row", step, dict(figures))

    def end(self, status: Mapping[str, Any], summary: Mapping[str, Any] | None) -> None:
        self._note("end", status["status"], None if summary is None else sorted(summary))
