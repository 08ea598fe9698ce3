"""How well clusters without names fit classes with names: IoU after matching, and COCO mask AP.

MaskDistill (Van Gansbeke et al., arXiv:2206.06363), sections 4.1, A.3 and A.4. Nothing here learns from the truth:
a matching names clusters for the sake of a score and goes no further.

Shapes: H rows, W columns of an image; C classes and K clusters, label 0 (background) counted in both; T thresholds of
IoU, R steps of recall. Objects and detections are COCO records: image_id, category_id, segmentation (RLE), bbox (xywh,
pixels); objects may have iscrowd, detections have a score.
"""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from unseg.core.label_maps import IGNORE_LABEL
from unseg.core.rle import group_by_image

Record = dict[str, Any]
UNMATCHED = -1  # class of a cluster that stands for none
LEVELS = 256  # values a uint8 label can take
FOUND = 0.5  # IoU from which a detection counts as having found an object


def confusion(truth: np.ndarray, prediction: np.ndarray, classes: int, clusters: int) -> np.ndarray:
    """Count the pixels of each pair of labels, in one pass.

    Args:
        truth: [H, W] integer, 0..classes-1; pixels of VOID (255) are left out.
        prediction: [H, W] integer, 0..clusters-1; VOID, which label maps use for "unsure", counts as background.

    Returns:
        [classes, clusters] int64, rows truth, columns prediction. Add those of many images.

    Raises:
        ValueError: shapes that differ, no integers, or a label out of range (even where the truth is void).
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"the truth is {truth.shape}, the prediction {prediction.shape} (rows, columns)")
    truth, prediction = as_bytes("truth", truth), as_bytes("prediction", prediction)
    pairs = truth.astype(np.uint16) * LEVELS + prediction  # [H, W]
    table = np.bincount(pairs.ravel(), minlength=LEVELS**2).reshape(LEVELS, LEVELS)  # [truth, prediction]
    for what, seen, known in (("truth", table.sum(1), classes), ("prediction", table.sum(0), clusters)):
        stray = [int(label) for label in np.flatnonzero(seen[:IGNORE_LABEL]) if label >= known]
        if stray:
            raise ValueError(f"the {what} has label {stray[0]}; it may have 0 to {known - 1}, and {IGNORE_LABEL}")
    counts = table[:classes, :clusters].astype(np.int64)
    counts[:, 0] += table[:classes, IGNORE_LABEL]
    return counts


def as_bytes(what: str, labels: np.ndarray) -> np.ndarray:
    """Labels of any integer dtype as uint8."""
    if labels.dtype == np.uint8:
        return labels
    if labels.dtype.kind not in "iu":
        raise ValueError(f"the {what} is {labels.dtype}; labels are integers")
    stray = labels[(labels < 0) | (labels >= LEVELS)]
    if stray.size:
        raise ValueError(f"the {what} has label {stray[0]}; labels are 0 to {LEVELS - 1}")
    return labels.astype(np.uint8)


def iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, [C] float64 in 0..1.

    Args:
        confusion: [C, C] or, with a last column of pixels that were given no class, [C, C + 1].

    Returns:
        nan for a class without a pixel of truth: it is no part of what was judged and is left out of the mean. A
        class that is there and never predicted has 0.
    """
    inside = confusion.diagonal().astype(float)  # [C]
    there = confusion.sum(1)  # [C]
    union = there + confusion.sum(0)[: len(confusion)] - inside
    return np.where(there > 0, inside / np.maximum(union, 1), np.nan)


def mean(values: np.ndarray) -> float:
    """The mean of what is not nan; nan if nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Share of the judged pixels whose class is right, of [C, C] or [C, C + 1]; nan if none was judged."""
    return float(confusion.trace() / confusion.sum()) if confusion.any() else float("nan")


def match(confusion: np.ndarray, by: str, fixed_background: bool = False) -> np.ndarray:
    """Give each cluster at most one class and each class at most one cluster, for the best total (Hungarian).

    With K > C the surplus clusters get none, with K < C some classes get none; so does a pair without a common pixel,
    which changes no score.

    Args:
        confusion: [C, K], rows truth, columns clusters; of pixels or of objects.
        by: iou, the sum of the classes' IoUs (so that mIoU is the best there is); or accuracy, the sum of the common
            pixels, in which equal sums are told apart by IoU.
        fixed_background: cluster 0 is class 0, the others are matched to the other classes.

    Returns:
        [K] int64, class of each cluster or UNMATCHED. Equal totals: always the same one for the same confusion.
    """
    if by not in ("iou", "accuracy"):
        raise ValueError(f"by is {by!r}; it must be iou or accuracy")
    from scipy.optimize import linear_sum_assignment  # half a second, which stages that only count pixels are spared

    union = confusion.sum(1, keepdims=True) + confusion.sum(0, keepdims=True) - confusion
    score = confusion / np.maximum(union, 1)  # [C, K]
    if by == "accuracy":
        score = confusion + score / (2 * max(1, min(confusion.shape)))  # all IoUs together weigh less than a pixel
    first = int(fixed_background)
    classes, clusters = linear_sum_assignment(score[first:, first:], maximize=True)
    common = confusion[classes + first, clusters + first] > 0
    assignment = np.full(confusion.shape[1], UNMATCHED)  # [K]
    assignment[clusters[common] + first] = classes[common] + first
    assignment[:first] = 0
    return assignment


def majority(confusion: np.ndarray) -> np.ndarray:
    """Give each cluster the class it has most pixels of, many to one: for K > C.

    Returns:
        [K] int64, class of each cluster; the first of equals; UNMATCHED for a cluster without a pixel.
    """
    return np.where(confusion.any(0), confusion.argmax(0), UNMATCHED)


def rename(confusion: np.ndarray, assignment: np.ndarray) -> np.ndarray:
    """[C, K] by cluster to [C, C + 1] by class; the last column holds the pixels of clusters without a class."""
    named = np.zeros((len(confusion), len(confusion) + 1), np.int64)
    np.add.at(named.T, assignment, confusion.T)  # UNMATCHED is -1, the last column
    return named


def average_precision(
    objects: Sequence[Record], detections: Sequence[Record], aware: bool
) -> tuple[dict[str, float], np.ndarray]:
    """COCO mask AP (pycocotools): at most 100 detections an image, objects of all sizes, crowds ignored.

    Of detections with equal scores, those of the image with the smaller id come first.

    Args:
        aware: a detection finds objects of its own category_id only; otherwise categories do not matter.

    Returns:
        AP (mean over IoU 0.5, 0.55 .. 0.95), AP50, AP75, AR@1, AR@10, AR@100 (recall with so many detections an
        image), in 0..1, each the mean over the categories that have an object, and the precision [R] at recall
        0, 0.01 .. 1 and IoU 0.5. No detection: 0. No object: nan.
    """
    precision, recall = accumulate(objects, detections, aware)  # [T, R, C], [T, C, 3]
    numbers = {"AP": precision, "AP50": precision[0], "AP75": precision[5]}
    numbers |= {f"AR@{count}": recall[..., i] for i, count in enumerate((1, 10, 100))}
    return {name: mean(values) for name, values in numbers.items()}, precision[0].mean(1)


def accumulate(objects: Sequence[Record], detections: Sequence[Record], aware: bool) -> tuple[np.ndarray, np.ndarray]:
    """Run COCOeval, silently: precision [T, R, C] and recall [T, C, 3] over the C categories that have an object."""
    categories = sorted({o["category_id"] if aware else 1 for o in objects if not o.get("iscrowd")})
    if not categories:
        return np.full((10, 101, 1), np.nan), np.full((10, 1, 3), np.nan)
    from pycocotools.cocoeval import COCOeval

    sizes = {r["image_id"]: r["segmentation"]["size"] for r in (*objects, *detections)}
    with redirect_stdout(io.StringIO()):
        judge = COCOeval(*(as_coco(records, sizes, aware) for records in (objects, detections)), "segm")
        judge.params.catIds = categories
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
        judge.accumulate()
    return judge.eval["precision"][..., 0, -1], judge.eval["recall"][..., 0, :]


def as_coco(records: Sequence[Record], sizes: dict[int, list[int]], aware: bool) -> Any:
    """Records in pycocotools' own form. COCOeval reads id 0 as "no match", and without categories still drops
    detections whose category no object has: so ids count from 1, and one category stands for all.
    """
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "height": h, "width": w} for i, (h, w) in sizes.items()],
        "categories": [{"id": c} for c in sorted({r["category_id"] if aware else 1 for r in records})],
        "annotations": [
            {
                "id": i,
                "image_id": r["image_id"],
                "category_id": r["category_id"] if aware else 1,
                "segmentation": r["segmentation"],
                "area": 0,  # the sizes of objects are not told apart
                "iscrowd": r.get("iscrowd", 0),
                "score": r.get("score"),
            }
            for i, r in enumerate(records, 1)
        ],
    }
    coco.createIndex()
    return coco


def overlaps(records: Sequence[Record], objects: Sequence[Record], of: str) -> np.ndarray:
    """IoU of each record with each object, [records, objects]; of is segmentation or bbox."""
    if not records or not objects:
        return np.zeros((len(records), len(objects)))
    return np.asarray(coco_mask.iou([r[of] for r in records], [o[of] for o in objects], [0] * len(objects)))


def countable(objects: Sequence[Record]) -> dict[int, list[Record]]:
    """The objects by image, without the crowds; an image with none has no entry."""
    return group_by_image(o for o in objects if not o.get("iscrowd"))


def highest_scoring(detections: Sequence[Record]) -> Record:
    """The detection of the highest score, the first of equals."""
    return max(detections, key=lambda d: float(d["score"]))


def single(objects: Sequence[Record], detections: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The single-object protocol: of each image the surest detection and the one object of largest box IoU with it.

    As published, images without a detection drop out of the truth too, so the score says nothing of them. Unlike
    there, crowds are no objects, and an image without objects drops out. Of equal IoUs the first object is taken.
    """
    found, kept, tops = group_by_image(detections), [], []
    for image, there in countable(objects).items():
        if image in found:
            tops.append(highest_scoring(found[image]))
            kept.append(there[int(overlaps(tops[-1:], there, "bbox")[0].argmax())])
    return kept, tops


def object_counts(objects: Sequence[Record], detections: Sequence[Record], classes: int, clusters: int) -> np.ndarray:
    """How many objects of each class were found by each cluster, for `match`.

    An object is found by the surest of the detections whose mask IoU with it is at least 0.5, if there is one.

    Returns:
        [classes, clusters] int64; row c is category_id c + 1 of the objects, column k category_id k of the detections.
    """
    counts, found = np.zeros((classes, clusters), np.int64), group_by_image(detections)
    for image, there in countable(objects).items():
        ranked = sorted(found.get(image, []), key=lambda d: -d["score"])
        hits = overlaps(ranked, there, "segmentation") >= FOUND  # [detections, objects]
        for j in np.flatnonzero(hits.any(0)):
            counts[there[j]["category_id"] - 1, ranked[hits[:, j].argmax()]["category_id"]] += 1
    return counts


def class_names_of_clusters(detections: Sequence[Record], assignment: np.ndarray) -> list[Record]:
    """Detections with category_id k turned into assignment[k] + 1; those of clusters without a class are left out
    and count neither as hits nor as false alarms.
    """
    named = ((d, int(assignment[d["category_id"]])) for d in detections)
    return [{**d, "category_id": c + 1} for d, c in named if c != UNMATCHED]


def mask_quality(objects: Sequence[Record], detections: Sequence[Record]) -> dict[str, float]:
    """How well each image's surest mask fits the object that it fits best, over the images that have objects.

    Returns:
        mean_iou, of masks, and corloc, the share of images whose box IoU is at least 0.5 with some object. An image
        without a mask counts 0 in both; crowds are no objects; nan where no image has an object.
    """
    found = group_by_image(detections)
    best = [
        [overlaps([highest_scoring(found[image])], there, of).max() if image in found else 0.0 for of in ("segmentation", "bbox")]
        for image, there in countable(objects).items()
    ]
    masks, boxes = np.array(best, float).reshape(-1, 2).T  # [images]
    return {"mean_iou": mean(masks), "corloc": mean((boxes >= FOUND).astype(float))}


def headline(numbers: Mapping[str, float | None], *keys: str) -> dict[str, float]:
    """The few numbers of a metrics file, which `dvc metrics show` puts into its table; without those that are not known."""
    return {key: x for key in keys if (x := numbers.get(key)) is not None}


def rounded(value: float) -> float | None:
    """Six decimals, for a metrics file; None for nan, which JSON does not have."""
    return None if np.isnan(value) else round(float(value), 6)
