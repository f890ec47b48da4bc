"""The index of a long list: it saves reading, is made anew where it does not fit, and nothing depends on it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cases import case
from fake_runs import config, fake_run

from nncompress.files import write_json
from nncompress.results import index, query
from nncompress.results.index import INDEX, indexed
from nncompress.results.records import run_folders


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, one of which has not ended."""
    folder = tmp_path_factory.mktemp("runs")
    for name, status in (("a", "done"), ("below/b", "done"), ("c", "interrupted")):
        fake_run(folder / name, config(), n=2, status=status)
    return folder


@pytest.fixture
def runs(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Those runs in a folder that is long enough for an index."""
    monkeypatch.setattr(index, "LEAST", 3)
    return Path(shutil.copytree(written, tmp_path / "runs"))


def figures(*folders: Path) -> dict[str, Any]:
    """What a list knows of every run, by its name."""
    with indexed(folders, run_folders(folders)) as found:
        return {run.folder.name: run.figures for run in found}


def change(run: Path, **keys: Any) -> None:
    """Write a run's summary anew, of the same size."""
    content = json.loads((run / "summary.json").read_text())
    write_json(run / "summary.json", content | keys)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs whose summaries are read."""
    names: list[str] = []
    read = query.read_brief

    def told(folder: Path) -> dict[str, Any] | None:
        names.append(folder.name)
        return read(folder)

    monkeypatch.setattr(index, "read_brief", told)
    return names


def test_a_second_list_reads_no_summary_of_a_run_that_has_ended(runs: Path, reads: list[str]) -> None:
    first = figures(runs)
    assert reads == ["a", "b", "c"]
    assert figures(runs) == first
    assert reads == ["a", "b", "c", "c"]


def test_a_summary_of_the_same_size_that_is_written_anew_is_read_anew(runs: Path, reads: list[str]) -> None:
    figures(runs)
    change(runs / "a", seed=7)
    assert figures(runs)["a"]["seed"] == 7
    assert reads.count("b") == 1
    assert figures(runs)["a"]["seed"] == 7
    assert reads.count("a") == 2


def test_a_run_that_moves_or_goes_leaves_the_index(runs: Path) -> None:
    before = figures(runs)
    (runs / "a").rename(runs / "e")
    assert figures(runs)["e"] == before["a"]
    assert set(json.loads((runs / INDEX).read_text())["summaries"]) == {"below/b", "e"}
    fake_run(runs / "a", config(), n=2, status="failed")
    assert "bits/dense" not in figures(runs)["a"]


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[1]", '{"format": 1}', '{"format": 99, "summaries": {}}', '{"format": 1, "summaries": [1]}',
        '{"format": 1, "summaries": {"a": 1, "below/b": [1, 2, 3], "c": ["x", []]}}',
        '{"format": 1, "summaries": {"a": [null, {"seed": 1}], "c": [null, {"seed": 1}]}}',
        "[" * 100_000, '{"format": 1, "summaries": {"\\ud800": 1}}',
    ],
)  # fmt: skip
def test_an_index_that_is_damaged_is_made_anew(runs: Path, content: str) -> None:
    before = figures(runs)
    whole = (runs / INDEX).read_bytes()
    (runs / INDEX).write_text(content)
    assert figures(runs) == before
    assert (runs / INDEX).read_bytes() == whole


def test_values_in_an_index_are_checked_as_those_of_a_summary(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = figures(runs)["a"]
    content = json.loads((runs / INDEX).read_text())
    for value in ([1], {"a": 1}, "text"):
        content["summaries"]["a"][1] |= {"seed": value}
        write_json(runs / INDEX, content)
        with case(value=value):
            assert figures(runs)["a"] == {key: before[key] for key in before if key != "seed"}
            assert caplog.messages.pop() == f"{runs / 'a/summary.json'}: ignored, it is damaged in part: 'seed'."


def test_a_summary_that_is_damaged_in_part_is_named_each_time(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(runs / "a", seed=[1])
    for _ in range(3):
        figures(runs)
    assert len(caplog.messages) == 3


def test_lists_of_a_summary_are_read_from_it(runs: Path) -> None:
    figures(runs)
    with indexed([runs], run_folders([runs])) as found:
        run = found[0]
        assert "weights" not in run.figures
        assert run.get("weights")["tensors"] == 4
        assert run.knows("weights")
    assert "largest" not in (runs / INDEX).read_text()


def test_a_folder_that_cannot_be_written_is_listed(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(index, "write_text", refuse)
    assert set(figures(runs)) == {"a", "b", "c"}
    assert not (runs / INDEX).exists()
    (runs / INDEX).mkdir()
    assert set(figures(runs)) == {"a", "b", "c"}


def test_few_runs_leave_no_file(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "LEAST", 4)
    figures(runs)
    assert {path.name for path in runs.iterdir()} == {"a", "below", "c"}


def test_each_of_several_folders_has_its_own_index(runs: Path, reads: list[str]) -> None:
    other = shutil.copytree(runs, runs.with_name("other"))
    for _ in range(2):
        assert set(figures(runs, other)) == {"a", "b", "c"}
    assert reads.count("a") == 2
    assert (other / INDEX).read_text() != (runs / INDEX).read_text()


def test_a_list_that_is_interrupted_keeps_what_it_has_read(runs: Path, reads: list[str]) -> None:
    def head() -> None:
        with indexed([runs], run_folders([runs])) as found:
            assert found[0].figures
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        head()
    figures(runs)
    assert reads.count("a") == 1


def test_what_a_killed_list_left_is_taken_away(runs: Path) -> None:
    (runs / f".{INDEX}.1.tmp").write_text("half")
    figures(runs)
    assert {path.name for path in runs.iterdir()} == {"a", "below", "c", INDEX}


def test_an_index_that_is_a_link_changes_nothing_behind_it(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("{}")
    (runs / INDEX).symlink_to(tmp_path / "mine")
    figures(runs)
    assert (tmp_path / "mine").read_text() == "{}"
    assert not (runs / INDEX).is_symlink()
