"""The removal of channels by hand: guarded layers, folding, sizes, networks that say something wrong, runs."""

import copy
from typing import Any

import pytest
import torch
from cases import case
from image_networks import count, small
from problems import problem, randn, small_digits
from runs import resign, rows, run
from smaller_networks import assert_same, checked, nothing, random_keep, scores_of, stored, trained, zeroed
from torch import Tensor, nn

from nncompress.artefact.model import load
from nncompress.errors import CheckpointError
from nncompress.metrics import huffman_bits, macs, sizes
from nncompress.models.vgg import VGG
from nncompress.surgery.channels import Scale, guard_channels, is_reshaped, kept_in, mask_channels, scales_of
from nncompress.surgery.pruning import smaller
from nncompress.surgery.removal import SelectedNorm, remove_channels
from nncompress.surgery.uses import layers_of


def test_without_branches_the_best_channel_of_a_residual_layer_stays():
    network, x = small("preresnet-bottleneck")
    full, words = guard_channels(network, nothing(network), scores_of(network), branches=False)
    assert all(int(mask.sum()) == 1 for mask in full.values())
    assert len(words) == 1
    assert f" and {len(full) - 4} more: the one with the largest scale stays" in words[0]
    checked(network, full, x)


def test_a_channel_of_vgg19s_second_convolution_takes_1730_parameters_with_it():
    network = VGG((3, 32, 32), 10, layers=[2, 1])  # its first three convolutions
    keep = kept_in(network)
    keep["features.bn1_2"][17] = False
    found = remove_channels(mask_channels(network, keep))
    assert count(network) - count(found) == 9 * 64 + 2 + 9 * 128 == 1730
    assert found.features.conv1_2.weight.shape == (63, 64, 3, 3)
    assert found.features.conv2_1.weight.shape == (128, 63, 3, 3)
    assert torch.equal(found.features.conv1_2.weight[16:18], network.features.conv1_2.weight[[16, 18]])


def test_what_reads_a_concatenation_selects_its_channels():
    network, x = small("densenet")
    keep = random_keep(network, 0.5)
    found = checked(network, keep, x)
    for name, mask in keep.items():
        module = found.get_submodule(name)
        if isinstance(module, SelectedNorm):
            assert module.indices.tolist() == mask.nonzero().flatten().tolist()
        else:
            assert bool(mask.all())
    assert found.features.dense1_1.conv.weight.shape[0] == network.features.dense1_1.conv.weight.shape[0]


# What dead channels still give.


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


def test_folding_is_exact_without_padding():
    network, x = trained(Valid()), randn(3, 1, 6, 5)
    keep = random_keep(network, 0.5)
    folded = mask_channels(network, keep, fold=True)
    assert_same(folded, zeroed(network, keep), x)
    checked_folded = remove_channels(folded)
    assert_same(checked_folded, folded, x)
    assert count(checked_folded) < count(network)


def test_folding_is_exact_in_the_interior_of_padded_images_and_for_the_linear_layer():
    network, x = trained(VGG((1, 8, 8), 5, layers=[2], width=0.1)), randn(3, 1, 8, 8)
    keep = random_keep(network, 0.5)
    expected, found = (copy.deepcopy(n) for n in (zeroed(network, keep), mask_channels(network, keep, fold=True)))
    with torch.no_grad():
        a, b = expected.features(x), found.features(x)
    alive = keep["features.bn1_2"]
    torch.testing.assert_close(b[:, alive, 1:-1, 1:-1], a[:, alive, 1:-1, 1:-1], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(b[:, alive], a[:, alive])
    keep = {"features.bn1_1": torch.ones(6, dtype=torch.bool), "features.bn1_2": alive}  # the linear layer alone
    assert_same(mask_channels(network, keep, fold=True), zeroed(network, keep), x)


def test_constants_go_into_the_running_mean_of_the_batch_norm_behind_or_else_into_a_bias():
    vgg, _ = small("vgg-stages")
    keep = random_keep(vgg, 0.5)
    folded = mask_channels(vgg, keep, fold=True)
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
    found = mask_channels(residual, keep, fold=True).blocks[0].branch.conv2.bias.detach()
    torch.testing.assert_close(found, branch.conv2.weight.detach().sum((2, 3)) @ constant)


# Networks and files that say something wrong, or nothing.


def test_a_description_that_does_not_fit_the_tensors_is_refused(tmp_path):
    def unsaid(about: dict[str, Any]) -> None:
        del about["channels"]

    def wider(about: dict[str, Any]) -> None:
        next(iter(about["channels"]["shapes"].values()))[0] += 1

    damages = (
        unsaid,
        wider,
        lambda about: about["channels"].update(without=["blocks.7.branch"]),
        lambda about: about["channels"].update(selected=[]),
        lambda about: about["channels"].update(selected=["head.nothing"]),
    )
    stored(tmp_path, "preresnet")
    path = tmp_path / "model.json"
    whole = path.read_text()
    for k, damage in enumerate(damages):
        with case(damage=k):
            path.write_text(whole)
            resign(tmp_path, damage)
            with pytest.raises(
                CheckpointError, match=r"model.json must describe (a network that fits|what) model.safetensors"
            ):
                load(tmp_path)


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


def test_a_network_that_says_something_wrong_stays_as_large_as_it_was_and_that_is_said():
    network, x = trained(Wrong()), randn(3, 1, 6, 5)
    for lie, said in LIES.items():
        with case(lie=lie):
            network.said = said
            keep = {"bn1": torch.arange(7) == 6, "bn2": torch.arange(6) > 1}
            if lie == "a branch that counts":
                keep["bn1"][:] = False
            dead = mask_channels(network, keep)
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
    dead = mask_channels(network, {"bn1": torch.arange(7) > 2, "bn2": torch.ones(6, dtype=torch.bool)})
    found, words = smaller(dead, x)
    assert found is dead
    assert words is not None
    assert "largest difference" in words


def test_of_a_network_that_says_nothing_channels_are_found_by_its_graph():
    x = randn(3, 1, 6, 5)
    network = trained(nn.Sequential(nn.Conv2d(1, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 4, 1)))
    dead = mask_channels(network, {"1": torch.arange(7) > 2})
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
    found = remove_channels(mask_channels(network, keep))

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
def test_a_run_goes_on_from_the_smaller_network_of_another(tmp_path):
    words = ["model=resnet20", "model.depth=8", "model.width=0.25", "dataset.train_size=100", "dataset.test_size=50"]
    slim = ["solver=network_slimming", "solver.num_steps=2", "solver.fine_tune=1", "solver.percent=0.7"]
    ends = run(tmp_path / "slim", *words, *slim, "solver.batch_size=20")
    words += [f"reference={tmp_path / 'slim'}", "solver.num_steps=1", "solver.batch_size=50"]
    after = run(tmp_path / "on", *words, "solver=sgd")
    start = rows(tmp_path / "on")[0]
    assert start["accuracy/test"] == ends["accuracy/test"] == after["accuracy/reference_test"]
    assert start["loss/test"] == pytest.approx(ends["loss/test"], rel=1e-5)
    assert ends["params/compressed"] < ends["params/dense"]
    assert after["params/dense"] == after["params/compressed"] == ends["params/compressed"]
    network = load(tmp_path / "on" / "model")
    assert is_reshaped(network)
    assert count(network) == ends["params/compressed"]
    again = run(tmp_path / "again", *words, "solver=slimming", "target.ratio=0.7")
    assert again["ratio/params"] <= 0.7
    assert count(load(tmp_path / "again" / "model")) == again["params/compressed"]
