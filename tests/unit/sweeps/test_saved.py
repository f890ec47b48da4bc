"""The configuration in a run's folder, which may come from anybody: containers, numbers and texts, or a sentence."""

import os
import shutil
from pathlib import Path

import pytest
import yaml
from cases import case
from composing import composing
from hydra import compose
from omegaconf import OmegaConf
from runs import save_config

from nncompress.errors import CheckpointError, ConfigError
from nncompress.sweeps import jobs
from nncompress.sweeps.saved import read_saved, rerun_config, rerun_task, resume_task

DEEP = 40
HOSTILE = {
    "an anchor": "seed: &a 1\nmodel: *a\n",
    "laughs": "a: &a [x, x]\nb: &b [*a, *a]\nmodel: [*b, *b]\n",
    "a loop": "model: &a {b: *a}\n",
    "a tag": "model: !!python/object/apply:os.system [touch struck]\n",
    "a name": "model: !!python/name:os.system ''\n",
    "bytes": "model: !!binary aGVsbG8=\n",
    "deep": f"model: {'[' * DEEP}{']' * DEEP}\n",
    "very deep": f"model: {'[' * 20_000}",
    "deep keys": "\n".join(" " * number + "a:" for number in range(DEEP)),
    "a surrogate": 'model: "\\ud800"\n',
    "huge": f"seed: 0x{'f' * 100}\n",
    "huger": f"seed: {'9' * 5000}\n",
    "a secret": "model: ${oc.env:HOME}\n",
    "a value": "model: ${seed}\n",
    "a key": "model: {'${oc.env:HOME}': 1}\n",
    "another type": "seed: [1]\n",
    "another key": "sed: 1\n",
    "a list": "- 1\n",
    "a text": "seed\n",
    "no end": "model: {",
    "twice": "seed: 1\nseed: 2\n",
    "several": "seed: 1\n---\nseed: 2\n",
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with composing():
        save_config(compose("config", ["seed=3", "solver.lr=1e-3"]), folder)
    return folder


@pytest.fixture
def run(kept: Path, tmp_path: Path) -> Path:
    """The folder of a run with its configuration alone."""
    return Path(shutil.copytree(kept, tmp_path / "run"))


def test_a_configuration_is_read_as_it_was_written(run: Path) -> None:
    cfg = read_saved(run)
    assert (cfg.seed, cfg.solver.lr, cfg.model.widths) == (3, 1e-3, [256, 256])
    assert OmegaConf.to_container(cfg, resolve=False)["solver"]["seed"] == "${seed}"  # type: ignore[index, call-overload]


def test_anything_else_is_refused_with_a_sentence(run: Path) -> None:
    path = run / "config.yaml"
    for name, text in HOSTILE.items():
        path.write_text(text)
        with case(name=name), pytest.raises(CheckpointError, match=r"config\.yaml cannot be read|no configuration"):
            read_saved(run)
    path.write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_saved(run)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_saved(run)


def test_neither_a_pipe_nor_a_device_is_a_configuration(run: Path) -> None:
    path = run / "config.yaml"
    for make in (os.mkfifo, lambda link: link.symlink_to("/dev/zero")):
        path.unlink()
        make(path)
        with pytest.raises(CheckpointError, match=r"config\.yaml cannot be read: it is no file"):
            rerun_config(run, [])
        with pytest.raises(ConfigError, match="what goes on must hold"):
            resume_task([f"resume={run}"], jobs.run_single)


def test_nothing_is_no_configuration(run: Path) -> None:
    for text in ("", "null\n", "# none\n", "{}\n"):
        (run / "config.yaml").write_text(text)
        with case(text=text), pytest.raises(CheckpointError, match=r"config\.yaml holds no configuration"):
            read_saved(run)


def test_the_name_of_a_folder_is_told_on_one_line(run: Path) -> None:
    odd = run.rename(run.with_name("a\x1b\nb"))
    (odd / "config.yaml").write_text("")
    for folder, kind in ((odd, CheckpointError), (odd / "absent", CheckpointError)):
        with pytest.raises(kind) as refused:
            resume_task([f"resume={folder}"], jobs.run_single)
        assert r"a\x1b\nb" in str(refused.value)
        assert str(refused.value).isprintable()


def test_a_run_does_not_go_on_through_a_link(run: Path, tmp_path: Path) -> None:
    assert resume_task([f"resume={run}"], jobs.run_single) is not None
    (run / "run.log").symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match="found the link"):
        resume_task([f"resume={run}"], jobs.run_single)


def test_a_repeated_run_goes_where_no_option_on_record_leads(run: Path) -> None:
    path = run / "config.yaml"
    cfg = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(cfg | {"choices": {"solver": "../../mine", "model": "a'b"}}))
    word = rerun_task(run, [], jobs.run_single)[1][0]
    assert word.startswith("hydra.run.dir='outputs/______mine-a_b-own/")
