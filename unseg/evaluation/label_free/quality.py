"""Quality measures without ground truth: fractions, balance, stability and agreement of the outputs of stages.

Stability of clusters: the adjusted Rand index of K-means runs from other seeds (von Luxburg, arXiv:1007.1075). Silhouette:
Rousseeuw 1987, on the tokens as they are normalised for K-means.

Shapes: H rows, W columns of an image; M masks, D channels of a token; K clusters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Ge
from sklearn.metrics import adjusted_rand_score, silhouette_score

from unseg.clustering import algorithms
from unseg.core.console import track
from unseg.core.image_index import ImageRecord
from unseg.core.instances import Instance
from unseg.core.label_maps import IGNORE_LABEL, LabelMaps
from unseg.evaluation.metrics import mean


@dataclass(frozen=True)
class Quality:
    """The `quality` group of params.yaml."""

    images: Annotated[int, Ge(0)]  # photographs, evenly spaced, that are mined again, mirrored and cropped; 0 for none
    seeds: Annotated[int, Ge(0)]  # additional runs of K-means, for its stability; 0 for none
    objects: Annotated[int, Ge(0)]  # at most so many masks, drawn at random, for the silhouette


def binary_iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two masks [H, W]; 1 if both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def border(mask: np.ndarray) -> float:
    """The fraction of the image's outermost pixels that a mask [H, W] covers."""
    is_border = np.ones(mask.shape, bool)
    is_border[1:-1, 1:-1] = False
    return float(mask[is_border].mean())


def balance(counts: np.ndarray) -> float:
    """Entropy of counts [K], divided by that of equal counts; 1 for a single cluster, 0 if all counts are 0."""
    p = counts[counts > 0] / max(1, counts.sum())
    return float(-(p * np.log(p)).sum() / math.log(len(counts))) if len(counts) > 1 else 1.0


def silhouette(tokens: np.ndarray, labels: np.ndarray, p: algorithms.Clustering, max_tokens: int, seed: int) -> float:
    """Mean silhouette of at most max_tokens of the tokens [M, D] in their clusters [M]; nan for fewer than two clusters."""
    sample = np.random.default_rng(seed).permutation(len(tokens))[:max_tokens]
    if not 2 <= len(np.unique(labels[sample])) < len(sample):
        return math.nan
    return float(silhouette_score(algorithms.normalise(tokens, tokens, p.whiten, p.components)[sample], labels[sample]))


def seed_stability(tokens: np.ndarray, labels: np.ndarray, p: algorithms.Clustering, seeds: Sequence[int]) -> float:
    """Mean adjusted Rand index over all pairs of clusterings: the given labels [M], and K-means of tokens [M, D] from each seed.

    1 for equal clusters, 0 for chance, nan without seeds or tokens.
    """
    if not seeds or not len(tokens):
        return math.nan
    p = replace(p, support=None)
    runs = [labels, *(algorithms.cluster(tokens, tokens, p, seed) for seed in seeds)]
    return float(np.mean([adjusted_rand_score(a, b) for a, b in combinations(runs, 2)]))


def foreground(labels: np.ndarray) -> np.ndarray:
    """Foreground of a label map, [H, W] bool."""
    return np.asarray((labels > 0) & (labels != IGNORE_LABEL))


class Agreement(NamedTuple):
    """Agreement of two label maps of an image."""

    foreground: float  # IoU
    common: int  # pixels that are foreground in both
    same: int  # pixels of `common` with the same cluster in both


def agreement(a: np.ndarray, b: np.ndarray) -> Agreement:
    common = foreground(a) & foreground(b)
    return Agreement(binary_iou(foreground(a), foreground(b)), int(common.sum()), int((common & (a == b)).sum()))


def measure_masks(images: Sequence[ImageRecord], masks: Sequence[Instance]) -> dict[str, float]:
    """The fraction of images without a mask, and the mean fractions of an image and of its border that a mask covers."""
    return {
        "mask_missing": 1 - len({x.image_id for x in masks}) / max(1, len(images)),
        "mask_area": mean([x.mask.area / math.prod(x.mask.size) for x in masks]),
        "mask_border": mean([border(x.mask.decode()) for x in masks]),
    }


def measure_clusters(tokens: np.ndarray, labels: np.ndarray, p: algorithms.Clustering, q: Quality, seed: int) -> dict[str, float]:
    """Balance, silhouette and stability of the clusters [M] of the train images' tokens [M, D]."""
    counts = np.bincount(labels, minlength=p.k)
    return {
        "cluster_balance": balance(counts),
        "cluster_largest": float(counts.max(initial=0) / max(1, counts.sum())),
        "clusters_empty": int((counts == 0).sum()),
        "cluster_silhouette": silhouette(tokens, labels, p, q.objects, seed),
        "cluster_stability": seed_stability(tokens, labels, p, range(seed + 1, seed + 1 + q.seeds)),
    }


def measure_pseudo_labels(images: Sequence[ImageRecord], labels: LabelMaps, final: LabelMaps) -> dict[str, float]:
    """Foreground and void of the train images' pseudo-labels, and their agreement with the final segmentation."""
    painted, void, kept = [], [], []
    for image in track([i for i in images if i in labels], "read pseudo-labels"):
        pseudo_label = labels[image]
        painted.append(float(foreground(pseudo_label).mean()))
        void.append(float((pseudo_label == IGNORE_LABEL).mean()))
        if image in final:
            kept.append(binary_iou(foreground(pseudo_label), foreground(final[image])))
    return {"label_painted": mean(painted), "label_void": mean(void), "label_kept": mean(kept)}


def measure_steps(images: Sequence[ImageRecord], maps: dict[str, LabelMaps], k: int) -> dict[str, float]:
    """Agreement of the label maps of each pair of steps, and the number of the K clusters that occur in the last step."""
    agreements: dict[tuple[str, str], list[Agreement]] = {pair: [] for pair in combinations(maps, 2)}
    used: set[int] = set()
    for image in track(images, "read predictions"):
        labels = {step: maps[step][image] for step in maps}
        used |= set(np.unique(labels[list(maps)[-1]]).tolist())
        for a, b in agreements:
            agreements[a, b].append(agreement(labels[a], labels[b]))
    numbers: dict[str, float] = {}
    for (a, b), pairs in agreements.items():
        common = sum(x.common for x in pairs)
        numbers[f"foreground_{a}_{b}"] = mean([x.foreground for x in pairs])
        numbers[f"cluster_{a}_{b}"] = sum(x.same for x in pairs) / common if common else math.nan
    return numbers | {"clusters_used": len(used & set(range(1, k + 1)))}
