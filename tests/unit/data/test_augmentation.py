"""Augmentation: each change against a plain loop over the samples, and how often it does what."""

import itertools
import math

import pytest
import torch
from cases import case
from omegaconf import OmegaConf
from problems import F64, ROOT, randn
from torch import Tensor

from nncompress.config.build import build
from nncompress.data.augmentation import Augmentation, Augmentations, Crop, Cutout, Flip, Rotation

LAST = 1 - 2**-24  # the largest float32 below 1
EACH = [
    *(Crop(padding=0), Crop(padding=2), Flip(probability=0.4), Rotation(degrees=40.0), Cutout(size=3)),
    Augmentations(parts=[]),
    Augmentations(parts=[Crop(padding=3), Flip(), Rotation(), Cutout(size=4)]),
]
FORMATS = [torch.contiguous_format, torch.channels_last]
BLANKS = [torch.tensor(0.25, dtype=F64), torch.tensor([0.5, -1.5, 3.0], dtype=F64)[:, None, None]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(*rows: list[float]) -> Tensor:
    """What `draw` gives, made up: one row for each sample."""
    return torch.tensor(rows, dtype=torch.float32)


def distinct(n: int, side: int) -> Tensor:
    """The same image n times, one channel, its pixels numbered from 0."""
    return torch.arange(side * side, dtype=F64).view(1, 1, side, side).repeat(n, 1, 1, 1)


def chi_squared(values: Tensor, bins: int) -> float:
    """Pearson's statistic of whole numbers 0 ... bins - 1 against equal frequencies."""
    counts = torch.bincount(values.long(), minlength=bins).double()
    expected = len(values) / bins
    return float(((counts - expected) ** 2 / expected).sum())


def plain_crop(x: Tensor, drawn: Tensor, blank: Tensor, padding: int) -> Tensor:
    c, h, w = x.shape
    padded = blank.expand(c, h + 2 * padding, w + 2 * padding).clone()
    padded[:, padding : padding + h, padding : padding + w] = x
    top, left = (int(u * (2 * padding + 1)) for u in drawn)
    return padded[:, top : top + h, left : left + w]


def plain_flip(x: Tensor, drawn: Tensor, blank: Tensor, probability: float) -> Tensor:
    return torch.flip(x, [2]) if drawn[0] < probability else x


def plain_cutout(x: Tensor, drawn: Tensor, blank: Tensor, size: int) -> Tensor:
    _, h, w = x.shape
    top, left = int(drawn[0] * h) - size // 2, int(drawn[1] * w) - size // 2
    mask = torch.zeros(h, w, dtype=torch.bool)
    mask[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = True
    return torch.where(mask, blank, x)


def plain_rotation(x: Tensor, drawn: Tensor, blank: Tensor, degrees: float) -> Tensor:
    """Bilinear interpolation pixel by pixel; every pixel that is not in the image is blank."""
    c, h, w = x.shape
    blank = blank.expand(c, 1, 1)[:, 0, 0]
    angle = math.radians(degrees) * (2 * float(drawn[0]) - 1)
    y = torch.empty_like(x)
    for i in range(h):
        for j in range(w):
            up, right = (h - 1) / 2 - i, j - (w - 1) / 2  # mathematical axes: turn back by the angle
            row = (h - 1) / 2 - (math.cos(angle) * up - math.sin(angle) * right)
            column = (w - 1) / 2 + math.sin(angle) * up + math.cos(angle) * right
            y[:, i, j] = sum(
                (1 - abs(row - r)) * (1 - abs(column - q)) * (x[:, r, q] if 0 <= r < h and 0 <= q < w else blank)
                for r in (math.floor(row), math.floor(row) + 1)
                for q in (math.floor(column), math.floor(column) + 1)
            )
    return y


@pytest.mark.parametrize(
    ("change", "plain", "setting", "values"),
    [
        pytest.param(Crop, plain_crop, "padding", (0, 1, 4), id="crop"),
        pytest.param(Flip, plain_flip, "probability", (0.0, 0.3, 1.0), id="flip"),
        pytest.param(Cutout, plain_cutout, "size", (1, 2, 5, 8, 40), id="cutout"),
    ],
)
def test_the_batch_equals_a_plain_loop_bit_for_bit(change, plain, setting, values):
    for value, memory_format, blank in itertools.product(values, FORMATS, BLANKS):
        with case(**{setting: value}, memory_format=memory_format, blank=blank):
            x, augmentation = randn(60, 3, 9, 6).contiguous(memory_format=memory_format), change(**{setting: value})
            drawn = augmentation.draw(60, generator())
            expected = [plain(*sample, blank, value) for sample in zip(x, drawn, strict=True)]
            assert torch.equal(augmentation.apply(x, drawn, blank), torch.stack(expected))


def test_a_rotation_equals_bilinear_interpolation_in_a_plain_loop():
    x = randn(6, 3, 7, 4)
    for degrees, blank in itertools.product((0.0, 15.0, 180.0), BLANKS):
        with case(degrees=degrees, blank=blank):
            rotation = Rotation(degrees=degrees)
            drawn = rotation.draw(6, generator())
            expected = torch.stack([plain_rotation(*sample, blank, degrees) for sample in zip(x, drawn, strict=True)])
            torch.testing.assert_close(rotation.apply(x, drawn, blank), expected, rtol=0, atol=1e-12)


def test_rotations_by_multiples_of_90_degrees_permute_the_pixels():
    x, blank = randn(2, 3, 8, 8), torch.tensor(7.0)
    quarter, half, middle = Rotation(degrees=90.0), Rotation(degrees=180.0), numbers([0.5], [0.5])
    for turned, times in [
        (quarter.apply(x, numbers([1.0], [1.0]), blank), 1),
        (quarter.apply(x, numbers([0.0], [0.0]), blank), -1),
        (half.apply(x, numbers([1.0], [0.0]), blank), 2),
        (half.apply(x, middle, blank), 0),
    ]:
        torch.testing.assert_close(turned, torch.rot90(x, times, dims=(2, 3)), rtol=0, atol=1e-12)


def test_a_rotation_in_short_types_is_that_in_float32_rounded():
    x, rotation, blank = randn(5, 3, 8, 8), Rotation(degrees=30.0), torch.tensor(0.5)
    drawn = rotation.draw(5, generator())
    for dtype in (torch.bfloat16, torch.float16):
        short = x.to(dtype)
        assert torch.equal(rotation.apply(short, drawn, blank), rotation.apply(short.float(), drawn, blank).to(dtype))


def test_what_comes_in_from_outside_is_blank():
    x, blank = torch.ones(1, 3, 8, 8, dtype=F64), BLANKS[1]
    cropped = Crop(padding=2).apply(x, numbers([0.0, LAST]), blank)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:, :-2] = True
    assert torch.equal(cropped[0], torch.where(inside, 1.0, blank))
    turned = Rotation(degrees=45.0).apply(x, numbers([1.0]), blank)
    for corner in (turned[..., 0, 0], turned[..., 0, -1], turned[..., -1, 0], turned[..., -1, -1]):
        torch.testing.assert_close(corner, blank.view(1, 3), rtol=0, atol=1e-12)
    torch.testing.assert_close(turned[..., 2:6, 2:6], x[..., 2:6, 2:6], rtol=0, atol=1e-12)
    assert torch.equal(Cutout(size=16).apply(x, numbers([0.5, 0.5]), blank)[0], blank.expand(3, 8, 8))


def test_all_windows_of_a_crop_are_about_equally_frequent():
    crop, n = Crop(padding=2), 10_000
    # The middle pixel (3, 3) of the 7 x 7 image moves by the offset less the padding, which is at most 2.
    middle = crop.apply(distinct(n, 7), crop.draw(n, generator()), torch.tensor(-1.0))[:, 0, 3, 3]
    window = (middle // 7 - 1) * 5 + middle % 7 - 1
    assert window.unique().tolist() == list(range(25))
    assert chi_squared(window, 25) < 51.2  # 0.999 quantile, 24 degrees of freedom


def test_all_centres_of_a_cutout_are_about_equally_frequent():
    cutout, n = Cutout(size=1), 10_000
    cut = cutout.apply(distinct(n, 5), cutout.draw(n, generator()), torch.tensor(-1.0)).flatten(1) < 0
    assert torch.equal(cut.sum(1), torch.ones(n, dtype=torch.int64))
    assert chi_squared(cut.long().argmax(1), 25) < 51.2


def test_flips_happen_with_their_probability():
    x, flip, n = distinct(10_000, 2), Flip(probability=0.3), 10_000
    flipped = flip.apply(x, flip.draw(n, generator()), torch.tensor(0.0))[:, 0, 0, 0] == 1
    assert abs(int(flipped.sum()) - 3000) < 4 * math.sqrt(n * 0.3 * 0.7)


def test_probability_0_never_flips_and_1_always_does():
    x, ends = distinct(2, 3), numbers([0.0], [LAST])
    assert torch.equal(Flip(probability=0.0).apply(x, ends, BLANKS[0]), x)
    assert torch.equal(Flip(probability=1.0).apply(x, ends, BLANKS[0]), x.flip(3))


def test_angles_are_about_uniform_in_both_directions():
    rotation, n = Rotation(degrees=40.0), 10_000
    # Of an image that grows by 1 from column to column the slope along a row is the cosine, up a column the sine.
    x = torch.arange(9, dtype=F64).expand(n, 1, 9, 9)
    y = rotation.apply(x, rotation.draw(n, generator()), torch.tensor(0.0))[:, 0]
    degrees = torch.rad2deg(torch.atan2(y[:, 3, 4] - y[:, 5, 4], y[:, 4, 5] - y[:, 4, 3]))
    assert chi_squared((degrees + 40) // 8, 10) < 27.9  # 0.999 quantile, 9 degrees of freedom


def test_the_largest_number_below_one_gives_the_last_window():
    x = distinct(1, 9)
    for padding in range(1, 9):
        with case(padding=padding):
            found = Crop(padding=padding).apply(x, numbers([LAST, LAST]), torch.tensor(-1.0))
            assert torch.equal(found[..., : 9 - padding, : 9 - padding], x[..., padding:, padding:])


# What holds for each.


def test_shape_type_and_memory_format_are_kept_and_the_images_unchanged():
    dtypes = (F64, torch.float32, torch.bfloat16, torch.float16)
    for augmentation, memory_format, dtype in itertools.product(EACH, FORMATS, dtypes):
        with case(augmentation=augmentation, memory_format=memory_format, dtype=dtype):
            x = randn(6, 3, 8, 10, dtype=dtype).contiguous(memory_format=memory_format)
            before = x.clone()
            y = augmentation.apply(x, augmentation.draw(6, generator()), BLANKS[1])
            assert (y.shape, y.dtype, y.stride()) == (x.shape, dtype, x.stride())
            assert torch.equal(x, before)


def test_no_value_is_looked_at():
    for augmentation in EACH:
        with case(augmentation=augmentation):
            x, drawn, blank = (t.to("meta") for t in (randn(6, 3, 8, 8), augmentation.draw(6, generator()), BLANKS[1]))
            found = augmentation.apply(x, drawn, blank)  # tensors without values: .item() or nonzero would raise
            assert found.shape == x.shape


def test_the_same_generator_state_gives_the_same_images():
    for augmentation in EACH:
        x, first, second = randn(6, 3, 8, 8), generator(3), generator(3)
        for k in range(2):
            with case(augmentation=augmentation, k=k):
                a, b = (augmentation.apply(x, augmentation.draw(6, g), BLANKS[0]) for g in (first, second))
                assert torch.equal(a, b)


def test_numbers_are_drawn_for_all_samples_at_once_or_for_some_and_then_the_rest():
    for augmentation in EACH:
        with case(augmentation=augmentation):
            g = generator()
            halves = [augmentation.draw(4, g), augmentation.draw(3, g)]
            drawn = augmentation.draw(7, generator())
            assert torch.equal(drawn, torch.cat(halves))
            assert (drawn.shape, drawn.dtype, drawn.device.type) == ((7, augmentation.columns), torch.float32, "cpu")


def test_a_sample_does_not_depend_on_the_others():
    x, augmentation = randn(6, 3, 8, 8), EACH[-1]
    drawn = augmentation.draw(6, generator())
    y = augmentation.apply(x, drawn, BLANKS[1])
    assert torch.equal(y[2:3], augmentation.apply(x[2:3], drawn[2:3], BLANKS[1]))


def test_parts_are_applied_one_after_the_other():
    x, crop, flip, cutout, blank = randn(6, 3, 8, 8), Crop(padding=2), Flip(), Cutout(size=3), BLANKS[0]
    both = Augmentations(parts=[Augmentations(parts=[crop, flip]), cutout])
    drawn = both.draw(6, generator())
    expected = crop.apply(x, drawn[:, :2], blank)
    expected = flip.apply(expected, drawn[:, 2:3], blank)
    assert torch.equal(both.apply(x, drawn, blank), cutout.apply(expected, drawn[:, 3:], blank))


def test_no_parts_return_the_samples_themselves_of_any_shape():
    nothing = Augmentations(parts=[])
    x = randn(4, 7)
    assert nothing.apply(x, nothing.draw(4, generator()), BLANKS[0]) is x
    nothing.check((7,))


# What is refused.


def test_samples_that_are_no_images_are_refused():
    for augmentation in [a for a in EACH if a.columns]:
        augmentation.check((1, 8, 8))
        for shape in [(64,), (8, 8), (1, 8, 8, 8), (1, 0, 8)]:
            with pytest.raises(ValueError, match=r"needs images .* found samples of shape \("):
                augmentation.check(shape)


def test_a_padding_as_large_as_a_side_is_refused():
    for crop in (Crop(padding=8), Augmentations(parts=[Flip(), Crop(padding=8)])):
        crop.check((3, 9, 9))
        for shape in [(3, 8, 9), (3, 9, 8)]:
            with pytest.raises(ValueError, match="sides of at least 9, found samples of shape"):
                crop.check(shape)


def test_settings_out_of_range_are_refused():
    for kind, setting in [
        (Crop, {"padding": -1}),
        (Flip, {"probability": -0.1}),
        (Flip, {"probability": 1.1}),
        (Flip, {"probability": math.nan}),
        (Rotation, {"degrees": -1.0}),
        (Rotation, {"degrees": 181.0}),
        (Rotation, {"degrees": math.nan}),
        (Cutout, {"size": 0}),
        (Augmentations, {"parts": [Crop]}),
    ]:
        with pytest.raises(ValueError, match=f"{next(iter(setting))}.* found"):
            kind(**setting)


def test_a_packaged_option_builds_its_parts():
    folder = ROOT / "conf" / "augmentation"
    parts: dict[str, list[Augmentation]] = {
        "none": [],
        "crop_flip": [Crop(padding=4), Flip(probability=0.5)],
        "crop_flip_cutout": [Crop(padding=4), Flip(probability=0.5), Cutout(size=8)],
        "crop_flip_rotation": [Crop(padding=4), Flip(probability=0.5), Rotation(degrees=15.0)],
        "rotation": [Rotation(degrees=15.0)],
    }
    assert {path.stem for path in folder.glob("*.yaml")} == {*parts}
    for name, expected in parts.items():
        with case(name=name):
            assert build(OmegaConf.load(folder / f"{name}.yaml")) == Augmentations(parts=expected)
