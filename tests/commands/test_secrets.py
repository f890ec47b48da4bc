"""User names and passwords of addresses reach no file, log or page; what a terminal would obey is spelt out."""

import itertools
import logging
from pathlib import Path

import pytest
import yaml
from cases import case
from golden import Golden

from nncompress.cli.main import main
from nncompress.environment import describe
from nncompress.errors import without_user_info
from nncompress.sweeps.guards import PlainFormatter

ADDRESS = "https://me:s3cr3t@host/x"
MINE = f"t:\n  _target_: nncompress.tracking.MLflow\n  uri: {ADDRESS}\n"

pytestmark = pytest.mark.usefixtures("apart")


def everything(folder: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def test_an_address_with_a_password_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "conf" / "tracking"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(MINE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ADDRESS)
    for words in (
        ["train", "tracking=mlflow", f"tracking.mlflow.uri={ADDRESS}"],
        ["train", "tracking=mlflow"],
        ["train", "-m", "tracking=mlflow", "seed=1,2"],
        ["train", "--config-dir", str(own.parent), "tracking=mine"],
        ["rerun", "nowhere", f"+tracking.mlflow.uri={ADDRESS}"],
        ["eval", f"dataset.path={ADDRESS}"],
    ):
        with case(words=words):
            assert main(words) == 2
            said = capsys.readouterr().err
            assert "an address must be without user name and password" in said
            assert "s3cr3t" not in said
            assert len(said.splitlines()) == 1
    assert not Path("outputs").exists()


def test_a_password_is_known_by_its_place_whatever_is_in_it() -> None:
    places = ("https://me:{}@host/x", "uri=http://me:{}@h:1", "postgresql://me:{}@h/db", "//me:{}@h", "http:/me:{}@h")
    for place, password in itertools.product(places, ("s3cr3t", "s3/cr", "s3#cr", "s3?cr", "s3@cr", "s3 cr")):
        with case(place=place, password=password):
            assert password not in without_user_info(place.format(password))
    for plain in (
        "sqlite:///outputs/a@b.db",
        "http://localhost:5000/a@b",
        "s3://bucket/key@2",
        "model@part=x",
        "C:/a/b@c",
    ):
        assert without_user_info(plain) == plain


def test_an_address_with_a_password_in_the_file_of_a_run_goes_no_further(
    golden: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = golden.copied("sgd", tmp_path / "run")
    cfg = yaml.safe_load((folder / "config.yaml").read_text())
    cfg["tracking"] = yaml.safe_load(MINE)
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
    for words in (["train", f"resume={folder}"], ["rerun", str(folder)]):
        with case(words=words):
            capsys.readouterr()
            assert main(words) == 2
            assert "tracking.t.uri: an address must be without" in capsys.readouterr().err
    assert "s3cr3t" not in everything(folder).replace((folder / "config.yaml").read_text(), "")
    assert not Path("outputs").exists()


def test_a_log_holds_neither_passwords_nor_control_characters() -> None:
    record = logging.LogRecord("a", logging.INFO, "a.py", 1, "\x1b[31mred %s\nsecond", (ADDRESS,), None)
    assert PlainFormatter("%(message)s").format(record) == "\\x1b[31mred https://***@host/x\nsecond"


def test_the_command_on_record_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("sys.orig_argv", ["python", "mine.py", ADDRESS])
    about = describe(torch.device("cpu"), torch.float32, 0)
    assert about["command"] == ["python", "mine.py", "https://***@host/x"]


def test_what_a_terminal_would_obey_is_spelt_out_in_what_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["report", "a\x1b[31m"],
        ["ls", "a\x1b[31m"],
        ["compare", "a\x1b[31m", "b"],
        ["eval", "a\x1b[31m"],
        ["\x1b[31m"],
    ):
        with case(words=words):
            assert main(words) != 0
            said = capsys.readouterr().err
            assert "\x1b" not in said
            assert "\\x1b[31m" in said
