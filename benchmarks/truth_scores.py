"""Scores against ground truth of what a step wrote, and rank correlations of numbers without labels. `voc.py` uses it.

Shapes: H rows, W columns of a photograph; M masks; K clusters and C classes, background not counted.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from unseg.core import instances, label_maps, storage
from unseg.core.image_index import ImageRecord
from unseg.core.instances import Instance
from unseg.core.label_maps import IGNORE_LABEL, LabelMaps
from unseg.core.masks import encode
from unseg.evaluation import loading, metrics


def semantic(truth: Path) -> LabelMaps:
    return LabelMaps(truth, "semantic/")


def of_masks(masks: Path, truth: Path, index: Sequence[ImageRecord], images: Sequence[ImageRecord]) -> dict[str, float]:
    """How well masks fit, in the mean over the images; void is left out. An image without a mask counts 0.

    foreground: IoU of the union of an image's masks with all its classes. first: of its first mask. region: IoU of the region
    of each class with the mask that fits it best. whole: foreground of the answer "everything".
    """
    maps, lookup = semantic(truth), instances.Lookup(masks, Instance)
    rows = []
    for image in images:
        labels = maps[image]
        valid = labels != IGNORE_LABEL
        true = (labels > 0) & valid
        mined = [x.mask.decode() & valid for x in lookup[image]]
        union = np.any(mined, 0) if mined else np.zeros_like(valid)
        regions = [labels == c for c in np.unique(labels[true])]
        best = [max((iou(region, mask) for mask in mined), default=0.0) for region in regions]
        rows.append((iou(true, union), iou(true, mined[0]) if mined else 0.0, metrics.mean(best), iou(true, valid)))
    names = ("foreground", "first", "region", "whole")
    return {name: metrics.mean(column) for name, column in zip(names, np.array(rows).T, strict=True)}


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two masks [H, W] bool; 0 if both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


def write_true_regions(truth: Path, images: Sequence[ImageRecord], output: Path, min_area: float = 0.005) -> None:
    """The regions of the classes as masks in the form of data/masks.json, category 0; regions below min_area are left out."""
    maps = semantic(truth)

    def annotations() -> Iterator[dict[str, Any]]:
        id = 0
        for image in images:
            labels = maps[image]
            for c in np.unique(labels[(labels > 0) & (labels != IGNORE_LABEL)]):
                mask = labels == c
                if mask.mean() >= min_area:
                    id += 1
                    yield instances.instance(id, image.id, instances.CLASS_AGNOSTIC, encode(mask)).to_coco()

    content = {"images": [vars(i) for i in images], "annotations": list(annotations())}
    storage.write_json(output, content | {"categories": [{"id": instances.CLASS_AGNOSTIC, "name": "object"}]})


def classes_of(masks: Sequence[Instance], truth: Path, images: Sequence[ImageRecord]) -> np.ndarray:
    """The class of most pixels of each mask, void left out; 0 for background. [M] int64"""
    maps, by_id = semantic(truth), {i.id: i for i in images}
    classes, last, labels = [], -1, np.zeros(0, np.uint8)
    for x in masks:
        if x.image_id != last:
            last, labels = x.image_id, maps[by_id[x.image_id]]
        pixels = labels[x.mask.decode()]
        counts = np.bincount(pixels[pixels != IGNORE_LABEL], minlength=1)
        classes.append(int(counts.argmax()))
    return np.array(classes, np.int64)


def of_clusters(clusters: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """purity: the fraction of the M masks that have the most frequent class of their cluster; ami: adjusted mutual information.

    largest: the purity of a single cluster.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    table = np.zeros((clusters.max(initial=0) + 1, classes.max(initial=0) + 1), np.int64)
    np.add.at(table, (clusters, classes), 1)
    total = max(1, len(classes))
    return {
        "purity": table.max(1).sum() / total,
        "ami": float(adjusted_mutual_info_score(classes, clusters)),
        "largest": table.sum(0).max() / total,
    }


def miou(predictions: Path, truth: Path, images: list[ImageRecord], k: int) -> float:
    """Clustering mIoU of label maps of K clusters (Hungarian on IoU), as in stages/evaluate_clustering.py."""
    shape = len(label_maps.class_names(truth)), k + 1
    confusion = loading.total(loading.confusions(images, semantic(truth), [LabelMaps(predictions)], *shape)[0], *shape)
    return metrics.mean(metrics.iou(metrics.clusters_to_classes(confusion, metrics.match(confusion, by="iou"))))


def spearman(rows: Sequence[dict[str, float]], score: str) -> dict[str, tuple[float, int]]:
    """Rank correlation of each other number with the score over the rows that have both, and how many those are."""
    from scipy.stats import spearmanr

    result = {}
    for key in dict.fromkeys(key for row in rows for key in row if key != score):
        pairs = [(row[key], row[score]) for row in rows if key in row and score in row]
        pairs = [p for p in pairs if all(map(math.isfinite, p))]
        x, y = np.array(pairs).reshape(-1, 2).T
        rho = float(spearmanr(x, y).statistic) if len(set(x)) > 1 and len(set(y)) > 1 else math.nan
        result[key] = (rho, len(pairs))
    return result
