"""Networks trained by stochastic Frank-Wolfe: what they lose when they are compressed, and whole runs."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from cases import case
from frank_wolfe_cases import all_in, papers, terms
from omegaconf import OmegaConf
from problems import ROOT, mlp, problem, small_digits
from runs import configuration, resume, rows, run, struck, train
from torch import nn

from nncompress.compressions.plan import none
from nncompress.config.build import build
from nncompress.constraints.assignment import Assignment
from nncompress.constraints.k_support import GroupKSupport, KSupport
from nncompress.constraints.lp import L2
from nncompress.constraints.size import Radius
from nncompress.experiment.one_shot import Filters
from nncompress.metrics import evaluate
from nncompress.models.vgg import VGG
from nncompress.problem import Computation, Problem
from nncompress.solvers.frank_wolfe.frank_wolfe import FrankWolfe
from nncompress.solvers.sgd.sgd import SGD

OPTIONS = sorted(path.stem for path in (ROOT / "conf" / "constraint").glob("*.yaml"))
WORDS = ["solver=frank_wolfe", "dataset.train_size=100", "dataset.test_size=50", "model.widths=[16,12]"]


def test_bfloat16_computes_nearly_the_same():
    data = small_digits(100, torch.float32)
    losses = []
    for half in (False, True):
        p = Problem(mlp(data, widths=(32,), bias=True), data, none({}), computation=Computation(half=half))
        found = terms(FrankWolfe(constraint=all_in(KSupport(k=0.3)), num_steps=6, lr=0.5, batch_size=25), p)
        assert found[-1]["gauge"] <= 1 + 1e-5
        losses.append(found[-1]["objective"])
        assert found[-1]["objective"] < found[0]["objective"] / 2
    assert losses[1] == pytest.approx(losses[0], rel=0.2)
    assert losses[1] != losses[0]


def small_vgg(data: Any) -> nn.Module:
    torch.manual_seed(0)
    return VGG(data.input_shape, data.num_classes, layers=[1, 1], width=0.3, initial_scale=1.0).to(data.train.x.dtype)


def test_filters_can_be_pruned_away_with_less_loss_than_after_sgd_with_weight_decay():
    data = small_digits(400, torch.float32)
    p = problem(data, small_vgg(data))
    decay = partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=5e-4)
    solvers = [
        SGD(num_steps=15, lr=0.1, batch_size=40, optimizer=decay),
        FrankWolfe(constraint=papers(GroupKSupport(k=0.1), 10.0), num_steps=15, lr=0.4, batch_size=40),
    ]
    models = [[*solver.run(p, 15, every=15)][-1].observation.model for solver in solvers]
    accuracies = [evaluate(model, data.test, p.loss).accuracy for model in models]
    assert abs(accuracies[1] - accuracies[0]) <= 0.03
    assert min(accuracies) > 0.9
    (half, most), (half_fw, most_fw) = (Filters(shifts=False).distances(model, [0.5, 0.9]) for model in models)
    assert most_fw < most - 0.1
    assert half_fw < half - 0.2


def test_a_joint_set_of_filters_of_several_sizes_trains():
    data = small_digits(200, torch.float32)
    together = Assignment(set=GroupKSupport(k=0.2), params="convolutions", joint=True, rest=Assignment(set=L2()))
    found = terms(FrankWolfe(constraint=together, num_steps=6, lr=0.5, batch_size=25), problem(data, small_vgg(data)))
    assert found[-1]["objective"] < found[0]["objective"] / 2
    assert found[-1]["gauge"] <= 1 + 1e-5


def test_every_option_of_the_constraints_trains():
    data = small_digits(60, torch.float32)
    p, node = problem(data, small_vgg(data)), configuration("solver=frank_wolfe")
    for option in OPTIONS:
        with case(option=option):
            node.constraint = OmegaConf.load(ROOT / "conf" / "constraint" / f"{option}.yaml")
            solver: FrankWolfe = build(node.solver)
            first, last = terms(solver, p, 1)
            assert last["gauge"] <= 1 + 1e-5
            assert min(first["fw_gap"], last["fw_gap"]) >= 0
            assert len([key for key in last if key.startswith("gauge/")]) == 8


# Whole runs.


@pytest.mark.usefixtures("apart")
def test_a_run_learns_digits_and_goes_on_after_a_break_to_the_same_records(tmp_path):
    words = ["solver=frank_wolfe", "model.widths=[32]", "dataset.train_size=300", "dataset.test_size=100"]
    words += ["solver.batch_size=50", "compression=l0", "compression.keep=0.5", "solver.lr=0.5", "solver.num_steps=6"]
    whole = run(tmp_path / "whole", *words)
    assert whole["accuracy/dense_test"] > 0.85
    found = rows(tmp_path / "whole")
    assert found[-1].keys() >= {"fw_gap", "eta", "eta/clipped", "gauge", "gauge/fc1.weight", "eta/fc1.weight"}
    with struck(FrankWolfe, 4), pytest.raises(SystemExit) as stop:
        run(tmp_path / "broken", *words)
    assert stop.value.code == 130
    assert resume(tmp_path / "broken") == whole
    assert rows(tmp_path / "broken") == found


@pytest.mark.usefixtures("apart")
def test_an_unknown_constraint_is_told_with_those_there_are(tmp_path, capsys):
    assert train(tmp_path / "run", "solver=frank_wolfe", "constraint=nothing") == 2
    assert f"constraint=nothing: no such option; there are {', '.join(OPTIONS)}" in capsys.readouterr().err


@pytest.mark.usefixtures("apart")
def test_one_network_is_compressed_at_many_parts_behind_the_training(tmp_path):
    network = ["model=vgg16", "model.layers=[1,1]", "model.width=0.1", "dataset=digits", "dataset.train_size=60"]
    words = ["solver=frank_wolfe", "constraint=group_k_support", *network, "dataset.test_size=40"]
    found = run(tmp_path / "run", *words, "solver.num_steps=1", "compress_at=[0.5,0.8]")["one_shot"]
    assert {row["part"] for row in found} >= {0.5, 0.8}
    assert {row["method"] for row in found} == {"filters_masked", "filters", "weights", "low_rank"}
    assert rows(tmp_path / "run")[-1]["gauge"] <= 1 + 1e-5


@pytest.mark.usefixtures("apart")
def test_a_run_that_goes_on_for_longer_enters_the_sets_of_its_new_course_and_compresses_as_it_is_asked_later(tmp_path):
    words = [*WORDS, "constraint=k_sparse", "constraint.set.k=0.01", "constraint.size.w=3", "solver.lr=1"]
    assert "one_shot" not in run(tmp_path / "run", *words, "solver.delay=0.5", "solver.num_steps=2")
    assert "one_shot" not in resume(tmp_path / "run", "solver.num_steps=6")
    found = rows(tmp_path / "run")
    assert len(found) == 7
    assert max(row["gauge"] for row in found) <= 1 + 1e-4
    assert [row["part"] for row in resume(tmp_path / "run", "compress_at=[0.5]")["one_shot"]] == [0, 0.5]
    assert rows(tmp_path / "run") == found


def test_another_class_inside_a_node_drops_the_keys_it_does_not_take():
    size = "nncompress.constraints.Radius"
    cfg = configuration("solver=frank_wolfe", f"constraint.size._target_={size}", "+constraint.size.value=50")
    assert cfg.constraint.size == {"_target_": size, "value": 50}
    assert build(cfg.solver).constraint.size == Radius(value=50)
