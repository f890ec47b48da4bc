"""The removal of channels: the same outputs from smaller networks, dead layers, folding, storage, sizes, lies."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import F64, problem, randn, small_digits
from runs import resign, rows, summary, train
from test_cifar_models import SMALL, count, every, norms, small
from torch import Tensor, nn

from nncompress import config
from nncompress.channels import Scale, guarded, is_reshaped, kept_in, masked, norm_of, scales_of
from nncompress.compact.artefact import load, save_compact
from nncompress.compact.removal import NoBranch, SelectedNorm, removed, reshape, structure
from nncompress.compact.smaller import smaller
from nncompress.errors import CheckpointError
from nncompress.metrics import huffman_bits, layers_of, macs, sizes
from nncompress.models.vgg import VGG
from nncompress.problem import Dataset, Split
from nncompress.solvers.base import Observation

Keep = dict[str, Tensor]
BRANCHED = ("preresnet-basic", "preresnet-bottleneck", "wide-resnet", "wide-resnet-dropout")


def random_keep(network: nn.Module, share: float, seed: int = 0) -> Keep:
    """Each channel stays with probability `share`, and a random one of each batch norm."""
    g = torch.Generator().manual_seed(seed)
    keep = {name: torch.rand(len(mask), generator=g) < share for name, mask in kept_in(network).items()}
    for mask in keep.values():
        mask[int(torch.randint(len(mask), (), generator=g))] = True
    return keep


def scores_of(network: nn.Module) -> Keep:
    return {scale.norm: norm_of(network, scale).weight.detach().abs() for scale in scales_of(network)}


def outputs(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(network).eval()(x)


def assert_same(a: nn.Module, b: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(outputs(a, x), outputs(b, x), rtol=1e-10, atol=1e-10)


def checked(network: nn.Module, keep: Mapping[str, Tensor], x: Tensor) -> nn.Module:
    """The smaller network, once it is found to compute what the masked one does."""
    dead = masked(network, keep)
    found = removed(dead)
    assert_same(found, dead, x)
    assert is_reshaped(found)
    assert count(found) < count(network)
    return found


# Smaller networks that compute the same.


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
@every
def test_without_its_dead_channels_a_network_computes_the_same(name, share):
    network, x = small(name)
    before = copy.deepcopy(network.state_dict())
    keep = random_keep(network, share, seed=int(10 * share))
    found = checked(network, keep, x)
    assert all(map(torch.equal, network.state_dict().values(), before.values()))
    left = kept_in(found)
    assert all(bool(mask.all()) and len(mask) == int(keep[norm].sum()) for norm, mask in left.items())
    assert left.keys() == keep.keys()
    assert not torch.allclose(outputs(found, x), outputs(network, x))


@every
def test_layers_state_the_sizes_of_their_tensors(name):
    network, _ = small(name)
    for module in removed(masked(network, random_keep(network, 0.5))).modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels)
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.BatchNorm2d):
            assert {len(t) for t in (module.weight, module.bias, module.running_mean)} == {module.num_features}


@every
def test_the_smaller_network_trains(name):
    network, x = small(name)
    found = removed(masked(network, random_keep(network, 0.5))).train()
    nn.functional.cross_entropy(found(x), torch.tensor([0, 1, 2])).backward()
    assert all(p.grad is not None and p.requires_grad for p in found.parameters())


@every
def test_with_all_channels_nothing_changes(name):
    network, x = small(name)
    keep = {norm: torch.ones_like(mask) for norm, mask in kept_in(network).items()}
    found = removed(masked(network, keep))
    assert not is_reshaped(found)
    assert found.state_dict().keys() == network.state_dict().keys()
    assert all(map(torch.equal, found.state_dict().values(), network.state_dict().values()))
    same, words = smaller(network, x)
    assert same is network
    assert words is None


@every
def test_channels_taken_out_in_two_goes_are_those_taken_out_at_once(name):
    network, x = small(name)
    first, second = random_keep(network, 0.7, 1), random_keep(network, 0.7, 2)
    for norm, mask in second.items():
        mask[first[norm].nonzero()[0]] = True  # one of both
    both = {norm: first[norm] & second[norm] for norm in first}
    once = checked(network, both, x)
    half = removed(masked(network, first))
    twice = removed(masked(half, {norm: second[norm][first[norm]] for norm in first}))
    assert once.state_dict().keys() == twice.state_dict().keys()
    assert all(map(torch.equal, once.state_dict().values(), twice.state_dict().values()))
    assert torch.equal(outputs(once, x), outputs(twice, x))


@every
def test_a_layer_without_any_channel_goes_with_its_branch_or_keeps_the_best(name):
    network, x = small(name)
    for scale in network.scales():
        keep = {norm: torch.ones_like(mask) for norm, mask in kept_in(network).items()}
        keep[scale.norm][:] = False
        scores = scores_of(network)
        full, words = guarded(network, keep, scores)
        checked(network, full, x)
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


@pytest.mark.parametrize("name", BRANCHED)
def test_a_block_with_a_dead_layer_is_its_shortcut(name):
    network, x = small(name)
    for block in network.blocks:
        dead = copy.deepcopy(network)
        place = next(key for key, module in network.named_modules() if module is block)
        keep = {norm: torch.ones_like(mask) for norm, mask in kept_in(network).items()}
        last = [norm for norm in keep if norm.startswith(f"{place}.branch")][-1]
        keep[last][:] = False
        full, _ = guarded(dead, keep, scores_of(dead))
        found = removed(masked(dead, full))
        branchless = found.get_submodule(place)
        assert isinstance(branchless.branch, NoBranch)
        seen: list[tuple[Tensor, Tensor]] = []
        branchless.shortcut.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out))
        branchless.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out))
        found.eval()(x)
        assert torch.equal(*seen)


def test_without_branches_the_best_channel_of_a_residual_layer_stays():
    network, x = small("preresnet-bottleneck")
    keep = {norm: torch.zeros_like(mask) for norm, mask in kept_in(network).items()}
    full, words = guarded(network, keep, scores_of(network), branches=False)
    assert all(int(mask.sum()) == 1 for mask in full.values())
    assert len(words) == 1
    assert f" and {len(full) - 4} more: the one with the largest scale stays" in words[0]
    checked(network, full, x)


@every
def test_of_a_network_without_any_channel_what_must_stay_stays(name):
    network, x = small(name)
    keep = {norm: torch.zeros_like(mask) for norm, mask in kept_in(network).items()}
    full, _ = guarded(network, keep, scores_of(network))
    without = {scale.norm for scale in network.scales() if scale.branch}
    assert all(int(mask.sum()) == (norm not in without) for norm, mask in full.items())
    found = checked(network, full, x)
    again = {norm: mask.clone() for norm, mask in kept_in(found).items()}
    assert set(again) == set(full) - without
    assert not is_reshaped(removed(network))
    assert all(map(torch.equal, removed(found).state_dict().values(), found.state_dict().values()))


@every
def test_dead_channels_that_nobody_guards_leave_one_in_a_layer(name):
    network, x = small(name)
    keep = {norm: torch.zeros_like(mask) for norm, mask in kept_in(network).items()}
    first = network.scales()[0].norm
    keep[first][:] = True  # so that its branch has a channel
    found = checked(network, keep, x)
    assert all(len(mask) >= 1 for mask in kept_in(found).values())


def test_a_channel_of_vgg19s_second_convolution_takes_1730_parameters_with_it():
    network = VGG((3, 32, 32), 10)
    keep = kept_in(network)
    keep["features.bn1_2"][17] = False
    found = removed(masked(network, keep))
    assert count(network) - count(found) == 9 * 64 + 2 + 9 * 128 == 1730
    assert found.features.conv1_2.weight.shape == (63, 64, 3, 3)
    assert found.features.conv2_1.weight.shape == (128, 63, 3, 3)
    assert torch.equal(found.features.conv1_2.weight[16:18], network.features.conv1_2.weight[[16, 18]])


def test_what_reads_a_residual_stream_or_a_concatenation_selects_its_channels():
    network, x = small("densenet")
    found = checked(network, random_keep(network, 0.5), x)
    for name, mask in random_keep(network, 0.5).items():
        module = found.get_submodule(name)
        if isinstance(module, SelectedNorm):
            assert module.indices.tolist() == mask.nonzero().flatten().tolist()
        else:
            assert bool(mask.all())
    assert found.features.dense1_1.conv.weight.shape[0] == network.features.dense1_1.conv.weight.shape[0]


# What dead channels still give.


def zeroed(network: nn.Module, keep: Mapping[str, Tensor]) -> nn.Module:
    """Scale 0 where a channel does not stay, its shift as it was."""
    found = copy.deepcopy(network)
    for scale in scales_of(found):
        norm_of(found, scale).weight.data.masked_fill_(~keep[scale.norm], 0)
    return found


@every
def test_folded_constants_change_nothing_where_no_zeros_are_padded(name):
    network, x = small(name)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
    keep = random_keep(network, 0.4)
    folded = masked(network, keep, fold=True)
    assert_same(folded, zeroed(network, keep), x)
    assert_same(removed(folded), folded, x)
    assert not torch.allclose(outputs(masked(network, keep), x), outputs(folded, x))


class Valid(nn.Module):
    """3x3 without padding, 1x1, the average, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 7, 3), nn.BatchNorm2d(7)
        self.conv2, self.bn2 = nn.Conv2d(7, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return self.fc(x.mean((2, 3)))

    def scales(self) -> list[Scale]:
        return [Scale("bn1", "conv1", ("conv2",)), Scale("bn2", "conv2", ("fc",))]


def trained(network: nn.Module) -> nn.Module:
    """With batch norms as after training."""
    torch.manual_seed(0)
    network = network.to(F64)
    for norm in norms(network):
        for tensor, low, high in ((norm.weight, 0.3, 1), (norm.bias, -0.2, 0.4), (norm.running_var, 0.5, 2)):
            nn.init.uniform_(tensor, low, high)
        nn.init.uniform_(norm.running_mean, -0.2, 0.2)
    return network.eval()


def test_folding_is_exact_without_padding():
    network, x = trained(Valid()), randn(3, 1, 6, 5)
    keep = random_keep(network, 0.5)
    folded = masked(network, keep, fold=True)
    assert_same(folded, zeroed(network, keep), x)
    checked_folded = removed(folded)
    assert_same(checked_folded, folded, x)
    assert count(checked_folded) < count(network)


def test_folding_is_exact_in_the_interior_of_padded_images_and_for_the_linear_layer():
    network, x = trained(VGG((1, 8, 8), 5, layers=[2], width=0.1)), randn(3, 1, 8, 8)
    keep = random_keep(network, 0.5)
    expected, found = (copy.deepcopy(n) for n in (zeroed(network, keep), masked(network, keep, fold=True)))
    with torch.no_grad():
        a, b = expected.features(x), found.features(x)
    alive = keep["features.bn1_2"]
    torch.testing.assert_close(b[:, alive, 1:-1, 1:-1], a[:, alive, 1:-1, 1:-1], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(b[:, alive], a[:, alive])
    keep = {"features.bn1_1": torch.ones(6, dtype=torch.bool), "features.bn1_2": alive}  # the linear layer alone
    assert_same(masked(network, keep, fold=True), zeroed(network, keep), x)


def test_constants_go_into_the_running_mean_of_the_batch_norm_behind_or_else_into_a_bias():
    vgg, _ = small("vgg-stages")
    keep = random_keep(vgg, 0.5)
    folded = masked(vgg, keep, fold=True)
    assert folded.state_dict().keys() == vgg.state_dict().keys()
    constant = torch.where(keep["features.bn1_1"], 0, vgg.features.bn1_1.bias.detach().relu())
    made = vgg.features.conv2_1.weight.detach().sum((2, 3)) @ constant
    torch.testing.assert_close(folded.features.bn2_1.running_mean, vgg.features.bn2_1.running_mean - made)
    constant = torch.where(keep["features.bn3_1"], 0, vgg.features.bn3_1.bias.detach().relu())
    torch.testing.assert_close(folded.fc.bias.detach(), vgg.fc.bias.detach() + vgg.fc.weight.detach() @ constant)
    residual, _ = small("preresnet-basic")
    branch = residual.blocks[0].branch
    branch.bn2.bias.data.abs_()
    keep = random_keep(residual, 0.5)
    constant = torch.where(keep["blocks.0.branch.bn2"], 0, branch.bn2.bias.detach().relu())
    found = masked(residual, keep, fold=True).blocks[0].branch.conv2.bias.detach()
    torch.testing.assert_close(found, branch.conv2.weight.detach().sum((2, 3)) @ constant)


@every
def test_folding_without_a_dead_channel_changes_nothing(name):
    network, x = small(name)
    keep = {norm: torch.ones_like(mask) for norm, mask in kept_in(network).items()}
    folded = masked(network, keep, fold=True)
    assert_same(folded, network, x)
    assert folded.state_dict().keys() == network.state_dict().keys()


# Storage.


@pytest.mark.parametrize("fold", [False, True])
@every
def test_a_new_network_takes_the_shapes_and_then_the_weights(name, fold):
    network, x = small(name)
    keep, _ = guarded(network, random_keep(network, 0.4), scores_of(network))
    branch = next((scale.branch for scale in network.scales() if scale.branch), None)
    keep = {norm: mask & (branch is None or fold or not norm.startswith(branch)) for norm, mask in keep.items()}
    found = removed(masked(network, keep, fold=fold))
    about = json.loads(json.dumps(structure(found)))
    assert about["without"] == ([] if branch is None or fold else [branch])
    new = SMALL[name][0]().to(F64)
    reshape(new, found.state_dict(), about)
    new.load_state_dict(found.state_dict())
    assert torch.equal(outputs(new, x), outputs(found, x))
    assert is_reshaped(new)
    assert structure(new) == structure(found)


ARCHITECTURES: dict[str, dict[str, object]] = {
    "vgg": {"_target_": "nncompress.models.vgg.VGG", "layers": [1, 2, 1], "width": 0.1},
    "preresnet": {"_target_": "nncompress.models.preresnet.PreResNet", "depth": 20, "width": 0.25},
    "densenet": {"_target_": "nncompress.models.densenet.DenseNet", "depth": 10, "growth": 3},
    "resnet18": {"_target_": "nncompress.models.resnet.ResNet18", "width": 0.06},
    "wide_resnet": {"_target_": "nncompress.models.wide_resnet.WideResNet", "depth": 10, "widen": 1},
}


def stored(folder: Path, name: str) -> tuple[nn.Module, Tensor]:
    """A smaller network written to a folder, in float32, and samples."""
    torch.manual_seed(0)
    network = trained(config.build(ARCHITECTURES[name], input_shape=(1, 8, 8), num_classes=5)).float()
    keep = random_keep(network, 0.5)
    for norm, mask in keep.items():
        mask &= "blocks.1.branch" not in norm
    found = removed(masked(network, guarded(network, keep, scores_of(network))[0]))
    x = randn(4, 1, 8, 8, dtype=torch.float32)
    split = Split(x, torch.tensor([0, 1, 2, 3]))
    p = problem(Dataset(split, split, 5, "noise"), network)
    save_compact(folder, p, Observation(network, (), {}), ARCHITECTURES[name], found)
    return found, x


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_smaller_network_is_loaded_as_it_was_stored(name, tmp_path):
    found, x = stored(tmp_path, name)
    loaded = load(tmp_path)
    assert torch.equal(outputs(loaded, x), outputs(found, x))
    assert is_reshaped(loaded)
    assert loaded.state_dict().keys() == found.state_dict().keys()
    assert [t.dtype for t in loaded.state_dict().values()] == [t.dtype for t in found.state_dict().values()]
    again = kept_in(loaded)
    first = next(iter(again))
    again[first] = torch.arange(len(again[first])) == 0
    checked(loaded.to(F64), again, x.to(F64))


@pytest.mark.parametrize(
    "damage", ["nothing said", "another branch", "no selection", "another selection", "other width"]
)
def test_a_description_that_does_not_fit_the_tensors_is_refused(damage, tmp_path):
    stored(tmp_path, "preresnet")

    def damaged(about: dict[str, Any]) -> None:
        if damage == "nothing said":
            del about["channels"]
        elif damage == "another branch":
            about["channels"]["without"] = ["blocks.7.branch"]
        elif damage == "no selection":
            about["channels"]["selected"] = []
        elif damage == "another selection":
            about["channels"]["selected"] = ["head.nothing"]
        else:
            next(iter(about["channels"]["shapes"].values()))[0] += 1

    resign(tmp_path, damaged)
    with pytest.raises(CheckpointError, match=r"model.json must describe (a network that fits|what) model.safetensors"):
        load(tmp_path)


# Networks that say something wrong, or nothing.


class Wrong(Valid):
    """Says what is not so."""

    said: tuple[Scale, ...] = ()

    def scales(self) -> list[Scale]:
        return list(self.said)


SECOND = Scale("bn2", "conv2", ("fc",))
LIES = {
    "no consumer": (Scale("bn1", "conv1", ()), SECOND),
    "another consumer": (Scale("bn1", "conv1", ("fc",)), SECOND),
    "a smaller consumer": (Scale("bn1", "conv1", ("conv1",)), SECOND),
    "no producer": (Scale("bn1", "conv2", ("conv2",)), SECOND),
    "a consumer that is not there": (Scale("bn1", "conv1", ("conv3",)), SECOND),
    "a branch that counts": (Scale("bn1", "conv1", ("conv2",), "conv1"), SECOND),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_network_that_says_something_wrong_stays_as_large_as_it_was_and_that_is_said(lie):
    network, x = trained(Wrong()), randn(3, 1, 6, 5)
    network.said = LIES[lie]
    keep = {"bn1": torch.arange(7) == 6, "bn2": torch.arange(6) > 1}
    if lie == "a branch that counts":
        keep["bn1"][:] = False
    dead = masked(network, keep)
    found, words = smaller(dead, x)
    assert found is dead
    assert words is not None
    assert "masked" in words


class Shifted(Valid):
    """A function between batch norm and reader that does not map 0 to 0."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.conv2(torch.sigmoid(self.bn1(self.conv1(x))))).relu()
        return self.fc(x.mean((2, 3)))


def test_a_network_whose_outputs_would_be_others_stays_as_large_as_it_was():
    network, x = trained(Shifted()), randn(3, 1, 6, 5)
    dead = masked(network, {"bn1": torch.arange(7) > 2, "bn2": torch.ones(6, dtype=torch.bool)})
    found, words = smaller(dead, x)
    assert found is dead
    assert words is not None
    assert "largest difference" in words


def test_of_a_network_that_says_nothing_channels_are_found_by_its_graph():
    x = randn(3, 1, 6, 5)
    network = trained(nn.Sequential(nn.Conv2d(1, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 4, 1)))
    dead = masked(network, {"1": torch.arange(7) > 2})
    found, words = smaller(dead, x)
    assert words is None
    assert count(network) - count(found) == 3 * (9 + 1 + 2 + 4)
    assert_same(found, dead, x)


def test_a_batch_norm_without_scale_and_shift_is_no_scale():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4))
    assert [scale.norm for scale in scales_of(network)] == ["2"]


# Sizes.


def test_sizes_and_operations_of_a_smaller_vgg_are_those_counted_by_hand():
    network, _ = small("vgg-stages")
    data = small_digits(20)
    p = problem(data, network)
    channels, left = [6, 13, 13, 26], [2, 5, 1, 9]
    keep = {scale.norm: torch.arange(c) < k for scale, c, k in zip(network.scales(), channels, left, strict=True)}
    found = removed(masked(network, keep))

    def params(c):
        chain = 9 * (1 * c[0] + c[0] * c[1] + c[1] * c[2] + c[2] * c[3])
        return chain + 2 * sum(c) + 5 * c[3] + 5

    def operations(c):
        return 9 * (64 * c[0] + 16 * c[0] * c[1] + 16 * c[1] * c[2] + 4 * c[2] * c[3]) + 5 * c[3]

    size = sizes(p, (), found)
    assert (size["params/dense"], size["params/compressed"]) == (params(channels), params(left))
    assert (size["bits/dense"], size["bits/compressed"]) == (32 * params(channels), 32 * params(left) + sum(channels))
    assert size["ratio/params"] == params(left) / params(channels)
    assert huffman_bits(p, (), found) == size["bits/compressed"]
    x = data.train.x[:1]
    counted = macs(p.plan, (), layers_of(network, x), layers_of(found, x))
    assert (counted["macs/dense"], counted["macs/compressed"]) == (operations(channels), operations(left))
    assert sizes(p, (), network)["ratio/bits"] == 1


# Runs.


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize(
    "model", ["vgg19 model.layers=[1,1,1] model.width=0.1", "resnet20 model.depth=8 model.width=0.25"]
)
def test_a_run_goes_on_from_the_smaller_network_of_another(model, tmp_path):
    words = [*f"model={model}".split(), "dataset.train_size=200", "dataset.test_size=100", "solver.batch_size=20"]
    slim = ["solver=network_slimming", "solver.num_steps=4", "solver.fine_tune=2", "solver.percent=0.8"]
    assert train(tmp_path / "slim", *words, *slim) == 0
    assert train(tmp_path / "on", *words, "solver=sgd", f"reference={tmp_path / 'slim'}", "solver.num_steps=2") == 0
    ends, start, after = summary(tmp_path / "slim"), rows(tmp_path / "on")[0], summary(tmp_path / "on")
    assert start["accuracy/test"] == ends["accuracy/test"] == after["accuracy/reference_test"]
    assert start["loss/test"] == pytest.approx(ends["loss/test"], rel=1e-5)
    assert ends["params/compressed"] < ends["params/dense"]
    assert after["params/dense"] == after["params/compressed"] == ends["params/compressed"]
    network = load(tmp_path / "on" / "model")
    assert is_reshaped(network)
    assert count(network) == ends["params/compressed"]
    again = [*words, "solver=slimming", f"reference={tmp_path / 'slim'}", "target.ratio=0.7", "solver.num_steps=1"]
    assert train(tmp_path / "again", *again) == 0
    assert summary(tmp_path / "again")["ratio/params"] <= 0.7
    assert count(load(tmp_path / "again" / "model")) == summary(tmp_path / "again")["params/compressed"]
