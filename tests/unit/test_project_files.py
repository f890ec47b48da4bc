"""The files that a project has by convention agree with pyproject.toml, the Makefile and .ci."""

import re
import tomllib
from typing import Any

import yaml
from problems import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_a_commit_runs_the_commands_of_make_lint() -> None:
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    entries = [hook["entry"] for hook in repository["hooks"]]
    assert entries == [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}


def test_the_hosted_ci_runs_the_public_part_on_every_python_there_is_a_classifier_of() -> None:
    job = read(".github/workflows/ci.yml")["jobs"]["ci"]
    pythons = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert job["strategy"]["matrix"]["python-version"] == pythons
    assert job["steps"][-1] == {"run": ".ci/public"}


def test_the_citation_is_of_this_version_and_names_the_four_papers() -> None:
    citation = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (citation["title"], citation["version"]) == (PROJECT["name"], PROJECT["version"])
    assert citation["license"] == PROJECT["license"]
    papers = {each["identifiers"][0]["value"]: each for each in citation["references"]}
    assert set(papers) == {"arXiv:2303.06815", "arXiv:1707.01209", "arXiv:2307.00684", "arXiv:2205.11921"}
    for name, paper in papers.items():
        assert paper["url"] == f"https://arxiv.org/abs/{name.removeprefix('arXiv:')}"
        assert {"type", "title", "authors", "year"} <= set(paper)
