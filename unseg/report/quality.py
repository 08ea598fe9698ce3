"""What can be said of a run without truth: shares, balance and agreement of what its stages made. Pure functions.

Shapes: H rows, W columns of an image; K clusters.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from unseg.console import track
from unseg.io.records import VOID, decode
from unseg.report.page import DASH, PERCENT
from unseg.report.sheets import SURE, Run


class Fact(NamedTuple):
    """A number with its name and what it says."""

    name: str
    value: str
    meaning: str


def label_free(made: Run) -> list[Fact]:
    """What can be said of the run without truth, in the order in which data flows."""
    sizes = {image.id: image.size for image in made.images}
    areas = [a["area"] / math.prod(sizes[i]) for i, found in made.mined.items() for a in found]
    borders = [border(decode(a["segmentation"])) for found in made.mined.values() for a in found]
    counts = np.bincount(list(made.cluster.values()), minlength=len(made.scheme.clusters))
    facts = [
        Fact("images without a mined mask", share(1 - len(made.mined) / len(made.images)), "they teach the detector nothing"),
        Fact("area of a mined mask", mean_of(areas), "mean share of its image; near 0 or 100 %, mining has failed"),
        Fact("border under a mined mask", mean_of(borders), "mean share of the image's rim; high where background was taken"),
        Fact("balance of clusters", share(evenness(counts)), "entropy of their sizes; 100 %: all of one size"),
        Fact(
            "largest cluster",
            share(counts.max(initial=0) / max(1, counts.sum())),
            f"share of all masks; {(counts == 0).sum()} empty",
        ),
        Fact(
            "mined mask against detections",
            mean_of(agreement(made)),
            f"mean IoU with the best detection of score ≥ {SURE}",
        ),
    ]
    return facts + maps(made)


def maps(made: Run) -> list[Fact]:
    """Quality of the label maps."""
    painted, void, kept, mined = [], [], [], []
    used: set[int] = set()
    for image in track([i for i in made.learned if i in made.labels], "read pseudo-labels"):
        labels = made.labels[image]
        painted.append(float(solid(labels).mean()))
        void.append(float((labels == VOID).mean()))
        if image in made.predictions:
            kept.append(overlap(solid(labels), solid(made.predictions[image])))
    for image in track([i for i in made.judged if i in made.predictions], "read predictions"):
        labels = made.predictions[image]
        used |= set(np.unique(labels[solid(labels)]).tolist())
        mined += [overlap(decode(a["segmentation"]), solid(labels)) for a in made.mined.get(image.id, [])]
    k = len(made.scheme.clusters)
    return [
        Fact(
            "pixels with a pseudo-label",
            mean_of(painted),
            f"mean share of an image that is not background; void: {mean_of(void)}",
        ),
        Fact("pseudo-label against final segmentation", mean_of(kept), "mean IoU of foregrounds, over images that have both"),
        Fact("mined mask against final segmentation", mean_of(mined), "mean IoU of foregrounds, over judged images"),
        Fact("clusters in the final segmentation", f"{len(used)} of {k}", "if few, the segmenter has collapsed"),
    ]


def solid(labels: np.ndarray) -> np.ndarray:
    """Foreground of a label map, [H, W] bool."""
    return np.asarray((labels > 0) & (labels != VOID))


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


def agreement(made: Run) -> list[float]:
    """IoU of each mined mask with the detection that fits it best, of the sure ones or else of the surest alone."""
    best = []
    for i, found in made.mined.items():
        there = made.detections.get(i, [])
        rles = [d["segmentation"] for d in there if d["score"] >= SURE] or [d["segmentation"] for d in there[:1]]
        best += [float(np.max(coco_mask.iou([a["segmentation"]], rles, [0] * len(rles)))) if rles else 0.0 for a in found]
    return best


def share(x: float) -> str:
    """0.458 as "45.8 %"."""
    return f"{100 * x:.1f}{PERCENT}"


def mean_of(values: Sequence[float]) -> str:
    """The mean of shares, as one; a dash where there are none."""
    return share(float(np.mean(values))) if len(values) else DASH
