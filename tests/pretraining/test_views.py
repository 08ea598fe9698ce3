"""The two views of an image and the positions of their patches (unseg/pretraining/views.py)."""

import random
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.pretraining import views
from unseg.pretraining.views import Augmentation, ViewPairs, collate, positions, random_crop_box

SIDE = 4  # patches a side of a view


def augmentation(**changed: Any) -> Augmentation:
    """Settings without changes of colour, except the given ones."""
    values = {"size": 32, "crop_min_scale": 0.25, "jitter_prob": 0.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2}
    values |= {"hue": 0.1, "grey_prob": 0.0, "blur_probs": [0.0, 0.0], "blur": 0.6, "solarise_probs": [0.0, 0.0]}
    return factories.group("croc.views", Augmentation, **(values | changed))


def pairs(folder: Path, pixels: np.ndarray, p: Augmentation) -> ViewPairs:
    Pillow.fromarray(pixels).save(folder / "a.png")
    return ViewPairs(str(folder), [ImageRecord(1, "a.png", *pixels.shape[:2], "train")], p)


def noise(height: int = 40, width: int = 56) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def ramp(height: int, width: int, step: int) -> np.ndarray:
    """A picture of its pixels' coordinates: red is step * column, green step * row, of pixel centres."""
    y, x = np.mgrid[:height, :width]
    return (np.stack([x, y, 0 * x], -1) * step).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_positions_equal_a_cropped_coordinate_map(seed: int) -> None:
    """The published way: a map of pixel coordinates is cropped, resized, mirrored, and averaged over each patch."""
    rng = np.random.default_rng(seed)
    boxes, flips, want = [], [], []
    for _ in range(2):
        x, y, w, h = int(rng.integers(0, 20)), int(rng.integers(0, 20)), int(rng.integers(16, 60)), int(rng.integers(16, 60))
        flip = bool(rng.random() < 0.5)
        rows, cols = np.mgrid[:80, :80].astype(np.float32) + 0.5
        maps = []
        for values in (cols, rows):
            part = Pillow.fromarray(values).resize((32, 32), Pillow.Resampling.BILINEAR, (x, y, x + w, y + h))
            view = np.asarray(part)[:, ::-1] if flip else np.asarray(part)
            maps.append(view.reshape(SIDE, 8, SIDE, 8).mean((1, 3)))
        boxes.append((x, y, w, h))
        flips.append(flip)
        want.append(np.stack(maps, -1).reshape(-1, 2))
    got = positions(torch.tensor([boxes], dtype=torch.float32), torch.tensor([flips]), SIDE)
    assert got.shape == (1, 2, 16, 2)
    # filters are cut off at a crop's border, which moves the outermost pixels of the map by a fraction of a pixel
    assert np.allclose(got[0].numpy(), np.stack(want), atol=0.3)


def test_positions_by_hand() -> None:
    got = positions(torch.tensor([[[10.0, 20, 40, 80], [0, 0, 8, 8]]]), torch.tensor([[False, True]]), 2)
    assert got[0, 0].tolist() == [[20, 40], [40, 40], [20, 80], [40, 80]]
    assert got[0, 1].tolist() == [[6, 2], [2, 2], [6, 6], [2, 6]]


def test_x_decreases_along_the_columns_of_a_flipped_view() -> None:
    # CrOC's specification, section 11.5
    got = positions(torch.tensor([[[3.0, 5, 30, 20]] * 2]), torch.tensor([[True, False]]), SIDE).unflatten(2, (SIDE, SIDE))
    assert (got[0, 0, :, :, 0].diff(dim=1) < 0).all()
    assert (got[0, 1, :, :, 0].diff(dim=1) > 0).all()
    assert (got[0, :, :, :, 1].diff(dim=1) > 0).all()


def test_positions_agree_with_the_pixels_of_a_view(tmp_path: Path) -> None:
    data = pairs(tmp_path, ramp(60, 60, 4), augmentation())
    both = set()
    for seed in range(8):
        pixels, boxes, flips = data[0, seed]
        batch = collate([(pixels, boxes, flips)])
        assert batch.pixels.shape == (1, 2, 3, 32, 32)
        assert batch.pixels.dtype == torch.uint8
        shown = batch.pixels[0].float().unflatten(2, (SIDE, 8)).unflatten(4, (SIDE, 8)).mean((3, 5))  # [2, 3, SIDE, SIDE]
        expected = positions(batch.boxes_xywh, batch.flipped, SIDE)[0].unflatten(1, (SIDE, SIDE))
        assert torch.allclose(shown[:, 0] / 4 + 0.5, expected[..., 0], atol=0.5)
        assert torch.allclose(shown[:, 1] / 4 + 0.5, expected[..., 1], atol=0.5)
        both |= set(flips)
    assert both == {True, False}


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(1, 300), st.floats(0.05, 1))
def test_crops_fit_and_have_the_area_and_ratio_asked_for(seed: int, width: int, height: int, smallest: float) -> None:
    x, y, w, h = random_crop_box(random.Random(seed), (width, height), smallest)
    assert 0 <= x <= x + w <= width
    assert 0 <= y <= y + h <= height
    assert w >= 1
    assert h >= 1
    if min(width, height) >= 50 and 0.76 < width / height < 1.31:
        assert w * h >= smallest * width * height * 0.97
        assert 0.72 < w / h < 1.39


def test_crops_of_every_place_and_size() -> None:
    rng = random.Random(0)
    drawn = np.array([random_crop_box(rng, (100, 100), 0.25) for _ in range(2000)])
    fractions = drawn[:, 2] * drawn[:, 3] / 1e4
    assert 0.24 < fractions.min() < 0.3
    assert fractions.max() > 0.95
    assert abs(np.log(drawn[:, 2] / drawn[:, 3]).mean()) < 0.02  # as often wide as tall
    centre = drawn[:, :2] + drawn[:, 2:] / 2
    assert np.allclose(centre.mean(0), 50, atol=1.5)


@pytest.mark.parametrize(
    ("size", "want"), [((1000, 10), (493, 0, 13, 10)), ((10, 1000), (0, 493, 10, 13)), ((1, 1), (0, 0, 1, 1))]
)
def test_a_photograph_too_narrow_gives_its_middle(size: tuple[int, int], want: tuple[int, int, int, int]) -> None:
    assert random_crop_box(random.Random(0), size, 0.9) == want


def test_views_are_fixed_by_the_seed(tmp_path: Path) -> None:
    p = augmentation(jitter_prob=0.8, grey_prob=0.2, blur_probs=[1.0, 0.1], solarise_probs=[0.0, 0.5])
    data = pairs(tmp_path, noise(), p)
    random.seed(1)
    first = data[0, 7]
    random.seed(2)
    again, other = data[0, 7], data[0, 8]
    assert np.array_equal(first[0], again[0])
    assert first[1:] == again[1:]
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0][0], first[0][1])


@pytest.mark.parametrize("view", [0, 1])
def test_each_view_has_its_probabilities(view: int) -> None:
    image = Pillow.fromarray(noise(32, 32))
    probs = [0.0, 0.0]
    probs[view] = 1.0
    for name in ("blur_probs", "solarise_probs"):
        p = augmentation(**{name: probs})
        assert np.array_equal(views.colour_jitter(random.Random(0), image, p, 1 - view), image)
        assert not np.array_equal(views.colour_jitter(random.Random(0), image, p, view), image)


def test_colours() -> None:
    image = Pillow.fromarray(noise(32, 32))
    pixels = np.asarray(image).astype(int)
    grey = np.asarray(views.colour_jitter(random.Random(0), image, augmentation(grey_prob=1.0), 0))
    assert (grey == grey[..., :1]).all()
    solarised = np.asarray(views.colour_jitter(random.Random(0), image, augmentation(solarise_probs=[1.0, 0.0]), 0))
    assert np.array_equal(solarised, np.where(pixels < 128, pixels, 255 - pixels))
    only = {"jitter_prob": 1.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    ratios = []
    for seed in range(40):
        bright = np.asarray(views.colour_jitter(random.Random(seed), image, augmentation(**only), 0)).astype(int)
        dark = (pixels > 60) & (pixels < 150)  # what no factor up to 1.4 clips
        ratios.append((bright[dark] / pixels[dark]).mean())
    assert 0.58 < min(ratios) < 0.75
    assert 1.25 < max(ratios) < 1.42


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crop_min_scale", 0.0),
        ("crop_min_scale", 1.1),
        ("blur_probs", [1.0]),
        ("solarise_probs", [0.0, 1.1]),
        ("hue", 0.6),
        ("size", 0),
    ],
)
def test_settings_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"croc\.views\.{key}"):
        augmentation(**{key: value})
