"""Words on record of a sweep that may come from anybody: which are followed, told, refused."""

import json
import os
from pathlib import Path

import pytest
from cases import case

from nncompress.config.schema import register
from nncompress.errors import ConfigError
from nncompress.sweeps.combinations import composed_jobs
from nncompress.sweeps.recorded import is_followed, with_recorded

FOLLOWED = [
    "seed=range(6)", "seed=1,2", "solver=sgd,adam", "experiment=nnbcd/har4,lc/lenet300", "model=glob(*)", "scale=smoke",
    "tracking=[mlflow,wandb]", "~constraint", "~compress_by.low_rank", "+model.hidden=64", "++solver.lr=0.1,0.2",
    "solver.lr=tag(log,interval(1e-4,1))", "solver@reference_training=adam", "solver.seed=${seed}", "validation=0.1",
    "sweep.zip=[a,b]", "sweep.on_error=stop", "search.maximize=[accuracy/test]", "reference='/some where/run'",
    "compression.layers=['conv.*','fc\\d']", "model._target_=my_nets.Net", "target={ratio: 0.1}",
    "launcher=joblib", "hydra.launcher.n_jobs=-1", "hydra.launcher.partition=gpu", "hydra.launcher.mem_per_cpu=4G",
    "+hydra.launcher.ray.init.num_cpus=2", "hydra.launcher.ray.remote.num_gpus=0.5", "hydra/launcher=joblib",
    "hydra.launcher.ray.init.address=auto", "hydra/sweeper=nncompress_search", "hydra.sweeper.max_batch_size=2",
    "+hydra.sweeper.params.seed='1,2'",
    "hydra.sweep.subdir='s${seed}-${hydra.job.num}'", "hydra.launcher.partition=gpu-long", "reference='runs/a$b'",
    "hydra.launcher.account=proj-1234", "hydra.launcher.qos=high-prio", "hydra.launcher.name=my-jobs",
    "hydra.launcher.gres=gpu:a100:2", "hydra.launcher.comment='night shift'", "hydra.launcher.pre_dispatch='2*n_jobs'",
]  # fmt: skip
NOT = [
    "hydra.launcher.setup=[touch struck]", "hydra.launcher.additional_parameters={a: b}",
    "hydra.launcher.n_jobs=${seed}", "hydra.launcher.pre_dispatch='9**9**9'", "hydra.launcher.n_jobs='2*n_jobs'",
    "hydra.launcher.pre_dispatch='2*n_jobs*9'", "hydra.launcher.partition=-p", "hydra.launcher.comment='a --wrap'",
    "hydra.launcher.comment='a\nb'", "hydra.launcher.name=../x", "reference=$${seed}{oc.env:SECRET}",
    "hydra.launcher.submitit_folder=elsewhere", "~hydra.launcher.n_jobs",
    "+hydra.launcher.ray.init.runtime_env={py_executable: x}", "hydra.launcher.ray.init.address=ray://elsewhere:1",
    "hydra.launcher._target_=os.system", "hydra/launcher=mine", "hydra/sweeper=basic", "launcher=../mine",
    "launcher@model=joblib", "hydra/job_logging=none", "hydra.job_logging.formatters.x.\\(\\)=os.system",
    "+hydra.callbacks.mine._target_=os.system", "hydra.searchpath=[file:///mine]", "hydra.job.env_set.PATH=mine",
    "hydra.job.env_copy=[SECRET]", "hydra.mode=RUN", "hydra={callbacks: {}}", "+={hydra: {}}", "=1",
    "hydra.verbose=true", "model@hydra.callbacks.x=mlp", "model@_global_=mlp", "model=../../mine", "model=/mine",
    "model=a/../b", "model='../x'", "model=a\\\\b", "model=tt,../x", "model=glob(../*)", "scale/smoke=x",
    "seed=${oc.env:SECRET}", "seed='${oc.env:SECRET}'", "seed=$\\{oc.env\\:SECRET\\}",
    "seed=${oc.decode:${oc.env:SECRET}}", "hydra.sweep.subdir='${oc.env:SECRET}'", "sweep.resume=null",
    "+sweep.resume=null", "sweep={resume: null}", "search={store: mine}", "search.store=mine", "allow=[os]",
    "++allow=[os]", "resume=mine", "choices.solver=mine", "mine=1", " hydra.verbose=true", "'seed'=1",
    "hydra .verbose=true", f"seed={'[' * 33}{']' * 33}", "+hydra.sweeper.params.allow=x",
    "+hydra.sweeper.params.model='../x'",
]  # fmt: skip


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """The folder of a sweep without jobs."""
    record(tmp_path, ["-m", "seed=1,2"])
    return tmp_path


def record(folder: Path, command: list[str]) -> None:
    """Leave a manifest with this command."""
    content = {"format": 1, "command": command, "jobs": [], "varied": []}
    (folder / "sweep.json").write_text(json.dumps(content))


def test_words_of_the_runs_and_a_few_numbers_and_names_of_launchers_are_followed() -> None:
    register()
    for word in FOLLOWED:
        with case(word=word):
            assert is_followed(word)


def test_no_other_word_is_followed() -> None:
    for word in NOT:
        with case(word=word):
            assert not is_followed(word)


def test_the_folder_is_the_one_given_whatever_is_on_record(sweep: Path) -> None:
    record(sweep, ["-m", "sweep.resume=mine", "hydra.sweep.dir=mine", "seed=1,2", "+sweep.resume=null"])
    place = [f"sweep.resume='{sweep}'", f"hydra.sweep.dir='{sweep}'"]
    assert with_recorded([f"sweep.resume={sweep}"]) == ["-m", "seed=1,2", *place]
    assert with_recorded([f"sweep.resume={sweep}", "seed=3", "device=cpu"]) == ["-m", "seed=3", "device=cpu", *place]


def test_what_says_how_a_sweep_is_run_is_told_and_left_out(sweep: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = ["--config-dir", "mine", "--experimental-rerun=mine", "allow=[os]", "resume=mine", "hydra.verbose=true\x1b"]
    record(sweep, ["-m", *words, "seed=1"])
    assert with_recorded([f"sweep.resume={sweep}"])[:-2] == ["-m", "seed=1"]
    for told in ("--config-dir", "--experimental-rerun", "allow=[os]", "resume=mine", r"hydra.verbose=true\x1b"):
        assert f"{told} of {sweep}/sweep.json is not taken over" in caplog.text


def test_what_says_what_a_job_is_and_cannot_be_followed_is_refused_unless_it_is_given_again(sweep: Path) -> None:
    for word in ("seed=${oc.env:SECRET}", "model=../mine", "model@hydra.callbacks.x=mlp", "mine=1", "[", "sweep={}"):
        record(sweep, ["-m", word])
        with case(word=word), pytest.raises(ConfigError, match="which no file may give"):
            with_recorded([f"sweep.resume={sweep}"])
    record(sweep, ["-m", *(f"model.a{n}=${{seed}}" for n in range(17))])
    with pytest.raises(ConfigError, match="more than 16 interpolations"):
        with_recorded([f"sweep.resume={sweep}"])
    record(sweep, ["-m", "seed=${oc.env:SEED}"])
    assert with_recorded([f"sweep.resume={sweep}", "seed=${oc.env:SEED}"])[:2] == ["-m", "seed=${oc.env:SEED}"]


def test_what_is_set_of_another_launcher_than_the_one_given_is_told_and_left_out(
    sweep: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record(sweep, ["-m", "launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1"])
    for word in ("launcher=local", "hydra/launcher=basic"):
        with case(word=word):
            assert sorted(with_recorded([f"sweep.resume={sweep}", word])[:-2]) == sorted(["-m", "seed=1", word])
            assert f"hydra.launcher.n_jobs=2 of {sweep}/sweep.json is not taken over" in caplog.text
        caplog.clear()
    assert "hydra.launcher.n_jobs=2" in with_recorded([f"sweep.resume={sweep}"])


@pytest.mark.parametrize("name", ["run.log", "0/.hydra/config.yaml", "sweep.json"])
def test_a_sweep_with_a_pipe_in_it_is_refused_before_anything_is_read(name: str, sweep: Path) -> None:
    path = sweep / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="found a pipe or device"):
        with_recorded([f"sweep.resume={sweep}"])


MANY = [f"{key}=range(60)" for key in ("seed", "eval_every", "checkpoint_every")]


def test_a_sweep_has_no_more_jobs_than_can_be_listed() -> None:
    for words in (["seed=range(0,1000000000000)"], ["seed=range(0,1e300,1e-300)"], MANY):
        with case(words=words), pytest.raises(ConfigError, match="at most 100000 jobs"):
            composed_jobs(words)
