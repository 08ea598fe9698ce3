"""Every way of turning clusters into classes for a score, by its name, and what its number means.

MaskDistill (Van Gansbeke et al., arXiv:2206.06363), sections 4.1 and A.3; its published code matches elsewhere
(docs/spec/, B.2 and B.6.1: clusters get their classes from the objects of the training images). MaskContrast and Leopart
match on the judged pixels (docs/spec/croc.md, 9.2).

Shapes: C classes and K clusters, label 0 (background) counted in both.
"""

from collections.abc import Sequence

import numpy as np

from unseg.core.rle import group_by_image
from unseg.evaluation import metrics
from unseg.evaluation.metrics import UNMATCHED, Record

MEAN = "mean IoU over the classes that have pixels in the judged images, background included, void left out"
CLUSTERING = {
    "miou": f"{MEAN}; all labels, background included, matched one to one to all classes on the judged pixels, for the best sum "
    "of IoU (Hungarian)",
    "miou_accuracy_matching": f"{MEAN}; matched one to one on the judged pixels, for the most right pixels (Hungarian)",
    "miou_background_fixed": f"{MEAN}; label 0 is background, the others matched one to one on the judged pixels, for the best "
    "sum of IoU (Hungarian)",
    "miou_majority": f"{MEAN}; each label is the class of most of its judged pixels, many to one (for more clusters than "
    "classes)",
    "miou_training_objects": f"{MEAN}; matched on no pixel: label 0 is background, a cluster gets its class from the objects "
    "that the boxes of its mined masks meet best in the training images (published MaskDistill): one to one for the most objects "
    "(Hungarian), or, with more clusters than classes, the class of most of its objects",
    "pixel_accuracy": "share of the judged pixels whose class is right, matched as for miou, void left out",
}
AP = "COCO mask AP, of detections of all sizes, at most 100 an image, crowds ignored"
MODES = {
    "multi": "all detections against all objects",
    "single": "of each image the surest detection against the one object of largest box IoU, images without a detection left out",
}
SETTINGS = {
    "agnostic": "classes do not matter",
    "aware": "mean over classes; clusters matched one to one to classes for the most objects that they find in the judged images "
    "(IoU at least 0.5; Hungarian)",
}
INSTANCES = {f"{m}.{s}": f"{AP}; {what}; {how}" for m, what in MODES.items() for s, how in SETTINGS.items()} | {
    "masks.mean_iou": "of each image's mined mask, the IoU with the object that it fits best; an image without a mask counts 0",
    "masks.corloc": "share of the images with objects whose mined mask's box has an IoU of at least 0.5 with some object's",
}


def described(protocols: dict[str, str]) -> list[dict[str, str]]:
    """The protocols as a list of records, which `dvc metrics show` leaves out of its tables, as all lists."""
    return [{"number": name, "protocol": words} for name, words in protocols.items()]


def box_votes(objects: Sequence[Record], masks: Sequence[Record], classes: int, clusters: int) -> np.ndarray:
    """How many mined masks of each cluster lie on objects of each class.

    A mask votes for the object of largest box IoU, even where that is 0, the first of equals; as published, crowds are
    objects too. A mask in an image without objects has no vote.

    Args:
        objects: category_id is 1..C-1.
        masks: category_id is the cluster, 0..K-2.

    Returns:
        [classes - 1, clusters - 1] int64, background counted in neither.
    """
    votes, there = np.zeros((classes - 1, clusters - 1), np.int64), group_by_image(objects)
    for image, found in group_by_image(masks).items():
        if image in there:
            best = metrics.overlaps(found, there[image], "bbox").argmax(1)  # [masks]
            for mask, j in zip(found, best.tolist(), strict=True):
                votes[there[image][j]["category_id"] - 1, mask["category_id"]] += 1
    return votes


def from_votes(votes: np.ndarray) -> np.ndarray:
    """The published way of naming clusters, from `box_votes`: [K] int64, class of each label or UNMATCHED."""
    if not votes.any():
        return np.array([0] + [UNMATCHED] * votes.shape[1])
    few = votes.shape[1] <= votes.shape[0]
    named = metrics.match(votes, by="accuracy") if few else metrics.majority(votes)
    return np.concatenate([[0], np.where(named == UNMATCHED, UNMATCHED, named + 1)])


def clustering(counts: np.ndarray, votes: np.ndarray) -> dict[str, float]:
    """The number of each protocol of CLUSTERING; nan where it cannot be had (no vote: no object in a training image).

    Args:
        counts: [C, K] pixels of the judged images, rows truth.
        votes: [C - 1, K - 1] of `box_votes`.
    """
    ways = {
        "miou": metrics.match(counts, by="iou"),
        "miou_accuracy_matching": metrics.match(counts, by="accuracy"),
        "miou_background_fixed": metrics.match(counts, by="iou", fixed_background=True),
        "miou_majority": metrics.majority(counts),
        "miou_training_objects": from_votes(votes),
    }
    named = {name: metrics.rename(counts, assignment) for name, assignment in ways.items()}
    scores = {name: metrics.mean(metrics.iou(matrix)) for name, matrix in named.items()}
    scores["miou_training_objects"] = scores["miou_training_objects"] if votes.any() else float("nan")
    return scores | {"pixel_accuracy": metrics.pixel_accuracy(named["miou"])}
