"""Several processes as one: shares and sums, and NN-BCD's runs of two processes against those of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from cases import case
from runs import configuration, status, summary
from torchrun import assert_same_records, assert_same_state, forked, resume, run

from nncompress import parallel
from nncompress.errors import ConfigError

DATA = ["solver=nnbcd", "dataset.train_size=51", "dataset.test_size=20"]  # 25 and 26 samples
MLP = [*DATA, "model.widths=[16,12]", "compression=tt", "compression.rank=4"]
STEPS = "solver.num_steps=4"
KINDS = {
    "mlp": MLP,
    # One process has W_1's system in the samples, two have it in the inputs.
    "few": [*MLP, "dataset.train_size=21", "solver.multipliers=true", "solver.tau_growth=1.1", "eval_every=2"],
    "inertial_cnn": [
        *(*DATA, "model=nnbcd_cnn", "model.filters=3", "model.widths=[16,12]", "model.bias=true"),
        *("compression=tt", "compression.rank=4", "solver.extrapolation=true"),
    ],
    "pruned": [*DATA, "model.widths=[16,12]", "compression=l0", "compression.keep=0.3", "solver.project=true"],
}
HALVES = ("few", "inertial_cnn")
FRANK_WOLFE = [
    *("solver=frank_wolfe", "constraint=group_k_support", "model=vgg16", "model.layers=[1]", "model.width=0.1"),
    *("dataset.flatten=false", "dataset.train_size=41", "dataset.test_size=20", "solver.batch_size=20"),
]


@dataclass(frozen=True)
class Together:
    """The runs of one process (folder one) and of two (folder two), and what went wrong in either of the two."""

    folder: Path
    failures: dict[str, tuple[str | None, str | None]]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Together:
    folder = tmp_path_factory.mktemp("processes")
    kinds = {name: configuration(*words, STEPS) for name, words in KINDS.items()}
    halves = {name: configuration(*KINDS[name], "solver.num_steps=2") for name in HALVES}
    ratios = configuration(*FRANK_WOLFE, "compress_at=[0.5]", "solver.num_steps=1")
    for name, cfg in kinds.items():
        assert run(folder / "one" / name, cfg) is None
    for name, cfg in halves.items():
        assert run(folder / "one" / f"half_{name}", cfg) is None

    def work() -> dict[str, str | None]:
        two = {name: run(folder / "two" / name, cfg) for name, cfg in kinds.items()}
        for name, cfg in halves.items():
            two[f"half_{name}"] = run(folder / "two" / f"half_{name}", cfg)
            two[f"resumed_{name}"] = resume(folder / "one" / f"half_{name}", STEPS)
        return two | {"ratios": run(folder / "two" / "ratios", ratios)}

    failures, _ = forked(folder, work)
    for name in HALVES:
        assert resume(folder / "two" / f"half_{name}", STEPS) is None
    torch.set_deterministic_debug_mode("default")
    return Together(folder, {name: (failures[0][name], failures[1][name]) for name in failures[0]})


def test_shares_cover_every_sample_once_and_differ_by_at_most_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 2, 3, 7):
        for n in (0, 1, 2, 5, 6, 7, 100, 151):
            monkeypatch.setattr(parallel, "size", lambda size=size: size)
            seen, lengths = [], []
            for rank in range(size):
                monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
                share = list(range(n))[parallel.share(n)]
                seen += share
                lengths.append(len(share))
            with case(size=size, n=n):
                assert seen == list(range(n))
                assert max(lengths) - min(lengths) <= 1


def test_a_group_of_one_keeps_what_it_has() -> None:
    part = torch.arange(6.0).view(3, 2)
    value = {"objective": 1.0}
    assert (parallel.size(), parallel.rank()) == (1, 0)
    assert parallel.gather(part, 3) is part
    assert parallel.broadcast(value) is value
    assert parallel.largest(143) == 143
    parallel.sum_(part)
    assert part.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_in_a_group_of_one_an_error_stays_what_it_is() -> None:
    for error in (ValueError("of somebody's network"), ConfigError("ours")):
        with pytest.raises(type(error)) as caught, parallel.together():
            raise error
        assert caught.value is error


def test_a_group_of_two_sums_gathers_and_agrees(tmp_path: Path) -> None:
    def work() -> list[object]:
        rank = parallel.rank()
        sums = [torch.tensor([1.0, 2.0]) + rank, torch.full((1,), 10.0 * rank)]
        parallel.sum_(*sums)
        whole = parallel.gather(torch.arange(5.0)[parallel.share(5)].view(-1, 1), 5)
        try:
            with parallel.together():
                if rank == 1:
                    raise ValueError("no memory")
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        found = [parallel.size(), rank, [part.tolist() for part in sums], whole.flatten().tolist()]
        return [*found, parallel.broadcast(f"of {rank}"), parallel.largest(3 + rank), said]

    (zero, one), _ = forked(tmp_path, work)
    sums = [[3.0, 5.0], [10.0]]
    assert zero == [2, 0, sums, [0, 1, 2, 3, 4], "of 0", 4, "NNCompressError: process 1: ValueError: no memory"]
    assert one == [2, 1, sums, [2, 3, 4], "of 0", 4, "NNCompressError: ValueError: no memory"]


@pytest.mark.parametrize("name", KINDS)
def test_two_processes_make_the_iterates_of_one(together: Together, name: str) -> None:
    one, two = together.folder / "one" / name, together.folder / "two" / name
    assert together.failures[name] == (None, None)
    assert_same_records(one, two)
    assert_same_state(one, two)


@pytest.mark.parametrize("name", HALVES)
def test_a_checkpoint_of_one_process_is_taken_up_by_two_and_the_other_way_round(together: Together, name: str) -> None:
    folder = together.folder
    assert together.failures[f"half_{name}"] == together.failures[f"resumed_{name}"] == (None, None)
    for resumed in (folder / "one" / f"half_{name}", folder / "two" / f"half_{name}"):
        assert_same_records(folder / "one" / name, resumed)
        assert_same_state(folder / "one" / name, resumed)
        assert status(resumed)["status"] == "done"


def test_process_0_alone_takes_the_statistics_of_shared_batch_norms_anew(together: Together) -> None:
    assert together.failures["ratios"] == (None, None)
    found = summary(together.folder / "two" / "ratios")["one_shot"]
    assert isinstance(found, list)
    assert {row["recalibrated"] for row in found} == {False, True}
