"""The papers' protocols: every published figure has its study or a reason, every study is a valid configuration."""

from collections.abc import Sequence

import numpy as np
import pytest
from cases import case
from composing import composing
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from problems import ROOT

import nncompress.sweeps.launch  # noqa: F401 (its resolver is used by conf/config.yaml)
from nncompress.config.build import validate
from nncompress.errors import ConfigError
from nncompress.reproduce import planning
from nncompress.reproduce.planning import Cost, Forecast, planned_runs, seconds
from nncompress.reproduce.protocol import CLAIM, NOT_AVAILABLE, PAPERS, SCALES, Selection, read_protocol, read_published
from nncompress.sweeps.combinations import _composed_job, combinations, values_of

FROM_REFERENCE = ("LC", "IDC", "DCRetrain", "Distillation", "DirectCompression")
"""The solvers that start from a trained network."""


def test_every_published_figure_is_named_once_and_is_a_number_a_claim_or_not_available() -> None:
    found = read_published()
    keys = [(each.paper, each.row, each.metric) for each in found]
    assert len(keys) == len(set(keys)) > 1000
    for each in found:
        assert each.source
        assert each.setting
        assert each.metric == CLAIM or each.value == NOT_AVAILABLE or np.isfinite(float(each.value))


def test_published_figures_are_those_of_their_sources() -> None:
    known = [
        ("nnbcd", "har4/orthogonal", "test accuracy (%)", 96.81),
        ("nnbcd", "cnn/rank40_at500", "test accuracy (%)", 96.6),
        ("nnbcd", "har5_grid/gamma5_rho1", "test accuracy (%)", 96.57),
        ("slimming", "ns_code/cifar10_vgg19_70", "test accuracy fine-tuned (%)", 93.78),
        ("slimming", "counts/resnet164_cifar10", "parameters", 1703258),
        ("lc", "toolkit/quantize_all", "test error (%)", 2.56),
        ("sparsefw", "counts/resnet18", "MACs", 555422720),
    ]
    figures = read_published()
    for paper, row, metric, value in known:
        with case(paper=paper, row=row):
            (found,) = [each for each in figures if (each.paper, each.row, each.metric) == (paper, row, metric)]
            assert found.number == value
            assert found in read_published(paper)


def test_a_protocol_measures_published_rows_alone_and_says_why_it_leaves_one_out() -> None:
    for paper in PAPERS:
        with case(paper=paper):
            check_rows(paper)


def check_rows(paper: str) -> None:
    published = read_published(paper)
    rows = {each.row for each in published if each.metric != CLAIM}
    names = {each.row for each in published}
    for scale in SCALES:
        protocol = read_protocol(paper, scale)
        for pattern, (selection, _) in protocol.rows.items():
            assert selection.study in protocol.other, (scale, pattern)
        for claim in protocol.claims:
            with case(scale=scale, claim=claim.says):
                assert claim.published in {*names, "own check"}
                assert claim.ours.study in protocol.other
                assert not isinstance(claim.than, Selection) or claim.than.study in protocol.other
        for row in rows:
            selected = protocol.selection(row)
            if selected is None or protocol.study(selected.study) is None:
                assert protocol.why_absent(row) != "no experiment here", (scale, row)


@pytest.mark.parametrize("paper", PAPERS)
def test_the_first_run_of_every_study_of_a_paper_is_a_valid_configuration(paper: str) -> None:
    studies = {study.words: study for scale in SCALES for study in read_protocol(paper, scale).studies}
    assert studies
    with composing():
        for words, study in studies.items():
            with case(study=study.name, words=words):
                composed = _composed_job(first_job(words), ())
                cfg = composed.cfg
                validate(cfg)
                job = planning._planned_run(composed)
                assert job.steps >= 0
                solver = cfg.solver._target_.rpartition(".")[2]
                assert (job.reference is None) == (solver not in FROM_REFERENCE)


def first_job(words: Sequence[str]) -> list[str]:
    """The words of a sweep's first job; what Hydra composes for the sweep itself differs where a group is swept."""
    parsed = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader()).parse_overrides([*words])
    swept = {word.get_key_element(): word.input_line for word in parsed if word.is_sweep_override()}
    own = [word for word in words if word not in swept.values()]
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    whole = groups & {*swept} or any(word.startswith("sweep.") for word in own)
    zipped = compose("config", own).sweep.zip if whole else ()
    return combinations(values_of(parsed), zipped)[0]


def test_stars_of_a_row_are_the_values_of_keys() -> None:
    protocol = read_protocol("nnbcd", "gpu")
    grid = protocol.selection("har5_grid/gamma0.5_rho10")
    assert grid is not None
    assert dict(grid.where) == {"solver.gamma": "0.5", "solver.rho": "10"}
    at = protocol.selection("cnn/rank40_at500")
    assert at is not None
    assert (dict(at.where), at.step) == ({"compression.rank": "40"}, 500)
    row = read_protocol("lc", "cpu").selection("toolkit/prune")
    assert row is not None
    assert dict(row.where) == {"experiment": "lc/prune"}
    assert protocol.selection("prune_solar_flare/orthogonal") is None


def test_what_a_run_is_compressed_to_afterwards_is_measured_once_and_counted() -> None:
    (job,) = planned_runs(["compress_at=[.1,.2,.3]", "compress_by.weights.at=[.5,.9]", "~compress_by.low_rank"])
    assert job.parts == 3 + 3 + 2  # two methods share the parts
    assert set(job.one_step) == {"++solver.num_steps=1", "compress_at=[0.1]", "compress_by.weights.at=[0.5]"}
    plan = Forecast(read_protocol("lc", "cpu").studies[0], (), (job,), frozenset(), cost=Cost(2, 3, 0, 0, 5))
    assert seconds([plan]) == 3 + 2 * job.steps + 5 * job.parts


def test_a_reference_has_the_name_under_which_a_run_looks_for_it() -> None:
    (job,) = planned_runs(["experiment=lc/prune"])
    assert job.reference is not None
    assert job.reference[0].rpartition("/")[2].startswith("lenet300-mnist-")


def test_a_wrong_word_of_a_protocol_is_told() -> None:
    with pytest.raises(ConfigError, match="sollver"):
        planned_runs(["sollver=lc"])
