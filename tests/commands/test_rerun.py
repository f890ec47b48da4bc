"""`nncompress rerun`: the same summary from the same configuration, any change, and what sets the two apart."""

from pathlib import Path

import pytest
import yaml
from runs import rows, status, summary, train

from nncompress.cli import main

NNBCD = ["solver=nnbcd", "model=tt_mlp", "model.widths=[16]", "solver.num_steps=2", "dataset.train_size=200"]
LC = [
    *("solver=lc", "model=mlp", "model.widths=[8]", "compression=codebook", "solver.num_steps=2", "solver.epochs=1"),
    *("reference_training.num_steps=2", "dataset.train_size=200"),
]
SGD = ["solver=sgd", "solver.num_steps=1", "model.widths=[8]"]
FRANK_WOLFE = ["solver=frank_wolfe", "constraint=nuclear", "constraint.params=weights", "model.widths=[8]"]
FRANK_WOLFE += ["solver.num_steps=1"]

pytestmark = pytest.mark.usefixtures("apart")


def config(folder: str | Path) -> dict[str, object]:
    return dict(yaml.safe_load((Path(folder) / "config.yaml").read_text()))


def again(*words: str) -> int:
    """The exit code of a rerun of the run `a` as `b`."""
    return main(["rerun", "a", "hydra.run.dir=b", *words])


@pytest.mark.parametrize("words", [NNBCD, LC], ids=["nnbcd", "lc"])
def test_the_same_configuration_gives_the_same_summary(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train(Path("a"), *words, "seed=3") == 0
    assert again() == 0
    assert "the final figures are equal to those of a" in capsys.readouterr().out
    assert summary(Path("b")) == summary(Path("a"))
    assert rows(Path("b")) == rows(Path("a"))
    assert config("b") == config("a")
    files = [Path(name) / "model/model.safetensors" for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("words", [NNBCD, LC, FRANK_WOLFE], ids=["nnbcd", "lc", "frank_wolfe"])
def test_changes_are_those_of_a_command_that_had_them(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["seed=7", "solver.num_steps=1", "eval_every=1", "data_dir=elsewhere", "data.download=false"]
    assert train(Path("a"), *words) == 0
    assert again(*changes) == 0
    assert train(Path("c"), *words, *changes) == 0
    assert config("b") == config("c")
    assert summary(Path("b")) == summary(Path("c"))
    said = capsys.readouterr().out
    assert "the final figures differ from those of a:" in said
    assert "  objective/final " in said


def test_a_linked_key_follows_also_when_it_is_not_named() -> None:
    assert train(Path("a"), *FRANK_WOLFE) == 0
    assert again("constraint.size.w=20") == 0
    new = config("b")
    assert new["constraint"] == new["solver"]["constraint"]
    assert new["constraint"]["rest"]["size"]["w"] == 20


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (NNBCD, ["solver=sgd"]),
        (NNBCD, ["compression=l0", "compression.keep=0.3"]),
        (SGD, ["model=tt_mlp", "solver=nnbcd", "model.widths=[16]"]),
        (FRANK_WOLFE, ["solver=sgd", "solver.num_steps=1"]),
        (SGD, ["solver=frank_wolfe", "solver.num_steps=1"]),
    ],
    ids=["solver", "compression", "model", "from-frank_wolfe", "to-frank_wolfe"],
)
def test_options_of_groups_can_be_changed(words: list[str], options: list[str]) -> None:
    options = [*options, "solver.num_steps=1"]
    assert train(Path("a"), *words) == 0
    assert again(*options) == 0
    groups = {word.partition("=")[0] for word in options} & {"solver", "model", "compression"}
    kept = [word for word in words if word.partition("=")[0].partition(".")[0] not in groups]
    kept = kept if "solver" not in groups else [word for word in kept if not word.startswith("constraint")]
    assert train(Path("c"), *kept, *options) == 0
    assert config("b") == config("c")
    assert summary(Path("b")) == summary(Path("c"))


def test_a_class_of_ones_own_takes_the_place_of_the_old_one() -> None:
    assert train(Path("a"), *NNBCD) == 0
    assert again("model._target_=nncompress.models.mlp.MLP", "model.widths=[12]", "model.bias=false") == 0
    assert config("b")["model"] == {"_target_": "nncompress.models.mlp.MLP", "widths": [12], "bias": False}
    assert summary(Path("b"))["model"] == "MLP"


def test_the_folder_is_new_and_named_by_the_runs_own_choices() -> None:
    assert train(Path("a"), *NNBCD) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("a").rglob("*")}
    assert main(["rerun", "a"]) == 0
    (folder,) = Path("outputs/nnbcd-tt_mlp-digits").iterdir()
    assert status(folder)["status"] == "done"
    assert {path: path.stat().st_mtime_ns for path in Path("a").rglob("*")} == before
    assert main(["rerun", "a", f"hydra.run.dir={folder}"]) == 2


def test_a_job_of_a_sweep_is_rerun_alone() -> None:
    words = [*NNBCD, "seed=0,1", "sweep.on_error=stop", "hydra.sweep.dir=s"]
    assert main(["train", "-m", *words]) == 0
    assert main(["rerun", "s/1", "hydra.run.dir=b"]) == 0
    assert summary(Path("b")) == summary(Path("s/1"))
    assert config("b")["sweep"]["on_error"] == "continue"


def test_a_run_that_has_no_summary_is_run_and_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert train(Path("a"), *NNBCD) == 0
    Path("a/summary.json").unlink()
    assert again() == 0
    assert "a has no summary.json, so that there is nothing to compare" in capsys.readouterr().out


WRONG = {
    "sed=1": "Key 'sed' not in the configuration; did you mean 'seed'?",
    "data.downlod=true": "Key 'downlod' not in 'data'; did you mean 'download'?",
    "solver.taau=1": "has no keyword 'taau'; did you mean 'tau'?",
    "seed=word": "seed: ",
    "solver=nnbc": "solver=nnbc: no such option",
    "experiment=nnbcd/har4": "rerun runs the configuration of one run, found experiment=nnbcd/har4",
    "resume=a": "found resume=a",
    "more": "found a and more",
    "-m": "found a and -m",
}


def test_wrong_words_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert train(Path("a"), *NNBCD) == 0
    for word, said in WRONG.items():
        capsys.readouterr()
        assert again(word) == 2, word
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
    first, *others = capsys.readouterr().err.splitlines()
    assert "rerun needs one folder of a run" in first
    assert ["does not exist" in line for line in others] == [True, True, False]
    assert "config.yaml cannot be read" in others[-1]


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rerun", "--help"]) == 0
    assert "usage: nncompress rerun RUN" in capsys.readouterr().out
