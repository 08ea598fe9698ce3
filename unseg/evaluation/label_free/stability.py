"""Whether mining finds the same object again: in the mirrored photograph, and in a crop of its middle. No truth is used.

Shapes: H rows, W columns of a photograph.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps
from timm.models.vision_transformer import VisionTransformer

from unseg.core.image_index import ImageRecord
from unseg.data import photos
from unseg.mining import affinity, miner

CROP = 0.75  # of each side
GRID = 64  # points a side, on which masks of different photographs are compared
INSIDE = 0.5  # share of a mask that must lie in the crop, for the crop to be of the same object


class View(NamedTuple):
    """A photograph that is looked at again."""

    image: ImageRecord
    mask: np.ndarray  # [H, W] bool, that was mined on it as it is
    flipped: bool  # or else cropped

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of what is looked at."""
        rows, cols = window(self.image.size)
        return self.image.size if self.flipped else (rows.stop - rows.start, cols.stop - cols.start)

    def read(self, root: str | Path) -> Pillow.Image:
        photo = photos.read(root, self.image)
        rows, cols = window(self.image.size)
        return ImageOps.mirror(photo) if self.flipped else photo.crop((cols.start, rows.start, cols.stop, rows.stop))

    def pair(self, again: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """The mask and the one mined on the view, both as the photograph lies; None where most of the mask is outside a crop."""
        if self.flipped:
            return self.mask, again[:, ::-1]
        kept = self.mask[window(self.image.size)]
        return (kept, again) if np.count_nonzero(kept) >= INSIDE * np.count_nonzero(self.mask) else None


def window(size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the middle of an image of (H, W); at least one pixel."""
    rows, cols = (slice((n - m) // 2, (n - m) // 2 + m) for n, m in ((n, max(1, round(CROP * n))) for n in size))
    return rows, cols


def above_chance(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """How much more alike the two masks of a pair are than masks of different pairs: 1 for the same, 0 for no more.

    Mean IoU within pairs, and of the first of each with the second of every other, as (own - other) / (1 - other); 0 where all
    masks are one and the same (whole images, say: they are stable, and of no use), nan for fewer than two pairs.
    """
    if len(pairs) < 2:
        return math.nan
    one, two = (np.stack([thumb(pair[i]) for pair in pairs]).astype(np.float32) for i in (0, 1))  # [V, GRID * GRID]
    common = one @ two.T  # [V, V]
    union = one.sum(1)[:, None] + two.sum(1) - common
    iou = np.where(union > 0, common / np.maximum(union, 1), 1)
    own = float(iou.diagonal().mean())
    other = float((iou.sum() - iou.trace()) / (len(pairs) * (len(pairs) - 1)))
    return (own - other) / (1 - other) if other < 1 - 1e-6 else 0.0


def thumb(mask: np.ndarray) -> np.ndarray:
    """A mask of any size on a grid of GRID x GRID points, [GRID * GRID] bool."""
    rows, cols = ((2 * np.arange(GRID) + 1) * n // (2 * GRID) for n in mask.shape)
    return np.asarray(mask[rows[:, None], cols].ravel())


def remined(
    model: VisionTransformer, root: str, known: Sequence[tuple[ImageRecord, np.ndarray]], p: affinity.Mining, patch: int
) -> tuple[float, float]:
    """How far mined masks [H, W] bool are found again in the mirrored photographs and in the crops: `above_chance` of each."""
    views = [View(image, mask, flipped) for image, mask in known for flipped in (True, False)]
    found = list(miner.masks(model, views, lambda v: v.size, lambda v: v.read(root), p, patch)) if views else []
    found.sort(key=lambda pair: pair[0].image.id)
    pairs = [[pair for v, mask in found if v.flipped is way and (pair := v.pair(mask))] for way in (True, False)]
    return above_chance(pairs[0]), above_chance(pairs[1])
