"""Binary masks as COCO's compressed run lengths. Shapes: M masks, H rows, W columns of an image at its original size."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

Rle = dict[str, Any]  # of pycocotools: {"size": [H, W], "counts": str}


@dataclass(frozen=True, slots=True)
class Mask:
    """A binary mask of an image. `check` validates the run lengths, which pycocotools does not."""

    size: tuple[int, int]  # H, W
    counts: str

    @property
    def rle(self) -> Rle:
        return {"size": list(self.size), "counts": self.counts}

    @property
    def area(self) -> int:
        """Pixels."""
        return int(coco_mask.area(self.rle))

    @property
    def bbox(self) -> tuple[float, float, float, float]:
        """The tight box, xywh, pixels."""
        x, y, w, h = coco_mask.toBbox(self.rle).tolist()
        return x, y, w, h

    def decode(self) -> np.ndarray:
        """[H, W] bool."""
        return np.asarray(coco_mask.decode(self.rle), bool)


def encode(mask: np.ndarray) -> Mask:
    """[H, W] bool to a mask."""
    return encode_all(mask[None])[0]


def encode_all(masks: np.ndarray) -> list[Mask]:
    """[M, H, W] bool to M masks, in one call."""
    rles = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [from_rle(rle) for rle in rles]


def from_rle(rle: Rle) -> Mask:
    """A mask of pycocotools or of a COCO file. Raises ValueError if it is not compressed run lengths with a size."""
    try:
        (h, w), counts = rle["size"], rle["counts"]
        counts = counts.decode() if isinstance(counts, bytes) else counts
    except (TypeError, KeyError, ValueError, UnicodeDecodeError):
        raise ValueError(f"{str(rle)[:60]!r} is no mask; it must have size and counts") from None
    if not isinstance(counts, str) or not all(isinstance(n, int) and n > 0 for n in (h, w)):
        raise ValueError(f"{str(rle)[:60]!r} is no mask; size must be [rows, columns], counts text")
    return Mask((int(h), int(w)), counts)


def from_run_lengths(lengths: list[int], size: tuple[int, int]) -> Mask:
    """A mask of size (H, W) from run lengths, column by column, background first. They must sum to H * W."""
    return from_rle(coco_mask.frPyObjects({"size": list(size), "counts": lengths}, *size))


def check(masks: Sequence[Mask]) -> None:
    """Raises ValueError if the run lengths of a mask are invalid, or do not sum to its number of pixels."""
    for mask, lengths in zip(masks, run_lengths([m.counts for m in masks]), strict=True):
        h, w = mask.size
        if lengths.sum() != h * w or lengths.max() > h * w:
            raise ValueError(f"the run lengths of a mask do not add up to {h} x {w} pixels")


def run_lengths(counts: Sequence[str]) -> list[np.ndarray]:
    """COCO's compressed run lengths of many masks as int64, background first. Raises ValueError for invalid text.

    Each character, counted from "0", has six bits: five of the number, low ones first, and one for "more follow". The highest
    bit of the last character is the sign. From the fourth run on, the text has the difference to the run two before.
    """
    if not all(isinstance(text, str) and text for text in counts):
        raise ValueError("run lengths must be text that is not empty")
    if not counts:
        return []
    text = "".join(counts)
    if wrong := re.search(r"[^0-o]", text):
        raise ValueError(f"{wrong[0]!r} does not occur in run lengths")
    bits = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48  # [characters]
    ends = np.flatnonzero(bits < 32)  # [numbers], their last characters
    after = np.cumsum([len(text) for text in counts])
    if (bits[after - 1] >= 32).any():
        raise ValueError("the run lengths are cut short")
    begins = np.concatenate([[0], ends[:-1] + 1])
    shifts = 5 * (np.arange(len(bits)) - np.repeat(begins, ends - begins + 1))
    if shifts.max() > 50:
        raise ValueError("a run length has more than eleven characters")
    numbers = np.add.reduceat((bits & 31) << shifts, begins) - ((bits[ends] & 16) << (shifts[ends] + 1))
    runs = np.split(numbers, np.searchsorted(ends, after)[:-1])
    for run in runs:
        for every_other in (run[1::2], run[2::2]):
            every_other.cumsum(out=every_other)
    if numbers.min() < 0:
        raise ValueError("a run length is below 0")
    return runs


def boxes_xyxy(masks: Sequence[Mask]) -> np.ndarray:
    """Tight boxes [M, 4] float64, pixels, right and bottom exclusive."""
    boxes = np.asarray([m.bbox for m in masks], float).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
