"""Compression without retraining: what goes at each ratio, the smaller networks, low ranks, recalibration, the rows."""

import copy
import math

import pytest
import torch
from problems import F64, gaussian, mlp, problem, randn, small_digits
from test_cifar_models import count, small
from torch import Tensor, nn

from nncompress.batch_norms import norms_behind, recalibrated
from nncompress.errors import ConfigError, Diverged, Unsupported
from nncompress.low_rank_network import factorised, rank_at
from nncompress.metrics import evaluate
from nncompress.models.cnn import NNBCDCNN
from nncompress.models.vgg import VGG
from nncompress.one_shot import Filters, LowRank, OneShot, Weights
from nncompress.problem import Dataset, Problem, Split
from nncompress.study import Study

NETWORKS = ("vgg-stages", "preresnet-basic", "densenet", "resnet18", "wide-resnet")
METHODS: dict[str, OneShot] = {
    "filters": Filters(),
    "filters without shifts": Filters(shifts=False),
    "joint filters": Filters(norm=2, joint=True),
    "weights": Weights(),
    "everything": Weights(everything=True),
    "low rank": LowRank(),
    "low rank, linear too": LowRank(linear=True),
}
every_network = pytest.mark.parametrize("name", NETWORKS)
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def one_shot(p, network, methods, at, *, recalibrate, seed):
    return [*Study(methods=methods, at=at, recalibrate=recalibrate, seed=seed).rows(p, network)]


class Undeclared(nn.Module):
    """A residual network without scales(): a chain of two convolutions added to a stream, one without a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.bn0 = nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(6, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn0(self.stem(x)).relu()
        x = x + self.conv2(self.bn1(self.conv1(x)).relu())
        return self.fc(x.mean((2, 3)))


def undeclared() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    network = Undeclared().to(F64)
    for norm in (network.bn0, network.bn1):
        nn.init.uniform_(norm.weight, 0.3, 1)
        nn.init.uniform_(norm.bias, -0.2, 0.4)
    return network.eval(), randn(3, 1, 8, 8)


def made(name: str) -> tuple[nn.Module, Tensor]:
    return undeclared() if name == "undeclared" else small(name)


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def dead_filters(network: nn.Module) -> dict[str, Tensor]:
    return {name: (conv.weight == 0).flatten(1).all(1) for name, conv in convolutions(network).items()}


def outputs(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(network).eval()(x)


def nonzeros(network: nn.Module) -> int:
    return sum(int(torch.count_nonzero(p)) for p in network.parameters())


def digits_problem(network: nn.Module | None = None) -> Problem:
    torch.manual_seed(0)
    data = small_digits(60)
    return problem(data, network or VGG((1, 8, 8), 10, layers=[1, 1], width=0.1).to(F64))


# What all have in common.


@pytest.mark.parametrize("name", [*NETWORKS, "undeclared"])
@every_method
def test_the_network_itself_and_the_random_numbers_are_left_as_they_were(method, name):
    network, x = made(name)
    network.train()
    before = copy.deepcopy(network.state_dict())
    torch.manual_seed(5)
    found = method.compressed(network, x, 0.5)
    drawn = torch.rand(())
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(()))
    assert network.training
    assert not any(module.training for module in found.modules())
    assert all(map(torch.equal, network.state_dict().values(), before.values()))
    assert not torch.allclose(outputs(found, x), outputs(network, x))


@every_network
@every_method
def test_no_part_is_the_network_itself(method, name):
    network, x = small(name)
    torch.testing.assert_close(outputs(method.compressed(network, x, 0.0), x), outputs(network, x), rtol=0, atol=1e-10)
    assert method.distances(network, [0.0]) == [0]


@pytest.mark.parametrize(
    "method", [Filters(shifts=False), Filters(norm=2, joint=True, shifts=False), Weights(), Weights(everything=True)]
)
def test_distances_are_those_of_the_compressed_weights(method):
    network, x = small("resnet18")
    parts = [0.9, 0.3, 0.5]
    for part, distance in zip(parts, method.distances(network, parts), strict=True):
        after = dict(method.compressed(network, x, part).named_parameters())
        weights = method.weights(network)
        gone = sum(float((w - after[name].detach()).square().sum()) for name, w in weights.items())
        assert distance == pytest.approx(math.sqrt(gone / sum(float(w.square().sum()) for w in weights.values())))


@every_method
def test_distances_grow_with_the_part(method):
    network, _ = small("vgg-stages")
    found = method.distances(network, [0.1, 0.3, 0.5, 0.7, 0.9])
    assert found == sorted(found)
    assert 0 < found[0] < found[-1] < 1


@every_method
def test_a_weight_that_is_no_number_is_refused(method):
    network, x = small("vgg-stages")
    network.features.conv2_1.weight.data[1, 0] = math.nan
    with pytest.raises(Diverged, match=r"must be finite, found 9 NaN .* in features.conv2_1.weight"):
        method.compressed(network, x, 0.5)
    with pytest.raises(Diverged, match="must be finite"):
        method.distances(network, [0.5])


def test_of_a_network_with_a_bias_that_is_no_number_there_are_no_rows():
    p = digits_problem()
    p.model.fc.bias.data[0] = math.inf
    with pytest.raises(Diverged, match=r"found 0 NaN and 1 infinite of 10 entries in fc.bias"):
        one_shot(p, p.model, {"low_rank": LowRank(at=[])}, [], recalibrate=0, seed=0)


@pytest.mark.parametrize("part", [1.0, -0.1, math.nan])
def test_a_part_outside_the_range_is_refused(part):
    network, x = small("vgg-stages")
    with pytest.raises(ConfigError, match=r"compress_at must be the part to take away, in \[0, 1\), found "):
        Study(methods={"filters": Filters()}, at=[0.5, part])
    with pytest.raises(ConfigError, match="at must be the part to take away"):
        Weights(at=[0.2, part])
    with pytest.raises(ConfigError, match="part must be the part to take away"):
        LowRank().compressed(network, x, part)


@pytest.mark.parametrize("method", [Filters(), LowRank()])
def test_methods_without_anything_to_take_away_are_left_out_and_none_at_all_is_refused(method):
    with pytest.raises(Unsupported, match=r"needs a method that the network has something for, found this in compress"):
        Study(methods={"this": method}, at=[0.5]).suited(mlp(gaussian()))
    kept = Study(methods={"weights": Weights(), "this": method}, at=[0.5]).suited(mlp(gaussian()))
    assert [*kept.methods] == ["weights"]
    linear = Study(methods={"this": LowRank(linear=True)}, at=[0.5])
    assert linear.suited(mlp(gaussian())) == linear


# Filters.


@pytest.mark.parametrize("part", [0.1, 0.5, 0.72, 0.99])
@pytest.mark.parametrize("norm", [1, 2])
@every_network
def test_of_every_layer_the_filters_of_smallest_norm_go_as_many_as_the_part_says(name, norm, part):
    network, x = small(name)
    dead = dead_filters(Filters(norm=norm, shifts=False).compressed(network, x, part))
    for layer, conv in convolutions(network).items():
        norms = conv.weight.detach().abs().pow(norm).sum((1, 2, 3)).tolist()
        gone = min(round(part * len(norms)), len(norms) - 1)
        assert set(dead[layer].nonzero().flatten().tolist()) == set(
            sorted(range(len(norms)), key=norms.__getitem__)[:gone]
        )


def test_without_shifts_nothing_but_filters_changes():
    network, x = undeclared()
    found = Filters(shifts=False).compressed(network, x, 0.5).state_dict()
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, found[name])}
    assert changed == {"stem.weight", "conv1.weight", "conv2.weight"}


def test_among_equal_filters_the_first_stay_and_exactly_as_many_as_asked_go():
    network = nn.Sequential(nn.Conv2d(1, 7, 1, bias=False), nn.Conv2d(7, 5, 1, bias=False)).to(F64)
    for conv in network:
        nn.init.ones_(conv.weight)
    found = dead_filters(Filters().compressed(network, randn(2, 1, 3, 3), 0.4))
    assert [mask.tolist() for mask in found.values()] == [[False] * 4 + [True] * 3, [False] * 3 + [True] * 2]


def test_jointly_the_smallest_filters_of_all_layers_go_but_one_of_each():
    network = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.Conv2d(3, 4, 1, bias=False)).to(F64)
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([0.2, 0.1, 0.3]).view(3, 1, 1, 1))
        network[1].weight.copy_(torch.tensor([5.0, 0.25, 7.0, 6.0]).view(4, 1, 1, 1) / math.sqrt(3))
    method, x = Filters(norm=2, joint=True), randn(2, 1, 3, 3)
    for part, first, second in (
        (0.3, [0, 1], []),
        (0.45, [0, 1], [1]),
        (0.6, [0, 1], [0, 1]),
        (0.99, [0, 1], [0, 1, 3]),
    ):
        dead = [
            mask.nonzero().flatten().tolist() for mask in dead_filters(method.compressed(network, x, part)).values()
        ]
        assert dead == [first, second]


@pytest.mark.parametrize("method", [Filters(), Filters(norm=2, joint=True)])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", [*NETWORKS, "undeclared"])
def test_the_smaller_network_gives_the_outputs_of_the_one_with_zeros(name, part, method):
    network, x = made(name)
    found = method.compressed(network, x, part)
    zeroed = Filters(norm=method.norm, joint=method.joint, shifts=False).compressed(network, x, part)
    dead, behind = dead_filters(zeroed), norms_behind(zeroed, x)
    for layer, conv in convolutions(zeroed).items():
        tensors = [conv.bias, *(t for norm in behind.get(layer, ()) for t in (norm.weight, norm.bias))]
        for tensor in tensors:
            if tensor is not None:
                tensor.data[dead[layer]] = 0
    torch.testing.assert_close(outputs(found, x), outputs(zeroed, x), rtol=1e-10, atol=1e-10)
    assert count(found) < count(network)
    assert nonzeros(found) <= nonzeros(zeroed)


def test_a_chain_is_left_with_the_filters_that_stay():
    network, x = small("vgg-stages")  # channels 6, 13, 13, 26
    found = Filters().compressed(network, x, 0.5)
    assert [tuple(conv.weight.shape[:2]) for conv in convolutions(found).values()] == [(3, 1), (7, 3), (7, 7), (13, 7)]
    assert tuple(found.fc.weight.shape) == (5, 13)


def test_a_filter_that_is_added_to_a_stream_becomes_zero_with_its_scale_and_shift_and_keeps_its_place():
    network, x = small("resnet18")
    found = Filters().compressed(network, x, 0.5)
    assert len(found.blocks[2].conv1.weight) == 4  # 8 channels, removed
    for conv, norm in (
        (found.conv1, found.bn1),
        (found.blocks[2].conv2, found.blocks[2].bn2),
        (found.blocks[2].shortcut.conv, found.blocks[2].shortcut.bn),
    ):
        dead = (conv.weight == 0).flatten(1).all(1)
        assert int(dead.sum()) == round(0.5 * len(dead))
        assert torch.equal(norm.weight == 0, dead)
        assert torch.equal(norm.bias == 0, dead)


def test_a_batch_norm_that_reads_a_stream_stays_as_it_is():
    network, x = small("preresnet-basic")
    found = Filters().compressed(network, x, 0.5)
    stream = found.blocks[1].branch.bn1
    assert torch.equal(stream.weight, network.blocks[1].branch.bn1.weight)
    assert torch.equal(stream.bias, network.blocks[1].branch.bn1.bias)
    assert len(found.blocks[1].branch.bn2.weight) == 2  # of 4, behind its own convolution
    assert int(dead_filters(found)["blocks.1.branch.conv2"].sum()) == 2


@pytest.mark.parametrize("name", [*NETWORKS, "wide-resnet-dropout"])
def test_the_convolution_that_a_network_names_is_the_one_found_in_front_of_the_norm(name):
    network, x = small(name)
    behind = norms_behind(network, x)
    found = {id(norm): layer for layer, norms in behind.items() for norm in norms}
    for scale in network.scales():
        if scale.producer is not None:
            assert found[id(network.get_submodule(scale.norm))] == scale.producer


class Changed(nn.Module):
    """One norm reads what a convolution returns after an addition in place, one reads both convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv1(x)
        shared = self.bn2(first)
        first += x
        second = self.conv2(self.bn1(first))
        return self.bn2(second) + self.bn3(second) + shared


def test_a_norm_of_a_changed_tensor_or_of_two_convolutions_belongs_to_none():
    assert norms_behind(Changed(), torch.ones(2, 1, 3, 3)) == {}


def test_a_convolution_without_batch_norm_loses_weights_and_biases_alone():
    torch.manual_seed(0)
    network, x = NNBCDCNN((1, 8, 8), 5, filters=6, widths=(7,), bias=True).to(F64), randn(3, 1, 8, 8)
    found = Filters().compressed(network, x, 0.5)
    dead = dead_filters(found)["conv1"]
    assert int(dead.sum()) == 3
    assert torch.equal(found.conv1.bias == 0, dead)
    assert count(found) == count(network)


def test_filters_of_grouped_convolutions_become_zero():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)).to(F64)
    found = Filters(shifts=False).compressed(network, randn(2, 4, 5, 5), 0.5)
    assert [int(mask.sum()) for mask in dead_filters(found).values()] == [4, 1]


def test_another_norm_is_refused():
    with pytest.raises(ValueError, match="norm must be 1 or 2, found 3"):
        Filters(norm=3)


# Single weights.


@pytest.mark.parametrize("part", [0.123, 0.5, 0.98])
@pytest.mark.parametrize("everything", [False, True])
@every_network
def test_exactly_the_smallest_weights_of_the_whole_network_become_zero(name, everything, part):
    network, x = small(name)
    found = dict(Weights(everything=everything).compressed(network, x, part).named_parameters())
    chosen = {n: p.detach() for n, p in network.named_parameters() if everything or p.dim() > 1}
    values = torch.cat([p.flatten() for p in chosen.values()])
    after = torch.cat([found[n].detach().flatten() for n in chosen])
    gone, zeros = round(part * len(values)), int((values == 0).sum())
    assert int((after == 0).sum()) == max(gone, zeros)
    assert torch.equal(after[after != 0], values[after != 0])
    assert values[after == 0].abs().max() <= values[after != 0].abs().min()
    assert all(torch.equal(found[n], p) for n, p in network.named_parameters() if n not in chosen)


def test_of_equal_weights_exactly_as_many_as_asked_become_zero():
    network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to(F64)
    for p in network.parameters():
        nn.init.constant_(p, -0.5)
    found = Weights().compressed(network, randn(1, 4), 0.4)
    assert [int((p == 0).sum()) for p in found.parameters()] == [1, 0, 6, 0]  # 7.2 of 18, the last ones


# Low rank.


@pytest.mark.parametrize(
    ("part", "rank"), [(0.0, 10), (0.1, 9), (0.3, 7), (0.55, 4), (0.7, 3), (0.9, 1), (0.95, 1), (0.999, 1)]
)
def test_the_rank_is_the_part_that_stays_rounded_down_and_at_least_one(part, rank):
    assert rank_at(part, (10, 3, 2, 2)) == rank_at(part, (12, 5, 2, 1)) == rank


def test_a_tenth_of_twenty_is_two_though_floating_point_numbers_say_less():
    assert (1 - 0.9) * 20 < 2
    assert rank_at(0.9, (20, 30)) == 2


FORMS = {
    "3x3": nn.Conv2d(5, 7, 3, bias=False),
    "all": nn.Conv2d(3, 8, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), padding_mode="reflect"),
    "same": nn.Conv2d(3, 4, 3, padding="same"),
    "many filters": nn.Conv2d(2, 11, 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_at_full_rank_a_convolution_is_the_same(form):
    conv = copy.deepcopy(FORMS[form]).to(F64)
    x, m = randn(2, conv.in_channels, 9, 8), min(len(conv.weight), conv.weight[0].numel())
    found = factorised(conv, m)
    torch.testing.assert_close(found(x), conv(x), rtol=0, atol=1e-10)
    bias = 0 if conv.bias is None else len(conv.bias)
    assert count(found) == m * (conv.weight[0].numel() + len(conv.weight)) + bias
    assert all(p.is_contiguous() and p.requires_grad for p in found.parameters())


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_below_it_the_weight_is_the_best_one_of_its_rank(dtype):
    conv = nn.Conv2d(5, 12, 3).to(dtype)
    matrix = conv.weight.detach().flatten(1).double()
    values = torch.linalg.svdvals(matrix)
    for part in (0.2, 0.5, 0.95):
        r = rank_at(part, conv.weight.shape)
        first, second = LowRank().compressed(nn.Sequential(conv), randn(1, 5, 4, 4, dtype=dtype), part)[0]
        assert first.weight.dtype == dtype
        product = second.weight.detach().flatten(1).double() @ first.weight.detach().flatten(1).double()
        tail = values[r:].square().sum().sqrt()
        torch.testing.assert_close(
            torch.linalg.norm(matrix - product), tail, rtol=1e-4 if dtype != F64 else 1e-10, atol=0
        )
        distance = LowRank().distances(nn.Sequential(conv), [part])
        assert distance == pytest.approx([float(tail / torch.linalg.norm(matrix))], rel=1e-5)


def test_a_low_rank_network_has_the_numbers_counted_by_hand_and_computes_the_truncated_weights():
    network, x = small("vgg-stages")
    found = LowRank(linear=True).compressed(network, x, 0.5)
    shapes = [(6, 9), (13, 54), (13, 117), (26, 117), (5, 26)]
    ranks = [3, 6, 6, 13, 2]
    outside = count(network) - sum(rows * columns for rows, columns in shapes)
    assert count(found) == outside + sum(r * (rows + columns) for r, (rows, columns) in zip(ranks, shapes, strict=True))
    truncated = copy.deepcopy(network)
    for layer, r in zip([*convolutions(truncated).values(), truncated.fc], ranks, strict=True):
        U, s, V = torch.linalg.svd(layer.weight.detach().flatten(1), full_matrices=False)
        layer.weight.data.copy_((U[:, :r] * s[:r] @ V[:r]).view(layer.weight.shape))
    torch.testing.assert_close(outputs(found, x), outputs(truncated, x), rtol=1e-10, atol=1e-10)


def test_grouped_convolutions_and_subclasses_stay_and_a_layer_with_two_names_is_one():
    class Own(nn.Conv2d):
        pass

    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2, padding=1), Own(4, 4, 1), nn.Conv2d(4, 4, 1)).to(F64)
    network.append(network[2])
    found = LowRank().compressed(network, randn(1, 4, 3, 3), 0.5)
    assert [type(module).__name__ for module in found] == ["Conv2d", "Own", "Sequential", "Sequential"]
    assert found[2] is found[3]


# Recalibration.


def test_recalibrated_statistics_are_the_means_over_the_batches():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 2)).to(
        F64
    )
    x = randn(25, 1, 6, 6)
    before = copy.deepcopy(network.state_dict())
    found = recalibrated(network, x, batch_size=10)
    batches = [network[0](part).detach() for part in torch.split(x, 10)]
    mean = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    var = torch.stack([b.var((0, 2, 3), unbiased=True) for b in batches]).mean(0)
    torch.testing.assert_close(found[1].running_mean, mean)
    torch.testing.assert_close(found[1].running_var, var)
    assert found[1].momentum == network[1].momentum
    assert not any(module.training for module in found.modules())
    assert all(map(torch.equal, network.state_dict().values(), before.values()))
    assert all(map(torch.equal, found.parameters(), network.parameters()))


def test_dropout_stays_off_while_statistics_are_taken():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(4)).to(F64).train()
    x = randn(7, 4)
    torch.testing.assert_close(recalibrated(network, x)[1].running_mean, x.mean(0))


def test_one_sample_left_over_goes_with_the_batch_before():
    network, x = nn.Sequential(nn.BatchNorm1d(4)).to(F64), randn(7, 4)
    found = recalibrated(network, x, batch_size=3)[0]
    torch.testing.assert_close(found.running_mean, (x[:3].mean(0) + x[3:].mean(0)) / 2)


def test_a_network_without_batch_norms_is_only_copied():
    network = mlp(gaussian())
    found = recalibrated(network, randn(4, 12))
    assert found is not network
    assert all(map(torch.equal, found.parameters(), network.parameters()))
    frozen = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)).to(F64)
    assert recalibrated(frozen, randn(5, 4))[0].running_mean is None


# Rows.


def test_the_rows_are_every_method_and_part_once_with_and_once_without_recalibration():
    p = digits_problem()
    methods = {"filters": Filters(at=[0.75]), "weights": Weights(), "low_rank": LowRank(at=[])}
    before = copy.deepcopy(p.model.state_dict())
    rows = one_shot(p, p.model, methods, [0.9, 0.5, 0.5], recalibrate=30, seed=3)
    order = [
        ("filters", 0.0),
        ("filters", 0.75),
        ("weights", 0.0),
        ("weights", 0.5),
        ("weights", 0.9),
        ("low_rank", 0.0),
    ]
    assert [(row["method"], row["part"], row["recalibrated"]) for row in rows] == [
        (*pair, again) for pair in order for again in (False, True)
    ]
    assert all(map(torch.equal, p.model.state_dict().values(), before.values()))
    keys = "method part recalibrated accuracy/test loss/test ratio/params ratio/macs distance stability smaller"
    assert all(row.keys() == set(keys.split()) for row in rows)
    whole = [row for row in rows if row["part"] == 0]
    assert all(row["distance"] == 0 and row["ratio/macs"] == 1 and not row["smaller"] for row in whole)
    assert all(row["stability"] == 1 for row in whole if not row["recalibrated"])
    assert rows == one_shot(p, p.model, methods, [0.9, 0.5], recalibrate=30, seed=3)


def test_a_row_holds_the_figures_of_the_network_compressed_from_the_unmodified_weights():
    p = digits_problem()
    x = p.data.train.x
    rows = one_shot(p, p.model, {"filters": Filters(), "w": Weights()}, [0.2, 0.6], recalibrate=50, seed=7)
    drawn = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(7))[:50]]
    accuracy = evaluate(p.model, p.data.test, p.loss).accuracy
    for row in rows:
        method = Filters() if row["method"] == "filters" else Weights()
        network = method.compressed(p.model, x[:4], row["part"])
        if row["recalibrated"]:
            network = recalibrated(network, drawn)
        found = evaluate(network, p.data.test, p.loss)
        assert (row["loss/test"], row["accuracy/test"]) == pytest.approx(found, rel=1e-9)
        assert row["stability"] == pytest.approx(1 - (accuracy - found.accuracy) / accuracy)
        assert row["ratio/params"] == nonzeros(network) / count(p.model)
        assert row["smaller"] == (row["method"] == "filters" and row["part"] > 0)
        assert row["distance"] == method.distances(p.model, [row["part"]])[0]


def test_operations_are_those_counted_by_hand():
    p = digits_problem()  # 8x8: 6 channels, pooling to 4x4, 13 channels, then 10 classes
    methods = {"f": Filters(), "z": Filters(shifts=False), "r": LowRank(), "w": Weights()}
    rows = {
        row["method"]: row for row in one_shot(p, p.model, methods, [0.5], recalibrate=0, seed=0) if row["part"] > 0
    }
    dense = 64 * 9 * 6 + 16 * 9 * 6 * 13 + 13 * 10
    assert rows["f"]["ratio/macs"] == (64 * 9 * 3 + 16 * 9 * 3 * 7 + 7 * 10) / dense
    assert rows["z"]["ratio/macs"] == (64 * 9 * 3 + 16 * 9 * 6 * 7 + 13 * 10) / dense
    assert rows["r"]["ratio/macs"] == (64 * 3 * (9 + 6) + 16 * 6 * (54 + 13) + 13 * 10) / dense
    zeroed = Weights().compressed(p.model, p.data.train.x[:1], 0.5)
    layers = ((zeroed.features.conv1_1, 64), (zeroed.features.conv2_1, 16), (zeroed.fc, 1))
    assert rows["w"]["ratio/macs"] == sum(int((layer.weight != 0).sum()) * at for layer, at in layers) / dense
    assert rows["f"]["smaller"]
    assert not rows["z"]["smaller"]


def test_ratios_are_to_the_network_of_the_problem():
    p = digits_problem()
    half = Filters().compressed(p.model, p.data.train.x[:4], 0.5)
    row, quarter = one_shot(p, half, {"w": Weights()}, [0.5], recalibrate=0, seed=0)
    assert row["ratio/params"] == nonzeros(half) / count(p.model)
    assert row["ratio/macs"] < 0.5
    zeroed = Weights().compressed(half, p.data.train.x[:4], 0.5)
    assert quarter["ratio/params"] == nonzeros(zeroed) / count(p.model)
    assert not row["smaller"]
    assert not quarter["smaller"]


def test_a_network_that_is_never_right_has_no_stability():
    data = gaussian(40)
    network = mlp(data, bias=True)
    with torch.no_grad():
        never = Split(data.train.x, (network(data.train.x).argmax(1) + 1) % 3)
    p = problem(Dataset(data.train, never, 3, "never"), network)
    rows = one_shot(p, network, {"w": Weights()}, [0.5], recalibrate=10, seed=0)
    assert [row["stability"] for row in rows] == [None, None]
    assert not any(row["recalibrated"] for row in rows)  # there is no batch norm


def test_more_samples_than_there_are_mean_all_of_them():
    p = digits_problem()
    rows = one_shot(p, p.model, {"w": Weights(at=[])}, [], recalibrate=1000, seed=0)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    found = evaluate(recalibrated(p.model, p.data.train.x[order]), p.data.test, p.loss)
    assert rows[1]["loss/test"] == pytest.approx(found.loss)


@pytest.mark.parametrize("recalibrate", [-1, 1])
def test_one_sample_to_recalibrate_with_is_refused(recalibrate):
    p = digits_problem()
    with pytest.raises(ConfigError, match="recalibrate must be 0, or at least 2 samples"):
        one_shot(p, p.model, {"w": Weights()}, [0.5], recalibrate=recalibrate, seed=0)


def test_distances_are_named_by_method_and_part():
    network, _ = small("vgg-stages")
    methods = {"filters": Filters(), "weights": Weights(at=[0.98, 0.5])}
    found = Study(methods=methods, at=[0.9, 0.25, 0.9]).distances(network)
    assert list(found) == [
        "distance/filters/0.25",
        "distance/filters/0.9",
        "distance/weights/0.5",
        "distance/weights/0.98",
    ]
    assert [*found.values()] == [*Filters().distances(network, [0.25, 0.9]), *Weights().distances(network, [0.5, 0.98])]


# Networks that are not as expected.


class Peeking(nn.Module):
    """A network that takes the weight of its layer in its own hands."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(nn.functional.conv2d(x, self.conv.weight).mean((2, 3)))


def test_a_method_that_a_network_cannot_be_computed_after_is_left_out_and_the_others_are_not(caplog):
    p = digits_problem()
    p = Problem(Peeking().to(F64), p.data, p.plan)
    rows = one_shot(p, p.model, {"low_rank": LowRank(), "weights": Weights()}, [0.5], recalibrate=0, seed=0)
    assert [(row["method"], row["part"]) for row in rows] == [("low_rank", 0), ("weights", 0), ("weights", 0.5)]
    assert "compress_by.low_rank is left out from 0.5 on: AttributeError" in caplog.text


def test_weights_that_are_computed_or_shared_are_left_alone():
    first, second, third = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
    third.weight = second.weight
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(first), second, third, nn.Conv2d(4, 6, 3)).to(F64)
    for method in (Filters(), LowRank()):
        assert [*method.weights(network)] == ["3.weight"]
    found = Filters(shifts=False).compressed(network, randn(2, 4, 8, 8), 0.5)
    dead = [(layer.weight.flatten(1) == 0).all(1).sum().item() for layer in found]
    assert dead == [0, 0, 0, 3]


def test_a_network_that_is_one_layer_is_compressed_too():
    conv = nn.Conv2d(3, 6, 3).to(F64)
    x = randn(2, 3, 8, 8)
    torch.testing.assert_close(LowRank().compressed(conv, x, 0.0)(x), conv(x), rtol=1e-10, atol=1e-12)
    assert (Filters().compressed(conv, x, 0.5).weight.flatten(1) == 0).all(1).sum() == 3
