"""How many clusters there are, without truth: for each K, how stable K-means is and how well its clusters are apart.

Stability is Lange et al.'s (Neural Computation 16, 2004) in the form of Ben-Hur et al. (2002): K-means of two random halves of
the objects must put all objects into like clusters, by the adjusted Rand index (0: no more than chance; 1: alike). Silhouette:
Rousseeuw 1987. Stability alone favours few clusters, silhouette alone tight fragments; the score is their geometric mean.

Shapes: M objects, D channels, R repeats, T values of K.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from sklearn.metrics import adjusted_rand_score, pairwise_distances, silhouette_score

from unseg.console import track
from unseg.mining.clustering import Clustering, kmeans, normalise

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


class Tried(NamedTuple):
    """T values of K in R repeats."""

    ks: list[int]
    stability: np.ndarray  # [T, R], at most 1
    silhouette: np.ndarray  # [T, R], -1..1

    @property
    def score(self) -> np.ndarray:
        """[T, R], 0..1"""
        return np.asarray(np.sqrt(self.stability.clip(0) * self.silhouette.clip(0)))


class Advice(NamedTuple):
    best: int  # the K of the highest mean score, the smallest of equals
    as_good: list[int]  # every K that cannot be told from it: the mean difference is within two standard errors
    wins: list[float]  # of each K, the share of repeats in which it is the best; ties are shared


def sweep(tokens: np.ndarray, p: Clustering, q: Choosing, seed: int) -> Tried:
    """Try each K on tokens [M, D]; those for which a half has too few different rows are left out.

    Each repeat has the same halves for all K, so that their scores can be compared in pairs.
    """
    chosen = tokens[np.sort(np.random.default_rng(seed).permutation(len(tokens))[: q.objects])]
    apart = pairwise_distances(normalise(chosen, chosen, p.whiten)) if len(chosen) else np.zeros((0, 0))  # [M, M]
    np.fill_diagonal(apart, 0)  # silhouette_score insists on it, and rounding leaves a little
    halves = [np.array_split(np.random.default_rng([seed, r]).permutation(len(chosen)), 2) for r in range(q.repeats)]
    fewest = min((len(np.unique(chosen[half], axis=0)) for pair in halves for half in pair), default=0)
    ks = [k for k in q.ks if k <= fewest]
    stability, silhouette = np.zeros((2, len(ks), q.repeats))
    for (t, k), r in track([(x, r) for x in enumerate(ks) for r in range(q.repeats)], "try K"):
        own = replace(p, k=k, starts=q.starts, support=None)
        one, two = (kmeans(chosen, chosen[half], own, seed + r) for half in halves[r])
        stability[t, r] = adjusted_rand_score(one, two)
        silhouette[t, r] = silhouette_score(apart, one, metric="precomputed") if len(np.unique(one)) > 1 else 0
    return Tried(ks, stability, silhouette)


def advise(tried: Tried) -> Advice:
    """Which K to take, and how sure that is; tried must have one at least."""
    score = tried.score
    best = int(score.mean(1).argmax())
    behind = score[best] - score  # [T, R]
    error = behind.std(1, ddof=1) / np.sqrt(score.shape[1]) if score.shape[1] > 1 else np.full(len(score), np.inf)
    close = (behind.mean(1) <= CERTAIN * error) | (behind.mean(1) == 0)
    top = score == score.max(0)
    wins = (top / top.sum(0)).mean(1)
    return Advice(tried.ks[best], [k for k, c in zip(tried.ks, close, strict=True) if c], wins.tolist())


def rows(tried: Tried, wins: Sequence[float]) -> list[dict[str, float]]:
    """For a file: a record a K, means and standard deviations over the repeats."""
    kinds = {"stability": tried.stability, "silhouette": tried.silhouette, "score": tried.score}
    return [
        {"k": k, "wins": round(wins[t], 6)}
        | {name: round(float(x[t].mean()), 6) for name, x in kinds.items()}
        | {f"{name}_std": round(float(x[t].std()), 6) for name, x in kinds.items()}
        for t, k in enumerate(tried.ks)
    ]
