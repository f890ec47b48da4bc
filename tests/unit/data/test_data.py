"""What the data sets share: subsets, normalisation, configuration; and the embedded digits."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from cases import case
from problems import ROOT

from nncompress.data import digits as digits_module
from nncompress.data import har as har_module
from nncompress.data.augmentation import Crop
from nncompress.data.digits import digits
from nncompress.data.mnist import mnist
from nncompress.data.prepare import Preparation, prepare
from nncompress.errors import ConfigError
from nncompress.problem import Split

CONF = ROOT / "conf" / "dataset"


def splits(n=12, m=6, shape=(3, 4, 4)):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n + m, *shape), generator=g, dtype=torch.uint8)
    y = torch.arange(n + m) % 2
    return Split(x[:n], y[:n]), Split(x[n:], y[n:])


def prepared(shape=(3, 4, 4), **options):
    return prepare(*splits(shape=shape), Preparation(**options), num_classes=2, name="t", maximum=255.0)


def test_none_keeps_the_raw_values_as_float32():
    raw, data = splits()[0], prepared(normalise="none")
    assert data.train.x.dtype == torch.float32
    assert torch.equal(data.train.x, raw.x.float())
    assert data.train.y.dtype == torch.int64
    assert data.preprocessing == "none"


def test_unit_divides_by_the_largest_value_of_the_type():
    assert torch.equal(prepared().train.x, splits()[0].x / 255)


def test_standard_uses_the_channel_statistics_of_the_training_samples_kept():
    data = prepared(normalise="standard", train_size=5)
    assert data.train.x.mean((0, 2, 3)).abs().max() < 1e-6
    assert (data.train.x.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6
    kept = prepared(train_size=5).train.x
    mean, std = (
        f(kept, (0, 2, 3), keepdim=True) for f in (torch.mean, lambda *a, **k: torch.std(*a, correction=0, **k))
    )
    torch.testing.assert_close(data.test.x, (prepared().test.x - mean) / std)
    assert data.preprocessing == (
        f"standard: mean {' '.join(f'{v:.4f}' for v in mean.flatten())}, "
        f"std {' '.join(f'{v:.4f}' for v in std.flatten())}; train_size 5, seed 10"
    )


def test_standard_works_per_feature_on_flat_data_and_leaves_a_constant_one_at_zero():
    x = torch.tensor([[1e4, 0.1, 0.0], [1e4 + 0.5, 0.1, 2.0]])
    data = prepare(
        Split(x, torch.tensor([0, 1])),
        Split(x[:1] + 1, torch.tensor([0])),
        Preparation(normalise="standard"),
        num_classes=2,
        name="t",
    )
    torch.testing.assert_close(data.train.x, torch.tensor([[-1.0, 0.0, -1.0], [1.0, 0.0, 1.0]]))
    torch.testing.assert_close(data.test.x[0, 1], torch.tensor(1.0))
    assert data.preprocessing == "standard: mean 10000.2500 0.1000 1.0000, std 0.2500 1.0000 1.0000"


def test_pixel_mean_subtracts_the_mean_training_image():
    data, unit = prepared(normalise="pixel_mean"), prepared()
    torch.testing.assert_close(data.test.x, unit.test.x - unit.train.x.mean(0))
    assert data.train.x.mean(0).abs().max() < 1e-6


def test_the_inputs_of_prepare_are_not_changed():
    x = torch.rand(4, 3)
    train = Split(x, torch.zeros(4, dtype=torch.int64))
    prepare(train, train, Preparation(normalise="standard"), num_classes=1, name="t")
    assert torch.equal(train.x, x)
    assert x.min() >= 0


def test_a_subset_depends_on_its_own_seed_alone():
    torch.manual_seed(1)
    first = prepared(train_size=7, test_size=2)
    torch.manual_seed(2)
    again, other = prepared(train_size=7, test_size=2), prepared(train_size=7, test_size=2, seed=11)
    assert torch.equal(first.train.x, again.train.x)
    assert torch.equal(first.test.y, again.test.y)
    assert not torch.equal(first.train.x, other.train.x)
    assert len(first.train) == 7
    assert len(first.test) == 2
    assert len(first.train.x.unique(dim=0)) == 7


def test_flatten_makes_vectors():
    assert prepared(flatten=True).input_shape == (48,)


def test_a_bad_size_names_the_key_the_value_and_the_range():
    for size in (0, -1, 13, 2.5, True, "5"):
        with case(size=size):
            with pytest.raises(
                ConfigError, match=r"dataset.train_size must be null or an integer from 1 to .*found "
            ) as e:
                prepared(train_size=size)
            assert repr(size) in str(e.value)
            assert size != 13 or "12 samples" in str(e.value)


def test_bad_options_are_refused_before_any_data_is_read():
    bad = [
        ({"normalise": "minmax"}, "dataset.normalise must be one of none, unit, standard, pixel_mean; found 'minmax'"),
        ({"test_size": 0}, "dataset.test_size"),
        ({"seed": "x"}, "dataset.seed must be an integer"),
    ]
    for options, words in bad:
        with case(options=options), pytest.raises(ConfigError, match=words):
            mnist(root="/nowhere", download=False, **options)


def test_digits_are_a_fixed_stratified_split_of_1797_images():
    data = digits()
    assert (len(data.train), len(data.test), data.input_shape, data.num_classes) == (1437, 360, (1, 8, 8), 10)
    assert data.train.x.min() == 0
    assert data.train.x.max() == 1
    shares = torch.bincount(data.test.y) / torch.bincount(torch.cat([data.train.y, data.test.y]))
    assert (shares - 0.2).abs().max() < 0.01
    torch.manual_seed(5)
    assert torch.equal(digits(seed=3).test.x, data.test.x)


def test_digits_are_those_of_scikit_learn_split_as_it_does(monkeypatch):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(range(1797), test_size=0.2, random_state=0, stratify=labels)
    packaged = digits_module.FILE
    for file in (packaged, "not/there"):  # without its file scikit-learn is asked itself
        with case(file=file):
            monkeypatch.setattr(digits_module, "FILE", file)
            data = digits(normalise="none")
            for split, indices in zip((data.train, data.test), parts, strict=True):
                assert torch.equal(split.x, torch.from_numpy(images[indices]).float().reshape(-1, 1, 8, 8))
                assert torch.equal(split.y, torch.from_numpy(labels[indices]).long())


def test_a_data_set_file_states_every_option_and_its_default():
    given = {"root": "${data_dir}", "download": "${data.download}"}
    for path in sorted(CONF.glob("*.yaml")):
        with case(path=path.name):
            node = yaml.safe_load(path.read_text())
            module, name = node.pop("_target_").rsplit(".", 1)
            parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
            assert node == {key: given.get(key, parameter.default) for key, parameter in parameters.items()}


def test_neither_the_data_modules_nor_the_digits_import_torchvision_scikit_learn_or_pandas():
    modules = ", ".join(f"nncompress.data.{path.stem}" for path in Path(har_module.__file__).parent.glob("[!_]*.py"))
    code = f"""import sys, {modules}
assert len(nncompress.data.digits.digits().train) == 1437
print([name for name in ("torchvision", "sklearn", "pandas", "PIL") if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_cropped_from_outside_an_image_is_black_before_normalisation():
    train, test = splits(shape=(3, 6, 6))
    padded = Split(torch.nn.functional.pad(train.x, (2, 2, 2, 2)), train.y)
    for kind in ("none", "unit", "standard"):
        with case(kind=kind):
            data = prepare(train, test, Preparation(normalise=kind), num_classes=2, name="t", maximum=255.0)
            mean, std = (data.blank * 0, 1.0) if kind != "standard" else moments(train.x / 255.0)
            expected = (padded.x.float() / (1.0 if kind == "none" else 255.0) - mean) / std
            drawn = torch.zeros(len(train), 2)  # the first window: two rows and columns of it come from outside
            found = Crop(padding=2).apply(data.train.x, drawn, data.blank)
            torch.testing.assert_close(found, expected[:, :, :6, :6])


def test_the_black_of_an_image_less_the_mean_image_is_its_average():
    train, test = splits(shape=(3, 6, 6))
    data = prepare(train, test, Preparation(normalise="pixel_mean"), num_classes=2, name="t", maximum=255.0)
    torch.testing.assert_close(data.blank, -(train.x / 255.0).mean(dim=(0, 2, 3)).view(3, 1, 1))


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    dims = (0, 2, 3)
    return x.mean(dim=dims).view(-1, 1, 1), x.std(dim=dims, correction=0).view(-1, 1, 1)
