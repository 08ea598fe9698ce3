"""Scores of unnamed clusters against named classes: IoU after matching, and COCO mask AP.

MaskDistill (Van Gansbeke et al., arXiv:2206.06363), sections 4.1, A.3 and A.4. No model learns from the ground truth: the
classes of clusters are used for scores only.

Shapes: H rows, W columns of an image; C classes and K clusters, label 0 (background) counted in both; T thresholds of
IoU, R steps of recall.
"""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from pycocotools import mask as coco_mask

from unseg.core.instances import Box, Detection, Instance
from unseg.core.label_maps import IGNORE_LABEL

UNMATCHED = -1  # instead of a class, for a cluster without one
LEVELS = 256  # values of a uint8 label
MIN_IOU = 0.5  # at which a detection finds an object


class TruthBox(NamedTuple):
    """An object of the ground truth without its mask: the masks of COCO's 860,000 objects would take a gigabyte."""

    image_id: int
    category_id: int  # class, 1..C-1
    bbox: Box


T = TypeVar("T", Instance, Detection, TruthBox)


def confusion(truth: np.ndarray, prediction: np.ndarray, classes: int, clusters: int) -> np.ndarray:
    """Count the pixels of each pair of labels: [classes, clusters] int64, rows truth, columns prediction.

    Args:
        truth: [H, W] integer, 0..classes-1; pixels of IGNORE_LABEL (255) are left out.
        prediction: [H, W] integer, 0..clusters-1; IGNORE_LABEL counts as background.

    Raises:
        ValueError: different shapes, no integers, or a label out of range (even where the truth is IGNORE_LABEL).
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"the truth is {truth.shape}, the prediction {prediction.shape} (rows, columns)")
    truth, prediction = as_bytes("truth", truth), as_bytes("prediction", prediction)
    pairs = truth.astype(np.uint16) * LEVELS + prediction  # [H, W]; scikit-learn's confusion_matrix takes 7 times as long
    table = np.bincount(pairs.ravel(), minlength=LEVELS**2).reshape(LEVELS, LEVELS)  # [truth, prediction]
    for name, pixels, count in (("truth", table.sum(1), classes), ("prediction", table.sum(0), clusters)):
        if (labels := np.flatnonzero(pixels[count:IGNORE_LABEL])).size:
            raise ValueError(f"the {name} has label {count + labels[0]}; it may have 0 to {count - 1}, and {IGNORE_LABEL}")
    counts = table[:classes, :clusters].astype(np.int64)
    counts[:, 0] += table[:classes, IGNORE_LABEL]
    return counts


def as_bytes(name: str, labels: np.ndarray) -> np.ndarray:
    """Labels of any integer dtype as uint8."""
    if labels.dtype == np.uint8:
        return labels
    if labels.dtype.kind not in "iu":
        raise ValueError(f"the {name} is {labels.dtype}; labels are integers")
    outside = labels[(labels < 0) | (labels >= LEVELS)]
    if outside.size:
        raise ValueError(f"the {name} has label {outside[0]}; labels are 0 to {LEVELS - 1}")
    return labels.astype(np.uint8)


def iou(confusion: np.ndarray) -> np.ndarray:
    """IoU of each class, [C] float64 in 0..1, nan without pixels in the truth.

    confusion: [C, C], or [C, C + 1] from `clusters_to_classes`.
    """
    intersection = confusion.diagonal().astype(float)  # [C]
    truth = confusion.sum(1)  # [C]
    union = truth + confusion.sum(0)[: len(confusion)] - intersection
    return np.where(truth > 0, intersection / np.maximum(union, 1), np.nan)


def mean(values: np.ndarray | Sequence[float]) -> float:
    """The mean of the values that are not nan; nan without any."""
    array = np.asarray(values, float)
    valid = array[~np.isnan(array)]
    return float(valid.mean()) if valid.size else float("nan")


def pixel_accuracy(confusion: np.ndarray) -> float:
    """The fraction of right pixels, of [C, C] or [C, C + 1]; nan without pixels."""
    return float(confusion.trace() / confusion.sum()) if confusion.any() else float("nan")


def match(confusion: np.ndarray, by: str, fixed_background: bool = False) -> np.ndarray:
    """Match clusters and classes one to one, for the best total (Hungarian): [K] int64, class of each cluster or UNMATCHED.

    Pairs without a common pixel stay unmatched. The result is deterministic, also for equal totals.

    Args:
        confusion: [C, K], rows truth, columns clusters; of pixels or of objects.
        by: iou, the sum of the classes' IoUs, which gives the best mIoU; or accuracy, the sum of the common pixels, with
            the IoU to decide between equal sums.
        fixed_background: cluster 0 is class 0, and only the others are matched.
    """
    if by not in ("iou", "accuracy"):
        raise ValueError(f"by is {by!r}; it must be iou or accuracy")
    from scipy.optimize import linear_sum_assignment  # takes half a second to import; counting pixels does not need it

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
    """The class of most of each cluster's pixels, many to one: [K] int64; of equals the first, without pixels UNMATCHED."""
    return np.where(confusion.any(0), confusion.argmax(0), UNMATCHED)


def clusters_to_classes(confusion: np.ndarray, assignment: np.ndarray) -> np.ndarray:
    """Sum the clusters [C, K] of each class: [C, C + 1]; the last column has the pixels of unmatched clusters."""
    by_class = np.zeros((len(confusion), len(confusion) + 1), np.int64)
    np.add.at(by_class.T, assignment, confusion.T)  # UNMATCHED is -1, the last column
    return by_class


def average_precision(
    objects: Sequence[Instance], detections: Sequence[Detection], class_aware: bool
) -> tuple[dict[str, float], np.ndarray]:
    """COCO mask AP and AR, and the precision-recall curve (pycocotools).

    At most 100 detections an image count, objects of all sizes; crowds are ignored. Of detections with equal scores, those of
    the image with the smaller id come first.

    Args:
        class_aware: detections only match objects of their category_id; otherwise all objects are of one class.

    Returns:
        the scores AP (mean over IoU 0.5, 0.55 .. 0.95), AP50, AP75 and AR@1, AR@10, AR@100 (recall with so many detections
        an image), in 0..1, each the mean over the categories with objects; and the curve, the precision [R] at recall
        0, 0.01 .. 1 and IoU 0.5. Without detections all are 0, without objects nan.
    """
    precision, recall = accumulate(objects, detections, class_aware)  # [T, R, C], [T, C, 3]
    numbers = {"AP": precision, "AP50": precision[0], "AP75": precision[5]}
    numbers |= {f"AR@{count}": recall[..., i] for i, count in enumerate((1, 10, 100))}
    return {name: mean(values) for name, values in numbers.items()}, precision[0].mean(1)


def accumulate(objects: Sequence[Instance], detections: Sequence[Detection], class_aware: bool) -> tuple[np.ndarray, np.ndarray]:
    """Run COCOeval, silently: precision [T, R, C] and recall [T, C, 3] over the C categories with objects."""
    categories = sorted({o.category_id if class_aware else 1 for o in without_crowds(objects)})
    if not categories:
        return np.full((10, 101, 1), np.nan), np.full((10, 1, 3), np.nan)
    from pycocotools.cocoeval import COCOeval

    sizes = {o.image_id: o.mask.size for o in objects} | {d.image_id: d.mask.size for d in detections}
    with redirect_stdout(io.StringIO()):
        evaluator = COCOeval(as_coco(objects, sizes, class_aware), as_coco(detections, sizes, class_aware), "segm")
        evaluator.params.catIds = categories
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"][..., 0, -1], evaluator.eval["recall"][..., 0, :]


def as_coco(objects: Sequence[Instance | Detection], sizes: dict[int, tuple[int, int]], class_aware: bool) -> Any:
    """Objects as a pycocotools COCO. For COCOeval id 0 means "no match", so ids count from 1; and even without categories
    it drops detections of categories without objects, so all have one category then.
    """
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "height": h, "width": w} for i, (h, w) in sizes.items()],
        "categories": [{"id": c} for c in sorted({x.category_id if class_aware else 1 for x in objects})],
        "annotations": [
            {
                **x.to_coco(),
                "id": i,
                "category_id": x.category_id if class_aware else 1,
                "area": 0,
            }  # objects of all sizes count alike
            for i, x in enumerate(objects, 1)
        ],
    }
    coco.createIndex()
    return coco


def mask_iou(a: Sequence[Instance | Detection], b: Sequence[Instance]) -> np.ndarray:
    """IoU of the masks of each of a with each of b, [a, b]."""
    return pairwise_iou([x.mask.rle for x in a], [x.mask.rle for x in b])


def box_iou(a: Sequence[Instance | Detection], b: Sequence[Instance | TruthBox]) -> np.ndarray:
    """IoU of the boxes of each of a with each of b, [a, b]."""
    return pairwise_iou([list(x.bbox) for x in a], [list(x.bbox) for x in b])


def pairwise_iou(a: list[Any], b: list[Any]) -> np.ndarray:
    if not a or not b:
        return np.zeros((len(a), len(b)))
    return np.asarray(coco_mask.iou(a, b, [0] * len(b)))


def group_by_image(objects: Iterable[T]) -> dict[int, list[T]]:
    """Objects by image id, in their order; an image without any has no entry."""
    groups: dict[int, list[T]] = {}
    for x in objects:
        groups.setdefault(x.image_id, []).append(x)
    return groups


def pair_by_image(
    objects: Sequence[Instance], detections: Sequence[Detection]
) -> Iterator[tuple[list[Instance], list[Detection]]]:
    """The objects, without crowds, and the detections of each image that has objects."""
    detections_by_image = group_by_image(detections)
    for image, image_objects in group_by_image(without_crowds(objects)).items():
        yield image_objects, detections_by_image.get(image, [])


def without_crowds(objects: Sequence[Instance]) -> list[Instance]:
    return [o for o in objects if not o.iscrowd]


def highest_scoring(detections: Sequence[Detection]) -> Detection:
    """The detection of the highest score, the first of equals."""
    return max(detections, key=lambda d: d.score)


def single_object(objects: Sequence[Instance], detections: Sequence[Detection]) -> tuple[list[Instance], list[Detection]]:
    """The single-object protocol: each image's highest-scoring detection, and the object of largest box IoU with it.

    As published, images without a detection are left out. Unlike the published code, crowds are no objects, and images without
    objects are left out, too. Of equal IoUs the first object is taken.
    """
    best_objects, best_detections = [], []
    for image_objects, image_detections in pair_by_image(objects, detections):
        if image_detections:
            best = highest_scoring(image_detections)
            best_detections.append(best)
            best_objects.append(image_objects[int(box_iou([best], image_objects)[0].argmax())])
    return best_objects, best_detections


def object_counts(objects: Sequence[Instance], detections: Sequence[Detection], classes: int, clusters: int) -> np.ndarray:
    """How many objects of each class each cluster finds, for `match`: [classes, clusters] int64, without background.

    An object is found by the highest-scoring detection whose mask IoU with it is at least 0.5.
    """
    counts = np.zeros((classes, clusters), np.int64)
    for image_objects, image_detections in pair_by_image(objects, detections):
        ranked = sorted(image_detections, key=lambda d: -d.score)
        hits = mask_iou(ranked, image_objects) >= MIN_IOU  # [detections, objects]
        for j in np.flatnonzero(hits.any(0)):
            counts[image_objects[j].category_id - 1, ranked[hits[:, j].argmax()].category_id] += 1
    return counts


def class_names_of_clusters(detections: Sequence[Detection], assignment: np.ndarray) -> list[Detection]:
    """Detections with category_id k replaced by assignment[k] + 1, without those of unmatched clusters."""
    classes = ((d, int(assignment[d.category_id])) for d in detections)
    return [replace(d, category_id=c + 1) for d, c in classes if c != UNMATCHED]


def mask_quality(objects: Sequence[Instance], detections: Sequence[Detection]) -> dict[str, float]:
    """Fit of each image's highest-scoring mask with its best object, over the images with objects; nan without any.

    Returns mean_iou, of masks, and corloc, the fraction of images with a box IoU of at least 0.5. Images without a mask count 0.
    """
    best = []
    for image_objects, image_detections in pair_by_image(objects, detections):
        top = [highest_scoring(image_detections)] if image_detections else []
        best.append([pair_iou(top, image_objects).max(initial=0.0) for pair_iou in (mask_iou, box_iou)])
    masks, boxes = np.array(best, float).reshape(-1, 2).T  # [images]
    return {"mean_iou": mean(masks), "corloc": mean(boxes >= MIN_IOU)}


def headline(numbers: Mapping[str, float | None], *keys: str) -> dict[str, float]:
    """The few numbers of a metrics file, which `dvc metrics show` prints; without unknown ones."""
    return {key: x for key in keys if (x := numbers.get(key)) is not None}


def rounded(value: float) -> float | None:
    """Six decimals, for a metrics file; None for nan, which JSON does not have."""
    return None if np.isnan(value) else round(float(value), 6)
