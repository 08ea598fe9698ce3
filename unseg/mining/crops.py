"""The crop of an object, for its CLS token (MaskDistill, section 3.2: "the masked images")."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge
from PIL import Image as Pillow

from unseg.core.masks import Mask
from unseg.core.params import PositiveInt, Precision
from unseg.data import photos


@dataclass(frozen=True)
class Embedding:
    """The `embed` group of params.yaml."""

    region: Literal["masked", "box", "image"]  # the box with the background blanked (paper), all of it (code), the blanked image
    resize: Annotated[int, Ge(0)]  # shorter side of the crop, pixels; 0: its original size
    longest: PositiveInt  # largest longer side, pixels: a narrow crop would become huge
    precision: Precision  # of the ViT


def crop_box(mask: Mask, p: Embedding) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the crop, pixels, right and bottom exclusive; at least one pixel."""
    if p.region == "image":
        return 0, 0, mask.size[1], mask.size[0]
    x, y, w, h = map(int, mask.bbox)
    return x, y, x + max(1, w), y + max(1, h)


def crop_size(mask: Mask, p: Embedding) -> tuple[int, int]:
    """(H, W) of the resized crop."""
    left, top, right, bottom = crop_box(mask, p)
    size = bottom - top, right - left
    h, w = photos.short_side(size, p.resize) if p.resize else size
    scale = min(1.0, p.longest / max(h, w))
    return max(1, round(h * scale)), max(1, round(w * scale))


def crop(image: Pillow.Image, mask: Mask, p: Embedding, fill: tuple[int, int, int]) -> Pillow.Image:
    """The resized crop of the object, RGB; pixels outside the mask have the colour `fill`, unless p.region is box."""
    if p.region != "box":
        pixels = np.array(image)
        pixels[~mask.decode()] = fill
        image = Pillow.fromarray(pixels)
    return photos.resize(image.crop(crop_box(mask, p)), crop_size(mask, p))
