"""Pictures of the report: colours, label maps and instances by hand, crops, sheets, captions."""

from types import SimpleNamespace

import factories
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from unseg.core.colours import palette
from unseg.core.image_index import evenly_spaced
from unseg.report import pictures, sheets


def test_a_cluster_has_the_colour_of_its_class() -> None:
    scheme = pictures.scheme(4, ["background", "cat", "dog"], {2: 1, 0: 2, 3: 0, -1: 1})
    np.testing.assert_array_equal(scheme.clusters[2], scheme.classes[1])
    np.testing.assert_array_equal(scheme.clusters[0], scheme.classes[2])
    assert scheme.names == ("dog", None, "cat", None)
    colours, striped = scheme.table()
    assert len(np.unique(scheme.clusters, axis=0)) == 4
    assert striped.nonzero()[0].tolist() == [2, 4]  # labels of clusters 1 and 3
    np.testing.assert_array_equal(colours[3], scheme.classes[1])
    np.testing.assert_array_equal(scheme.truth_table()[0][2], scheme.classes[2])
    plain = pictures.scheme(3, [], {})
    assert not plain.table()[1].any()
    np.testing.assert_array_equal(plain.clusters, palette(3))
    assert len(pictures.scheme(255, [str(i) for i in range(81)], {}).clusters) == 255


def test_paint_by_hand() -> None:
    photo = np.full((9, 9, 3), 100, np.uint8)
    labels = np.zeros((9, 9), np.uint8)
    labels[:, 3:6], labels[0, 0], labels[0, 1] = 1, 255, 255
    table = np.zeros((256, 3), np.uint8)
    table[1] = 200, 0, 0
    out = pictures.paint(photo, labels, table, np.zeros(256, bool))
    assert out[4, 8].tolist() == [60, 60, 60]  # background: dimmed
    assert out[4, 4].tolist() == [160, 40, 40]  # inside: 0.4 of the grey, 0.6 of the colour
    assert out[4, 3].tolist() == out[4, 5].tolist() == [200, 0, 0]  # outline
    assert out[0, 0].tolist() == [255, 255, 255]  # a stripe of void
    striped = np.zeros(256, bool)
    striped[1] = True
    dark = pictures.paint(photo, labels, table, striped)
    assert dark[4, 4].tolist() == [64, 16, 16]  # rows + cols = 8: on a stripe
    assert dark[0, 4].tolist() == [160, 40, 40]  # between stripes


def test_boxed_by_hand() -> None:
    photo, mask = np.full((40, 40, 3), 100, np.uint8), np.zeros((40, 40), bool)
    mask[10:30, 5:25] = True
    table = np.zeros((256, 3), np.uint8)
    table[1], table[2] = (200, 0, 0), (0, 200, 0)
    out = pictures.draw_instances(photo, [mask, mask], [1, 2], ["", ""], table, np.zeros(256, bool))
    assert out[20, 15].tolist() == [160, 40, 40]  # the first hides the second
    assert out[10, 5].tolist() == out[29, 24].tolist() == [200, 0, 0]
    assert out[35, 35].tolist() == [60, 60, 60]


def test_crop_keeps_the_object_and_dims_the_rest() -> None:
    pixels, mask = np.full((50, 80, 3), 200, np.uint8), np.zeros((50, 80), bool)
    mask[20:40, 60:80] = True
    out = pictures.crop(Pillow.fromarray(pixels), mask, 46)  # 23 pixels around the object, twice as large
    assert out.shape == (46, 46, 3)
    assert out[23, 23].tolist() == [200] * 3
    assert out[0, 0].tolist() == [70] * 3
    assert out[23, 45].tolist() == [0] * 3  # beyond the photograph


@given(st.integers(1, 400), st.integers(1, 400))
@settings(max_examples=30, deadline=None)
def test_tiles_have_the_side_asked_for(rows: int, cols: int) -> None:
    photo = pictures.tile(Pillow.new("L", (cols, rows)).convert("RGB"), 60)
    assert max(photo.shape[:2]) == 60
    assert min(photo.shape[:2]) >= 1
    assert pictures.resize_labels(np.ones((rows, cols), bool), photo).all()


def test_a_sheet_that_does_not_fit_shrinks() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    small = pictures.small_png(noise, 20_000)
    assert len(small) <= 20_000
    assert len(pictures.small_png(noise, 10**6)) > 20_000


@given(st.lists(st.integers(), max_size=50), st.integers(1, 60))
@settings(max_examples=50, deadline=None)
def test_spread_takes_evenly(items: list[int], count: int) -> None:
    at = evenly_spaced(range(len(items)), count)
    assert len(at) == min(count, len(items))
    assert at == sorted(set(at))
    gaps = np.diff(at)
    assert not gaps.size or gaps.max() - gaps.min() <= 1


def test_areas_in_words() -> None:
    labels = np.array([[0, 1, 1, 255]], np.uint8)
    assert sheets.describe_areas(labels, {1: "cat"}) == "cat 50\N{NO-BREAK SPACE}%, void 25\N{NO-BREAK SPACE}%"


@pytest.mark.parametrize(
    ("scores", "drawn", "note"),
    [
        ([0.9, 0.5, 0.4], 2, "2 of 3 (score ≥ 0.5)"),
        ([0.45, 0.4], 1, "1 of 2 (the best one: none has a score of 0.5)"),
        ([], 0, "0 of 0 (score ≥ 0.5)"),
    ],
)
def test_an_image_shows_its_best_detection_at_least(scores: list[float], drawn: int, note: str) -> None:
    image, photo = factories.image(size=(240, 240)), np.zeros((240, 240, 3), np.uint8)
    detections = []
    for n, score in enumerate(scores):
        mask = np.zeros((240, 240), bool)
        mask[10 + 75 * n : 60 + 75 * n, 20:200] = True
        detections.append(factories.detection(mask, score))
    data = SimpleNamespace(detections={image: detections}, scheme=pictures.scheme(1, [], {}))
    tile = sheets.draw_detections(data, image, photo)  # type: ignore[arg-type]
    assert tile.note == note
    painted = [tile.pixels[40 + 75 * n : 55 + 75 * n, 150:190].any() for n in range(len(scores))]  # type: ignore[index]
    assert painted == [n < drawn for n in range(len(scores))]
