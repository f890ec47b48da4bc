"""The real data sets, and NN-BCD, LC and slimming on them, where they are present under $NNCOMPRESS_DATA."""

import itertools
import os
from pathlib import Path

import pytest
import runs
import torch

from nncompress.artefact.model import load
from nncompress.data.cifar import cifar10, cifar100
from nncompress.data.har import har
from nncompress.data.mnist import mnist

DATA = Path(os.environ.get("NNCOMPRESS_DATA", "data")).absolute()
HELD_OUT = "dataset.test_subjects=[25,26,27,28,29,30]"

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("NNCOMPRESS_DATA", str(DATA))
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_deterministic_debug_mode("default")


def needs(name: str) -> pytest.MarkDecorator:
    found = (DATA / name).exists()
    return pytest.mark.skipif(not found, reason=f"the real data are absent: $NNCOMPRESS_DATA/{name} does not exist")


def run(folder: Path, *words: str) -> tuple[list[dict[str, float]], dict[str, float]]:
    summary = runs.run(folder, *words, "data.download=false")
    return runs.rows(folder), summary


@needs("cifar-10-batches-py")
def test_real_cifar10_has_the_published_statistics():
    data = cifar10(root=str(DATA), download=False)
    assert (len(data.train), len(data.test)) == (50000, 10000)
    assert data.train.y[:6].tolist() == [6, 9, 9, 4, 1, 1]
    assert data.preprocessing == "standard: mean 0.4914 0.4822 0.4465, std 0.2470 0.2435 0.2616"


@needs("cifar100.npz")
def test_real_cifar100_has_statistics_of_its_own():
    data = cifar100(root=str(DATA), download=False)
    assert (len(data.train), len(data.test), data.num_classes) == (50000, 10000, 100)
    assert "mean 0.5070 0.4865 0.4408" in data.preprocessing or "mean 0.5071 0.4865 0.4409" in data.preprocessing


@needs("UCI HAR Dataset/train/X_train.txt")
def test_real_har_splits_by_person_into_5066_and_2286_windows():
    data = har(root=str(DATA), download=False, test_subjects=[25, 26, 27, 28, 29, 30])
    assert (len(data.train), len(data.test)) == (5066, 2286)
    assert data.train.x.min() == -1
    assert data.train.x.max() == 1
    counts = torch.bincount(torch.cat([data.train.y, data.test.y]))
    assert counts.tolist() == [1226, 1073, 986, 1286, 1374, 1407]


@needs("MNIST/raw")
def test_real_mnist_has_the_published_statistics():
    data = mnist(root=str(DATA), download=False, normalise="standard")
    assert (len(data.train), len(data.test)) == (60000, 10000)
    assert data.preprocessing == "standard: mean 0.1307, std 0.3081"
    assert torch.bincount(data.test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@needs("MNIST/raw")
def test_real_mnist_gives_the_subset_of_the_nnbcd_papers():
    data = mnist(root=str(DATA), download=False, train_size=6000, test_size=999, seed=10)
    assert (len(data.train), len(data.test)) == (6000, 999)


@needs("UCI HAR Dataset")
def test_har_network_has_the_published_ratio_and_learns(tmp_path):
    words = ["experiment=nnbcd/har4", HELD_OUT, "precision=float32", "solver.num_steps=40", "eval_every=10"]
    rows, summary = run(tmp_path / "run", *words)
    assert summary["ratio/params"] == pytest.approx(0.16759738116197184, rel=1e-12)
    assert summary["params/dense"] == 561 * 1024 + 2 * 1024 * 1024 + 1024 * 512 + 512 * 6
    assert rows[-1]["accuracy/test"] > 0.75
    assert summary["rate/decrease_ok"]


@needs("UCI HAR Dataset")
def test_five_hidden_layers_have_the_published_ratio(tmp_path):
    words = ["experiment=nnbcd/har5", HELD_OUT, "precision=float32", "solver.num_steps=1"]
    _, summary = run(tmp_path / "run", *words)
    assert summary["ratio/params"] == pytest.approx(0.17665842270710058, rel=1e-12)


@needs("MNIST/raw")
def test_pruned_lenet300_on_the_papers_mnist_subset_never_rises(tmp_path):
    words = ["solver=nnbcd", "model=lenet300", "model.bias=false", "compression=l0", "compression.keep=0.1"]
    words += ["dataset=mnist", "dataset.train_size=6000", "dataset.test_size=999", "solver.num_steps=30"]
    rows, summary = run(tmp_path / "run", *words, "eval_every=5")
    objective = [row["objective"] for row in rows]
    assert all(b <= a for a, b in itertools.pairwise(objective))
    assert summary["rate/decrease_ok"]
    assert summary["accuracy/dense_test"] > 0.85


@needs("MNIST/raw")
@pytest.mark.parametrize(
    ("experiment", "bits", "error"), [("lc/quantize_all", 279512, 0.06), ("lc/prune", 540000, 0.06)], ids=["K=2", "5 %"]
)
def test_lc_recovers_what_direct_compression_of_lenet300_loses(experiment, bits, error, tmp_path):
    words = [f"experiment={experiment}", "reference_training.num_steps=10", "solver.num_steps=19", "solver.epochs=1"]
    words += ["solver.mu0=4e-4", "solver.growth=1.2", "solver.lr=0.1", "dataset.train_size=20000"]
    rows, summary = run(tmp_path / "run", *words)
    assert summary["params/dense"] == 266610
    assert summary["bits/compressed"] <= bits
    assert rows[0]["accuracy/test"] < 0.8  # direct compression
    assert 1 - summary["accuracy/test"] < error
    assert summary["objective/final"] < 0.2 * rows[0]["objective"]


@needs("cifar-10-batches-py")
def test_slimming_leaves_fewer_channels_of_a_narrow_vgg_on_cifar10_the_larger_lambda(tmp_path):
    words = ["experiment=slimming/lambdas", "dataset.train_size=2000", "dataset.test_size=500", "solver.num_steps=12"]
    test = cifar10(root=str(DATA), train_size=2000, test_size=500, download=False).test
    zeros = []
    for lam in (0.02, 0.05, 0.1):
        folder = tmp_path / str(lam)
        rows, summary = run(folder, *words, f"solver.lam={lam}")
        network = load(folder / "model")
        with torch.no_grad():
            accuracy = (network(test.x).argmax(dim=1) == test.y).double().mean()
        assert float(accuracy) == pytest.approx(summary["accuracy/test"], abs=0.005)
        assert sum(p.numel() for p in network.parameters()) == summary["params/compressed"]
        zeros.append(rows[-1]["channels/zero"])
    assert zeros[0] < zeros[1] < zeros[2]
