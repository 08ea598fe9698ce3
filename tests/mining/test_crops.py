"""The crop of an object for its CLS token (unseg/mining/crops.py)."""

from typing import Any, get_args, get_type_hints

import factories
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as Pillow

from unseg.core.console import InputError
from unseg.core.masks import encode
from unseg.mining.crops import Embedding, crop, crop_box, crop_size

FILL = (1, 2, 3)
REGIONS = get_args(get_type_hints(Embedding)["region"])


def embedding(region: str = "masked", resize: int = 0, longest: int = 1000) -> Embedding:
    return factories.group("embed", Embedding, region=region, resize=resize, longest=longest, precision="fp32")


def scene() -> tuple[np.ndarray, Pillow.Image]:
    """An L of three pixels in a picture of 4 x 6, whose pixels have different values."""
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2], mask[2, 3] = True, True
    pixels = (10 + np.arange(72).reshape(4, 6, 3)).astype(np.uint8)
    return mask, Pillow.fromarray(pixels)


def test_masked_is_the_box_with_the_background_blanked() -> None:
    mask, image = scene()
    out = np.asarray(crop(image, encode(mask), embedding("masked"), FILL))
    pixels = np.asarray(image)
    assert out.tolist() == [[pixels[1, 2].tolist(), list(FILL)], [pixels[2, 2].tolist(), pixels[2, 3].tolist()]]


def test_box_is_all_of_the_box() -> None:
    mask, image = scene()
    assert np.array_equal(crop(image, encode(mask), embedding("box"), FILL), np.asarray(image)[1:3, 2:4])


def test_image_is_all_of_the_image_blanked() -> None:
    mask, image = scene()
    out = np.asarray(crop(image, encode(mask), embedding("image"), FILL))
    assert np.array_equal(out, np.where(mask[..., None], np.asarray(image), FILL))


def test_the_photograph_itself_is_left_as_it_is() -> None:
    mask, image = scene()
    before = np.array(image)
    crop(image, encode(mask), embedding(), FILL)
    assert np.array_equal(image, before)


@settings(max_examples=80, deadline=None)
@given(
    arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 30))),
    st.sampled_from(REGIONS),
    st.sampled_from([0, 1, 7, 64]),
    st.sampled_from([1, 8, 200]),
)
def test_the_size_is_known_before_the_picture_is_read(mask: np.ndarray, region: str, resize: int, longest: int) -> None:
    p, encoded = embedding(region, resize, longest), encode(mask)
    left, top, right, bottom = crop_box(encoded, p)
    assert 0 <= left < right <= mask.shape[1]
    assert 0 <= top < bottom <= mask.shape[0]
    if region != "image" and mask.any():
        rows, cols = np.nonzero(mask)
        assert (left, top, right, bottom) == (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)
    height, width = crop_size(encoded, p)
    picture = crop(Pillow.new("RGB", mask.shape[::-1]), encoded, p, FILL)
    assert picture.size == (width, height)
    assert min(height, width) >= 1
    assert max(height, width) <= longest


def test_sizes_by_hand() -> None:
    mask = np.zeros((50, 50), bool)
    mask[5:25, 10:40] = True  # 20 rows, 30 columns
    encoded = encode(mask)
    assert crop_size(encoded, embedding(resize=0)) == (20, 30)
    assert crop_size(encoded, embedding(resize=10)) == (10, 15)
    assert crop_size(encoded, embedding(resize=64)) == (64, 96)
    assert crop_size(encoded, embedding(resize=64, longest=48)) == (32, 48)
    assert crop_size(encoded, embedding(resize=0, longest=15)) == (10, 15)


@pytest.mark.parametrize("region", REGIONS)
def test_one_pixel_in_the_corner(region: str) -> None:
    mask = np.zeros((5, 7), bool)
    mask[4, 6] = True
    p = embedding(region, resize=16, longest=32)
    picture = np.asarray(crop(Pillow.new("RGB", (7, 5), (200, 100, 50)), encode(mask), p, FILL))
    assert picture.shape[:2] == crop_size(encode(mask), p)
    if region != "image":
        assert (picture == (200, 100, 50)).all()


def test_an_empty_mask_is_one_pixel() -> None:
    encoded = encode(np.zeros((5, 7), bool))
    assert crop_box(encoded, embedding("box")) == (0, 0, 1, 1)
    assert crop(Pillow.new("RGB", (7, 5)), encoded, embedding("masked", 8, 16), FILL).size == (8, 8)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("region", "mask"), ("resize", -1), ("longest", 0), ("precision", "fp16")),
        *(("descriptor", "max"), ("layer", 0.5), ("shifts", 0), ("shifts", 17)),
    ],
)
def test_settings_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"embed\.{key} is"):
        factories.group("embed", Embedding, **{key: value})
