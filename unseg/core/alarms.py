"""Alarms: what a stage made has collapsed, so that training on it would be in vain. They look at no truth.

Each group of `alarms` in params.yaml belongs to one stage, which fails after it has written what it made (so that it can be
looked at). Of fewer images than `least` no alarm is raised: too few to tell collapse from chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unseg.core.console import InputError


def check_fraction(key: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{key} is {share}; it must be from 0 to 1")


@dataclass(frozen=True)
class MaskAlarm:
    """The `alarms.masks` group of params.yaml, for mine."""

    least: int  # images, for an alarm
    missing: float  # share of images without a mask, at the most
    smallest: float  # mean share of its image that a mask covers, at the least
    largest: float  # and at the most

    def __post_init__(self) -> None:
        for name in ("missing", "smallest", "largest"):
            check_fraction(f"alarms.masks.{name}", getattr(self, name))

    def look(self, path: str, areas: Sequence[float], images: int) -> None:
        """Of each mask its share of its image, and the number of images. Raises: InputError."""
        if images < self.least:
            return
        missing, area = 1 - len(areas) / images, float(np.mean(areas)) if areas else 0.0
        if missing > self.missing:
            fail(path, f"{missing:.0%} of {images} images have no mask", f"alarms.masks.missing is {self.missing:g}")
        if area < self.smallest:
            fail(path, f"a mask covers {area:.2%} of its image on average", f"alarms.masks.smallest is {self.smallest:g}")
        if area > self.largest:
            remedy = f"try mine.center: true; alarms.masks.largest is {self.largest:g}"
            fail(path, f"a mask covers {area:.1%} of its image on average", remedy)


@dataclass(frozen=True)
class ClusterAlarm:
    """The `alarms.clusters` group of params.yaml, for cluster."""

    least: int  # masks, for an alarm
    largest: float  # share of the masks in one of several clusters, at the most

    def __post_init__(self) -> None:
        check_fraction("alarms.clusters.largest", self.largest)

    def look(self, path: str, counts: np.ndarray) -> None:
        """The sizes of the clusters [K]. Raises: InputError."""
        share = counts.max(initial=0) / max(1, counts.sum())
        if counts.sum() >= self.least and len(counts) > 1 and share > self.largest:
            fail(path, f"one cluster holds {share:.1%} of {counts.sum()} masks", f"alarms.clusters.largest is {self.largest:g}")


@dataclass(frozen=True)
class LabelAlarm:
    """The `alarms.labels` group of params.yaml, for aggregate."""

    least: int  # images, for an alarm
    empty: float  # share of the pseudo-labels that are all background, at the most

    def __post_init__(self) -> None:
        check_fraction("alarms.labels.empty", self.empty)

    def look(self, path: str, painted: Sequence[bool]) -> None:
        """Whether each pseudo-label has an object. Raises: InputError."""
        share = 1 - sum(painted) / max(1, len(painted))
        if len(painted) >= self.least and share > self.empty:
            remedy = f"lower detect.min_score or train the detector longer; alarms.labels.empty is {self.empty:g}"
            fail(path, f"{share:.0%} of {len(painted)} pseudo-labels are all background", remedy)


@dataclass(frozen=True)
class SegmentationAlarm:
    """The `alarms.segmentation` group of params.yaml, for evaluate_quality."""

    least: int  # images, for an alarm
    clusters: int  # different ones in the final segmentation, at the least (or K, if there are fewer)

    def look(self, path: str, used: int, k: int, images: int) -> None:
        """How many of the K clusters occur in so many images' final segmentation. Raises: InputError."""
        if images >= self.least and used < min(self.clusters, k):
            remedy = f"train the segmenter longer or with another lr; alarms.segmentation.clusters is {self.clusters}"
            fail(path, f"{used} of {k} clusters occur in the final segmentation of {images} images", remedy)


def fail(path: str, what: str, remedy: str) -> None:
    raise InputError(f"{path}: collapse: {what}; {remedy}")
