"""Θ as a module of a layer: values, copies, types, and what a layer keeps of it while it stays the same."""

import copy
import io
from typing import Any

import pytest
import torch
from cases import case
from compact_cases import DENSE_ONLY, OF_LINEAR, fc, pair_of, ways_of
from compression_cases import CASES
from problems import F64, randn
from torch import Tensor, nn
from torch.nn.functional import linear

from nncompress.compressions.decomposition.low_rank import LowRank
from nncompress.compressions.quantization.codebook import Codebook
from nncompress.compressions.sparsity.magnitude import L0
from nncompress.compressions.views import AsMatrix, AsVector
from nncompress.surgery.compact_layers import CACHED, RECONSTRUCT, WAYS
from nncompress.surgery.theta import HeldTheta, power_of_two

pytestmark = pytest.mark.usefixtures("quick")


def test_held_theta_is_theta():
    for param in CASES:
        compression, shape, _ = param.values
        for scaled in (False, True):
            with case(name=param.id, scaled=scaled):
                check_held(compression, shape, scaled)


def check_held(compression: Any, shape: tuple[int, ...], scaled: bool) -> None:
    theta = compression.compress(randn(*shape))
    held = HeldTheta(compression, theta, scaled=scaled)
    assert_same(held.value, theta)
    assert torch.equal(held.delta(), compression.decompress(theta))
    free: list[Tensor] = []
    compression.map_free(theta, lambda t: free.append(t) or t)
    assert [p.shape for p in held.parameters()] == [t.shape for t in free]
    assert all(p.requires_grad for p in held.parameters())
    other = HeldTheta(compression, compression.compress(randn(*shape)), scaled=scaled)
    copied = copy.deepcopy(held)
    with torch.no_grad():
        for tensor in held.parameters():
            tensor.mul_(3)
    assert_same(copied.value, theta)
    if [t.shape for t in other.state_dict().values()] == [t.shape for t in copied.state_dict().values()]:
        other.load_state_dict(copied.state_dict())
        assert_same(other.value, theta)
    single = copied.float()
    assert single.delta().dtype == torch.float32
    torch.testing.assert_close(single.double().delta(), compression.decompress(theta), rtol=1e-5, atol=1e-6)


def assert_same(a: Any, b: Any) -> None:
    """The same classes, values and types."""
    if isinstance(a, Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a.double(), b.double())
    elif isinstance(a, tuple):
        assert (type(a), len(a)) == (type(b), len(b))
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def test_held_theta_shares_nothing_with_the_theta_it_was_made_of():
    theta = LowRank(2).compress(randn(6, 5))
    held = HeldTheta(LowRank(2), theta)
    with torch.no_grad():
        held.free[0].zero_()
    assert bool(theta.U.abs().sum() > 0)
    with pytest.raises(AttributeError):
        held.nothing  # noqa: B018


def test_powers_of_two_are_the_nearest():
    sizes = torch.tensor([0.0, 1.0, 1.4, 1.5, 2.0, 0.25, 3.0, 0.7, 0.72, 1000.0, 1e-30])
    found = power_of_two(sizes)
    assert found[:10].tolist() == [1, 1, 1, 2, 2, 0.25, 4, 0.5, 1, 1024]
    ratio = found[1:] / sizes[1:]
    assert bool((ratio <= 2**0.5 * 1.000001).all() and (ratio >= 0.5**0.5 / 1.000001).all())


# Storage and changes.


CHANGED = [(LowRank(3), AsMatrix()), (L0(0.3), AsVector()), (Codebook(3), AsVector())]


def test_what_is_kept_of_theta_is_made_anew_when_theta_changes():
    for pair in CHANGED:
        with case(pair=pair):
            check_changes(pair)


def check_changes(pair: tuple[Any, Any]) -> None:
    x = randn(4, 20)

    def in_place(layer):
        layer.theta.free[0].mul_(1.5)

    def by_a_view(layer):
        layer.theta.free[0][0].add_(1)

    def in_inference_mode(layer):
        with torch.inference_mode():
            layer.theta.free[0].mul_(1.5)

    def loaded(layer):
        layer.load_state_dict({k: 1.25 * v if v.is_floating_point() else v for k, v in layer.state_dict().items()})

    def assigned(layer):
        state = {k: 1.25 * v if v.is_floating_point() else v for k, v in layer.state_dict().items()}
        layer.load_state_dict(state, assign=True)

    def replaced(layer):
        layer.theta.free[0] = nn.Parameter(1.5 * layer.theta.free[0])

    def of_another_type(layer):
        layer.float().double().theta.free[0].mul_(1.5)

    def stepped(layer):
        with torch.enable_grad():
            layer(x).square().sum().backward()
        torch.optim.SGD(layer.theta.parameters(), 0.01).step()

    for change in (in_place, by_a_view, in_inference_mode, loaded, assigned, replaced, of_another_type, stepped):
        _, layer = pair_of(fc(), *pair)
        with torch.no_grad():
            before = {way: layer.compute(x, way) for way in ways_of(layer)}
            change(layer)
            expected = linear(x, layer.view.split(layer.theta.delta(), [layer.shape])[0], layer.bias)
            for way, old in before.items():
                assert not torch.allclose(old, expected), change.__name__
                torch.testing.assert_close(layer.compute(x, way), expected)


def test_swapped_parameters_are_taken_and_given_back():
    _, layer = pair_of(fc(), LowRank(3), AsMatrix())
    x = randn(4, 20)
    other = {name: 2 * tensor for name, tensor in layer.state_dict().items() if "free" in name}
    with torch.no_grad():
        for way in WAYS:
            layer.ways = (way,)
            layer.choices.clear()
            expected = layer(x)
            found = torch.func.functional_call(layer, other, (x,))
            torch.testing.assert_close(found - layer.bias, 4 * (expected - layer.bias))
            assert torch.equal(layer(x), expected)


def test_what_is_kept_stays_while_theta_does(monkeypatch):
    _, layer = pair_of(fc(), LowRank(3), AsMatrix())
    made = []
    monkeypatch.setattr(LowRank, "decompress", lambda self, theta: made.append(1) or theta.U @ theta.V)
    for _ in range(3):
        layer.compute(randn(4, 20), CACHED)
    assert len(made) == 1
    layer.compute(randn(4, 20), RECONSTRUCT)
    layer.compute(randn(4, 20), RECONSTRUCT)
    assert len(made) == 3


def test_state_copies_and_types_keep_the_function():
    for pair in (OF_LINEAR[0], OF_LINEAR[4], OF_LINEAR[10], *DENSE_ONLY):
        with case(pair=pair):
            check_copies(*pair_of(fc(), *pair))


def check_copies(dense: nn.Module, layer: Any) -> None:
    x = randn(4, 20)
    with torch.no_grad():
        expected = dense(x)
        layer(x)
        copied = copy.deepcopy(layer)
        layer.bias.zero_()
        for tensor in layer.theta.free:
            tensor.zero_()
        torch.testing.assert_close(copied(x), expected)
        layer.load_state_dict(copied.state_dict())
        torch.testing.assert_close(layer(x), expected)
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        torch.testing.assert_close(torch.load(file, weights_only=False)(x), expected)
        single = copied.float()
        assert single(x.float()).dtype == torch.float32
        torch.testing.assert_close(single(x.float()), expected.float(), rtol=1e-4, atol=1e-5)
        assert single.double()(x).dtype == F64


def test_a_copy_keeps_choices_but_nothing_that_was_made_and_another_type_neither():
    _, layer = pair_of(fc(), LowRank(3), AsMatrix(), ways=(CACHED,))
    with torch.no_grad():
        layer(randn(4, 20))
    assert layer._kept
    copied = copy.deepcopy(layer)
    assert not copied._kept
    assert copied.choices == layer.choices
    assert copied.choices is not layer.choices
    assert not layer.float()._kept
    assert not layer.choices
