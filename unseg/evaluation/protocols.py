"""The ways to match clusters to classes for a score, and what each number means.

MaskDistill (Van Gansbeke et al., arXiv:2206.06363), sections 4.1 and A.3. Its published code matches on the objects of the
training images instead (docs/spec/, B.2 and B.6.1). MaskContrast and Leopart match on the pixels of the evaluation images
(docs/spec/croc.md, 9.2).

Shapes: C classes and K clusters, label 0 (background) counted in both.
"""

from collections.abc import Sequence

import numpy as np

from unseg.core.instances import Instance
from unseg.evaluation import metrics
from unseg.evaluation.metrics import UNMATCHED, TruthBox

MEAN = "mean IoU over the classes that have pixels in the evaluation images, background included, void left out"
PIXELS = "on the pixels of the evaluation images"
CLUSTERING = {
    "miou": f"{MEAN}; all labels, background included, matched one to one to all classes {PIXELS}, for the best sum of IoU "
    "(Hungarian)",
    "miou_accuracy_matching": f"{MEAN}; matched one to one {PIXELS}, for the most right pixels (Hungarian)",
    "miou_background_fixed": f"{MEAN}; label 0 is background, the others matched one to one {PIXELS}, for the best sum of IoU "
    "(Hungarian)",
    "miou_majority": f"{MEAN}; each label is the class of most of its pixels in the evaluation images, many to one (for more "
    "clusters than classes)",
    "miou_training_objects": f"{MEAN}; matched on no pixel: label 0 is background, a cluster gets its class from the objects "
    "that the boxes of its mined masks meet best in the training images (published MaskDistill): one to one for the most objects "
    "(Hungarian), or, with more clusters than classes, the class of most of its objects",
    "pixel_accuracy": "fraction of the pixels of the evaluation images whose class is right, matched as for miou, void left out",
}
AP = "COCO mask AP, of detections of all sizes, at most 100 an image, crowds ignored"
MODES = {
    "multi": "all detections against all objects",
    "single": "each image's highest-scoring detection against the one object of largest box IoU, images without a detection left "
    "out",
}
SETTINGS = {
    "agnostic": "classes do not matter",
    "aware": "mean over classes; clusters matched one to one to classes for the most objects that they find in the evaluation "
    "images (IoU at least 0.5; Hungarian)",
}
INSTANCES = {f"{m}.{s}": f"{AP}; {what}; {how}" for m, what in MODES.items() for s, how in SETTINGS.items()} | {
    "masks.mean_iou": "IoU of each image's mined mask with the object that it fits best; an image without a mask counts 0",
    "masks.corloc": "fraction of the images with objects in which the mined mask's box has an IoU of at least 0.5 with an "
    "object's",
}


def to_records(protocols: dict[str, str]) -> list[dict[str, str]]:
    """The protocols as a list of records: `dvc metrics show` leaves lists out of its tables."""
    return [{"number": name, "protocol": sentence} for name, sentence in protocols.items()]


def box_votes(objects: Sequence[TruthBox], masks: Sequence[Instance], classes: int, clusters: int) -> np.ndarray:
    """How many mined masks of each cluster lie on objects of each class.

    A mask votes for the object of largest box IoU, even if that is 0, the first of equals. As published, crowds are
    objects, too. A mask in an image without objects has no vote.
    Returns [classes - 1, clusters - 1] int64, without background.
    """
    votes, objects_of = np.zeros((classes - 1, clusters - 1), np.int64), metrics.group_by_image(objects)
    for image, group in metrics.group_by_image(masks).items():
        if image in objects_of:
            best = metrics.box_iou(group, objects_of[image]).argmax(1)  # [masks]
            for mask, j in zip(group, best.tolist(), strict=True):
                votes[objects_of[image][j].category_id - 1, mask.category_id] += 1
    return votes


def from_votes(votes: np.ndarray) -> np.ndarray:
    """The class of each label by `box_votes`, as published: [K] int64, or UNMATCHED."""
    if not votes.any():
        return np.array([0] + [UNMATCHED] * votes.shape[1])
    one_to_one = votes.shape[1] <= votes.shape[0]
    assignment = metrics.match(votes, by="accuracy") if one_to_one else metrics.majority(votes)
    return np.concatenate([[0], np.where(assignment == UNMATCHED, UNMATCHED, assignment + 1)])


def clustering(counts: np.ndarray, votes: np.ndarray) -> dict[str, float]:
    """The number of each protocol of CLUSTERING, of pixels [C, K] and `box_votes`; nan for miou_training_objects without any."""
    assignments = {
        "miou": metrics.match(counts, by="iou"),
        "miou_accuracy_matching": metrics.match(counts, by="accuracy"),
        "miou_background_fixed": metrics.match(counts, by="iou", fixed_background=True),
        "miou_majority": metrics.majority(counts),
        "miou_training_objects": from_votes(votes),
    }
    by_class = {name: metrics.clusters_to_classes(counts, assignment) for name, assignment in assignments.items()}
    scores = {name: metrics.mean(metrics.iou(matrix)) for name, matrix in by_class.items()}
    scores["miou_training_objects"] = scores["miou_training_objects"] if votes.any() else float("nan")
    return scores | {"pixel_accuracy": metrics.pixel_accuracy(by_class["miou"])}
