"""What can be said of a run without truth: shares, balance, stability and agreement of what its stages made. Pure functions.

Stability of clusters: the adjusted Rand index of K-means runs from other seeds (von Luxburg, arXiv:1007.1075). Silhouette:
Rousseeuw 1987, on the tokens as K-means sees them.

Shapes: H rows, W columns of an image; M masks, D channels of a token; K clusters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import adjusted_rand_score, silhouette_score

from unseg.clustering import algorithms
from unseg.core.console import track
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import IGNORE_LABEL, LabelMaps
from unseg.core.rle import decode

Record = dict[str, Any]


@dataclass(frozen=True)
class Quality:
    """The `quality` group of params.yaml."""

    images: int  # photographs, evenly spaced, that are mined again flipped and cropped; 0 for none
    seeds: int  # more runs of K-means, for its stability; 0 for none
    objects: int  # masks at the most, drawn at random, for the silhouette

    def __post_init__(self) -> None:
        for key in ("images", "seeds", "objects"):
            if getattr(self, key) < 0:
                raise ValueError(f"quality.{key} is {getattr(self, key)}; it must be at least 0")


def overlap(one: np.ndarray, two: np.ndarray) -> float:
    """IoU of two masks [H, W]; 1 where both are empty."""
    union = np.count_nonzero(one | two)
    return np.count_nonzero(one & two) / union if union else 1.0


def border(mask: np.ndarray) -> float:
    """Share of the image's outermost pixels that a mask [H, W] covers."""
    rim = np.ones(mask.shape, bool)
    rim[1:-1, 1:-1] = False
    return float(mask[rim].mean())


def evenness(counts: np.ndarray) -> float:
    """Entropy of counts [K] over that of equal ones; 1 for a single cluster, 0 where nothing was counted."""
    p = counts[counts > 0] / max(1, counts.sum())
    return float(-(p * np.log(p)).sum() / math.log(len(counts))) if len(counts) > 1 else 1.0


def silhouette(tokens: np.ndarray, labels: np.ndarray, p: algorithms.Clustering, at_most: int, seed: int) -> float:
    """Mean silhouette of at most so many of the tokens [M, D] in their clusters [M]; nan for fewer than two clusters."""
    chosen = np.random.default_rng(seed).permutation(len(tokens))[:at_most]
    kinds = len(np.unique(labels[chosen]))
    if not 2 <= kinds < len(chosen):
        return math.nan
    return float(silhouette_score(algorithms.normalise(tokens, tokens, p.whiten, p.components)[chosen], labels[chosen]))


def seed_stability(tokens: np.ndarray, labels: np.ndarray, p: algorithms.Clustering, seeds: Sequence[int]) -> float:
    """Mean adjusted Rand index of each two of: the clusters [M] there are, and K-means of the tokens [M, D] from each seed.

    1: always the same clusters; 0: no more alike than chance; nan without seeds or without tokens.
    """
    alone = replace(p, support=None)
    if not seeds or not len(tokens):
        return math.nan
    runs = [labels, *(algorithms.cluster(tokens, tokens, alone, seed) for seed in seeds)]
    return float(np.mean([adjusted_rand_score(a, b) for a, b in combinations(runs, 2)]))


def solid(labels: np.ndarray) -> np.ndarray:
    """Foreground of a label map, [H, W] bool."""
    return np.asarray((labels > 0) & (labels != IGNORE_LABEL))


class Agreement(NamedTuple):
    """Of two label maps of an image."""

    foreground: float  # IoU of what is not background
    common: int  # pixels that are foreground in both
    same: int  # of these, those of the same cluster


def agreement(one: np.ndarray, two: np.ndarray) -> Agreement:
    both = solid(one) & solid(two)
    return Agreement(overlap(solid(one), solid(two)), int(both.sum()), int((both & (one == two)).sum()))


def mean(values: Sequence[float]) -> float:
    """The mean of what is not nan; nan if nothing is."""
    known = [v for v in values if not math.isnan(v)]
    return float(np.mean(known)) if known else math.nan


def of_masks(images: Sequence[ImageRecord], mined: Sequence[Record]) -> dict[str, float]:
    """Shares, over all images, of the masks that were mined on them."""
    return {
        "mask_missing": 1 - len({a["image_id"] for a in mined}) / max(1, len(images)),
        "mask_area": mean([a["area"] / math.prod(a["segmentation"]["size"]) for a in mined]),
        "mask_border": mean([border(decode(a["segmentation"])) for a in mined]),
    }


def of_clusters(tokens: np.ndarray, labels: np.ndarray, p: algorithms.Clustering, q: Quality, seed: int) -> dict[str, float]:
    """Balance, silhouette and stability of the clusters [M] of the training images' tokens [M, D]."""
    counts = np.bincount(labels, minlength=p.k)
    seeds = range(seed + 1, seed + 1 + q.seeds)
    return {
        "cluster_balance": evenness(counts),
        "cluster_largest": float(counts.max(initial=0) / max(1, counts.sum())),
        "clusters_empty": int((counts == 0).sum()),
        "cluster_silhouette": silhouette(tokens, labels, p, q.objects, seed),
        "cluster_stability": seed_stability(tokens, labels, p, seeds),
    }


def of_pseudo_labels(learned: Sequence[ImageRecord], labels: LabelMaps, final: LabelMaps) -> dict[str, float]:
    """What the segmenter learned from; against its own answer where an image has both."""
    painted, void, kept = [], [], []
    for image in track([i for i in learned if i in labels], "read pseudo-labels"):
        own = labels[image]
        painted.append(float(solid(own).mean()))
        void.append(float((own == IGNORE_LABEL).mean()))
        if image in final:
            kept.append(overlap(solid(own), solid(final[image])))
    return {"label_painted": mean(painted), "label_void": mean(void), "label_kept": mean(kept)}


def of_steps(judged: Sequence[ImageRecord], maps: dict[str, LabelMaps], k: int) -> dict[str, float]:
    """How well the label maps of each two steps agree on the judged images, and how many of K clusters the last one uses."""
    pairs = list(combinations(maps, 2))
    found: dict[tuple[str, str], list[Agreement]] = {pair: [] for pair in pairs}
    used: set[int] = set()
    for image in track(judged, "read predictions"):
        own = {step: maps[step][image] for step in maps}
        used |= set(np.unique(own[list(maps)[-1]]).tolist())
        for one, two in pairs:
            found[one, two].append(agreement(own[one], own[two]))
    numbers: dict[str, float] = {}
    for (one, two), those in found.items():
        common = sum(a.common for a in those)
        numbers[f"foreground_{one}_{two}"] = mean([a.foreground for a in those])
        numbers[f"cluster_{one}_{two}"] = sum(a.same for a in those) / common if common else math.nan
    return numbers | {"clusters_used": len(used & set(range(1, k + 1)))}
