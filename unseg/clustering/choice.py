"""The number of clusters, without truth: for each K, how stable K-means is and how well its clusters are separated.

Stability is Lange et al.'s (Neural Computation 16, 2004) in the form of Ben-Hur et al. (2002): K-means of two random halves of
the objects must assign all objects to similar clusters, by the adjusted Rand index (0: chance level; 1: equal). Silhouette:
Rousseeuw 1987. Both favour few clusters even if there are none. So the score is the geometric mean of their gains over normal
noise with the same mean and covariance (after Tibshirani et al.'s gap statistic, 2001).

Shapes: M objects, D channels, R repeats, T values of K.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Ge
from sklearn.metrics import adjusted_rand_score, pairwise_distances, silhouette_score

from unseg.clustering.algorithms import Clustering, cluster, normalise
from unseg.core.console import track
from unseg.core.params import PositiveInt

SIGNIFICANT = 2.0  # standard errors of a difference between two K, from which the two count as different


@dataclass(frozen=True)
class Choosing:
    """The `choose` group of params.yaml."""

    ks: list[Annotated[int, Ge(2)]]  # numbers of clusters to try, rising; [] for none
    repeats: PositiveInt  # pairs of random halves
    objects: PositiveInt  # at most, drawn at random
    starts: PositiveInt  # of each K-means

    def __post_init__(self) -> None:
        if self.ks != sorted(set(self.ks)):
            raise ValueError(f"choose.ks is {self.ks}; its numbers must rise")


class Trial(NamedTuple):
    """T values of K in R repeats, on the objects and on the reference."""

    ks: list[int]
    stability: np.ndarray  # [T, R], at most 1
    silhouette: np.ndarray  # [T, R], -1..1
    chance_stability: np.ndarray  # [T, R]
    chance_silhouette: np.ndarray  # [T, R]

    @property
    def score(self) -> np.ndarray:
        """[T, R], at least 0; the chance level is the mean over the repeats."""
        stability = self.stability - self.chance_stability.mean(1, keepdims=True)
        silhouette = self.silhouette - self.chance_silhouette.mean(1, keepdims=True)
        return np.asarray(np.sqrt(stability.clip(0) * silhouette.clip(0)))


class Recommendation(NamedTuple):
    best: int  # the K with the highest mean score; the smallest of equals
    as_good: list[int]  # each K whose mean score is within two standard errors of the best
    win_fractions: list[float]  # for each K, the fraction of repeats in which it is the best; ties count in parts


def sweep(tokens: np.ndarray, p: Clustering, q: Choosing, seed: int) -> Trial:
    """Try each K on tokens [M, D], except those for which a half has too few different rows.

    Each repeat has the same halves for all K, so that their scores can be compared in pairs, and its own reference.
    """
    sample = tokens[np.sort(np.random.default_rng(seed).permutation(len(tokens))[: q.objects])]
    halves = [np.array_split(np.random.default_rng([seed, r]).permutation(len(sample)), 2) for r in range(q.repeats)]
    fewest = min((len(np.unique(sample[half], axis=0)) for pair in halves for half in pair), default=0)
    ks = [k for k in q.ks if k <= fewest and (p.algorithm != "spectral" or p.neighbors < len(sample) // 2)]
    if p.algorithm == "overcluster":
        ks = [k for k in ks if k <= p.overclusters <= fewest]
    scores = np.zeros((4, len(ks), q.repeats))
    if not ks:
        return Trial(ks, *scores)
    sample_distances = distances(sample, p)
    for r in track(range(q.repeats), "try K"):
        noise = reference(sample, np.random.default_rng([seed, r, 1]))
        noise_distances = distances(noise, p)
        for t, k in enumerate(ks):
            settings = replace(p, k=k, starts=q.starts, support=None)
            scores[:2, t, r] = evaluate(sample, halves[r], sample_distances, settings, seed + r)
            scores[2:, t, r] = evaluate(noise, halves[r], noise_distances, settings, seed + r)
    return Trial(ks, *scores)


def evaluate(tokens: np.ndarray, halves: list[np.ndarray], pairwise: np.ndarray, p: Clustering, seed: int) -> tuple[float, float]:
    """Stability and silhouette of tokens [M, D] in the p.k clusters of each half (indices); pairwise: their distances [M, M]."""
    first, second = (cluster(tokens, tokens[half], p, seed) for half in halves)
    defined = 1 < len(np.unique(first)) < len(tokens)
    return adjusted_rand_score(first, second), silhouette_score(pairwise, first, metric="precomputed") if defined else 0.0


def distances(tokens: np.ndarray, p: Clustering) -> np.ndarray:
    """Distances between tokens [M, D], normalised as for K-means: [M, M]."""
    matrix = pairwise_distances(normalise(tokens, tokens, p.whiten, p.components))
    np.fill_diagonal(matrix, 0)  # silhouette_score insists on it; rounding leaves small numbers
    return np.asarray(matrix)


def reference(tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Normal noise [M, D] with the mean and the covariance of tokens [M, D], but without clusters."""
    mean = tokens.mean(0, dtype=np.float64)
    _, scale, axes = np.linalg.svd(tokens - mean, full_matrices=False)
    return np.asarray(mean + rng.normal(size=(len(tokens), len(scale))) * (scale / np.sqrt(len(tokens))) @ axes)


def recommend(trial: Trial) -> Recommendation:
    """Which K to take, and how certain that is. The trial must have at least one K."""
    score = trial.score
    best = int(score.mean(1).argmax())
    deficit = score[best] - score  # [T, R]
    error = deficit.std(1, ddof=1) / np.sqrt(score.shape[1]) if score.shape[1] > 1 else np.full(len(score), np.inf)
    close = (deficit.mean(1) <= SIGNIFICANT * error) | (deficit.mean(1) == 0)
    is_best = score == score.max(0)  # [T, R]
    win_fractions = (is_best / is_best.sum(0)).mean(1)  # [T]
    return Recommendation(trial.ks[best], [k for k, c in zip(trial.ks, close, strict=True) if c], win_fractions.tolist())


def to_records(trial: Trial, win_fractions: Sequence[float]) -> list[dict[str, float]]:
    """For a JSON file: a record for each K, with means and standard deviations over the repeats."""
    values = {name: x for name, x in trial._asdict().items() if name != "ks"} | {"score": trial.score}
    return [
        {"k": k, "wins": round(win_fractions[t], 6)}
        | {name: round(float(x[t].mean()), 6) for name, x in values.items()}
        | {f"{name}_std": round(float(x[t].std()), 6) for name, x in values.items()}
        for t, k in enumerate(trial.ks)
    ]
