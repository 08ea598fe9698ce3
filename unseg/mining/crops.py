"""The crop of an object, for its descriptor (MaskDistill, section 3.2: "the masked images"), and the mask in that crop."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Interval
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
    descriptor: Literal["cls", "mean", "both"]  # CLS token (paper) | mean patch token inside the mask | both, each of length 1
    layer: int  # block whose output is read, from 0; negative: from the last one, -1
    shifts: Annotated[int, Interval(ge=1, le=16)]  # positions of the patch grid on each side; the descriptor is their mean
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


def mask_in_crop(mask: Mask, p: Embedding) -> np.ndarray:
    """The fraction of each pixel of the resized crop that is inside the mask: [H, W] float32, 0..1.

    It is resized by the filter of the crop's pixels, and so stays aligned with them. All 1 if no pixel is inside.
    """
    inside = Pillow.fromarray(mask.decode().astype(np.float32)).crop(crop_box(mask, p))
    fraction = np.array(photos.resize(inside, crop_size(mask, p)))
    return fraction if fraction.any() else np.ones_like(fraction)
