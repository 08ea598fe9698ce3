"""Confusion, matching and mIoU in one pass (bincount), against a boolean mask for each class and cluster.

    python -m benchmarks.evaluate [images]

VOC2012 val's sizes: 21 classes, 500x375 pixels; 200 images by default (all 1,449 take a minute or two). The ways take turns
on each image, so that other work on the machine slows them all; their counts must be equal. Peak memory is printed after an
eighth of the images and at the end: it must not grow.
"""

import resource
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from unseg.core.label_maps import IGNORE_LABEL
from unseg.evaluation import metrics

CLASSES, ROWS, COLS, PATCH = 21, 375, 500, 25


def scene(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction [H, W] uint8: blocks, a tenth of them ignored, two of three predicted right."""
    rng = np.random.default_rng(index)
    grid = ROWS // PATCH, COLS // PATCH
    truth = rng.integers(0, CLASSES, grid)
    prediction = np.where(rng.random(grid) < 0.66, (truth + 5) % CLASSES, rng.integers(0, CLASSES, grid))
    truth[rng.random(grid) < 0.1] = IGNORE_LABEL
    block = np.ones((PATCH, PATCH), np.uint8)
    return np.kron(truth.astype(np.uint8), block), np.kron(prediction.astype(np.uint8), block)


def bincount(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The confusion as the stages count it."""
    return metrics.confusion(truth, prediction, CLASSES, CLASSES)


def masks(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The confusion by a boolean mask per pair of class and cluster, as in much published code."""
    counts, valid = np.zeros((CLASSES, CLASSES), np.int64), truth != IGNORE_LABEL
    for c in range(CLASSES):
        for k in range(CLASSES):
            counts[c, k] = ((truth == c) & (prediction == k) & valid).sum()
    return counts


def frugal_masks(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """As `masks`, with one mask per class and per cluster: 42 comparisons per image instead of 882."""
    classes = [truth == c for c in range(CLASSES)]
    clusters = [prediction == k for k in range(CLASSES)]
    return np.array([[np.count_nonzero(c & k) for k in clusters] for c in classes])


def score(counts: np.ndarray) -> float:
    return metrics.mean(metrics.iou(metrics.clusters_to_classes(counts, metrics.match(counts, by="iou"))))


def peak() -> float:
    """Peak memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(images: str = "200") -> None:
    total = int(images)
    ways = {"bincount": bincount, "masks": masks, "frugal masks": frugal_masks}
    counts = {name: np.zeros((CLASSES, CLASSES), np.int64) for name in ways}
    spent = dict.fromkeys(ways, 0.0)  # seconds
    early = 0.0
    for i in range(total):
        pair = scene(i)
        for name, way in ways.items():
            begin = time.perf_counter()
            counts[name] += way(*pair)
            spent[name] += time.perf_counter() - begin
        if i == total // 8:
            early = peak()
    for name in ways:
        begin = time.perf_counter()
        miou = score(counts[name])
        spent[name] += time.perf_counter() - begin
        ratio = spent[name] / spent["bincount"]
        print(f"{name:13} {spent[name]:7.2f} s, {1e3 * spent[name] / total:6.2f} ms per image, {ratio:5.1f} x   mIoU {miou:.6f}")
    assert all((c == counts["bincount"]).all() for c in counts.values()), "the ways disagree"
    print(f"peak memory   {early:.0f} MiB after {total // 8 + 1} images, {peak():.0f} MiB after {total}")


if __name__ == "__main__":
    main(*sys.argv[1:])
