"""Sqlite files of other libraries: made whole or not at all, and what is told of damaged ones."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from nncompress.errors import NNCompressError
from nncompress.tracking.sqlite import ask, damage_told, make_absent


def make(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE kept (name)")


def test_a_database_is_made_beside_and_what_killed_processes_left_of_it_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    (tmp_path / ".a.db.1.tmp").mkdir()
    (tmp_path / ".a.db.1.tmp" / "a.db-journal").write_text("half")
    (tmp_path / ".b.db.1.tmp").mkdir()
    places: list[Path] = []

    def seen(draft: Path) -> None:
        places.append(draft)
        assert not path.exists()
        make(draft)

    make_absent(path, seen)
    assert [place.name for place in places] == ["a.db"]
    assert ask(path, "SELECT name FROM sqlite_master") == [("kept",)]
    assert {each.name for each in tmp_path.iterdir()} == {"a.db", ".b.db.1.tmp"}


def test_what_is_there_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_text("mine")
    make_absent(path, make)
    assert path.read_text() == "mine"


def test_one_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    def fail(draft: Path) -> None:
        make(draft)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_absent(tmp_path / "a.db", fail)
    assert list(tmp_path.iterdir()) == []


def test_the_journal_of_another_database_is_kept_and_told(tmp_path: Path) -> None:
    (tmp_path / "a.db-journal").write_text("of the one before")
    with pytest.raises(NNCompressError, match=r"a\.db-journal; move it away too"):
        make_absent(tmp_path / "a.db", make)
    assert [each.name for each in tmp_path.iterdir()] == ["a.db-journal"]


def test_damage_is_told_and_what_is_of_the_moment_is_not_called_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_text("no database at all, but long enough to be looked at")
    told = r"a\.db must be whole, but it is damaged \(file is not a database\); go"
    with pytest.raises(NNCompressError, match=told), damage_told(path, "whole", "go"):
        ask(path, "SELECT 1 FROM sqlite_master")
    path.unlink()
    with pytest.raises(NNCompressError, match=r"cannot be read \(unable to open"), damage_told(path, "whole", "go"):
        ask(path, "SELECT 1 FROM sqlite_master")
    sqlite3.connect(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with (
            pytest.raises(sqlite3.OperationalError, match="locked"),
            damage_told(path, "whole", "go"),
            closing(sqlite3.connect(path, 0)) as database,
        ):
            database.execute("CREATE TABLE a (b)")
    with pytest.raises(KeyError), damage_told(path, "whole", "go"):
        raise KeyError
    with pytest.raises(NNCompressError), damage_told(path, "whole", "go", KeyError):
        raise KeyError
