"""Start from a trained network: give a model the weights that a stored network has."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from nncompress.artefact.files import DESCRIPTION
from nncompress.artefact.model import load
from nncompress.errors import ConfigError, NNCompressError
from nncompress.problem import Dataset
from nncompress.surgery.channels import is_reshaped
from nncompress.surgery.removal import reshape, structure
from nncompress.surgery.uses import layers_of

log = logging.getLogger(__name__)

COMPARED = 32
"""Training samples on which the stored network is compared with the model that starts from it."""
SHOWN = 4
"""Differences that a message lists."""


def start_from(folder: Path, model: nn.Module, data: Dataset, allow: Sequence[str] = ()) -> None:
    """Give `model` the weights of the network that the run in `folder` deploys.

    Args:
        model: on the data's device, of its dtype; loses the channels that the stored network lacks.
        allow: the modules of which its files may name classes (`artefact.model.load`).

    Raises:
        ConfigError: that network is another one, or made of classes that are not allowed.
        CheckpointError: the run's compact network is damaged.
    """
    x = data.train.x
    try:
        reference = load(folder / "model", allow=allow).to(x.device, x.dtype)
    except NNCompressError as error:
        raise type(error)(f"reference: {error}; give another run, or remove it and train it again") from error
    if is_reshaped(reference):
        with suppress(AttributeError, KeyError):  # then their differences are told
            reshape(model, reference.state_dict(), structure(reference))
    weights = reference.state_dict()
    differences = _differences(weights, model.state_dict())
    if differences:
        shown = ", ".join(differences[:SHOWN]) + (", ..." if len(differences) > SHOWN else "")
        raise ConfigError(f"reference: must be a run of the same network, found that {shown} (there is {folder})")
    model.load_state_dict(weights)
    for network in (reference, model):
        layers_of(network, x[:1])
    if not _agree(reference, model, x[:COMPARED]):
        raise ConfigError(
            f"reference: must be a run of the same network, found that the one in {folder} gives other outputs with "
            "the same weights; give the model its activations and other settings, or another run"
        )
    about = json.loads((folder / "model" / DESCRIPTION).read_text(encoding="utf-8"))
    there, here = (about["dataset"], about["preprocessing"]), (data.name, data.preprocessing)
    if there != here:
        log.warning("the reference was trained on %s (preprocessing: %s), this run takes %s (%s)", *there, *here)


def _differences(there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> list[str]:
    """Return what is not alike in the names and shapes of two networks' tensors, in words."""
    sentences = []
    for name in dict.fromkeys([*there, *here]):
        one, other = (_shape(tensors.get(name)) for tensors in (there, here))
        if one != other:
            sentences.append(f"{name} is {one} there and {other} here")
    return sentences


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else "x".join(map(str, tensor.shape)) or "a number"


@torch.no_grad()
def _agree(there: nn.Module, here: nn.Module, x: Tensor) -> bool:
    """Return whether two networks of equal weights compute the same in evaluation mode, up to rounding."""
    training = here.training
    a, b = there.eval()(x), here.eval()(x)
    here.train(training)
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()), equal_nan=True)
