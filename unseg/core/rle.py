"""Run-length masks and COCO annotations.

Shapes: M masks, H rows, W columns, of an image at its original size.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

Rle = dict[str, Any]  # COCO's compressed run-length encoding: {"size": [H, W], "counts": str}
CLASS_AGNOSTIC = 0  # of a mined mask, before clustering


def encode(mask: np.ndarray) -> Rle:
    """[H, W] bool to run lengths."""
    return encode_all(mask[None])[0]


def encode_all(masks: np.ndarray) -> list[Rle]:
    """[M, H, W] bool to M run-length masks, in one call."""
    rles = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [{"size": [int(n) for n in r["size"]], "counts": r["counts"].decode()} for r in rles]


def decode(rle: Rle) -> np.ndarray:
    """Run lengths to [H, W] bool."""
    return np.asarray(coco_mask.decode(rle), bool)


def pack(lengths: list[int], size: tuple[int, int]) -> Rle:
    """Run lengths, pixels of background first, column by column, to a mask of this size (H, W), which they add up to."""
    rle = coco_mask.frPyObjects({"size": list(size), "counts": lengths}, *size)
    return {"size": list(size), "counts": rle["counts"].decode()}


def run_lengths(counts: Sequence[str]) -> list[np.ndarray]:
    """COCO's compressed run lengths of many masks as numbers, int64, pixels of background first.

    Six bits a character from "0" on: five of the number, low ones first, and one that says that more
    follow; the last one's highest bit is the sign. From the fourth run on, the difference to the run two
    before is stored.

    Raises:
        ValueError: a text is no such thing, e.g. cut short.
    """
    if not all(isinstance(text, str) and text for text in counts):
        raise ValueError("run lengths are compressed ones, text that is not empty")
    if not counts:
        return []
    text = "".join(counts)
    if wrong := re.search(r"[^0-o]", text):
        raise ValueError(f"{wrong[0]!r} does not occur in run lengths")
    bits = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48  # [characters]
    ends = np.flatnonzero(bits < 32)  # [numbers], their last characters
    after = np.cumsum([len(text) for text in counts])
    if (bits[after - 1] >= 32).any():
        raise ValueError("its run lengths are cut short")
    begins = np.concatenate([[0], ends[:-1] + 1])
    shifts = 5 * (np.arange(len(bits)) - np.repeat(begins, ends - begins + 1))
    if shifts.max() > 50:
        raise ValueError("a run length has more than eleven characters")
    numbers = np.add.reduceat((bits & 31) << shifts, begins) - ((bits[ends] & 16) << (shifts[ends] + 1))
    found, start = [], 0
    for end in np.searchsorted(ends, after).tolist():
        own, start = numbers[start:end], end
        for every_other in (own[1::2], own[2::2]):
            every_other.cumsum(out=every_other)
        found.append(own)
    if numbers.min() < 0:
        raise ValueError("a run length is below 0")
    return found


def coco_annotation(id: int, image_id: int, category_id: int, rle: Rle) -> dict[str, Any]:
    """A COCO annotation; bbox is xywh in pixels, area in pixels."""
    return {
        "id": id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": rle,
        "bbox": [float(x) for x in coco_mask.toBbox(rle)],
        "area": int(coco_mask.area(rle)),
        "iscrowd": 0,
    }


def group_by_image(annotations: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Annotations or detections grouped by image_id, order kept."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for a in annotations:
        groups.setdefault(a["image_id"], []).append(a)
    return groups


def boxes_xyxy(rles: Sequence[Rle]) -> np.ndarray:
    """Tight boxes [M, 4] float64 of run-length masks, pixels, right and bottom exclusive."""
    box = np.asarray(coco_mask.toBbox(list(rles)), float).reshape(-1, 4)
    return np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], 1)
