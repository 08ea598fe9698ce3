"""Training settings, inference settings and outputs that both detector backends share.

Shapes: H rows, W columns of a photograph; M detected objects; K clusters.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Interval, Len

from unseg.core.params import Fraction, NonNegativeFloat, PositiveFloat, PositiveFraction, PositiveInt, Precision


@dataclass(frozen=True)
class Detector:
    """The `detector` group of params.yaml."""

    backend: Literal["torchvision", "detectron2"]  # torchvision: a ResNet with a feature pyramid; detectron2: R50-C4 (paper)
    arch: Literal["resnet18", "resnet50"]  # detectron2: resnet50 only
    width: PositiveInt  # channels of the first stage; 64 is the standard ResNet
    fpn: PositiveInt  # channels of the pyramid and the mask head; torchvision
    hidden: PositiveInt  # channels of the box head; torchvision
    init: str  # self-supervised ResNet weights, or weights.RANDOM_INIT
    frozen_stages: Annotated[int, Interval(ge=0, le=4)]  # besides the stem; Detectron2's FREEZE_AT 2 is 1 here
    anchor: PositiveInt  # side of the smallest of five anchors, pixels; each next anchor is twice as large
    short_sides: Annotated[list[PositiveInt], Len(1)]  # pixels; training samples one per image
    long_side: PositiveInt  # maximum, pixels
    rois: PositiveInt  # proposals per image that train the heads
    proposals: PositiveInt  # per image, after the RPN's NMS; detectron2: twice as many in training
    drop_iou: Annotated[float, Interval(ge=0, lt=0.5)] | None  # DropLoss: proposals without a larger IoU have no loss; None: off
    copy_paste: Fraction  # of the examples that get objects of another image
    paste_scale: Annotated[list[PositiveFloat], Len(2, 2)]  # smallest and largest scale of pasted objects
    iterations: PositiveInt
    batch: PositiveInt  # images, over all processes
    reference_batch: PositiveInt  # batch size of the given lr; lr is scaled linearly to `batch`
    lr: PositiveFloat
    lr_steps: list[PositiveInt]  # iterations after which lr is divided by 10
    warmup_iterations: Annotated[int, Ge(0)]
    momentum: Fraction
    weight_decay: NonNegativeFloat
    clip: NonNegativeFloat  # maximum norm of all gradients; 0: no clipping
    precision: Precision

    def __post_init__(self) -> None:
        if self.backend == "detectron2" and (self.arch != "resnet50" or self.frozen_stages > 3):
            raise ValueError("detector.backend detectron2 is R50-C4: arch must be resnet50, frozen_stages at most 3")
        if self.paste_scale[0] > self.paste_scale[1]:
            raise ValueError(f"detector.paste_scale is {self.paste_scale}; the smaller factor must come first")


@dataclass(frozen=True)
class Detect:
    """The `detect` group of params.yaml."""

    short_side: PositiveInt  # pixels
    min_score: Annotated[float, Interval(ge=0, lt=1)]  # detections with a lower score are dropped
    nms: PositiveFraction  # box IoU above which the lower-scoring of two detections of a cluster is dropped
    max_detections: PositiveInt  # per image
    pixels: PositiveInt  # maximum per batch


class Detections(NamedTuple):
    """Detections in one photograph, highest score first."""

    masks: np.ndarray  # [M, H, W] bool
    boxes: np.ndarray  # [M, 4] float32, xyxy, pixels
    scores: np.ndarray  # [M] float32, 0..1
    clusters: np.ndarray  # [M] int, 0..K-1
