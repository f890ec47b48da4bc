"""Files are written whole or not at all; a JSON file from anywhere gives a checked value or is told to be damaged."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from cases import case

from nncompress.files import parse_json, read_file, read_json, write_bytes, write_json


def test_what_is_no_json_of_text_and_numbers_is_damaged() -> None:
    deep, utf_16 = 33, '{"a": 1}'.encode("utf-16")
    damaged = {
        "half": b'{"a": 1', "nothing": b"", "lone surrogate": rb'{"a": ["\ud800"]}', "in a key": rb'{"\uDC00": 1}',
        "no UTF-8": b'{"a": "\xff"}', "a surrogate in UTF-8": b'{"a": "\xed\xa0\x80"}', "UTF-16": utf_16,
        "deep lists": b"[" * deep + b"]" * deep, "deep objects": b'{"a":' * deep + b"1" + b"}" * deep,
        "deeper than the stack": b"[" * 100_000, "a number of 5000 digits": b"[" + b"9" * 5000 + b"]",
    }  # fmt: skip
    for name, text in damaged.items():
        with case(name=name):
            assert parse_json(text) is None


def test_what_is_json_comes_back_with_numbers_that_are_floats_or_of_64_bits() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": "\xc3\xa9"}') == {"a": "é"}
    assert parse_json(rb'["\ud83d\ude00"]') == ["😀"]
    assert parse_json(b"[" * 32 + b"]" * 32) is not None
    assert parse_json(b"[NaN, Infinity, -Infinity, 1e999]") == [None] * 4
    whole = parse_json(f"[{2**63 - 1}, {-(2**63)}, {2**63}, {-(10**300)}, {10**400}]".encode())
    assert whole == [2**63 - 1, -(2**63), 2.0**63, -1e300, None]
    assert [type(number) for number in whole[:4]] == [int, int, float, float]
    assert parse_json(b'{"a": {"b": [1e999, {"c": NaN}]}}') == {"a": {"b": [None, {"c": None}]}}


def test_what_is_no_file_is_told_and_not_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_json(tmp_path / "absent") is None
    assert not caplog.messages
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in (("folder", "Is a directory"), ("pipe", "it is no file"), ("loop", "symbolic links")):
        caplog.clear()
        with case(name=name):
            assert read_json(tmp_path / name) is None
            assert f"{tmp_path / name}: ignored, it cannot be read (" in caplog.text
            assert reason in caplog.text


def test_the_end_of_a_file_is_read_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    assert read_file(tmp_path / "file", 3) == b"789"
    assert read_file(tmp_path / "file", 30) == read_file(tmp_path / "file") == b"0123456789"


def test_json_is_written_whole_with_null_for_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": float("nan"), "b": [np.float32(0.5), np.int64(2)], "c": True, "d": "×"})
    assert json.loads(path.read_text()) == {"a": None, "b": [0.5, 2], "c": True, "d": "×"}
    assert path.read_text().startswith('{\n  "a": null')


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_bytes_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    write_bytes(path, b"\x00old")
    assert path.read_bytes() == b"\x00old"
    write_bytes(path, b"")
    assert path.read_bytes() == b""
    write_bytes(path, b"kept")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"kept"
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(OSError, match="No such file"):
        write_bytes(tmp_path / "nowhere" / "file", b"new")
