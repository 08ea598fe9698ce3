"""Self-training: a detector's sure instances become those that the next one learns from.

CutLER (Wang et al., arXiv:2301.11320, section 3.4): detections above a threshold, and of what was learned from before, what
overlaps none of them.

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

    threshold: float  # score from which a detection is adopted
    overlap: float  # mask IoU from which an instance is one that is there already, in (0, 1]

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"adopt.threshold is {self.threshold}; it must be from 0 to 1")
        if not 0 < self.overlap <= 1:
            raise ValueError(f"adopt.overlap is {self.overlap}; it must be above 0 and at most 1")


def self_train(detections: Sequence[Record], former: Sequence[Record], p: SelfTraining) -> list[Record]:
    """The instances of one image for the next round: sure detections, surest first, then what is left of the former ones.

    Args:
        detections: COCO results of the image, each with a score; an equal score keeps their order.
        former: COCO annotations of the image that the detector learned from.

    Returns:
        Those of them whose mask has less than p.overlap IoU with each one before it; none where there was none.
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
