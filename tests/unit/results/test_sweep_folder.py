"""The manifest of a sweep: whatever is in the file, it is a manifest of checked types or a sentence."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cases import case

from nncompress.errors import ConfigError
from nncompress.results.sweep_folder import Job, Manifest, read_manifest, refuse_links, require_within, write_manifest

JOB: dict[str, Any] = {"folder": "0", "key": "0f", "overrides": ["seed=1"]}
WHOLE: dict[str, Any] = {"format": 1, "command": ["-m", "seed=1"], "jobs": [JOB], "varied": ["seed"]}

LISTS = ("command", "jobs", "varied")
OUTSIDE = ("", ".", "..", "../x", "/x", "a/../../x", "x" * 5000)


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = Manifest(["-m", "seed=1,2"], [Job("a/0", "0f", ["seed=1"]), Job("a/1", "1f", ["seed=2"])], ["seed"])
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b"null", b"[]"),
        *(WHOLE | {"format": each} for each in (2, 0, "1", None, True + 0.5, [1], 10**400)),
        *(WHOLE | {name: each} for name in LISTS for each in (None, 1, "a", {"a": 1}, [1], [[]])),
        *(WHOLE | {"command": [each]} for each in ("\ud800", "a\0b", None)),
        *(WHOLE | {"jobs": [JOB | {name: each}]} for name in JOB for each in (None, 1, [1], {}, "\ud800")),
        *(WHOLE | {"jobs": [JOB | {"folder": each}]} for each in OUTSIDE),
        *(WHOLE | {"jobs": [JOB, JOB | other]} for other in ({}, {"folder": "1"}, {"key": "1f"})),
        *(WHOLE | {"jobs": [JOB | {"more": 1}]}, WHOLE | {"more": 1}, {"format": 1}),
    ],
)
def test_what_is_no_manifest_is_refused_with_a_sentence(content: bytes | dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(ConfigError) as refused:
        read_manifest(tmp_path)
    assert str(tmp_path) in str(refused.value)
    assert len(str(refused.value)) < 6000
    str(refused.value).encode()


def test_a_folder_in_place_of_the_manifest_is_no_sweep(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").mkdir()
    with pytest.raises(ConfigError, match="found none in"):
        read_manifest(tmp_path)


def test_a_pipe_is_no_manifest_and_the_name_of_a_folder_is_told_on_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "a\x1b\nb"
    folder.mkdir()
    os.mkfifo(folder / "sweep.json")
    for refuse, said in ((read_manifest, "it cannot be read"), (refuse_links, "found a pipe or device")):
        with pytest.raises(ConfigError, match=said) as refused:
            refuse(folder)
        assert str(refused.value).isprintable()


def test_a_job_stays_in_its_sweep_whatever_leads_out(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    (sweep / "here").mkdir(parents=True)
    (sweep / "away").symlink_to(tmp_path)
    (sweep / "gone").symlink_to(tmp_path / "absent")
    (sweep / "self").symlink_to(sweep)
    (sweep / "file").touch()
    require_within(sweep, "here")
    require_within(sweep, "new/one")
    for folder in ("away", "away/x", "gone", "self", "file", "file/x", str(sweep / "here"), "a\0b"):
        with case(folder=folder), pytest.raises(ConfigError, match="need folders below"):
            require_within(sweep, folder)


def test_a_sweep_reached_through_a_link_is_one(tmp_path: Path) -> None:
    (tmp_path / "disk/0").mkdir(parents=True)
    (tmp_path / "sweep").symlink_to(tmp_path / "disk")
    require_within(tmp_path / "sweep", "0")
    refuse_links(tmp_path / "sweep")
    (tmp_path / "disk/1").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="found the link"):
        refuse_links(tmp_path / "sweep")


def test_links_that_lead_out_of_what_goes_on_are_refused(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "latest").symlink_to("0")
    refuse_links(tmp_path)
    (tmp_path / "0/run.log").symlink_to(tmp_path.parent / "elsewhere")
    with pytest.raises(ConfigError, match=r"found the link .*run\.log"):
        refuse_links(tmp_path)
