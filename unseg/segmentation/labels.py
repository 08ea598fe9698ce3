"""Label maps: painted from scored masks (arXiv:2206.06363, sections 3.3 and 4.1, Table S1), refined by a CRF (section B).

Shapes: H rows, W columns of an image, C labels. In a label map 0 is background, category + 1 an object, 255 void.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from pydensecrf.densecrf import DenseCRF2D
from pydensecrf.utils import unary_from_softmax

from unseg.io.records import VOID, Rle, encode, pack, run_lengths

Detection = dict[str, Any]  # a COCO result: category_id from 0, segmentation (RLE), bbox (xywh, pixels), score
OVERLAPS = ("keep_higher", "overwrite", "skip", "published")
SHAPES = ("mask", "box", "grabcut")
GRABCUT_ITERATIONS = 5
ALONE, AHEAD = 100, 8  # images a process of the CRF has at the least; images a process that wait, at the most
FLOOR = 1e-5  # probabilities below are taken as this, so that no energy is infinite


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
        if not 0 <= d["category_id"] < VOID - 1:
            raise ValueError(f"category {d['category_id']} has no room beside background and void; label maps hold 254")
    kept = keep(detections, aggregation.threshold)
    layers: list[tuple[Rle, int]] = []  # what is painted, one over the other
    if aggregation.uncertain == "ignore":
        painted = {id(d) for d in kept}
        layers += [(outline(d, size, aggregation.shape, image), VOID) for d in detections if id(d) not in painted]
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


@dataclass(frozen=True)
class Crf:
    """The `crf` group of params.yaml; the values of the published code are 10, 1, 3, 67, 3, 4 (specification B.5.4)."""

    iterations: int  # of mean field
    smooth_xy: float  # pixels; deviation of the kernel that prefers one label nearby
    smooth_weight: float
    bilateral_xy: float  # pixels; deviation of the kernel that prefers one label nearby in like colours
    bilateral_rgb: float  # of 255
    bilateral_weight: float

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"crf.iterations is {self.iterations}; it must be at least 1")
        for key in ("smooth_xy", "bilateral_xy", "bilateral_rgb"):
            if getattr(self, key) <= 0:
                raise ValueError(f"crf.{key} is {getattr(self, key)}; it must be above 0")
        for key in ("smooth_weight", "bilateral_weight"):
            if getattr(self, key) < 0:
                raise ValueError(f"crf.{key} is {getattr(self, key)}; it must not be below 0")


def refine(probabilities: np.ndarray, image: np.ndarray, crf: Crf) -> np.ndarray:
    """Labels after mean-field inference in a dense CRF (Kraehenbuehl and Koltun, arXiv:1210.5644).

    Labels whose probability is at the floor in every pixel are left out: their energy is the same everywhere, they
    win nowhere, and time is proportional to the number of labels.

    Args:
        probabilities: [C, H, W] float32, C up to 256.
        image: [H, W, 3] uint8 RGB. The kernel does not know one channel from another; the lattice that approximates
            it does, by some 0.5 % of the pixels.

    Returns:
        [H, W] uint8
    """
    count, height, width = probabilities.shape
    if count > 256:
        raise ValueError(f"{count} labels; a label map holds 256")
    present = np.flatnonzero(probabilities.reshape(count, -1).max(1) > FLOOR)
    if len(present) < 2:
        return np.asarray(probabilities.argmax(0), np.uint8)
    field = DenseCRF2D(width, height, len(present))
    field.setUnaryEnergy(unary_from_softmax(probabilities[present], clip=FLOOR))  # [C, H W]
    field.addPairwiseGaussian(sxy=crf.smooth_xy, compat=crf.smooth_weight)
    colours = np.array(image[..., ::-1], np.uint8, order="C")  # BGR, as published; a copy that pydensecrf may write to
    field.addPairwiseBilateral(sxy=crf.bilateral_xy, srgb=crf.bilateral_rgb, rgbim=colours, compat=crf.bilateral_weight)
    refined = np.array(field.inference(crf.iterations)).argmax(0)  # [H W]
    return np.asarray(present[refined].reshape(height, width), np.uint8)


def refine_each(items: Iterable[tuple[str, np.ndarray, np.ndarray]], crf: Crf, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """`refine` of (name, probabilities, image), on all cores and in order; `count` of them, so that few need no processes.

    A core has ALONE images to do at the least, and no more than AHEAD a core wait in memory.
    """
    processes = min(os.cpu_count() or 1, count // ALONE)
    if processes < 2:
        for name, probabilities, image in items:
            yield name, refine(probabilities, image, crf)
        return
    waiting: deque[tuple[str, Future[np.ndarray]]] = deque()
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for name, probabilities, image in items:
            waiting.append((name, pool.submit(refine, probabilities, image, crf)))
            if len(waiting) > AHEAD * processes:
                first, job = waiting.popleft()
                yield first, job.result()
        for name, job in waiting:
            yield name, job.result()
