"""Labels of objects from their whitened tokens (unseg/clustering/algorithms.py)."""

import math
from typing import Any

import numpy as np
import pytest
from factories import clustering, token_blobs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from unseg.clustering import algorithms
from unseg.clustering.algorithms import assign, cluster, normalise
from unseg.core.console import InputError

NORMALISE = ("std", "pca", "none")


def test_whiten_then_normalise_by_hand() -> None:
    # deviations 1 and 10; no mean is removed
    x = np.array([[1, 10], [3, 10], [1, 30], [3, 30]], np.float32)
    r = 1 / math.sqrt(10)
    want = np.array([[math.sqrt(0.5), math.sqrt(0.5)], [3 * r, r], [r, 3 * r], [math.sqrt(0.5), math.sqrt(0.5)]])
    assert np.allclose(normalise(x, x, "std"), want)
    assert np.allclose(normalise(x, x, "none"), x / np.linalg.norm(x, axis=1, keepdims=True))
    assert np.allclose(normalise(x, np.array([[0, 0], [6, 2]]), "std")[0], np.array([1 / 3, 10]) / math.hypot(1 / 3, 10))


def test_a_constant_channel_and_a_row_of_zeros_stay() -> None:
    x = np.array([[0, 0], [0, 4], [0, 8]], np.float32)
    assert normalise(x, x, "std").tolist() == [[0, 0], [0, 1], [0, 1]]
    for objects in range(1, 60):  # the mean of equal numbers is not always that number
        x = np.stack([np.full(objects, 0.1), np.arange(objects) - 5.0], 1)
        deviation = x[:, 1].std() if objects > 1 else 1.0
        want = np.stack([x[:, 0], x[:, 1] / deviation], 1)
        assert np.allclose(normalise(x, x, "std"), want / np.linalg.norm(want, axis=1, keepdims=True))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 30), st.integers(1, 6), st.sampled_from(NORMALISE))
def test_rows_have_length_1_and_channels_no_scale(seed: int, objects: int, width: int, whiten: str) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(1, 1, (objects, width))
    out = normalise(x, x, whiten)
    assert out.dtype == np.float64
    assert np.allclose(np.linalg.norm(out, axis=1), 1)
    if whiten == "std":
        scale = rng.uniform(0.1, 10, width)
        assert np.allclose(normalise(x * scale, x * scale, "std"), out)


def test_pca_whitens() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 3)) + 4
    turned = x @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    out, other = normalise(x, x, "pca"), normalise(turned, turned, "pca")
    assert np.allclose(out @ out.T, other @ other.T)  # similarities do not depend on the axes
    # before each row is scaled to length 1, each direction has deviation 1, so that its mean square is a third after it
    assert np.allclose((out**2).mean(0), 1 / 3, atol=0.05)


@pytest.mark.parametrize("objects", [5, 12])
def test_pca_of_fewer_objects_than_channels(objects: int) -> None:
    """Directions without variance in `fit` are left out, for other objects too."""
    rng = np.random.default_rng(0)
    fit = rng.normal(size=(objects, 4)) @ rng.normal(size=(4, 40))  # spans four of forty directions
    other = fit + rng.normal(0, 1e-3, fit.shape)  # noise in all directions
    assert np.allclose(normalise(other, fit, "pca"), normalise(fit, fit, "pca"), atol=0.02)


def test_leading_components_are_those_of_sklearn() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6))
    want = PCA(2, whiten=True, svd_solver="full").fit_transform(x)
    out = normalise(x, x, "pca", 2)
    assert out.shape == (50, 2)
    assert np.allclose(out, want / np.linalg.norm(want, axis=1, keepdims=True))
    assert np.array_equal(normalise(x, x, "pca", 9), normalise(x, x, "pca"))


def test_spectral_follows_rings_that_kmeans_cuts() -> None:
    """Two concentric rings are separated by neighbourhood, not by distance to a centre. Other rows follow their neighbours."""
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle)], 1)
    radius = np.r_[np.ones(120), 0.4 * np.ones(80)]  # row 2 n of the smaller ring
    tokens = np.c_[np.r_[ring, 0.4 * ring[np.arange(80) * 3 // 2]], np.ones(200)]
    by_graph, by_centre = (cluster(tokens, tokens, clustering(k=2, whiten="none", algorithm=a), 0) for a in ("spectral", "full"))
    assert np.array_equal(by_graph, (radius < 1).astype(int))  # numbered by size
    assert adjusted_rand_score(by_centre, radius < 1) < 0.3
    assert np.array_equal(
        cluster(tokens[::7] * 1.01, tokens, clustering(k=2, whiten="none", algorithm="spectral"), 0), by_graph[::7]
    )
    with pytest.raises(ValueError, match=r"5 objects have no 5 neighbours each; lower cluster\.neighbors"):
        cluster(tokens[:5], tokens[:5], clustering(k=2, algorithm="spectral"), 0)


@pytest.mark.parametrize(
    ("algorithm", "whiten"),
    [
        *(("full", w) for w in NORMALISE),
        ("minibatch", "std"),
        ("minibatch", "none"),
        ("spectral", "std"),
        ("spectral", "none"),
        ("overcluster", "none"),
        ("overcluster", "std"),
    ],
)
def test_blobs_are_found_and_numbered_by_size(algorithm: str, whiten: str) -> None:
    tokens, name = token_blobs((20, 60, 40))
    labels = cluster(tokens, tokens, clustering(algorithm=algorithm, whiten=whiten), seed=0)
    assert labels.dtype == np.int64
    assert np.array_equal(labels, np.array([2, 0, 1])[name])


@pytest.mark.parametrize("algorithm", ["full", "minibatch"])
def test_the_same_seed_gives_the_same_raw_labels(algorithm: str) -> None:
    # specification B.9, acceptance test 9
    tokens = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    p = clustering(k=7, algorithm=algorithm, starts=1)
    first, again = (cluster(tokens, tokens, p, seed=4) for _ in range(2))
    assert np.array_equal(first, again)
    assert set(first.tolist()) == set(range(7))  # over-clustering by k alone; every cluster has an object
    sizes = np.bincount(first)
    assert (np.diff(sizes) <= 0).all()
    others = [cluster(tokens, tokens, p, seed=s) for s in (1, 2, 3)]
    assert any(adjusted_rand_score(first, o) < 0.999 for o in others)


def test_overclusters_are_merged_as_scipy_merges_them() -> None:
    """If all centres are neighbours, Ward's linkage is scipy's, of the means of each over-cluster's inner part."""
    x = np.random.default_rng(0).normal(size=(200, 4))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    p = clustering(k=4, whiten="none", algorithm="overcluster", overclusters=12, neighbors=11, uncertain=0.25)
    found = assign(x, x, p, seed=3)
    model = KMeans(12, n_init=p.starts, max_iter=p.iterations, random_state=3).fit(x)
    means, outer = [], np.zeros(200, bool)
    for k, centre in enumerate(model.cluster_centers_):
        members = sorted(np.flatnonzero(model.labels_ == k), key=lambda i: float(np.linalg.norm(x[i] - centre)))
        inner = len(members) - len(members) // 4
        means.append(x[members[:inner]].mean(0))
        outer[members[inner:]] = True
    want = fcluster(linkage(np.array(means), "ward"), 4, "maxclust")[model.labels_]
    assert adjusted_rand_score(found.labels, want) == 1
    assert np.array_equal(found.uncertain, outer)
    others = assign(x[::3].copy(), x, p, seed=3)  # rows on their own: the same labels, the same ones uncertain
    assert np.array_equal(others.labels, found.labels[::3])
    assert np.array_equal(others.uncertain, outer[::3])


def test_overclusters_are_merged_along_links_of_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    ward = algorithms.AgglomerativeClustering
    monkeypatch.setattr(algorithms, "AgglomerativeClustering", lambda *a, **k: seen.append(k) or ward(*a, **k))
    x = np.random.default_rng(0).normal(size=(200, 4))
    cluster(x, x, clustering(k=3, whiten="none", algorithm="overcluster", overclusters=20, neighbors=5), 0)
    (words,) = seen
    assert words["linkage"] == "ward"
    assert words["connectivity"].shape == (20, 20)
    assert (words["connectivity"].toarray().sum(1) == 5).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(6, 12), st.sampled_from([0.0, 0.2, 0.5, 0.99]))
def test_no_cluster_is_without_a_certain_object(seed: int, k: int, small: int, uncertain: float) -> None:
    x = np.random.default_rng(seed).normal(size=(30, 3))
    p = clustering(k=k, algorithm="overcluster", overclusters=small, neighbors=2, uncertain=uncertain, starts=1)
    found = assign(x, x, p, seed)
    assert set(found.labels[~found.uncertain].tolist()) == set(range(k))
    assert (~found.uncertain).sum() >= small
    assert found.uncertain.mean() <= uncertain


def test_other_algorithms_are_certain() -> None:
    tokens, _ = token_blobs((20, 60, 40))
    assert not any(assign(tokens, tokens, clustering(algorithm=a), 0).uncertain.any() for a in ("full", "minibatch", "spectral"))


def test_support_is_clustered_too_and_left_out() -> None:
    tokens, name = token_blobs((20, 60, 40))
    few = tokens[:6]
    labels = cluster(few, tokens, clustering(), seed=0)
    assert np.array_equal(labels, np.array([2, 0, 1])[name[:6]])
    assert cluster(tokens[:0], tokens, clustering(), seed=0).shape == (0,)


def test_the_scale_of_a_channel_does_not_matter_under_std() -> None:
    tokens, _ = token_blobs((20, 60, 40))
    scaled = tokens * np.array([1, 1000, 1, 1, 0.01, 1], np.float32)
    assert np.array_equal(*(cluster(t, t, clustering(), seed=0) for t in (tokens, scaled)))


def test_too_few_different_objects() -> None:
    tokens = np.repeat(np.eye(2, dtype=np.float32), 5, 0)
    with pytest.raises(ValueError, match=r"only 2 distinct masks cannot make 3 clusters; lower cluster\.k"):
        cluster(tokens, tokens, clustering(), seed=0)
    assert set(cluster(tokens, tokens, clustering(k=2), seed=0).tolist()) == {0, 1}
    p = clustering(k=2, whiten="none", algorithm="overcluster", overclusters=6)
    with pytest.raises(ValueError, match=r"only 2 distinct masks cannot make 6 clusters; lower cluster\.overclusters"):
        cluster(tokens, tokens, p, seed=0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("k", 0),
        ("k", 255),
        ("whiten", "zca"),
        ("algorithm", "faiss"),
        ("components", 0),
        ("components", 4),
        ("neighbors", 0),
        ("uncertain", 1.0),
        ("overclusters", 0),
    ],
)
def test_settings_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"cluster\.{key} is"):
        clustering(**{key: value})


def test_overclusters_must_be_more_than_clusters_and_neighbours() -> None:
    with pytest.raises(InputError, match=r"cluster\.overclusters is 2; it must be at least cluster\.k, 3"):
        clustering(algorithm="overcluster", overclusters=2, neighbors=1)
    with pytest.raises(InputError, match=r"cluster\.neighbors is 20; it must be below cluster\.overclusters, 20"):
        clustering(algorithm="overcluster", neighbors=20)
    assert clustering(algorithm="full", overclusters=2).overclusters == 2
