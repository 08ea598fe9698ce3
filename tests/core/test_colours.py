"""Colours of clusters (unseg/core/colours.py): distances, lightness, a label map over a photograph."""

import numpy as np
import pytest

from unseg.core import colours


@pytest.mark.parametrize(("count", "least"), [(7, 0.07), (20, 0.06), (64, 0.03), (255, 0.012)])
def test_colours_can_be_told_apart_by_all_eyes(count: int, least: float) -> None:
    seen = colours.oklab(colours.palette(count))
    distance = np.linalg.norm(seen[:, :, None] - seen[:, None], axis=3)
    assert distance[:, ~np.eye(count, dtype=bool)].min() > least
    np.testing.assert_array_equal(colours.palette(count)[:7], colours.OKABE_ITO)
    np.testing.assert_array_equal(colours.palette(400)[:count], colours.palette(count))


def test_perceived_lightness_of_white_black_and_grey() -> None:
    lab = colours.oklab(np.array([[255, 255, 255], [0, 0, 0], [128, 128, 128]], np.uint8))[0]
    np.testing.assert_allclose(lab[:, 0], [1, 0, 0.6], atol=0.01)
    np.testing.assert_allclose(lab[:, 1:], 0, atol=2e-3)


def test_overlay_by_hand() -> None:
    photo = np.full((1, 4, 3), 101, np.uint8)
    table = np.array([[255, 0, 1], [0, 200, 0]], np.uint8)
    out = colours.overlay(photo, np.array([[0, 1, 2, 255]], np.uint8), table)
    assert out.dtype == np.uint8
    assert out.tolist() == [[[101, 101, 101], [178, 50, 51], [50, 150, 50], [178, 178, 178]]]
