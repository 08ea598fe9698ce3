"""The data of the report's sections that need no truth: quality without labels, the choice of K, and what is missing.

numbers: content of results/details/quality.json; chosen: of results/choose_k.json.
"""

from typing import Any, NamedTuple

from unseg.report import charts
from unseg.report.charts import Series
from unseg.report.page import PERCENT, percent

Record = dict[str, Any]


class Fact(NamedTuple):
    """A number with its name and meaning."""

    name: str
    value: str
    meaning: str


FOREGROUND, IN_BOTH = "mean IoU of foregrounds, over evaluation images", "fraction of the pixels that are foreground in both"
QUALITY = (  # key in results/details/quality.json, name, meaning; fractions are shown in per cent
    ("mask_missing", "images without a mined mask", "they teach the detector nothing"),
    ("mask_area", "area of a mined mask", "mean fraction of its image; near 0 or 100 %, mining has failed"),
    ("mask_border", "border under a mined mask", "mean fraction of the image's rim; high where background was taken"),
    (
        "mask_flip",
        "same mask when mirrored",
        "IoU above chance with the mirror image's mask; 0: as other photographs' masks",
    ),
    ("mask_crop", "same mask when cropped", "the same of the middle of the photograph, mined alone"),
    ("cluster_balance", "balance of clusters", "entropy of their sizes; 100 %: all of one size"),
    ("cluster_largest", "largest cluster", "fraction of all masks"),
    ("cluster_silhouette", "silhouette of clusters", "100 %: far apart; 0: they touch; below: mixed"),
    ("cluster_stability", "stability of clusters", "adjusted Rand index of K-means from other seeds; 100 %: always the same"),
    ("foreground_masks_detector", "mined mask against detections", FOREGROUND),
    ("cluster_masks_detector", "same cluster, mined mask and detections", IN_BOTH),
    ("foreground_masks_final", "mined mask against final segmentation", FOREGROUND),
    ("cluster_masks_final", "same cluster, mined mask and final segmentation", IN_BOTH),
    ("foreground_detector_final", "detections against final segmentation", FOREGROUND),
    ("cluster_detector_final", "same cluster, detections and final segmentation", IN_BOTH),
    ("label_painted", "pixels with a pseudo-label", "mean fraction of an image that is not background"),
    ("label_void", "pixels left out of training", "mean fraction of an image whose pseudo-label is void"),
    ("label_kept", "pseudo-label against final segmentation", "mean IoU of foregrounds, over images that have both"),
)
HEADLINE = ("mask_missing", "mask_area", "mask_flip", "cluster_balance", "cluster_stability", "foreground_masks_final")


def quality(numbers: Record) -> list[Fact]:
    """The measurements that need no truth, in the order of the stages."""
    facts = [Fact(name, percent(numbers.get(key), PERCENT), meaning) for key, name, meaning in QUALITY]
    used = f"{numbers['clusters_used']:.0f} of {numbers['clusters']}"
    return [*facts, Fact("clusters in the final segmentation", used, "if few, the segmenter has collapsed")]


def headline(numbers: Record) -> list[Fact]:
    """The measurements at the top of the page of a run without truth."""
    rows = [(key, name, meaning) for key, name, meaning in QUALITY if key in HEADLINE and numbers.get(key) is not None]
    return [Fact(name, percent(numbers[key], PERCENT), meaning) for key, name, meaning in rows]


def missing(files: dict[str, Record]) -> dict[str, list[str]]:
    """The names of the metrics files without numbers, by what they need."""
    names: dict[str, list[str]] = {}
    for name, content in files.items():
        if "needs" in content:
            names.setdefault(content["needs"], []).append(name)
    return names


def choice(chosen: Record, k: int) -> Record:
    """The sweep over K with a chart; k is the K of the run."""
    if "needs" in chosen:
        return chosen
    trials, names = chosen["tried"], ("stability", "silhouette", "score")
    series = [Series([t[name] for t in trials], [t[f"{name}_std"] for t in trials], name) for name in names]
    return {**chosen, "k": k, "chart": charts.lines([float(t["k"]) for t in trials], series, "K, number of clusters")}
