"""Label maps painted from detections (MaskDistill, arXiv:2206.06363, sections 3.3 and 4.1, Table S1).

Shapes: H rows, W columns of an image. In a label map 0 is background, cluster + 1 an object, 255 ignored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from unseg.core.instances import Box, Detection
from unseg.core.label_maps import IGNORE_LABEL
from unseg.core.params import Fraction

GRABCUT_ITERATIONS = 5


@dataclass(frozen=True)
class Aggregation:
    """The `aggregate` group of params.yaml."""

    source: Literal["detections", "masks"]  # of pseudo-labels: detections (paper), or the mined masks, each of score 1
    threshold: Fraction  # tau; detections with a higher score are kept (paper: 0.9)
    overlap: Literal["keep_higher", "overwrite", "skip", "published"]  # see `paint` (paper: keep_higher)
    shape: Literal["mask", "box", "grabcut"]  # mask (paper); box and grabcut: the other rows of Table S1
    uncertain: Literal["background", "ignore"]  # label of the pixels of dropped detections (paper: background)


def keep_confident(detections: Sequence[Detection], threshold: float) -> list[Detection]:
    """Detections above the threshold, or else the best one (section 3.3), by falling score; equal scores keep their order."""
    ranked = sorted(detections, key=lambda d: -d.score)
    return [d for d in ranked if d.score > threshold] or ranked[:1]


def paint(detections: Sequence[Detection], size: tuple[int, int], p: Aggregation, image: np.ndarray | None = None) -> np.ndarray:
    """Paint the label map of an image from its detections.

    Where kept detections overlap, `keep_higher` gives the pixel to the higher score and `overwrite` to the lower one.
    `skip` drops a detection that overlaps a higher-scoring one. `published` is what the authors' code does instead of
    `skip`: detections overwrite each other until one has a pixel in the first two rows; the rest are dropped.

    Args:
        detections: in any order; may be empty.
        size: (H, W) of the image and of all masks.
        image: [H, W, 3] uint8 RGB; only `grabcut` needs it.

    Returns:
        [H, W] uint8: 0 background, cluster + 1, 255 where only dropped detections are (if `uncertain` is ignore).
    """
    kept = keep_confident(detections, p.threshold)
    labels = np.zeros(size, np.uint8, order="F")  # as decoded masks: indexing is six times faster than in C order
    if p.uncertain == "ignore":
        for d in sorted(detections, key=lambda d: -d.score)[len(kept) :]:
            labels[object_pixels(d, size, p.shape, image)] = IGNORE_LABEL
    painted = np.zeros(size, bool, order="F")
    for d in kept[::-1] if p.overlap == "keep_higher" else kept:
        mask = object_pixels(d, size, p.shape, image)
        if p.overlap == "skip" and (painted & mask).any():
            continue
        labels[mask] = d.category_id + 1
        painted |= mask
        if p.overlap == "published" and mask[:2].any():
            break
    return np.ascontiguousarray(labels)


def object_pixels(detection: Detection, size: tuple[int, int], shape: str, image: np.ndarray | None) -> np.ndarray:
    """[H, W] bool: the mask of a detection, its box, or the object that GrabCut finds in its box."""
    if shape == "mask":
        return detection.mask.decode()
    mask = np.zeros(size, bool)
    rows, cols = box_window(detection.bbox, size)
    if shape == "box":
        mask[rows, cols] = True
    elif rows.stop > rows.start and cols.stop > cols.start:
        if image is None or image.shape[:2] != size:
            raise ValueError(f"aggregate.shape is grabcut, which needs the photograph, {list(size)} (rows, columns)")
        mask[rows, cols] = grab_cut(image, rows, cols)
    return mask


def box_window(bbox: Box, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns [round(x), round(x + w)) of an xywh box, inside the image (the published code has one more)."""
    x, y, w, h = bbox
    spans = ((y, y + h, size[0]), (x, x + w, size[1]))
    (top, bottom), (left, right) = ([min(max(round(at), 0), side) for at in (start, end)] for start, end, side in spans)
    return slice(top, bottom), slice(left, right)


def grab_cut(image: np.ndarray, rows: slice, cols: slice) -> np.ndarray:
    """OpenCV's GrabCut with a fixed seed, from a box that is not empty: [h, w] bool.

    All False if it fails; it always does if the box leaves no background.
    """
    mask = np.zeros(image.shape[:2], np.uint8)
    box = (cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start)  # xywh
    cv2.setRNGSeed(0)
    try:
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(image, mask, box, *models, GRABCUT_ITERATIONS, cv2.GC_INIT_WITH_RECT)
    except cv2.error:
        return np.zeros((box[3], box[2]), bool)
    return np.isin(mask[rows, cols], (cv2.GC_FGD, cv2.GC_PR_FGD))
