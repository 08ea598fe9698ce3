"""Outlines of masks as polygons, holes bridged: by pixels on the outline (`pixel_polygons`) or by edges of pixels (`outlines`).

Shapes: H rows, W columns of a photograph, P points of a polygon, (x, y).
"""

from collections.abc import Sequence

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from unseg.core import masks

MIN_IOU = 0.995  # of a simplified polygon with its mask
TOLERANCES = (2.0, 1.0, 0.5)  # pixels, of the Douglas-Peucker algorithm; the first that keeps MIN_IOU is taken


def outlines(mask: np.ndarray) -> tuple[list[np.ndarray], int]:
    """The parts of [H, W] bool as polygons [P, 2] float of pixels' edges, as COCO and Label Studio count; the number of holes.

    A hole is joined to the outline by a line that goes there and back. Polygons are simplified as far as their IoU with the
    mask stays MIN_IOU; else they are exact.
    """
    found = pixel_polygons(np.kron(mask, np.ones((2, 2), bool)))  # [2H, 2W]: both edges of a pixel have a place
    exact = [without_repeats((points + 1) // 2) for points, _ in found]
    holes = sum(n for _, n in found)
    for tolerance in TOLERANCES:
        simple = [cv2.approxPolyDP(p.astype(np.int32), tolerance, True)[:, 0] for p in exact]
        if all(len(p) > 2 for p in simple) and iou(rasterise(simple, mask.shape), mask) >= MIN_IOU:
            return simple, holes
    return exact, holes


def rasterise(polygons: Sequence[np.ndarray], size: tuple[int, ...]) -> np.ndarray:
    """[H, W] bool: the pixels inside any polygon [P, 2] of edges, by pycocotools."""
    return masks.from_rle(coco_mask.merge(coco_mask.frPyObjects([p.ravel().tolist() for p in polygons], *size))).decode()


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def without_repeats(points: np.ndarray) -> np.ndarray:
    return np.asarray(points[(points != np.roll(points, 1, 0)).any(1)])


def pixel_polygons(mask: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """The parts of [H, W] bool as polygons [P, 2] (x, y) of pixels on the outline, P at least 3, each with its number of holes.

    Holes are bridged. cv2.fillPoly, which fills a polygon and its outline, gives the mask again.
    """
    found, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outlines = [c[:, 0] for c in found]  # [P, 2]
    holes: dict[int, list[np.ndarray]] = {}
    parents = tree[0, :, 3].tolist() if tree is not None else []  # -1: an outline; else the outline of this hole
    for points, parent in zip(outlines, parents, strict=True):
        holes.setdefault(parent, []).append(points)
    parts = []
    for i, points in enumerate(outlines):
        if parents[i] < 0:
            inside = holes.get(i, [])
            joined = corners(bridge(mask, points, inside))
            parts.append((np.resize(joined, (max(3, len(joined)), 2)), len(inside)))  # one or two pixels: points are repeated
    return parts


def bridge(mask: np.ndarray, outline: np.ndarray, holes: list[np.ndarray]) -> np.ndarray:
    """One polygon from an outline [P, 2] and its holes, with all their pixels.

    From the top of each hole a bridge goes straight up, through the mask, to the next contour and back. From the upper hole to
    the lower ones, that contour has been joined already.
    """
    rings = [outline, *sorted((np.roll(h, -int(h[:, 1].argmin()), 0) for h in holes), key=lambda h: int(h[0, 1]))]
    places: dict[tuple[int, int], tuple[int, int]] = {}  # of a pixel: the first ring that has it, and where
    joined: dict[tuple[int, int], list[int]] = {}  # of such a place: the rings that hang on it
    for n, ring in enumerate(rings):
        if n:
            x, y = ring[0].tolist()
            while y and mask[y - 1, x]:
                y -= 1
            joined.setdefault(places[x, y], []).append(n)
        for k, (x, y) in enumerate(ring.tolist()):
            places.setdefault((x, y), (n, k))
    points, stack = [], [(0, 0)]
    while stack:
        n, k = stack.pop()
        ring = rings[n]
        if k > len(ring) or (k == len(ring) and n == 0):
            continue
        points.append(ring[k % len(ring)])  # a hole ends where it begins
        if hanging := joined.get((n, k)):
            stack += [(n, k), (hanging.pop(), 0)]  # this pixel again, after the hole
        else:
            stack.append((n, k + 1))
    return np.array(points)


def corners(points: np.ndarray) -> np.ndarray:
    """A closed polygon [P, 2] without the points at which it goes straight on."""
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    kept = (np.sign(before) != np.sign(after)).any(1) | (np.abs(before).max(1) > 1) | (np.abs(after).max(1) > 1)
    return points[kept] if kept.any() else points[:1]
