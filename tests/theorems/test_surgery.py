"""Every network without its dead channels: what it says of its channels, the same outputs, shapes, files, multiples."""

import copy
import json
import os

import pytest
import torch
from cases import case
from image_networks import BRANCHED, SMALL, norms, of_each_class, outputs
from problems import F64, problem, randn, small_digits
from smaller_networks import (
    ARCHITECTURES,
    assert_same,
    checked,
    everything,
    nothing,
    random_keep,
    scores_of,
    stored,
    zeroed,
)
from torch import Tensor, nn

from nncompress import metrics
from nncompress.artefact.model import load
from nncompress.compressions.plan import none
from nncompress.config.build import build
from nncompress.problem import Dataset, Problem, Split
from nncompress.solvers.slimming.proximal import Slimming
from nncompress.solvers.slimming.scales import Scales
from nncompress.surgery.channels import guard_channels, is_reshaped, kept_in, mask_channels
from nncompress.surgery.pruning import smaller
from nncompress.surgery.removal import NoBranch, remove_channels, reshape, structure

Network = nn.Module
MULTIPLE = 4


def equal_states(a: Network, b: Network) -> bool:
    """The same names in the same order, the same numbers."""
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(map(torch.equal, first.values(), second.values()))


# What a network says of its channels.


@of_each_class()
def test_the_scales_are_the_batch_norms_in_forward_order_and_the_layers_around_them_have_their_channels(
    name, network, x
):
    names = {module: key for key, module in network.named_modules()}
    used: list[str] = []
    for norm in norms(network):
        norm.register_forward_hook(lambda module, args, output: used.append(names[module]))
    network(x)
    if name == "resnet18":  # its stream stays
        used = [key for key in used if key.startswith("blocks") and key.endswith("bn1")]
    scales = network.scales()
    assert [scale.norm for scale in scales] == used
    for scale in scales:
        channels = network.get_submodule(scale.norm).num_features
        assert scale.consumers
        assert {network.get_submodule(consumer).weight.shape[1] for consumer in scale.consumers} == {channels}
        if scale.producer is not None:
            assert network.get_submodule(scale.producer).weight.shape[0] == channels
    branches = {scale.branch for scale in scales} - {None}
    assert len(branches) == (len(network.blocks) if name.startswith(("preresnet", "wide")) else 0)


@of_each_class()
def test_a_channel_without_scale_and_shift_is_one_that_no_consumer_reads_and_no_producer_need_make(name, network, x):
    with torch.no_grad():
        for norm in norms(network):
            norm.bias[0] = 1  # the channel is alive
        before, state = network(x), copy.deepcopy(network.state_dict())
        for scale in network.scales():
            norm = network.get_submodule(scale.norm)
            norm.weight[0], norm.bias[0] = 0, 0
            if scale.producer is not None:
                network.get_submodule(scale.producer).weight[0] = 7
            dead = network(x)
            network.load_state_dict(state)
            for consumer in scale.consumers:
                network.get_submodule(consumer).weight[:, 0] = 0
            unread = network(x)
            network.load_state_dict(state)
            torch.testing.assert_close(dead, unread, rtol=1e-12, atol=1e-12)
            assert not torch.allclose(before, unread)


class Zero(nn.Module):
    """What may stand for a branch that gives nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


@of_each_class(BRANCHED)
def test_a_branch_whose_last_scale_has_no_channel_gives_zeros_and_takes_its_scales_and_readers_with_it(
    name, network, x
):
    scales = network.scales()
    last = {scale.branch: scale.norm for scale in scales if scale.branch is not None}
    state = copy.deepcopy(network.state_dict())
    for place, norm in last.items():
        branch = network.get_submodule(place)
        nn.init.zeros_(network.get_submodule(norm).weight)
        nn.init.zeros_(network.get_submodule(norm).bias)
        dead = outputs(network, x)
        network.set_submodule(place, Zero())
        assert torch.equal(dead, outputs(network, x))
        present, left = dict(network.named_modules()), network.scales()
        assert [scale.norm for scale in left] == [scale.norm for scale in scales if scale.branch != place]
        assert all(consumer in present for scale in left for consumer in scale.consumers)
        network.set_submodule(place, branch)
        network.load_state_dict(state)


# Smaller networks that compute the same.


@of_each_class()
def test_without_its_dead_channels_a_network_computes_the_same(name, network, x):
    before, whole = copy.deepcopy(network.state_dict()), outputs(network, x)
    for share in (0.0, 0.3, 0.8):
        with case(share=share):
            keep = random_keep(network, share, seed=int(10 * share))
            found = checked(network, keep, x)
            assert all(map(torch.equal, network.state_dict().values(), before.values()))
            left = kept_in(found)
            assert all(bool(mask.all()) and len(mask) == int(keep[norm].sum()) for norm, mask in left.items())
            assert left.keys() == keep.keys()
            assert not torch.allclose(outputs(found, x), whole)


@of_each_class()
def test_the_layers_of_a_smaller_network_state_the_sizes_of_their_tensors_and_it_trains(name, network, x):
    found = remove_channels(mask_channels(network, random_keep(network, 0.5))).train()
    for module in found.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels)
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.BatchNorm2d):
            assert {len(t) for t in (module.weight, module.bias, module.running_mean)} == {module.num_features}
    nn.functional.cross_entropy(found(x), torch.tensor([0, 1, 2])).backward()
    assert all(p.grad is not None and p.requires_grad for p in found.parameters())


@of_each_class()
def test_with_all_channels_nothing_changes(name, network, x):
    found = remove_channels(mask_channels(network, everything(network)))
    assert not is_reshaped(found)
    assert equal_states(found, network)
    same, words = smaller(network, x)
    assert same is network
    assert words is None
    folded = mask_channels(network, everything(network), fold=True)
    assert_same(folded, network, x)
    assert folded.state_dict().keys() == network.state_dict().keys()


@of_each_class()
def test_channels_taken_out_in_two_goes_are_those_taken_out_at_once(name, network, x):
    first, second = random_keep(network, 0.7, 1), random_keep(network, 0.7, 2)
    for norm, mask in second.items():
        mask[first[norm].nonzero()[0]] = True  # one of both
    once = checked(network, {norm: first[norm] & second[norm] for norm in first}, x)
    half = remove_channels(mask_channels(network, first))
    twice = remove_channels(mask_channels(half, {norm: second[norm][first[norm]] for norm in first}))
    assert equal_states(once, twice)
    assert torch.equal(outputs(once, x), outputs(twice, x))


@of_each_class()
def test_a_layer_without_any_channel_goes_with_its_branch_or_keeps_the_best(name, network, x):
    scores, seen = scores_of(network), []
    for scale in network.scales():
        keep = everything(network)
        keep[scale.norm][:] = False
        full, words = guard_channels(network, keep, scores)
        gone = [norm for norm, mask in full.items() if not mask.any()]
        if scale.branch is None:
            assert gone == []
            assert full[scale.norm].nonzero().flatten().tolist() == [int(scores[scale.norm].argmax())]
            assert words == [f"no channel is left in {scale.norm}: the one with the largest scale stays"]
        else:
            assert gone == [s.norm for s in network.scales() if s.branch == scale.branch]
            assert words == [f"a layer has no channel left in {scale.branch}: the block is its shortcut alone"]
        rest = [norm for norm in full if norm not in gone and norm != scale.norm]
        assert all(bool(full[norm].all()) for norm in rest)
        if gone not in seen or not gone:  # the layers of a branch go together
            checked(network, full, x)
        seen.append(gone)


@of_each_class(BRANCHED)
def test_a_block_with_a_dead_layer_is_its_shortcut(name, network, x):
    keep = everything(network)
    for norm in {scale.branch: scale.norm for scale in network.scales() if scale.branch}.values():  # the last of each
        keep[norm][:] = False
    found = remove_channels(mask_channels(network, guard_channels(network, keep, scores_of(network))[0]))
    assert len(found.blocks) == len(network.blocks)
    seen: list[tuple[nn.Module, Tensor]] = []
    for block in found.blocks:
        assert isinstance(block.branch, NoBranch)
        for module in (block.shortcut, block):
            module.register_forward_hook(lambda module, args, out: seen.append((module, out)))
    found.eval()(x)
    given = dict(seen)
    assert all(torch.equal(given[block.shortcut], given[block]) for block in found.blocks)


@of_each_class()
def test_of_a_network_without_any_channel_what_must_stay_stays_and_unguarded_one_in_a_layer(name, network, x):
    full, _ = guard_channels(network, nothing(network), scores_of(network))
    without = {scale.norm for scale in network.scales() if scale.branch}
    assert all(int(mask.sum()) == (norm not in without) for norm, mask in full.items())
    found = checked(network, full, x)
    assert set(kept_in(found)) == set(full) - without
    assert not is_reshaped(remove_channels(network))
    assert equal_states(remove_channels(found), found)
    unguarded = nothing(network)
    unguarded[network.scales()[0].norm][:] = True  # so that its branch has a channel
    assert all(len(mask) >= 1 for mask in kept_in(checked(network, unguarded, x)).values())


@of_each_class()
def test_folded_constants_change_nothing_where_no_zeros_are_padded(name, network, x):
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
    keep = random_keep(network, 0.4)
    folded = mask_channels(network, keep, fold=True)
    assert_same(folded, zeroed(network, keep), x)
    assert_same(remove_channels(folded), folded, x)
    assert not torch.allclose(outputs(mask_channels(network, keep), x), outputs(folded, x))


# Storage.


@of_each_class()
def test_a_new_network_takes_the_shapes_and_then_the_weights(name, network, x):
    branch = next((scale.branch for scale in network.scales() if scale.branch), None)
    guardedly, _ = guard_channels(network, random_keep(network, 0.4), scores_of(network))
    for fold in (False, True):
        with case(fold=fold):
            stays = branch is None or fold
            keep = {norm: mask & (stays or not norm.startswith(branch)) for norm, mask in guardedly.items()}
            found = remove_channels(mask_channels(network, keep, fold=fold))
            about = json.loads(json.dumps(structure(found)))
            assert about["without"] == ([] if stays else [branch])
            new = SMALL[name][0]().to(F64)
            reshape(new, found.state_dict(), about)
            new.load_state_dict(found.state_dict())
            assert torch.equal(outputs(new, x), outputs(found, x))
            assert is_reshaped(new)
            assert structure(new) == structure(found)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_file_of_a_smaller_network_gives_it_again_and_takes_what_is_left(name, tmp_path):
    found, x = stored(tmp_path, name)
    loaded = load(tmp_path)
    assert torch.equal(outputs(loaded, x), outputs(found, x))
    assert is_reshaped(loaded)
    assert equal_states(loaded, found)
    assert [t.dtype for t in loaded.state_dict().values()] == [t.dtype for t in found.state_dict().values()]
    torch.testing.assert_close(outputs(load(tmp_path, compact=True), x), outputs(found, x), rtol=0, atol=1e-6)
    node = json.loads((tmp_path / "model.json").read_text())["architecture"]
    dense = problem(Dataset(Split(x, x), Split(x, x), 5, "noise"), build(node, input_shape=(1, 8, 8), num_classes=5))
    bits = metrics.file_bits(dense, (), found)["compressed"]
    assert bits / 8 <= sum(entry.stat().st_size for entry in os.scandir(tmp_path)) <= 1.02 * bits / 8 + 4096
    again = kept_in(loaded)
    first = next(iter(again))
    again[first] = torch.arange(len(again[first])) == 0
    checked(loaded.to(F64), again, x.to(F64))


# Multiples.


@of_each_class()
def test_with_round_to_every_selection_is_a_multiple_and_the_smaller_network_computes_the_same(name, network, x):
    data, total = small_digits(20), len(Scales.of(network).gamma())
    xi = randn(total) * (torch.rand(total, generator=torch.Generator().manual_seed(1)) < 0.3)
    method = Slimming(num_steps=1, batch_size=20, lam=1.0, beta=5.0)

    def left(multiple: int) -> tuple[Network, list[int]]:
        p = Problem(network, data, none({}), round_to=multiple)
        found = method.masked_network(p, method.init(p)._replace(xi=xi))
        return found, [int(mask.sum()) for mask in kept_in(found).values()]

    (found, counts), (_, own) = left(MULTIPLE), left(1)
    sizes = [len(mask) for mask in kept_in(network).values()]
    assert all(k in (0, size) or k % MULTIPLE == 0 for k, size in zip(counts, sizes, strict=True))
    assert all((a == 0) == (b == 0) and a <= b < a + MULTIPLE for a, b in zip(own, counts, strict=True))
    smaller_one, words = smaller(found, x)
    assert words is None
    assert [len(mask) for mask in kept_in(smaller_one).values()] == [k for k in counts if k]
    assert_same(smaller_one, found, x)
