"""The rows of one network at many ratios: which there are, and their figures."""

import copy
import math

import pytest
import torch
from image_networks import count, small
from one_shot_cases import digits_problem, nonzeros, one_shot
from problems import gaussian, mlp, problem

from nncompress.errors import ConfigError, Diverged
from nncompress.experiment.one_shot import Filters, LowRank, Weights
from nncompress.experiment.study import OneShotStudy
from nncompress.metrics import evaluate
from nncompress.problem import Dataset, Split
from nncompress.surgery.norms import recalibrate_norms


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
        network = method.compressed_network(p.model, x[:4], row["part"])
        if row["recalibrated"]:
            network = recalibrate_norms(network, drawn)
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
    zeroed = Weights().compressed_network(p.model, p.data.train.x[:1], 0.5)
    layers = ((zeroed.features.conv1_1, 64), (zeroed.features.conv2_1, 16), (zeroed.fc, 1))
    assert rows["w"]["ratio/macs"] == sum(int((layer.weight != 0).sum()) * at for layer, at in layers) / dense
    assert rows["f"]["smaller"]
    assert not rows["z"]["smaller"]


def test_ratios_are_to_the_network_of_the_problem():
    p = digits_problem()
    half = Filters().compressed_network(p.model, p.data.train.x[:4], 0.5)
    row, quarter = one_shot(p, half, {"w": Weights()}, [0.5], recalibrate=0, seed=0)
    assert row["ratio/params"] == nonzeros(half) / count(p.model)
    assert row["ratio/macs"] < 0.5
    zeroed = Weights().compressed_network(half, p.data.train.x[:4], 0.5)
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
    found = evaluate(recalibrate_norms(p.model, p.data.train.x[order]), p.data.test, p.loss)
    assert rows[1]["loss/test"] == pytest.approx(found.loss)


def test_one_sample_to_recalibrate_with_is_refused():
    p = digits_problem()
    for recalibrate in (-1, 1):
        with pytest.raises(ConfigError, match=f"recalibrate must be 0, or at least 2 samples .*found {recalibrate}"):
            one_shot(p, p.model, {"w": Weights()}, [0.5], recalibrate=recalibrate, seed=0)


def test_of_a_network_with_a_bias_that_is_no_number_there_are_no_rows():
    p = digits_problem()
    p.model.fc.bias.data[0] = math.inf
    with pytest.raises(Diverged, match=r"found 0 NaN and 1 infinite of 10 entries in fc.bias"):
        one_shot(p, p.model, {"low_rank": LowRank(at=[])}, [], recalibrate=0, seed=0)


def test_distances_are_named_by_method_and_part():
    network, _ = small("vgg-stages")
    methods = {"filters": Filters(), "weights": Weights(at=[0.98, 0.5])}
    found = OneShotStudy(methods=methods, at=[0.9, 0.25, 0.9]).distances(network)
    assert list(found) == [
        "distance/filters/0.25",
        "distance/filters/0.9",
        "distance/weights/0.5",
        "distance/weights/0.98",
    ]
    assert [*found.values()] == [*Filters().distances(network, [0.25, 0.9]), *Weights().distances(network, [0.5, 0.98])]
