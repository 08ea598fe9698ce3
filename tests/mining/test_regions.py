"""Regions from merged neighbours (unseg/mining/regions.py)."""

from typing import Any

import factories
import numpy as np
import pytest
import torch
from scipy import ndimage

from unseg.mining import regions
from unseg.mining.affinity import Mining, otsu

CLASSES = np.array(
    [[0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 2, 2, 0], [0, 1, 1, 0, 2, 2, 0], [0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]]
)


def setting(**changed: Any) -> Mining:
    values = {"method": "regions", "threshold": 0.5, "center": False, "objects": 5}
    return factories.group("mine", Mining, **(values | changed))


def mined(attention: tuple[float, float, float], **changed: Any) -> list[list[list[bool]]]:
    """Regions of CLASSES, whose features have a direction each; CLS attends to a patch by the last channel of its key."""
    features = torch.eye(3)[CLASSES.ravel()][None, None]
    keys = torch.tensor(attention)[CLASSES.ravel(), None][None, None]  # [1, 1, N, 1]
    return [m.tolist() for m in regions.mine(torch.ones(1, 1, 1), keys, features, CLASSES.shape, setting(**changed))]


def test_objects_by_their_attention_without_the_background() -> None:
    one, two = (CLASSES == 1).tolist(), (CLASSES == 2).tolist()
    assert mined((0, 2, 3)) == [two, one]
    assert mined((0, 3, 2)) == [one, two]
    assert mined((0, 3, 2), objects=1) == [one]
    assert mined((0, 3, -1)) == [one]  # the other has less attention than its area would
    assert mined((1, 0, 0)) == [(CLASSES == 0).tolist()]  # nothing else: the most attended region
    assert mined((2, 3, 0)) == [one]  # the background has more attention than its area, and most of the border


def test_similarity_is_that_of_the_full_affinity_matrix() -> None:
    rng = np.random.default_rng(0)
    rows = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(24, 5))), dim=1)
    labels = np.arange(24) // 4
    means = regions.means(rows, labels, 6)
    affinity = (rows @ rows.T).numpy()
    pairs = np.array([[0, 1, 4], [1, 3, 5]])
    got = regions.similarity(means, rows.T @ rows, pairs).numpy()
    for value, a, b in zip(got, *pairs, strict=True):
        m, n = (rows.numpy()[labels == r].mean(0) for r in (a, b))
        p, q = (affinity[labels == r].mean(0) for r in (a, b))
        cosine = m @ n / np.linalg.norm(m) / np.linalg.norm(n)
        assert value == pytest.approx(0.6 * cosine + 0.4 * (p @ q) / np.linalg.norm(p) / np.linalg.norm(q))
    assert regions.similarity(torch.zeros(2, 5), torch.eye(5), np.array([[0], [1]])).tolist() == [0.0]


def test_every_patch_is_in_one_connected_region_and_lower_thresholds_merge_more() -> None:
    rng, counts = np.random.default_rng(1), []
    rows = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(8, 9, 4))) + 1, dim=2)
    rows = torch.nn.functional.normalize(torch.from_numpy(ndimage.gaussian_filter(rows.numpy(), (1, 1, 0))), dim=2)
    for threshold in (0.99, 0.9, 0.7, 0.5):
        labels = regions.merge(rows.flatten(0, 1), (8, 9), threshold).reshape(8, 9)
        counts.append(labels.max() + 1)
        assert set(labels.ravel()) == set(range(counts[-1]))
        assert all(ndimage.label(labels == r)[1] == 1 for r in range(counts[-1]))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_the_most_similar_merge_first() -> None:
    # 0, 20, 36 degrees in a row: 1 and 2 merge at once; their mean, 28 degrees, is then too far from 0 for cos 25 degrees
    angles = np.radians([0, 20, 36])
    rows = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], 1))
    metric = rows.T @ rows
    near, far = regions.similarity(rows, metric, np.array([[1, 0], [2, 1]])).tolist()
    assert near > far
    joined = regions.means(rows, np.array([0, 1, 1]), 2)
    (after,) = regions.similarity(joined, metric, np.array([[0], [1]])).tolist()
    assert after < far
    assert regions.merge(rows, (1, 3), (after + far) / 2).tolist() == [0, 0, 0]  # above START all merge in one step
    angles = np.radians([0, 60, 100])
    rows = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], 1))
    metric = rows.T @ rows
    near, far = regions.similarity(rows, metric, np.array([[1, 0], [2, 1]])).tolist()
    (after,) = regions.similarity(regions.means(rows, np.array([0, 1, 1]), 2), metric, np.array([[0], [1]])).tolist()
    assert regions.START > near > far + regions.STEP
    assert regions.merge(rows, (1, 3), (after + far) / 2).tolist() == [0, 1, 1]


def test_otsu_ends_between_the_similarities_of_neighbours() -> None:
    rows = torch.eye(3)[CLASSES.ravel()].double()
    labels = regions.merge(rows, CLASSES.shape, "otsu").reshape(CLASSES.shape)
    assert len(np.unique(labels)) == 3
    assert all(len(np.unique(labels[c == CLASSES])) == 1 for c in range(3))
    assert regions.merge(torch.ones(1, 3), (1, 1), "otsu").tolist() == [0]
    assert float(otsu(torch.tensor([[0.0, 1.0]]))) == 0.5


def test_boundary_connectivity() -> None:
    # all of n x n patches: 4 n / n; an object inside: 0; the left half of 4 x 4: 4 + 2 + 2 patches over the root of 8
    assert regions.boundary_connectivity(np.ones((5, 5), bool)) == 4
    assert regions.boundary_connectivity(CLASSES == 1) == 0
    half = np.zeros((4, 4), bool)
    half[:, :2] = True
    assert regions.boundary_connectivity(half) == pytest.approx(8 / 8**0.5)
