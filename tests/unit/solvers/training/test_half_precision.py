"""Epochs in bfloat16: what is computed in it, what stays float32, the layout of images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from minibatch_cases import CHANGES, Seen, convolutional, descent, generator, images, trained
from problems import F64, gaussian, problem
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nncompress.compressions.plan import none
from nncompress.data.augmentation import Augmentations, Cutout, Rotation
from nncompress.problem import Computation, Dataset
from nncompress.solvers.training.minibatches import Minibatches, epoch

HALF = Computation(half=True)


def halved(data: Dataset, size: int = 4, at: int = 3, **settings: Any) -> tuple[nn.Module, Tensor, list[Tensor]]:
    """The network after an epoch in bfloat16, the loss, and what a module of it was given and gave."""
    model = convolutional(data.train.x.dtype).to(memory_format=torch.channels_last)
    seen: list[Tensor] = []
    model[at].register_forward_hook(lambda module, args, output: seen.extend([args[0], output]))
    p = replace(problem(data, model, none), computation=HALF, **settings)
    return model, epoch(p, model, Minibatches(size, generator()), optimizer=descent(model)), seen


def test_in_bfloat16_weights_and_gradients_stay_float32_and_close_to_those_of_float32() -> None:
    data = images(40, dtype=torch.float32, augmentation=CHANGES)
    model, value, seen = halved(data, size=10)
    wide, (exact,) = trained(data, size=10)
    assert {x.dtype for x in seen} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}
    assert float(value) == pytest.approx(float(exact), rel=0.02)
    assert value != exact
    for p, q in zip(model.parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0.05, atol=0.02)


def test_in_bfloat16_images_and_filters_keep_channels_last() -> None:
    data = images(dtype=torch.float32, augmentation=Augmentations(parts=[*CHANGES.parts, Cutout(size=2), Rotation()]))
    for at in (0, 3):
        model, _, seen = halved(data, at=at)
        assert all(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous() for x in seen)
    weights = [model[0].weight, model[3].weight]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    assert all(w.grad.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_in_bfloat16_logits_are_compared_with_the_labels_in_float32() -> None:
    seen = []

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        seen.append(logits.dtype)
        return cross_entropy(logits, y)

    halved(images(dtype=torch.float32), loss=loss)
    assert seen == 3 * [torch.float32]


def test_samples_that_are_no_images_are_computed_in_bfloat16_too() -> None:
    model = nn.Sequential(nn.Linear(12, 8), Seen(), nn.ReLU(), nn.Linear(8, 3))
    p = replace(problem(gaussian(dtype=torch.float32), model, none), computation=HALF)
    epoch(p, model, Minibatches(40, generator()), optimizer=descent(model))
    assert {x.dtype for x in model[1].given} == {torch.bfloat16}


def test_in_full_precision_type_and_layout_are_those_of_the_data() -> None:
    model = nn.Sequential(Seen(), nn.Conv2d(2, 3, 3), Seen(), nn.Flatten(), nn.Linear(18, 3)).to(F64)
    p = problem(images(), model, none)
    epoch(p, model, Minibatches(4, generator()), optimizer=descent(model))
    assert all(x.dtype == F64 and x.is_contiguous() for x in model[0].given + model[2].given)
