"""What a run does not begin with, each told in a sentence with the right exit code; and what keeps it from its end."""

from __future__ import annotations

import errno
import fcntl

import pytest
from cases import case
from golden import DIGITS, WORDS
from runs import configuration, finish, refusal, rows, run, status

from nncompress.errors import ConfigError, NNCompressError

SMALL = ["dataset.train_size=100", "dataset.test_size=50"]
NNBCD_WORDS = ["solver=nnbcd", "model=tt_mlp", "model.widths=[32,32]", "compression.rank=8", *SMALL]
PERCEPTRON = ["solver=nnbcd", "model.widths=[16,16]", "model.bias=false", *SMALL]
CODEBOOK_WORDS = [*PERCEPTRON, "compression=codebook"]
FRANK_WOLFE = ["solver=frank_wolfe", "model.widths=[16]", *SMALL]

pytestmark = pytest.mark.usefixtures("apart")

NOT_A_CHAIN = (
    "NN-BCD needs a chain of Linear and Conv2d layers with ReLU, LeakyReLU or Identity between them (average pooling, "
    "flatten, permute and identity skips allowed); found MaxPool2d at '1'"
)
BAD = [
    (["solver=nnbcd", "model._target_=own_parts.Conv"], 1, NOT_A_CHAIN),
    (["solver=nnbcd", "model=nnbcd_cnn", "dataset.flatten=true"], 2, "nnbcd_cnn needs images (channels, height"),
    ([*NNBCD_WORDS, "solver.tau_growth=0.9"], 2, "tau_growth must be at least 1 and finite, found 0.9"),
    ([*NNBCD_WORDS, "solver.tau_max=1"], 2, "tau_max must be at least tau = 5.0, found 1"),
    ([*NNBCD_WORDS, "solver.project=true", "solver.multipliers=true"], 2, "found multipliers; drop one"),
    ([*NNBCD_WORDS, "precision=half"], 2, "precision: must be one of auto, float32, float64, tf32, bf16, found 'half'"),
    ([*NNBCD_WORDS, "compression.als=-1"], 2, "als, a number of sweeps, must be at least 0, found -1"),
    ([*NNBCD_WORDS, "compression.rank=0"], 2, "rank must be at least 1, found 0"),
    ([*NNBCD_WORDS, "compression.modes=[4,4]"], 2, "must multiply to its 2048 entries"),
    ([*NNBCD_WORDS, "compression.layers=[nothing]"], 2, "found 'nothing'"),
    ([*NNBCD_WORDS, "compression.modes={fc9:[4,4]}"], 2, "found 'fc9'"),
    (["dataset._target_=builtins.dict"], 2, "must give an nncompress.problem.Dataset, found dict"),
    ([*NNBCD_WORDS, "dataset.train_size=0"], 2, "train_size"),
    ([*NNBCD_WORDS, "solver.tau=-1"], 2, "tau must be positive and finite, found -1"),
    ([*NNBCD_WORDS, "solver.tau=big"], 2, "solver.tau"),
    ([*NNBCD_WORDS, "target.ratio=0.0001"], 2, "target.ratio must be at least"),
    ([*NNBCD_WORDS, "target.bits=0.0001"], 2, "target.bits must be at least"),
    ([*NNBCD_WORDS, "target.macs=0.5", "target.ratio=0.5"], 2, "target: must be one of ratio, bits, macs"),
    ([*CODEBOOK_WORDS, "compression.K=0"], 2, "K must be at least 1, found 0"),
    ([*PERCEPTRON, "compression=l0", "compression.keep=1.5"], 2,
     "keep must be a fraction in (0, 1] or a count (whole number) of at least 0, found 1.5"),
    ([*PERCEPTRON, "compression=l0", "compression.keep=0.0"], 2, "found 0.0"),
    ([*PERCEPTRON, "compression=mixed", "compression.parts.second.layers=[fc1]"], 2,
     "a weight belongs to one task at most, found fc1.weight in two"),
    ([*PERCEPTRON, "compression=additive", "compression.parts.codebook.K=0"], 2, "K must be at least 1, found 0"),
    (["solver=sgd", "model._target_=own_parts.NaN", "compression=l0", "compression.layers=all"], 1,
     "the weights to compress must be finite, found 1 NaN and 0 infinite of 640 entries in 1.weight"),
    (["solver=sgd", "model._target_=own_parts.NaN", "compression=low_rank", "compression.rank=null",
      "compression.energy=0.9", "compression.layers=all"], 1, "found 1 NaN and 0 infinite of 640 entries in 1.weight"),
    ([*CODEBOOK_WORDS, "target.ratio=0.5"], 2, "this compression lowers another figure: try target.bits"),
    (["solver=sgd", "model._target_=own_parts.Conv", "dataset.flatten=true"], 2,
     "the network must take samples of shape (64,)"),
    ([*FRANK_WOLFE, "constraint=group_k_support"], 2,
     "constraint.params=convolutions must match a parameter, found none among fc1.weight, fc1.bias"),
    ([*FRANK_WOLFE, "constraint=spectral_k_support", "constraint.params=all"], 2,
     "a spectral constraint needs parameters of two or more dimensions, found fc1.bias of shape"),
    ([*FRANK_WOLFE, "constraint=nuclear", "constraint.params=weights", "constraint.joint=true"], 2,
     "found several together; give constraint.joint=false"),
    ([*FRANK_WOLFE, "constraint.params=[fc9]"], 2, "found 'fc9'"),
    ([*FRANK_WOLFE, "constraint.set.k=1.5"], 2, "k must be a part above 0 and at most 1, or a whole number above 1"),
    ([*FRANK_WOLFE, "constraint.size.w=0"], 2, "w must be positive and finite, found 0"),
    ([*FRANK_WOLFE, "constraint.rest=l2"], 2, "constraint.rest: must be a node"),
    ([*FRANK_WOLFE, "~constraint"], 2, "constraint must say which parameters lie in which set, found None"),
    ([*FRANK_WOLFE, "solver.lr=2", "solver.rescaling._target_=nncompress.solvers.frank_wolfe.NoRescaling"], 2,
     "lr must be at most 1 with NoRescaling, found 2"),
    ([*FRANK_WOLFE, "solver.delay=1"], 2, "delay must be at least 0 and below 1, found 1"),
    ([*FRANK_WOLFE, "solver.momentum=1"], 2, "momentum must be at least 0 and below 1, found 1"),
    (["solver=sgd", "constraint=k_support"], 2, "constraint: is for solver=frank_wolfe"),
    (["model=lenet5"], 2, "lenet5 needs images"),
    (["dataset=mnist", "data.download=false", "data_dir=nowhere"], 1, "nowhere"),
    (["device=cuda:7"], 2, "device=cuda:7 needs that GPU"),
]  # fmt: skip


def test_bad_input_is_one_sentence_and_the_right_exit_code(tmp_path):
    for number, (words, code, said) in enumerate(BAD):
        with case(words=words):
            failure = refusal(tmp_path / str(number), *words)
            assert said in str(failure)
            assert failure.exit_code == code
            assert "Traceback" not in str(failure)
            assert len(str(failure).splitlines()) == 1


def test_an_unsupported_network_has_its_own_status(tmp_path):
    refusal(tmp_path / "run", *BAD[0][0])
    assert status(tmp_path / "run")["status"] == "unsupported"
    assert NOT_A_CHAIN in str(status(tmp_path / "run")["reason"])


def test_a_folder_in_use_by_another_process_is_refused(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with open(folder / "run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="found another process running in"):
            run(folder, *NNBCD_WORDS, "solver.num_steps=1")
    assert not (folder / "records.jsonl").exists()


def test_the_folder_of_another_run_is_left_alone(golden, tmp_path):
    folder = golden.copied("nnbcd", tmp_path / "run")
    with pytest.raises(ConfigError, match="found the records of another run"):
        run(folder, *WORDS["nnbcd"], *DIGITS)
    assert rows(folder) == rows(golden.kept("nnbcd"))
    assert status(folder)["status"] == "done"


def test_a_full_disk_is_told_and_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("nncompress.experiment.checkpoint.torch.save", full)
    with pytest.raises(NNCompressError, match="is full; free space") as told:
        finish(configuration(*NNBCD_WORDS, "solver.num_steps=2"), tmp_path / "run")
    assert told.value.exit_code == 1
    assert status(tmp_path / "run")["status"] == "failed"
    assert not list((tmp_path / "run/checkpoints").glob("*.tmp"))
