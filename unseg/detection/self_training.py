"""Self-training: the confident detections of one detector become the training instances of the next.

CutLER (Wang et al., arXiv:2301.11320, section 3.4): keep detections above a threshold, and the previous instances that
overlap none of them.

Shapes: M objects of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from unseg.core.instances import Detection, Instance
from unseg.core.params import Fraction, PositiveFraction


@dataclass(frozen=True)
class SelfTraining:
    """The `self_train` group of params.yaml."""

    threshold: Fraction  # minimum score of a detection
    overlap: PositiveFraction  # mask IoU from which an object is a duplicate


def self_train(detections: Sequence[Detection], previous: Sequence[Instance], p: SelfTraining) -> list[Detection | Instance]:
    """Select one image's objects for the next round: confident detections by falling score, then previous instances.

    An object is selected if its mask IoU with each object selected before it is below p.overlap. Equal scores keep their
    order. `previous` are the instances of the image on which the detector was trained.
    """
    confident = sorted((d for d in detections if d.score >= p.threshold), key=lambda d: -d.score)
    candidates: list[Detection | Instance] = [*confident, *previous]
    if not candidates:
        return []
    rles = [x.mask.rle for x in candidates]
    overlaps = np.asarray(coco_mask.iou(rles, rles, [0] * len(rles)))  # [M, M]
    selected: list[int] = []
    for i in range(len(candidates)):
        if not selected or overlaps[i, selected].max() < p.overlap:
            selected.append(i)
    return [candidates[i] for i in selected]
