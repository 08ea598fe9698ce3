"""Self-training: the confident detections of one detector become the training annotations of the next.

CutLER (Wang et al., arXiv:2301.11320, section 3.4): keep detections above a threshold, and the previous annotations that
overlap none of them.

Shapes: M instances of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

Record = dict[str, Any]


@dataclass(frozen=True)
class SelfTraining:
    """The `adopt` group of params.yaml."""

    threshold: float  # minimum score of an adopted detection
    overlap: float  # mask IoU from which an instance is a duplicate, in (0, 1]

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"adopt.threshold is {self.threshold}; it must be from 0 to 1")
        if not 0 < self.overlap <= 1:
            raise ValueError(f"adopt.overlap is {self.overlap}; it must be above 0 and at most 1")


def self_train(detections: Sequence[Record], former: Sequence[Record], p: SelfTraining) -> list[Record]:
    """Select one image's instances for the next round: confident detections by falling score, then previous annotations.

    Args:
        detections: COCO results of the image, each with a score. Equal scores keep their order.
        former: COCO annotations of the image on which the detector was trained.

    Returns:
        The instances whose mask IoU with each selected instance before them is below p.overlap. May be empty.
    """
    sure = sorted((d for d in detections if d["score"] >= p.threshold), key=lambda d: -float(d["score"]))
    every = [*sure, *former]
    if not every:
        return []
    rles = [r["segmentation"] for r in every]
    overlaps = np.asarray(coco_mask.iou(rles, rles, [0] * len(rles)))  # [M, M]
    taken: list[int] = []
    for i in range(len(every)):
        if not taken or overlaps[i, taken].max() < p.overlap:
            taken.append(i)
    return [every[i] for i in taken]
