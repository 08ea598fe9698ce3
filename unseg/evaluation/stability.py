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

from unseg.evaluation.quality import mean, overlap
from unseg.io import photos
from unseg.io.records import Image
from unseg.mining import affinity, miner

CROP = 0.75  # of each side
INSIDE = 0.5  # share of a mask that must lie in the crop, for the crop to be of the same object


class View(NamedTuple):
    """A photograph that is looked at again."""

    image: Image
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

    def agreement(self, again: np.ndarray) -> float:
        """IoU of the mask with the one mined on the view; nan where most of the mask lies outside of the crop."""
        if self.flipped:
            return overlap(self.mask, again[:, ::-1])
        kept = self.mask[window(self.image.size)]
        return overlap(kept, again) if np.count_nonzero(kept) >= INSIDE * np.count_nonzero(self.mask) else math.nan


def window(size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the middle of an image of (H, W); at least one pixel."""
    rows, cols = (slice((n - m) // 2, (n - m) // 2 + m) for n, m in ((n, max(1, round(CROP * n))) for n in size))
    return rows, cols


def remined(
    model: VisionTransformer, root: str, known: Sequence[tuple[Image, np.ndarray]], p: affinity.Mining, patch: int
) -> tuple[float, float]:
    """Mean IoU of mined masks [H, W] bool with those of the mirrored photographs, and of the crops; nan for none."""
    views = [View(image, mask, flipped) for image, mask in known for flipped in (True, False)]
    found = list(miner.masks(model, views, lambda v: v.size, lambda v: v.read(root), p, patch)) if views else []
    flipped, cropped = ([v.agreement(mask) for v, mask in found if v.flipped is way] for way in (True, False))
    return mean(flipped), mean(cropped)
