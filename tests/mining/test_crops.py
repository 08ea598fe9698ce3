"""What is cut out of a photograph for an object's token (unseg/mining/crops.py)."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as Pillow

from unseg.core.rle import encode
from unseg.mining.crops import REGIONS, Embedding, box_of, cut, size_of

FILL = (1, 2, 3)


def embedding(region: str = "masked", resize: int = 0, longest: int = 1000) -> Embedding:
    return Embedding(region, resize, longest, "fp32")


def scene() -> tuple[np.ndarray, Pillow.Image]:
    """An L of three pixels in a picture of 4 x 6 whose values tell pixels apart."""
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2], mask[2, 3] = True, True
    pixels = (10 + np.arange(72).reshape(4, 6, 3)).astype(np.uint8)
    return mask, Pillow.fromarray(pixels)


def test_masked_is_the_box_with_all_else_blanked() -> None:
    mask, image = scene()
    out = np.asarray(cut(image, encode(mask), embedding("masked"), FILL))
    pixels = np.asarray(image)
    assert out.tolist() == [[pixels[1, 2].tolist(), list(FILL)], [pixels[2, 2].tolist(), pixels[2, 3].tolist()]]


def test_box_is_all_of_the_box() -> None:
    mask, image = scene()
    assert np.array_equal(cut(image, encode(mask), embedding("box"), FILL), np.asarray(image)[1:3, 2:4])


def test_image_is_all_of_the_image_blanked() -> None:
    mask, image = scene()
    out = np.asarray(cut(image, encode(mask), embedding("image"), FILL))
    assert np.array_equal(out, np.where(mask[..., None], np.asarray(image), FILL))


def test_the_photograph_itself_is_left_as_it_is() -> None:
    mask, image = scene()
    before = np.array(image)
    cut(image, encode(mask), embedding(), FILL)
    assert np.array_equal(image, before)


@settings(max_examples=80, deadline=None)
@given(
    arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 30))),
    st.sampled_from(REGIONS),
    st.sampled_from([0, 1, 7, 64]),
    st.sampled_from([1, 8, 200]),
)
def test_the_size_is_known_before_the_picture_is_read(mask: np.ndarray, region: str, resize: int, longest: int) -> None:
    p, rle = embedding(region, resize, longest), encode(mask)
    left, top, right, bottom = box_of(rle, p)
    assert 0 <= left < right <= mask.shape[1]
    assert 0 <= top < bottom <= mask.shape[0]
    if region != "image" and mask.any():
        rows, cols = np.nonzero(mask)
        assert (left, top, right, bottom) == (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)
    height, width = size_of(rle, p)
    picture = cut(Pillow.new("RGB", mask.shape[::-1]), rle, p, FILL)
    assert picture.size == (width, height)
    assert min(height, width) >= 1
    assert max(height, width) <= longest


def test_sizes_by_hand() -> None:
    mask = np.zeros((50, 50), bool)
    mask[5:25, 10:40] = True  # 20 rows, 30 columns
    rle = encode(mask)
    assert size_of(rle, embedding(resize=0)) == (20, 30)
    assert size_of(rle, embedding(resize=10)) == (10, 15)
    assert size_of(rle, embedding(resize=64)) == (64, 96)
    assert size_of(rle, embedding(resize=64, longest=48)) == (32, 48)
    assert size_of(rle, embedding(resize=0, longest=15)) == (10, 15)


@pytest.mark.parametrize("region", REGIONS)
def test_one_pixel_in_the_corner(region: str) -> None:
    mask = np.zeros((5, 7), bool)
    mask[4, 6] = True
    p = embedding(region, resize=16, longest=32)
    picture = np.asarray(cut(Pillow.new("RGB", (7, 5), (200, 100, 50)), encode(mask), p, FILL))
    assert picture.shape[:2] == size_of(encode(mask), p)
    if region != "image":
        assert (picture == (200, 100, 50)).all()


def test_an_empty_mask_is_one_pixel() -> None:
    rle = encode(np.zeros((5, 7), bool))
    assert box_of(rle, embedding("box")) == (0, 0, 1, 1)
    assert cut(Pillow.new("RGB", (7, 5)), rle, embedding("masked", 8, 16), FILL).size == (8, 8)


@pytest.mark.parametrize(
    "values", [("mask", 0, 10, "fp32"), ("box", -1, 10, "fp32"), ("box", 0, 0, "fp32"), ("box", 0, 10, "fp16")]
)
def test_settings_out_of_range(values: Any) -> None:
    with pytest.raises(ValueError, match=r"embed\.(region|resize|precision)"):
        Embedding(*values)
