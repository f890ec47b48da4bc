"""Data files that claim more than they have, and what no format of a data set has."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import hostile_data
import numpy as np
import pytest
from cases import case
from hostile_data import image, tiff, webp
from PIL import Image

from nncompress.data import cifar, files, image_folder
from nncompress.data.files import Source, check_expansion, reason, unpack
from nncompress.data.image_folder import image_folder as pictures
from nncompress.data.npz import npz
from nncompress.errors import DataError


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Small whole data sets in the current folder, whose content counts as official."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Source, "check_content", lambda self, name: None)
    hostile_data.write_sets()


def replaced(content):
    """Read the pets with another first image."""
    Path("pets/train/a/0.png").write_bytes(content)
    return pictures(path="pets", normalise="none")


def test_whole_small_data_sets_are_read(sets):
    for kind, (name, _) in hostile_data.READERS.items():
        with case(kind=kind):
            assert hostile_data.outcome(kind, Path(name).read_bytes()) == "read"


def test_files_that_claim_more_than_they_have_are_refused_in_one_sentence(sets):
    for kind, wrong, content in hostile_data.hostile():
        with case(kind=kind, wrong=wrong):
            assert hostile_data.outcome(kind, content) == "refused"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_mutated_files_are_read_or_refused_within_a_limit_on_memory(seed, tmp_path):
    command = [sys.executable, "-W", "ignore", hostile_data.__file__, "500", str(seed)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "wrong" not in done.stdout, done.stdout
    assert "'read'" in done.stdout


def test_contents_are_at_most_a_multiple_of_the_bytes_of_a_file():
    check_expansion(files.LEAST, 0)
    check_expansion(files.EXPANSION * 10**6, 10**6)
    for contents, size in ((files.LEAST + 1, 0), (files.EXPANSION * 10**6 + 1, 10**6)):
        with case(size=size), pytest.raises(ValueError, match=f"{size:,} bytes may have .* {contents:,} are described"):
            check_expansion(contents, size)


def test_what_is_unpacked_ends_with_the_official_size(tmp_path):
    unpack(io.BytesIO(b"abc"), tmp_path / "whole", 3)
    assert (tmp_path / "whole").read_bytes() == b"abc"
    with pytest.raises(EOFError, match="ends after 2 bytes, found more"):
        unpack(io.BytesIO(b"abc"), tmp_path / "more", 2)


def test_a_packed_file_larger_than_the_official_one_leaves_nothing_behind(sets):
    name, _ = hostile_data.READERS["gzip"]
    content = next(content for kind, _, content in hostile_data.hostile() if kind == "gzip")
    assert hostile_data.outcome("gzip", content) == "refused"
    assert not Path(name).with_suffix("").exists()
    assert not list(Path().rglob("*.part"))


def test_words_of_a_file_come_shortened_and_spelt_out_into_a_message():
    assert reason(ValueError("\x1b[31mred\nnext")) == "\\x1b[31mred"
    assert len(reason(ValueError("x" * 10**5))) == 200
    assert reason(MemoryError()) == "MemoryError"


def test_a_batch_that_names_a_function_with_control_characters_is_told_in_plain_ones(sets):
    Path("cifar-10-batches-py/data_batch_2").write_bytes(b"\x80\x02c\x1b[31mos\nsystem\n.")
    with pytest.raises(DataError, match=r"found \\x1b\[31mos.system, which is not admitted"):
        cifar.cifar10(root=".", download=False)


def test_nothing_that_a_batch_names_is_made_while_it_is_read():
    made = cifar._unpickled(hostile_data.batch())["data"]
    assert type(made) is cifar._Part
    assert made.args[1] == (0,)


def test_a_value_that_float32_cannot_hold_is_refused(tmp_path):
    for part, value in (("train", -1.7976931348623157e308), ("test", 1e39)):
        arrays = {
            f"{x}_{p}": np.zeros((4, 3) if x == "x" else 4, float if x == "x" else int)
            for x in "xy"
            for p in ("train", "test")
        }
        arrays[f"x_{part}"][1, 2] = value
        np.savez(tmp_path / "mine.npz", **arrays)
        with (
            case(part=part),
            pytest.raises(DataError, match=f"x_{part} must be finite in float32; found 1 NaN, infinite"),
        ):
            npz(path=str(tmp_path / "mine.npz"))


def test_grey_images_of_16_bits_keep_their_shades(sets):
    shades = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    for kind in ("PNG", "TIFF", "PPM"):
        with case(kind=kind):
            Image.fromarray(shades).save("pets/train/a/0.png", kind)
            x = pictures(path="pets", normalise="none").train.x[0]
            assert np.array_equal(x.numpy(), np.broadcast_to(np.round(shades / 257), (3, 8, 8)))


def test_an_image_whose_mode_has_no_largest_value_is_refused_by_name(sets):
    with pytest.raises(DataError, match=r"train/a/0.png cannot be read as an image \(its mode F has no largest value"):
        replaced(image("TIFF", "F"))


def test_images_are_measured_before_a_decoder_takes_memory(sets):
    large = {"t": (322, 1, 16000), "l": (323, 1, 16000), "a": (324, 1, 8), "s": (325, 1, 64), "o": (), "r": (), "n": ()}
    for content in (tiff(**large), webp(b"VP8L"), webp(b"VP8X"), image("PNG", "1", 8000)):
        with case(start=content[:16]), pytest.raises(DataError, match=r"bytes of contents at the most"):
            replaced(content)


def test_the_header_of_a_webp_file_tells_its_size(tmp_path):
    for settings in ({"lossless": True}, {"quality": 50}, {"quality": 50, "exif": b"x"}):
        with case(settings=settings):
            Image.new("RGB", (301, 77)).save(tmp_path / "x.webp", **settings)
            assert image_folder._webp_size((tmp_path / "x.webp").read_bytes()) == (301, 77)


def test_no_image_is_decoded_before_all_are_known_to_be_as_large(sets, monkeypatch):
    monkeypatch.setattr(image_folder, "_pixels", None)
    with pytest.raises(DataError, match=r"1.png has 8 x 8 pixels where 4000 x 4000 are expected"):
        replaced(image("PNG", "L", 4000))


def test_images_that_are_too_large_together_are_refused(sets, monkeypatch):
    size = sum(path.stat().st_size for path in Path("pets/train").rglob("*.png"))
    monkeypatch.setattr(files, "EXPANSION", 1)
    monkeypatch.setattr(files, "LEAST", 700)
    with pytest.raises(
        DataError, match=f"too large .{size} bytes may have 700 bytes .* 768 are described.: set dataset.size"
    ):
        pictures(path="pets")


def test_what_is_no_file_in_place_of_an_image_is_refused(sets):
    path = Path("pets/train/a/0.png")
    path.unlink()
    for make in (lambda: path.symlink_to("nowhere"), lambda: os.mkfifo(path)):
        make()
        with pytest.raises(DataError, match=r"0.png cannot be read as an image \(a file is required; no file\)"):
            pictures(path="pets")
        path.unlink()


def test_a_file_of_another_format_is_refused_whatever_its_name(sets):
    with pytest.raises(DataError, match=r"0.png cannot be read as an image \(none of BMP, GIF, JPEG"):
        replaced(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
