"""`nncompress rerun`: the same summary from the same configuration, any change, and what sets the two apart."""

from pathlib import Path

import pytest
import yaml
from cases import case
from golden import DIGITS, WORDS, Golden
from omegaconf import DictConfig, OmegaConf
from runs import configuration, rows, run, save_config, status, summary

from nncompress.cli.main import main
from nncompress.sweeps.saved import rerun_config

NNBCD = ["solver=nnbcd", "model=tt_mlp", "model.widths=[16]", "solver.num_steps=2", "dataset.train_size=200"]
LC = [
    *("solver=lc", "model=mlp", "model.widths=[8]", "compression=codebook", "solver.num_steps=2", "solver.epochs=1"),
    *("reference_training.num_steps=2", "dataset.train_size=200"),
]
SGD = ["solver=sgd", "solver.num_steps=1", "model.widths=[8]"]
FRANK_WOLFE = ["solver=frank_wolfe", "constraint=nuclear", "constraint.params=weights", "model.widths=[8]"]
FRANK_WOLFE += ["solver.num_steps=1"]
CHANGES = ["seed=7", "solver.num_steps=1", "eval_every=1", "data_dir=elsewhere", "data.download=false"]

pytestmark = pytest.mark.usefixtures("apart")


def config(folder: str | Path) -> dict[str, object]:
    return dict(yaml.safe_load((Path(folder) / "config.yaml").read_text()))


def saved(*words: str, **changes: object) -> Path:
    """A folder with the configuration of a run of these words, which is all that a rerun takes from it."""
    cfg = configuration(*words)
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value)
    Path("saved").mkdir(exist_ok=True)
    save_config(cfg, Path("saved"))
    return Path("saved")


def resolved(cfg: DictConfig) -> object:
    """A configuration as a run keeps it."""
    return OmegaConf.to_container(cfg, resolve=True)


def test_the_same_configuration_gives_the_same_summary(golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    for family in ("nnbcd", "lc"):
        kept, new = golden.kept(family), Path(family)
        with case(family=family):
            assert main(["rerun", str(kept), f"hydra.run.dir={new}"]) == 0
            assert f"the final figures are equal to those of {kept}" in capsys.readouterr().out
            assert summary(new) == summary(kept)
            assert rows(new) == rows(kept)
            assert config(new) == config(kept)
            files = [folder / "model/model.safetensors" for folder in (kept, new)]
            assert files[0].read_bytes() == files[1].read_bytes()


def test_changes_are_those_of_a_command_that_had_them(golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (NNBCD, LC, FRANK_WOLFE):
        with case(words=words):
            assert resolved(rerun_config(saved(*words), CHANGES)) == resolved(configuration(*words, *CHANGES))
    kept = golden.kept("nnbcd")
    assert main(["rerun", str(kept), "hydra.run.dir=b", *CHANGES]) == 0
    references = f"reference_dir={kept.parent / 'references'}"
    run(Path("c"), *WORDS["nnbcd"], *DIGITS, references, *CHANGES)
    assert config("b") == config("c")
    assert summary(Path("b")) == summary(Path("c"))
    said = capsys.readouterr().out
    assert f"the final figures differ from those of {kept}:" in said
    assert "  objective/final " in said


def test_a_linked_key_follows_also_when_it_is_not_named() -> None:
    new = rerun_config(saved(*FRANK_WOLFE), ["constraint.size.w=20"])
    assert new.constraint == new.solver.constraint
    assert new.constraint.rest.size.w == 20


def test_options_of_groups_can_be_changed() -> None:
    for words, options in (
        (NNBCD, ["solver=sgd"]),
        (NNBCD, ["compression=l0", "compression.keep=0.3"]),
        (SGD, ["model=tt_mlp", "solver=nnbcd", "model.widths=[16]"]),
        (FRANK_WOLFE, ["solver=sgd", "solver.num_steps=1"]),
        (SGD, ["solver=frank_wolfe", "solver.num_steps=1"]),
    ):
        options = [*options, "solver.num_steps=1"]
        groups = {word.partition("=")[0] for word in options} & {"solver", "model", "compression"}
        kept = [word for word in words if word.partition("=")[0].partition(".")[0] not in groups]
        kept = kept if "solver" not in groups else [word for word in kept if not word.startswith("constraint")]
        with case(words=words, options=options):
            assert resolved(rerun_config(saved(*words), options)) == resolved(configuration(*kept, *options))


def test_a_class_of_ones_own_takes_the_place_of_the_old_one() -> None:
    changes = ["model._target_=nncompress.models.MLP", "model.widths=[12]", "model.bias=false"]
    new = rerun_config(saved(*NNBCD), changes)
    assert new.model == {"_target_": "nncompress.models.MLP", "widths": [12], "bias": False}
    assert new.choices.model == "MLP"


def test_a_job_of_a_sweep_is_rerun_alone() -> None:
    sweep = {"sweep.on_error": "stop", "search.trial": 3, "search.store": "study.db"}
    new = rerun_config(saved(*NNBCD, "seed=1", **sweep), [])
    assert resolved(new) == resolved(configuration(*NNBCD, "seed=1"))
    assert (new.sweep.on_error, new.search.trial, new.search.store) == ("continue", None, None)


def test_the_folder_is_new_and_named_by_the_runs_own_choices_and_without_a_summary_nothing_is_compared(
    golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    old = golden.copied("sgd", Path("a"))
    (old / "summary.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in old.rglob("*")}
    assert main(["rerun", "a"]) == 0
    assert "a has no summary.json, so that there is nothing to compare" in capsys.readouterr().out
    (folder,) = Path("outputs/sgd-mlp-digits").iterdir()
    assert status(folder)["status"] == "done"
    assert {path: path.stat().st_mtime_ns for path in old.rglob("*")} == before
    assert main(["rerun", "a", f"hydra.run.dir={folder}"]) == 2


WRONG = {
    "sed=1": "Key 'sed' not in the configuration; did you mean 'seed'?",
    "data.downlod=true": "Key 'downlod' not in 'data'; did you mean 'download'?",
    "solver.taau=1": "has no keyword 'taau'; did you mean 'tau'?",
    "seed=word": "seed: ",
    "solver=nnbc": "solver=nnbc: no such option",
    "experiment=nnbcd/har4": "rerun runs the configuration of one run, found experiment=nnbcd/har4",
    "resume=a": "found resume=a",
    "more": "found saved and more",
    "-m": "unrecognized arguments: -m; usage: nncompress rerun RUN",
}


def test_wrong_words_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    saved(*NNBCD)
    for word, said in WRONG.items():
        with case(word=word):
            assert main(["rerun", "saved", "hydra.run.dir=b", word]) == 2
            message = capsys.readouterr().err
            assert said in message
            assert len(message.splitlines()) == 1
    assert not Path("b/summary.json").exists()


def test_a_folder_without_a_configuration_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rerun"]) == 2
    assert main(["rerun", "nowhere"]) == 1
    Path("a").mkdir()
    assert main(["rerun", "a"]) == 1
    Path("a/config.yaml").write_text("[1, 2")
    assert main(["rerun", "a"]) == 1
    Path("a/settings.json").write_text("{}")
    assert main(["rerun", "a"]) == 1
    first, *others = capsys.readouterr().err.splitlines()
    assert "rerun needs one folder of a run" in first
    assert ["does not exist" in line for line in others] == [True, True, False, False]
    assert "a was written by an older version of nncompress (it has no settings.json); train it again" in others[-2]
    assert "config.yaml cannot be read" in others[-1]


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rerun", "--help"]) == 0
    assert "usage: nncompress rerun RUN" in capsys.readouterr().out
