"""What tests of stored networks share: networks that are projected and written, and how they are compared."""

from pathlib import Path
from typing import Any

import pytest
import torch
from problems import ARCHITECTURE, randn
from torch import Tensor, nn

from nncompress import metrics
from nncompress.artefact.model import load
from nncompress.artefact.save import About, save
from nncompress.errors import CheckpointError, ConfigError
from nncompress.problem import Dataset, Problem, Split, with_weights
from nncompress.solvers.base import Observation, observation_of

F32 = torch.float32


def projected(p: Problem) -> Observation:
    """The network, and Θ = Π(w)."""
    return observation_of(p, p.model, p.plan.compress(p.plan.select(dict(p.model.named_parameters())).detach()), {})


def saved(
    folder: Path, p: Problem, architecture: Any = ARCHITECTURE, observation: Observation | None = None
) -> nn.Module:
    """The deployed network (that of `projected` by default), as it was written to a folder."""
    observation = observation or projected(p)
    save(folder, observation.model, p.plan, observation.theta, about(p.data, architecture))
    return with_weights(observation.model, p.plan.decompress(observation.theta)).float()


def about(data: Dataset, architecture: Any, node: Any = None) -> About:
    """What a file says of a network for these data."""
    return About(architecture, data.train.x[:1], data.num_classes, data.classes, data.name, data.preprocessing, node)


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    """The same names, types and numbers, bit for bit."""
    a_state, b_state = a.state_dict(), b.state_dict()
    assert a_state.keys() == b_state.keys()
    for name, tensor in a_state.items():
        assert tensor.dtype == b_state[name].dtype, name
        assert torch.equal(tensor, b_state[name]), name


def noise(*shape: int, count: int = 4, dtype: torch.dtype = F32) -> Dataset:
    split = Split(randn(count, *shape, dtype=dtype), torch.arange(count) % 3)
    return Dataset(split, split, 3, "noise")


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    found, expected = found.detach(), expected.detach()
    assert float((found - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


def check_size(folder: Path, p: Problem, observation: Observation) -> None:
    """The files take the bits that are counted."""
    bits = metrics.file_bits(p, observation.theta)["compressed"]
    assert bits / 8 <= sum(path.stat().st_size for path in folder.iterdir()) <= 1.02 * bits / 8 + 4096


def refusal(path: Path, **settings: Any) -> str:
    """The sentence, which names a file."""
    with pytest.raises((CheckpointError, ConfigError)) as refused:
        load(path, **settings)
    words = str(refused.value)
    assert str(path) in words
    assert "model.json" in words or "model.safetensors" in words
    assert "\n" not in words
    return words
