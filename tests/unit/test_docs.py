"""The commands of README.md and docs/*.md compose and bind, and what else the pages name is there."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import pytest
from cases import case
from documented import (
    CALLS,
    DOCUMENTED,
    GROUPS,
    PAGES,
    RUN,
    calls,
    composed,
    furnish,
    jobs,
    key_of,
    lines_of,
    not_run,
    option,
    outside,
    overrides,
    values,
)
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from problems import ROOT

import nncompress.cli.eval
import nncompress.cli.export
import nncompress.cli.reproduce
from nncompress.cli.main import COMMANDS
from nncompress.config.build import validate
from nncompress.config.evaluation import read_settings
from nncompress.config.schema import LATER
from nncompress.errors import ConfigError

RUNS = {name: words for name, words in CALLS.items() if words[0] in ("train", "search")}
OTHERS = {name: words for name, words in CALLS.items() if name not in RUNS}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder as the current one, on the path."""
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def check(words: Sequence[str]) -> int:
    """Compose and bind the jobs of the words of a run: how many; none for a run that is resumed."""
    if any(word.startswith("resume=") for word in words):
        assert {key_of(word) for word in words[1:]} <= {"resume", *LATER}
        return 0
    left = [word for word in words[1:] if not word.startswith("sweep.resume=")]
    made = jobs(left)
    for job in made:
        cfg = composed(job, option(words, "--config-dir"))
        if cfg.reference is not None:
            (Path(cfg.reference) / "model").mkdir(parents=True, exist_ok=True)
            (Path(cfg.reference) / "model/model.json").touch()
        validate(cfg)
    for word in set(overrides(left)).difference(*made):
        if key_of(word) not in GROUPS:  # what is swept is composed with its first value
            (last,) = OverridesParser.create().parse_overrides([values(word)[-1]])
            OmegaConf.update(cfg, key_of(word), last.value())
    validate(cfg)
    return len(made)


def test_every_page_has_commands_that_are_found() -> None:
    assert len(DOCUMENTED) > 60
    without = {page.name for page in PAGES if not list(lines_of(page))}
    assert without <= {"counting.md"}
    assert "train solver=nnbcd model=tt_mlp" in RUNS
    assert "ls model=tt_mlp -n 2 --quiet" in OTHERS


def test_every_documented_run_composes_and_binds(here: Path) -> None:
    for name, words in RUNS.items():
        with case(command=name):
            resumed = any(word.startswith("resume=") for word in words)
            assert (check(words) > 0) != resumed


def check_eval(words: Sequence[str]) -> None:
    digits = {"_target_": "nncompress.data.digits.digits", "train_size": None, "test_size": None}
    parser = nncompress.cli.eval.parser()
    path, overrides = parser.run_and_overrides(parser.parse(words).words)
    assert path.parts[0] == "outputs"
    read_settings(overrides, digits)


def check_export(words: Sequence[str]) -> None:
    parser = nncompress.cli.export.parser()
    parsed = parser.parse(words)
    nncompress.cli.export._check(parsed, parser.run_and_overrides(parsed.words)[1])


def check_rerun(words: Sequence[str]) -> None:
    assert words[0].startswith("outputs/")
    for word in words[1:]:
        assert "=" in word


def check_folders(words: Sequence[str]) -> None:
    assert all(word.startswith("outputs/") for word in words if word != "--html")


def check_reproduce(words: Sequence[str]) -> None:
    parsed = nncompress.cli.reproduce.parser().parse(words)
    nncompress.cli.reproduce._check(
        [word for word in parsed.words if "=" not in word], [word for word in parsed.words if "=" in word]
    )


CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "eval": check_eval, "export": check_export, "rerun": check_rerun, "compare": check_folders,
    "report": check_folders, "reproduce": check_reproduce,
}  # fmt: skip
"""What is checked of the words of a command beyond its own parser."""


def test_the_options_of_every_documented_command_are_known(here: Path) -> None:
    refused = {}
    for name, words in OTHERS.items():
        if words[1:] != ["--help"]:
            command = COMMANDS[words[0]]
            try:
                getattr(import_module(f"nncompress.cli.{command.module}"), command.parser)().parse(words[1:])
                CHECKS.get(words[0], len)(words[1:])
            except ConfigError as error:
                refused[name] = str(error)
    assert refused == {}


def test_what_a_documented_line_of_the_shell_names_is_there() -> None:
    for line in DOCUMENTED:
        if not calls(line):
            with case(line=line):
                check_line(line)


def check_line(line: str) -> None:
    match outside(line):
        case ["make", target, *_]:
            assert re.search(rf"^{target}:.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["python", "-m", module, *_]:
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
        case ["pytest", *words]:
            assert all((ROOT / word).is_file() for word in words if word.endswith(".py"))
        case ["pip", "install", package]:
            extra = re.fullmatch(r"nncompress\[(\w+)\]", package)
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert package == "." or (extra is not None and extra.group(1) in extras)
        case ["export", setting]:
            assert setting.startswith("NNCOMPRESS_")
        case [script, *_]:
            assert os.access(ROOT / script, os.X_OK)


def test_every_documented_experiment_exists() -> None:
    found = {name for page in PAGES for name in re.findall(r"experiment=([\w/]+)(?![\w/*.])", page.read_text("utf-8"))}
    named = {name for name in found if not name.endswith(("/", "_")) and "ROW" not in name}  # no patterns or beginnings
    assert len(named) > 10
    assert {name for name in named if not (ROOT / "conf/experiment" / f"{name}.yaml").is_file()} == set()


def test_every_command_of_a_script_composes_and_binds(here: Path) -> None:
    (here / "bin").mkdir()
    stand_in = here / "bin/nncompress"
    stand_in.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done >> calls\necho >> calls\n')
    stand_in.chmod(0o755)
    environment = os.environ | {"PATH": f"{here / 'bin'}:{os.environ['PATH']}"}
    for script in sorted((ROOT / "scripts").glob("*.sh")):
        with case(script=script.name):
            Path("calls").write_text("")
            subprocess.run([script, "outputs/FOLDER"], env=environment, check=True, stdout=subprocess.DEVNULL)
            called = [call.split("\n") for call in Path("calls").read_text().split("\n\n")[:-1]]
            assert called
            for words in called:
                assert words[0] in ("train", "report")
                if words[0] == "train":
                    check(words)


def test_every_command_that_is_not_run_has_a_reason() -> None:
    left = {line: not_run(line) for line in DOCUMENTED if line not in RUN}
    assert all(left.values())
