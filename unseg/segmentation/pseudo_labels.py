"""Label maps, painted from scored masks (arXiv:2206.06363, sections 3.3 and 4.1, Table S1).

Shapes: H rows, W columns of an image. In a label map 0 is background, category + 1 an object, 255 void.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from unseg.core.label_maps import IGNORE_LABEL
from unseg.core.rle import Rle, encode, pack, run_lengths

Detection = dict[str, Any]  # a COCO result: category_id from 0, segmentation (RLE), bbox (xywh, pixels), score
OVERLAPS = ("keep_higher", "overwrite", "skip", "published")
SHAPES = ("mask", "box", "grabcut")
GRABCUT_ITERATIONS = 5


@dataclass(frozen=True)
class Aggregation:
    """The `aggregate` group of params.yaml."""

    threshold: float  # tau; a detection of a higher score is kept (paper: 0.9)
    overlap: str  # keep_higher (paper): the surest wins a pixel; overwrite: the least sure; skip; published (see `paint`)
    shape: str  # mask; box and grabcut: the other rows of the paper's Table S1
    uncertain: str  # what pixels of dropped detections become: background (paper) or ignore

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"aggregate.threshold is {self.threshold}; it must be from 0 to 1")
        for key, options in (("overlap", OVERLAPS), ("shape", SHAPES), ("uncertain", ("background", "ignore"))):
            if getattr(self, key) not in options:
                raise ValueError(f"aggregate.{key} is {getattr(self, key)!r}; it must be one of {', '.join(options)}")


def keep(detections: Sequence[Detection], threshold: float) -> list[Detection]:
    """Those surer than the threshold, or else the surest one (section 3.3); surest first, equals as they came."""
    order = sorted(detections, key=lambda d: -d["score"])
    return [d for d in order if d["score"] > threshold] or order[:1]


def paint(
    detections: Sequence[Detection], size: tuple[int, int], aggregation: Aggregation, image: np.ndarray | None = None
) -> np.ndarray:
    """One label map from an image's detections.

    Of overlapping detections, under `keep_higher` the surer one has the pixel, under `overwrite` the less sure one,
    under `skip` a detection that meets a surer one is left out whole. `published` is what the authors' code does in
    place of `skip`: once anything is painted in the first two rows, all further detections are left out; until
    then they overwrite.

    Args:
        detections: of one image, in any order; none at all gives a map of background.
        image: [H, W, 3] uint8 RGB, for `grabcut` alone.

    Returns:
        [H, W] uint8: 0 background, category + 1, 255 where only dropped detections are (if `uncertain` is ignore).

    Raises:
        ValueError: a mask of another size than the image, or a category that has no room in 8 bits.
    """
    for d in detections:
        if tuple(d["segmentation"]["size"]) != size:
            raise ValueError(f"a mask is {list(d['segmentation']['size'])}, the image is {list(size)} (rows, columns)")
        if not 0 <= d["category_id"] < IGNORE_LABEL - 1:
            raise ValueError(f"category {d['category_id']} has no room beside background and void; label maps hold 254")
    kept = keep(detections, aggregation.threshold)
    layers: list[tuple[Rle, int]] = []  # what is painted, one over the other
    if aggregation.uncertain == "ignore":
        painted = {id(d) for d in kept}
        layers += [(outline(d, size, aggregation.shape, image), IGNORE_LABEL) for d in detections if id(d) not in painted]
    outlines = ((outline(d, size, aggregation.shape, image), d["category_id"] + 1) for d in kept)
    layers += in_turn(outlines, aggregation.overlap)
    labels = np.zeros(size[0] * size[1], np.uint8)  # column by column, as run lengths are
    for lengths, (_, label) in zip(run_lengths([rle["counts"] for rle, _ in layers]), layers, strict=True):
        if lengths.sum() != len(labels) or lengths.max() > len(labels):
            raise ValueError(f"a mask's run lengths do not add up to {size[0]} x {size[1]} pixels")
        own = lengths[1 : len(lengths) // 2 * 2]  # from the first pixel of the object to its last
        inks = np.zeros(len(own), np.uint8)
        inks[0::2] = label
        if len(ink := np.repeat(inks, own)):
            cv2.copyTo(ink, ink, labels[lengths[0] : lengths[0] + len(ink)])  # where it is not 0
    return np.asarray(cv2.transpose(labels.reshape(size[1], size[0])), np.uint8)


def in_turn(kept: Iterable[tuple[Rle, int]], overlap: str) -> list[tuple[Rle, int]]:
    """Of masks and labels, surest first, those that are painted, in the order in which each covers the ones before."""
    if overlap == "keep_higher":
        return list(kept)[::-1]
    taken: list[tuple[Rle, int]] = []
    for rle, label in kept:
        if overlap != "skip" or not any(coco_mask.area(coco_mask.merge([rle, r], intersect=True)) for r, _ in taken):
            taken.append((rle, label))
        if overlap == "published" and coco_mask.area(rle) and coco_mask.toBbox(rle)[1] < 2:
            break
    return taken


def outline(detection: Detection, size: tuple[int, int], shape: str, image: np.ndarray | None) -> Rle:
    """The pixels of a detection: its mask, its box, or what GrabCut finds in that."""
    if shape == "mask":
        rle: Rle = detection["segmentation"]
        return rle
    rows, cols = box_window(detection["bbox"], size)
    high, wide = rows.stop - rows.start, cols.stop - cols.start
    if shape == "grabcut" and high and wide:
        if image is None or image.shape[:2] != size:
            raise ValueError(f"aggregate.shape is grabcut, which needs the photograph, {list(size)} (rows, columns)")
        mask = np.zeros(size, bool)
        mask[rows, cols] = grab_cut(image, rows, cols)
        return encode(mask)
    lengths = [cols.start * size[0] + rows.start, *wide * [high, size[0] - high]]
    lengths[-1] += size[0] * size[1] - sum(lengths)
    return pack(lengths, size)


def box_window(bbox: Sequence[float], size: tuple[int, int]) -> tuple[slice, slice]:
    """The pixels [round(x), round(x + w)) of an xywh box inside the image (the published code has one more)."""
    x, y, w, h = bbox
    spans = ((y, y + h, size[0]), (x, x + w, size[1]))
    (top, bottom), (left, right) = ([min(max(round(at), 0), side) for at in (start, end)] for start, end, side in spans)
    return slice(top, bottom), slice(left, right)


def grab_cut(image: np.ndarray, rows: slice, cols: slice) -> np.ndarray:
    """OpenCV's GrabCut from a box that is not empty: [h, w] bool, all False where it fails (a box that leaves no
    background fails). The same every time.
    """
    mask = np.zeros(image.shape[:2], np.uint8)
    box = (cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start)  # xywh
    cv2.setRNGSeed(0)
    try:
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(image, mask, box, *models, GRABCUT_ITERATIONS, cv2.GC_INIT_WITH_RECT)
    except cv2.error:
        return np.zeros((box[3], box[2]), bool)
    found = mask[rows, cols]
    return np.isin(found, (cv2.GC_FGD, cv2.GC_PR_FGD))
