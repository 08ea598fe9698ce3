"""Alarms: a stage fails if its output has collapsed, because training on it would be in vain. They use no ground truth.

Each group of `alarms` in params.yaml belongs to one stage. The stage checks after it has written its output, which stays for
inspection. With few images there is no alarm, because collapse and chance look alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unseg.core.console import InputError
from unseg.core.params import Fraction


@dataclass(frozen=True)
class MaskAlarm:
    """The `alarms.masks` group of params.yaml, for mine."""

    min_images: int
    max_missing: Fraction  # of the images without a mask
    min_area: Fraction  # of its image that a mask covers, on average
    max_area: Fraction

    def check(self, path: str, areas: Sequence[float], images: int) -> None:
        """Raises InputError. areas: the fraction of its image that each mask covers; images: their number."""
        if images < self.min_images:
            return
        missing, area = 1 - len(areas) / images, float(np.mean(areas)) if areas else 0.0
        if missing > self.max_missing:
            remedy = f"lower mine.resize, or raise alarms.masks.max_missing ({self.max_missing:g})"
            fail(path, f"{missing:.0%} of {images} images have no mask", remedy)
        if area < self.min_area:
            remedy = f"try mine.center: false or mine.component: false, or lower alarms.masks.min_area ({self.min_area:g})"
            fail(path, f"a mask covers {area:.2%} of its image on average", remedy)
        if area > self.max_area:
            remedy = f"try mine.center: true, or raise alarms.masks.max_area ({self.max_area:g})"
            fail(path, f"a mask covers {area:.1%} of its image on average", remedy)


@dataclass(frozen=True)
class ClusterAlarm:
    """The `alarms.clusters` group of params.yaml, for cluster."""

    min_masks: int
    max_fraction: Fraction  # of the masks in one of several clusters

    def check(self, path: str, sizes: np.ndarray) -> None:
        """Raises InputError. sizes: of the clusters [K]."""
        total, fraction = sizes.sum(), sizes.max(initial=0) / max(1, sizes.sum())
        if total >= self.min_masks and len(sizes) > 1 and fraction > self.max_fraction:
            remedy = f"raise cluster.k, change cluster.whiten, or raise alarms.clusters.max_fraction ({self.max_fraction:g})"
            fail(path, f"one cluster holds {fraction:.1%} of {total} masks", remedy)


@dataclass(frozen=True)
class LabelAlarm:
    """The `alarms.labels` group of params.yaml, for aggregate."""

    min_images: int
    max_empty: Fraction  # of the pseudo-labels that are all background

    def check(self, path: str, has_object: Sequence[bool]) -> None:
        """Raises InputError. has_object: one value for each pseudo-label."""
        empty = 1 - sum(has_object) / max(1, len(has_object))
        if len(has_object) >= self.min_images and empty > self.max_empty:
            remedy = f"lower detect.min_score, raise detector.iterations, or raise alarms.labels.max_empty ({self.max_empty:g})"
            fail(path, f"{empty:.0%} of {len(has_object)} pseudo-labels are all background", remedy)


@dataclass(frozen=True)
class SegmentationAlarm:
    """The `alarms.segmentation` group of params.yaml, for evaluate_quality."""

    min_images: int
    min_clusters: int  # in the final segmentation; K if that is smaller

    def check(self, path: str, used: int, k: int, images: int) -> None:
        """Raises InputError. used: how many of the k clusters occur in the final segmentation of all images."""
        if images >= self.min_images and used < min(self.min_clusters, k):
            remedy = (
                f"raise segmenter.epochs, change segmenter.lr, or lower alarms.segmentation.min_clusters ({self.min_clusters})"
            )
            fail(path, f"{used} of {k} clusters occur in the final segmentation of {images} images", remedy)


def fail(path: str, problem: str, remedy: str) -> None:
    raise InputError(f"{path}: collapse: {problem}; {remedy}")
