"""Training settings, inference settings and outputs that both detector backends share.

Shapes: H rows, W columns of a photograph; M detected objects; K clusters.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from unseg.core.optional import DETECTOR_BACKENDS
from unseg.engine.precision import check_precision
from unseg.models import resnet


@dataclass(frozen=True)
class Detector:
    """The `detector` group of params.yaml."""

    backend: str  # torchvision: a ResNet with a feature pyramid | detectron2: R50-C4 (paper)
    arch: str  # resnet18 | resnet50; detectron2 has resnet50 alone
    width: int  # channels of the first stage
    fpn: int  # channels of the pyramid and the mask head; torchvision
    hidden: int  # channels of the box head; torchvision
    init: str  # self-supervised ResNet weights, or weights.RANDOM_INIT
    frozen_stages: int  # frozen stages besides the stem; Detectron2's FREEZE_AT 2 is 1 here
    anchor: int  # side of the smallest of five anchors, pixels; each next anchor is twice as large
    short_sides: list[int]  # pixels; training samples one per image
    long_side: int  # maximum, pixels
    rois: int  # proposals per image that train the heads
    proposals: int  # per image, after the RPN's NMS; detectron2: twice as many in training
    drop_iou: float | None  # DropLoss: proposals without a larger overlap have no loss; None: off
    copy_paste: float  # fraction of the examples that get objects of another image
    paste_scale: list[float]  # smallest and largest scale of pasted objects
    iterations: int
    batch: int  # images, over all processes
    reference_batch: int  # batch size of the given lr; lr is scaled linearly to `batch`
    lr: float
    lr_steps: list[int]  # iterations after which lr is divided by 10
    warmup_iterations: int
    momentum: float
    weight_decay: float
    clip: float  # maximum norm of all gradients; 0: no clipping
    precision: str

    def __post_init__(self) -> None:
        if self.backend not in DETECTOR_BACKENDS:
            raise ValueError(f"detector.backend is {self.backend!r}; it must be one of {', '.join(DETECTOR_BACKENDS)}")
        resnet.check("detector", self.arch, self.width, self.frozen_stages)
        if self.backend == "detectron2" and (self.arch != "resnet50" or self.frozen_stages > 3):
            raise ValueError("detector.backend detectron2 is R50-C4: arch must be resnet50, frozen_stages at most 3")
        check_precision("detector.precision", self.precision)
        if min(self.iterations, self.batch, self.reference_batch) < 1:
            raise ValueError("detector.iterations, detector.batch and detector.reference_batch must be at least 1")
        if not self.short_sides:
            raise ValueError("detector.short_sides is empty; give at least one size in pixels")
        if self.drop_iou is not None and not 0 <= self.drop_iou < 0.5:
            raise ValueError(f"detector.drop_iou is {self.drop_iou}; it must be null, or from 0 and below 0.5")
        if not 0 <= self.copy_paste <= 1:
            raise ValueError(f"detector.copy_paste is {self.copy_paste}; it must be from 0 to 1")
        if len(self.paste_scale) != 2 or not 0 < self.paste_scale[0] <= self.paste_scale[1]:
            raise ValueError(f"detector.paste_scale is {self.paste_scale}; it must be two factors above 0, the smaller one first")


@dataclass(frozen=True)
class Detect:
    """The `detect` group of params.yaml."""

    short_side: int  # pixels
    min_score: float  # detections with a lower score are dropped
    nms: float  # box IoU above which the lower-scoring of two detections of a cluster is dropped
    max_detections: int  # per image
    pixels: int  # maximum per batch

    def __post_init__(self) -> None:
        if not 0 <= self.min_score < 1:
            raise ValueError(f"detect.min_score is {self.min_score}; it must be from 0 and below 1")
        if not 0 < self.nms <= 1:
            raise ValueError(f"detect.nms is {self.nms}; it must be above 0 and at most 1")
        if min(self.short_side, self.max_detections) < 1:
            raise ValueError("detect.short_side and detect.max_detections must be at least 1")


class Detections(NamedTuple):
    """Detections in one photograph, highest score first."""

    masks: np.ndarray  # [M, H, W] bool
    boxes: np.ndarray  # [M, 4] float32, xyxy, pixels
    scores: np.ndarray  # [M] float32, 0..1
    clusters: np.ndarray  # [M] int, 0..K-1
