"""How many clusters there are, without truth: for each K, how stable K-means is and how well its clusters are apart.

Stability is Lange et al.'s (Neural Computation 16, 2004) in the form of Ben-Hur et al. (2002): K-means of two random halves of
the objects must put all objects into like clusters, by the adjusted Rand index (0: no more than chance; 1: alike). Silhouette:
Rousseeuw 1987. Both favour few clusters even where there are none, so what counts is how much more they are than on a reference
without clusters: normal noise of the same mean and covariance (after Tibshirani et al.'s gap statistic, 2001). The score is the
geometric mean of the two gains.

Shapes: M objects, D channels, R repeats, T values of K.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from sklearn.metrics import adjusted_rand_score, pairwise_distances, silhouette_score

from unseg.clustering.algorithms import Clustering, cluster, normalise
from unseg.core.console import track

CERTAIN = 2.0  # standard errors of a difference between two K, from which they are told apart


@dataclass(frozen=True)
class Choosing:
    """The `choose` group of params.yaml."""

    ks: list[int]  # numbers of clusters to try; [] for none
    repeats: int  # pairs of random halves
    objects: int  # at the most, drawn at random
    starts: int  # of each K-means

    def __post_init__(self) -> None:
        if self.ks != sorted(set(self.ks)) or (self.ks and self.ks[0] < 2):
            raise ValueError(f"choose.ks is {self.ks}; it must be numbers from 2 on, rising")
        for key in ("repeats", "objects", "starts"):
            if getattr(self, key) < 1:
                raise ValueError(f"choose.{key} is {getattr(self, key)}; it must be at least 1")


class Trial(NamedTuple):
    """T values of K in R repeats, on the objects and on the reference."""

    ks: list[int]
    stability: np.ndarray  # [T, R], at most 1
    silhouette: np.ndarray  # [T, R], -1..1
    chance_stability: np.ndarray  # [T, R]
    chance_silhouette: np.ndarray  # [T, R]

    @property
    def score(self) -> np.ndarray:
        """[T, R], at least 0; what chance gives is the mean over the repeats."""
        chance = (x.mean(1, keepdims=True) for x in (self.chance_stability, self.chance_silhouette))  # [T, 1] each
        steadier, apart = (own - by for own, by in zip((self.stability, self.silhouette), chance, strict=True))
        return np.asarray(np.sqrt(steadier.clip(0) * apart.clip(0)))


class Recommendation(NamedTuple):
    best: int  # the K of the highest mean score, the smallest of equals
    as_good: list[int]  # every K that cannot be told from it: the mean difference is within two standard errors
    wins: list[float]  # of each K, the share of repeats in which it is the best; ties are shared


def sweep(tokens: np.ndarray, p: Clustering, q: Choosing, seed: int) -> Trial:
    """Try each K on tokens [M, D]; those for which a half has too few different rows are left out.

    Each repeat has the same halves for all K, so that their scores can be compared in pairs, and a reference of its own.
    """
    chosen = tokens[np.sort(np.random.default_rng(seed).permutation(len(tokens))[: q.objects])]
    halves = [np.array_split(np.random.default_rng([seed, r]).permutation(len(chosen)), 2) for r in range(q.repeats)]
    fewest = min((len(np.unique(chosen[half], axis=0)) for pair in halves for half in pair), default=0)
    ks = [k for k in q.ks if k <= fewest and (p.algorithm != "spectral" or p.neighbors < len(chosen) // 2)]
    found = np.zeros((4, len(ks), q.repeats))
    own = replace(p, starts=q.starts, support=None)
    if not ks:
        return Trial(ks, *found)
    apart = distances(chosen, p)
    for r in track(range(q.repeats), "try K"):
        noise = reference(chosen, np.random.default_rng([seed, r, 1]))
        aside = distances(noise, p)
        for t, k in enumerate(ks):
            found[:2, t, r] = judge(chosen, halves[r], apart, replace(own, k=k), seed + r)
            found[2:, t, r] = judge(noise, halves[r], aside, replace(own, k=k), seed + r)
    return Trial(ks, *found)


def judge(tokens: np.ndarray, halves: Sequence[np.ndarray], apart: np.ndarray, p: Clustering, seed: int) -> tuple[float, float]:
    """Stability and silhouette of tokens [M, D] in p.k clusters of each half (indices); apart: their distances [M, M]."""
    one, two = (cluster(tokens, tokens[half], p, seed) for half in halves)
    several = 1 < len(np.unique(one)) < len(tokens)
    return adjusted_rand_score(one, two), silhouette_score(apart, one, metric="precomputed") if several else 0.0


def distances(tokens: np.ndarray, p: Clustering) -> np.ndarray:
    """Between tokens as K-means sees them, [M, M]."""
    apart = pairwise_distances(normalise(tokens, tokens, p.whiten, p.components))
    np.fill_diagonal(apart, 0)  # silhouette_score insists on it, and rounding leaves a little
    return np.asarray(apart)


def reference(tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Normal noise [M, D] of the mean and the covariance of tokens [M, D]: what they would be without clusters."""
    mean = tokens.mean(0, dtype=np.float64)
    _, scale, axes = np.linalg.svd(tokens - mean, full_matrices=False)
    return np.asarray(mean + rng.normal(size=(len(tokens), len(scale))) * (scale / np.sqrt(len(tokens))) @ axes)


def advise(tried: Trial) -> Recommendation:
    """Which K to take, and how sure that is; tried must have one at least."""
    score = tried.score
    best = int(score.mean(1).argmax())
    behind = score[best] - score  # [T, R]
    error = behind.std(1, ddof=1) / np.sqrt(score.shape[1]) if score.shape[1] > 1 else np.full(len(score), np.inf)
    close = (behind.mean(1) <= CERTAIN * error) | (behind.mean(1) == 0)
    top = score == score.max(0)
    wins = (top / top.sum(0)).mean(1)
    return Recommendation(tried.ks[best], [k for k, c in zip(tried.ks, close, strict=True) if c], wins.tolist())


def rows(tried: Trial, wins: Sequence[float]) -> list[dict[str, float]]:
    """For a file: a record a K, means and standard deviations over the repeats."""
    kinds = {name: getattr(tried, name) for name in ("stability", "silhouette", "chance_stability", "chance_silhouette", "score")}
    return [
        {"k": k, "wins": round(wins[t], 6)}
        | {name: round(float(x[t].mean()), 6) for name, x in kinds.items()}
        | {f"{name}_std": round(float(x[t].std()), 6) for name, x in kinds.items()}
        for t, k in enumerate(tried.ks)
    ]
