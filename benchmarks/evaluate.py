"""Confusion, matching and mIoU: one pass by bincount against boolean masks, one for each class and cluster.

    python -m benchmarks.evaluate [images]

VOC2012 val's figures: 21 classes, 500x375 pixels, 1,449 images (200 unless told otherwise; all take a minute or two).
The ways take turns, image by image, so that whatever else the machine does slows them all; they must agree. Peak memory
is printed at an eighth of the images and at the end: it must not grow.
"""

import resource
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from unseg.evaluation import metrics

CLASSES, ROWS, COLS, PATCH, VOID = 21, 375, 500, 25, 255


def scene(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction [H, W] uint8 of an image: blocks, a tenth of them void, predicted right two times in three."""
    rng = np.random.default_rng(index)
    grid = ROWS // PATCH, COLS // PATCH
    truth = rng.integers(0, CLASSES, grid)
    prediction = np.where(rng.random(grid) < 0.66, (truth + 5) % CLASSES, rng.integers(0, CLASSES, grid))
    truth[rng.random(grid) < 0.1] = VOID
    block = np.ones((PATCH, PATCH), np.uint8)
    return np.kron(truth.astype(np.uint8), block), np.kron(prediction.astype(np.uint8), block)


def bincount(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The confusion in one pass, as the stages count it."""
    return metrics.confusion(truth, prediction, CLASSES, CLASSES)


def masks(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The confusion by a boolean mask for each class and each cluster, as much published code counts it."""
    counts, known = np.zeros((CLASSES, CLASSES), np.int64), truth != VOID
    for c in range(CLASSES):
        for k in range(CLASSES):
            counts[c, k] = ((truth == c) & (prediction == k) & known).sum()
    return counts


def frugal_masks(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The same with each mask made once: 42 comparisons an image and not 882."""
    classes = [truth == c for c in range(CLASSES)]
    clusters = [prediction == k for k in range(CLASSES)]
    return np.array([[np.count_nonzero(c & k) for k in clusters] for c in classes])


def score(counts: np.ndarray) -> float:
    return metrics.mean(metrics.iou(metrics.rename(counts, metrics.match(counts, by="iou"))))


def peak() -> float:
    """MiB of memory that this process has held at the most."""
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
        print(f"{name:13} {spent[name]:7.2f} s, {1e3 * spent[name] / total:6.2f} ms an image, {ratio:5.1f} x   mIoU {miou:.6f}")
    assert all((c == counts["bincount"]).all() for c in counts.values()), "the ways disagree"
    print(f"peak memory   {early:.0f} MiB after {total // 8 + 1} images, {peak():.0f} MiB after {total}")


if __name__ == "__main__":
    main(*sys.argv[1:])
