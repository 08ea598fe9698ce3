"""Stability of mining: is the same object mined in the mirrored photograph, and in a central crop? Uses no ground truth.

Shapes: H rows, W columns of a photograph.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from unseg.core.image_index import ImageRecord
from unseg.data import photos
from unseg.mining import affinity, miner
from unseg.models.vit import ViT

CROP = 0.75  # of each side
GRID = 64  # points a side, on which masks of different photographs are compared
MIN_INSIDE = 0.5  # minimum fraction of a mask inside the crop; with less, the crop may not show the object


class View(NamedTuple):
    """A photograph that is mined again."""

    image: ImageRecord
    mask: np.ndarray  # [H, W] bool, mined on the photograph itself
    flipped: bool  # False: cropped

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the view."""
        rows, cols = window(self.image.size)
        return self.image.size if self.flipped else (rows.stop - rows.start, cols.stop - cols.start)

    def read(self, root: str | Path) -> Pillow.Image:
        photo = photos.read(root, self.image)
        rows, cols = window(self.image.size)
        return ImageOps.mirror(photo) if self.flipped else photo.crop((cols.start, rows.start, cols.stop, rows.stop))

    def align(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """The masks of the photograph and of the view, on the same pixels; None if most of the first is outside the crop."""
        if self.flipped:
            return self.mask, mask[:, ::-1]
        inside = self.mask[window(self.image.size)]
        return (inside, mask) if np.count_nonzero(inside) >= MIN_INSIDE * np.count_nonzero(self.mask) else None


def window(size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the central crop of an image of (H, W); at least one pixel."""
    rows, cols = (slice((n - m) // 2, (n - m) // 2 + m) for n, m in ((n, max(1, round(CROP * n))) for n in size))
    return rows, cols


def iou_above_chance(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """How far the IoU of the two masks of a pair exceeds that of masks of different pairs: 1 for equal masks, 0 for chance.

    (within - across) / (1 - across): `within` is the mean IoU of the two masks of a pair, `across` of the first mask of a pair
    and the second of another. 0 if all masks are equal (whole images are stable, but useless), nan for fewer than two pairs.
    """
    if len(pairs) < 2:
        return math.nan
    a, b = (np.stack([sample(pair[i]) for pair in pairs]).astype(np.float32) for i in (0, 1))  # [V, GRID * GRID]
    common = a @ b.T  # [V, V]
    union = a.sum(1)[:, None] + b.sum(1) - common
    iou = np.where(union > 0, common / np.maximum(union, 1), 1)
    within = float(iou.diagonal().mean())
    across = float((iou.sum() - iou.trace()) / (len(pairs) * (len(pairs) - 1)))
    return (within - across) / (1 - across) if across < 1 - 1e-6 else 0.0


def sample(mask: np.ndarray) -> np.ndarray:
    """A mask of any size on a grid of GRID x GRID points, [GRID * GRID] bool."""
    rows, cols = ((2 * np.arange(GRID) + 1) * n // (2 * GRID) for n in mask.shape)
    return np.asarray(mask[rows[:, None], cols].ravel())


def measure_mining(
    model: ViT, root: str, masks: Sequence[tuple[ImageRecord, np.ndarray]], p: affinity.Mining
) -> tuple[float, float]:
    """`iou_above_chance` of mined masks [H, W] bool with those of the mirrored photographs, and with those of the crops."""
    views = [View(image, mask, flipped) for image, mask in masks for flipped in (True, False)]
    mined = list(miner.mine_first_object(model, views, lambda v: v.size, lambda v: v.read(root), p)) if views else []
    mined.sort(key=lambda item: item[0].image.id)
    flips, crops = ([pair for v, mask in mined if v.flipped is f and (pair := v.align(mask))] for f in (True, False))
    return iou_above_chance(flips), iou_above_chance(crops)
