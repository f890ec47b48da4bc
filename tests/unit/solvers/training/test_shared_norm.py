"""Batch norm over the samples of several processes, here one, beside that of torch."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from cases import case
from minibatch_cases import convolutional
from problems import F64, randn
from torch import nn

from nncompress.surgery.norms import SharedNorm, shared_norms

NORMS = [(6, 3), (5, 3, 4), (4, 3, 2, 5)]


def norm_of(shape: tuple[int, ...], **settings: Any) -> nn.Module:
    """Torch's batch norm for samples of this shape, its parameters and buffers not those of the start."""
    torch.manual_seed(1)
    made = [nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d][len(shape) - 2](3, eps=1e-3, momentum=0.3, **settings)
    for tensor in [*made.parameters(), made.running_mean, made.running_var]:
        nn.init.uniform_(tensor, 0.5, 2)
    return made.to(F64)


def test_a_norm_over_one_process_computes_what_that_of_torch_does() -> None:
    for shape, affine in itertools.product(NORMS, (True, False)):
        with case(shape=shape, affine=affine):
            assert_torchs(shape, affine)


def assert_torchs(shape: tuple[int, ...], affine: bool) -> None:
    theirs = norm_of(shape, affine=affine)
    ours = SharedNorm(copy.deepcopy(theirs))
    for k in range(3):
        x = randn(*shape, seed=k) * 3 + 1
        a, b = (x.clone().requires_grad_() for _ in range(2))
        weights = randn(*shape, seed=9)
        found, expected = ours(a), theirs(b)
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
        for output in (found, expected):
            (output * weights).sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-11, atol=1e-12)
    for (name, one), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14, msg=name)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-11, atol=1e-13)


def test_the_gradient_of_a_norm_over_processes_is_that_of_its_differences() -> None:
    for shape in NORMS:
        norm = SharedNorm(norm_of(shape))
        inputs = (randn(*shape).requires_grad_(), norm.weight, norm.bias)
        with case(shape=shape):
            assert torch.autograd.gradcheck(lambda x, weight, bias, norm=norm: norm(x), inputs)


def test_a_norm_over_processes_shares_parameters_and_buffers_with_the_one_it_replaces() -> None:
    norm = norm_of((2, 3))
    shared = SharedNorm(norm)
    assert shared.weight is norm.weight
    assert shared.running_mean is norm.running_mean
    assert list(shared.state_dict()) == list(norm.state_dict())
    with pytest.raises(ValueError, match=r"batch norm needs \(n, channels, ...\), found 1 dimensions"):
        shared.eval()(torch.ones(3, dtype=F64))


def test_one_process_keeps_the_norms_of_torch() -> None:
    model = convolutional()
    assert shared_norms(model) is model
    assert not any(isinstance(module, SharedNorm) for module in model.modules())
