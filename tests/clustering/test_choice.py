"""The choice of the number of clusters, by hand and on blobs (unseg/clustering/choice.py)."""

import factories
import numpy as np
import pytest
from factories import clustering, token_blobs

from unseg.clustering import choice
from unseg.clustering.algorithms import cluster
from unseg.core.console import InputError
from unseg.evaluation.label_free import quality


def choosing_of(*ks: int) -> choice.Choosing:
    return factories.group("choose", choice.Choosing, ks=list(ks), repeats=5, objects=300, starts=3)


@pytest.mark.parametrize("true", [3, 5])
def test_the_number_of_blobs_is_recommended(true: int) -> None:
    tokens, _ = token_blobs((30,) * true)
    tried = choice.sweep(tokens, clustering(), choosing_of(2, 3, 4, 5, 6, 200), 0)
    assert tried.ks == [2, 3, 4, 5, 6]  # halves of 75 cannot make 200
    advice = choice.recommend(tried)
    assert advice.best == true
    assert advice.as_good == [true]
    assert advice.win_fractions[tried.ks.index(true)] == 1
    assert tried.stability[tried.ks.index(true)].min() == pytest.approx(1)


def test_overclusters_can_be_tried_and_their_stability_measured() -> None:
    tokens, name = token_blobs((40,) * 3)
    p = clustering(algorithm="overcluster", neighbors=4)
    tried = choice.sweep(tokens, p, choosing_of(2, 3, 4, 30), 0)
    assert tried.ks == [2, 3, 4]  # 20 over-clusters cannot make 30
    assert choice.recommend(tried).best == 3
    assert choice.sweep(tokens, clustering(algorithm="overcluster", overclusters=61), choosing_of(2), 0).ks == []  # halves of 60
    assert quality.seed_stability(tokens, name, p, [1, 2]) == pytest.approx(1)


def test_where_there_are_no_clusters_many_k_are_as_good() -> None:
    noise = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    advice = choice.recommend(choice.sweep(noise, clustering(), choosing_of(2, 3, 4, 5), 0))
    assert len(advice.as_good) > 1


def test_the_reference_has_the_mean_and_the_covariance_and_no_clusters() -> None:
    tokens, _ = token_blobs((400, 400, 400))
    noise = choice.reference(tokens, np.random.default_rng(0))
    assert noise.shape == tokens.shape
    assert np.allclose(noise.mean(0), tokens.mean(0), atol=0.06)
    assert np.allclose(np.cov(noise.T), np.cov(tokens.T), atol=0.03)
    labels = clustering_of(noise)
    assert (
        quality.silhouette(noise, labels, clustering(whiten="none"), 500, 0)
        < 0.6
        < quality.silhouette(tokens, clustering_of(tokens), clustering(whiten="none"), 500, 0)
    )


def clustering_of(tokens: np.ndarray) -> np.ndarray:
    return cluster(tokens, tokens, clustering(whiten="none"), 0)


def test_few_clusters_are_not_preferred_for_being_few() -> None:
    """Six blobs of which three each are near each other: two are stable and far apart, and noise of that shape is too."""
    rng = np.random.default_rng(0)
    centres = np.eye(12)[:6] * 0.5 + np.repeat(np.eye(12)[[10, 11]], 3, 0)
    tokens = (np.repeat(centres, 50, 0) + rng.normal(0, 0.04, (300, 12))).astype(np.float32)
    p = clustering(whiten="none")
    tried = choice.sweep(tokens, p, choosing_of(2, 3, 4, 6, 8), 0)
    assert tried.stability[0].min() == pytest.approx(1)
    assert choice.recommend(tried).best == 6


def test_advice_by_hand() -> None:
    silhouette = np.ones((3, 4))
    stability_ = np.array([[0.25] * 4, [0.81, 0.81, 0.81, 0.49], [0.81, 0.64, 0.64, 0.81]])
    tried = choice.Trial([4, 6, 8], stability_ + 0.1, silhouette, 0 * silhouette + 0.1, 0 * silhouette)
    assert np.allclose(tried.score[1], [0.9, 0.9, 0.9, 0.7])
    advice = choice.recommend(tried)  # means 0.5, 0.85, 0.85: the smaller of equals; 8 cannot be told from it
    assert (advice.best, advice.as_good) == (6, [6, 8])
    assert advice.win_fractions == pytest.approx([0, 2.5 / 4, 1.5 / 4])
    once = choice.Trial([4, 6], np.array([[0.2], [0.9]]), np.ones((2, 1)), *np.zeros((2, 2, 1)))
    assert choice.recommend(once).as_good == [4, 6]  # of one repeat nothing is known
    worse = choice.Trial([2], np.array([[0.4]]), np.array([[0.9]]), np.array([[0.5]]), np.array([[0.1]]))
    assert worse.score.tolist() == [[0]]  # less stable than noise


@pytest.mark.parametrize(
    ("ks", "message"), [([3, 2], "its numbers must rise"), ([2, 2], "its numbers must rise"), ([1, 2], "it must be at least 2")]
)
def test_what_k_may_be(ks: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choosing_of(*ks)
