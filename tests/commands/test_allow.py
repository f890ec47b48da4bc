"""Commands on runs whose files name classes: what is neither known nor allowed is refused, and nothing is imported."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from cases import case
from golden import Golden
from runs import resign, run, status, summary

import nncompress
from nncompress.cli.main import main
from nncompress.sweeps import jobs
from nncompress.sweeps.saved import resume_task

NETS = """
from nncompress.models.mlp import MLP

open("imported", "w").close()


class Net(MLP):
    pass
"""
MINE = [
    *("solver=sgd", "model.widths=[8]", "solver.num_steps=1", "dataset.train_size=100", "dataset.test_size=50"),
    "model._target_=my_nets.Net",
]

pytestmark = pytest.mark.usefixtures("apart")


def told(capsys: pytest.CaptureFixture[str]) -> str:
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    return message


def test_a_run_of_ones_own_network_is_taken_up_when_its_module_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "run"
    assert run(folder, *MINE, "allow=[my_nets]")["model"] == "Net"
    before = (folder / "config.yaml").read_text()
    assert "my_nets" in yaml.safe_load(before)["allow"]  # which does not count
    sys.modules.pop("my_nets")
    Path("imported").unlink()
    capsys.readouterr()
    for words in (
        ["train", f"resume={folder}"],
        ["rerun", str(folder)],
        ["eval", str(folder)],
        ["export", str(folder)],
    ):
        with case(words=words):
            assert main(words) == 2
            message = told(capsys)
            assert "names my_nets.Net" in message
            assert "allow=[my_nets]" in message
    assert not Path("imported").exists()
    assert not Path("outputs").exists()
    assert (folder / "config.yaml").read_text() == before
    assert main(["train", f"resume={folder}", "solver.num_steps=2", "allow=[my_nets]"]) == 0
    assert main(["rerun", str(folder), "hydra.run.dir=again", "allow=[my_nets]"]) == 0
    assert summary(Path("again")) == summary(folder)
    assert main(["eval", str(folder), "batch_sizes=[]", "allow=[my_nets]"]) == 0
    assert main(["export", "allow=[my_nets]", str(folder)]) == 0
    monkeypatch.setenv("NNCOMPRESS_ALLOW", "my_nets")
    assert resume_task([f"resume={folder}"], jobs.run_single) is not None
    assert type(nncompress.load(folder, compact=False)).__name__ == "Net"


def test_a_changed_configuration_runs_nothing(
    golden: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = golden.copied("sgd", tmp_path / "run")
    path = folder / "config.yaml"
    cfg = yaml.safe_load(path.read_text())
    cfg["solver"]["schedule"] = {"_target_": "os.system", "_args_": ["touch struck"]}
    path.write_text(yaml.safe_dump(cfg))
    for words in (["train", f"resume={folder}"], ["rerun", str(folder)]):
        with case(words=words):
            capsys.readouterr()
            assert main(words) == 2
            assert "names os.system" in told(capsys)
    assert not Path("struck").exists()
    assert status(folder)["status"] == "done"


def test_the_data_set_that_a_network_names_is_looked_at_too(
    golden: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = golden.copied("sgd", tmp_path / "run")
    resign(folder / "model", lambda about: about["data"].update(_target_="os.system"))
    capsys.readouterr()
    assert main(["eval", str(folder), "batch_sizes=[]"]) == 2
    assert "model.json names os.system" in told(capsys)
    for words in (["dataset=digits", "dataset.train_size=100"], ["~dataset"]):
        with case(words=words):
            assert main(["eval", str(folder), "batch_sizes=[]", *words]) == 0
    about = json.loads((folder / "model/model.json").read_text())
    assert about["data"]["_target_"] == "os.system"
