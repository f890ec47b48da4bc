"""A user's own data: .npz files and folders of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cases import case
from PIL import Image

from nncompress.data.image_folder import image_folder
from nncompress.data.npz import npz
from nncompress.errors import ConfigError, DataError


def arrays(n=6, m=4, shape=(32, 32, 3), classes=3, dtype=np.uint8):
    g = np.random.default_rng(0)
    return {
        "x_train": g.integers(0, 256, (n, *shape)).astype(dtype),
        "y_train": np.arange(n) % classes,
        "x_test": g.integers(0, 256, (m, *shape)).astype(dtype),
        "y_test": np.arange(m) % classes,
    }


@pytest.fixture
def save(tmp_path):
    def write(**content):
        np.savez(tmp_path / "mine.npz", **content)
        return str(tmp_path / "mine.npz")

    return write


def test_npz_keeps_floats_as_given_and_counts_the_classes(save):
    content = arrays(shape=(7,), dtype=np.float64)
    data = npz(path=save(**content))
    assert (data.name, data.num_classes, data.input_shape) == ("mine", 3, (7,))
    assert np.array_equal(data.train.x.numpy(), content["x_train"].astype(np.float32))


def test_npz_divides_bytes_by_255_and_moves_the_channels_when_told(save):
    content = arrays(shape=(4, 5, 3))
    data = npz(path=save(**content), channels_last=True)
    assert data.input_shape == (3, 4, 5)
    assert np.array_equal(data.train.x.numpy(), content["x_train"].transpose(0, 3, 1, 2).astype(np.float32) / 255)
    assert npz(path=save(**content)).input_shape == (4, 5, 3)


def test_npz_gives_grey_images_a_channel_and_takes_labels_in_a_column(save):
    content = arrays(shape=(4, 5))
    content["y_train"] = content["y_train"][:, None]
    data = npz(path=save(**content))
    assert data.input_shape == (1, 4, 5)
    assert data.train.y.shape == (6,)


def test_npz_refuses_arrays_that_do_not_fit(save):
    bad = [
        ({"y_test": None}, "not found: y_test"),
        ({"y_train": np.arange(5)}, "equally long; found 6 and 5"),
        ({"y_train": np.zeros(6)}, "y_train must be integer labels"),
        ({"y_test": np.array([0, -1, 0, 0])}, "labels from 0 on; found -1"),
        ({"x_train": np.full((6, 7), np.nan)}, "x_train must be finite in float32; found 42 NaN"),
        ({"x_test": np.zeros((4, 8), dtype=np.uint8)}, "same type and sample shape"),
        ({"x_test": np.zeros((4, 7), dtype=complex)}, "x_test must be real numbers"),
        ({"x_test": np.zeros((0, 7))}, "x_test must be real numbers"),
        ({"x_train": np.array([None] * 6)}, "cannot be read"),
    ]
    for change, words in bad:
        content = {k: v for k, v in {**arrays(shape=(7,)), **change}.items() if v is not None}
        with case(words=words), pytest.raises(DataError, match=words):
            npz(path=save(**content))


def test_npz_names_a_file_that_is_missing_cut_or_of_another_kind(save, tmp_path):
    path = Path(save(**arrays()))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"mine.npz must be an .npz file .*2000 bytes, md5 "):
        npz(path=str(path))
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"must be an .npz file .*not a zip file"):
        npz(path=str(tmp_path / "one.npy"))
    with pytest.raises(DataError, match="does not exist"):
        npz(path=str(tmp_path / "none.npz"))
    with pytest.raises(ConfigError, match=r"needs dataset.path"):
        npz()


@pytest.fixture
def pictures(tmp_path):
    """Plain pictures: class a is red and class b blue, one of them stored with a palette."""
    for part, count in (("train", 2), ("test", 1)):
        for name, colour in (("a", (255, 0, 0)), ("b", (0, 0, 255))):
            folder = tmp_path / "pets" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture = Image.new("RGB", (6, 4), colour)
                (picture if i == 0 else picture.convert("P")).save(folder / f"{i}.png")
    return tmp_path / "pets"


def test_image_folder_decodes_classes_in_order_as_rgb(pictures):
    data = image_folder(path=str(pictures), normalise="unit")
    assert (data.name, data.num_classes, data.input_shape) == ("pets", 2, (3, 4, 6))
    assert data.train.y.tolist() == [0, 0, 1, 1]
    assert data.test.y.tolist() == [0, 1]
    assert data.train.x.mean((2, 3)).tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]]


def test_image_folder_resizes_when_told(pictures):
    Image.new("RGB", (9, 9)).save(pictures / "test/b/large.png")
    with pytest.raises(DataError, match=r"large.png has 9 x 9 pixels where 4 x 6 are expected: set dataset.size"):
        image_folder(path=str(pictures))
    assert image_folder(path=str(pictures), size=8).input_shape == (3, 8, 8)
    assert image_folder(path=str(pictures), size=[2, 5]).input_shape == (3, 2, 5)


def test_image_folder_names_what_is_wrong(pictures):
    picture = pictures / "train/a/0.png"
    picture.write_bytes(picture.read_bytes()[:40])
    with pytest.raises(DataError, match=r"0.png cannot be read as an image .*40 bytes, md5"):
        image_folder(path=str(pictures))
    with pytest.raises(ConfigError, match=r"dataset.size must be .* found 0"):
        image_folder(path=str(pictures), size=0)
    with pytest.raises(ConfigError, match=r"needs dataset.path"):
        image_folder()
    (pictures / "test/a/0.png").unlink()
    with pytest.raises(DataError, match=r"One folder of images for each class is required in .*test"):
        image_folder(path=str(pictures))
    (pictures / "test/a").rmdir()
    with pytest.raises(DataError, match="train and test must have the same class folders; found a, b and b"):
        image_folder(path=str(pictures))
