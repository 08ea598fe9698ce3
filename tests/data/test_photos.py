"""Opening and resizing of photographs (unseg/data/photos.py)."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from unseg.core.image_index import ImageRecord
from unseg.data import photos


def opened(image: Pillow.Image, form: str = "PNG", **options: Any) -> np.ndarray:
    """The image, saved and opened again: [H, W, 3]."""
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    got = photos.open_rgb(file)  # type: ignore[arg-type]
    assert got.mode == "RGB"
    return np.array(got)


def grey(values: Any, kind: type = np.uint8) -> Pillow.Image:
    return Pillow.fromarray(np.array(values, kind))


def rows(pixels: np.ndarray) -> list[list[int]]:
    """The values of a photograph that must be grey."""
    assert (pixels == pixels[..., :1]).all()
    values: list[list[int]] = pixels[..., 0].tolist()
    return values


# ---- opening


def test_colour_is_kept_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(opened(Pillow.fromarray(pixels)), pixels)


def test_grey_and_one_bit() -> None:
    assert rows(opened(grey([[0, 7], [128, 255]]))) == [[0, 7], [128, 255]]
    assert rows(opened(grey([[0, 255], [255, 0]]).convert("1"))) == [[0, 255], [255, 0]]


def test_sixteen_bits_come_to_eight() -> None:
    assert rows(opened(grey([[0, 257], [128 * 257, 65535]], np.uint16))) == [[0, 1], [128, 255]]
    assert rows(opened(grey([[0, 257], [65535, 99999]], np.int32), "TIFF")) == [[0, 1], [255, 255]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 0.5, 1]], [[0, 128, 255]]),
        ([[0, 1.5, 255]], [[0, 2, 255]]),
        ([[0, 257, 65535]], [[0, 1, 255]]),
        ([[-3, np.nan, 1]], [[0, 0, 255]]),
        ([[0, np.inf, 257]], [[0, 255, 1]]),
        ([[0, 0, 0]], [[0, 0, 0]]),
    ],
)
def test_floats_are_taken_as_the_narrowest_range_that_holds_them(values: Any, expected: Any) -> None:
    assert rows(opened(grey(values, np.float32), "TIFF")) == expected


def test_transparent_pixels_become_white() -> None:
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8)
    assert opened(Pillow.fromarray(pixels)).tolist() == [[[10, 20, 30], [255, 255, 255], [127, 127, 127]]]
    assert rows(opened(Pillow.fromarray(np.array([[[9, 255], [9, 0]]], np.uint8), "LA"))) == [[9, 255]]
    palette = grey([[0, 1, 2]]).convert("P")
    palette.putpalette([1, 1, 1, 2, 2, 2, 3, 3, 3])
    palette.putdata([0, 1, 2])
    assert rows(opened(palette, transparency=1)) == [[1, 255, 3]]
    assert rows(opened(palette, transparency=b"\xff\x00\xff")) == [[1, 255, 3]]
    assert rows(opened(grey([[5, 6]]), transparency=5)) == [[255, 6]]


def test_cmyk_is_ink_on_white() -> None:
    ink = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [255, 0, 0, 0]]], np.uint8)
    assert opened(Pillow.fromarray(ink, "CMYK"), "TIFF").tolist() == [[[255, 255, 255], [0, 0, 0], [0, 255, 255]]]


def test_the_first_frame_of_an_animation() -> None:
    frames = [grey([[v, v]]) for v in (50, 100, 150)]
    assert rows(opened(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [[50, 50]]


UPRIGHT = {  # [[1, 2, 3], [4, 5, 6]] as viewers show it with each EXIF orientation
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
    9: [[1, 2, 3], [4, 5, 6]],  # no such orientation
}


@pytest.mark.parametrize("number", UPRIGHT)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_exif_orientation_is_applied(number: int, kind: type, tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[photos.ORIENTATION] = number
    scale = 257 if kind is np.uint16 else 1
    stored = grey(np.array(UPRIGHT[1]) * scale, kind)
    assert rows(opened(stored, exif=exif)) == UPRIGHT[number]
    stored.save(tmp_path / "a.png", exif=exif)
    assert photos.is_turned(tmp_path / "a.png") == (number in range(2, 9))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12", b"Exif\0\0II*\0\xff\xff\xff\x7f"])
def test_a_damaged_header_leaves_the_photograph_as_stored(exif: bytes) -> None:
    assert opened(grey(np.zeros((4, 6))), "JPEG", exif=exif).shape == (4, 6, 3)


def test_other_files_raise(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    for content in (b"", b"text", b"\xff\xd8\xff\xe0", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"):
        file.write_bytes(content)
        with pytest.raises((OSError, ValueError), match=r"cannot identify|vector drawing"):
            photos.open_rgb(file)


def test_read_opens_the_photograph_of_a_record_without_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    grey(np.full((40, 40), 3)).save(tmp_path / "sub/a b.png")
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns from here on, and warnings are errors here
    assert photos.read(tmp_path, ImageRecord(1, "sub/a b.png", 40, 40, "train")).size == (40, 40)


# ---- sizes


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [((375, 500), 640, (640, 853)), ((500, 375), 96, (128, 96)), ((64, 64), 64, (64, 64)), ((1000, 10), 1, (100, 1))],
)
def test_short_side_by_hand(size: tuple[int, int], short: int, expected: tuple[int, int]) -> None:
    assert photos.short_side(size, short) == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(8, 3000), st.integers(8, 3000), st.integers(1, 800))
def test_short_side_keeps_the_aspect(h: int, w: int, short: int) -> None:
    a, b = photos.short_side((h, w), short)
    assert min(a, b) == short
    assert abs(a * w - b * h) <= max(h, w) / 2 + 1e-6  # half a pixel of rounding


def test_resize_takes_rows_first_and_averages() -> None:
    image = Pillow.fromarray(np.tile(np.array([[[0] * 3], [[200] * 3]], np.uint8), (2, 6, 1)))  # rows of 0, 200, 0, 200
    assert photos.resize(image, (4, 6)) is image
    small = np.array(photos.resize(image, (1, 3)))
    assert small.shape == (1, 3, 3)
    assert abs(small.astype(int) - 100).max() <= 1
